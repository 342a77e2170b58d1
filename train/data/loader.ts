/**
 * Training samples in a seeded order, read ahead while the GPU works. A sample depends on the seed and its place in the run alone,
 * so a run that is resumed at a place sees what it would have seen.
 */
import { Random } from "../../engine/random.ts";
import { BadInput } from "../errors.ts";
import {
  type Affine,
  type AugmentOptions,
  applyAugment,
  boxToNetwork,
  drawAugment,
  fitAugment,
  isInside,
  pointToNetwork,
  warpMask,
} from "./augment.ts";
import { classIndex, type Instances, imagePath, instanceRuns, instancesByImage } from "./coco.ts";
import { checkSize, type Image, readImage, resizeImage } from "./image.ts";
import { type Box, boxOfRuns, type Runs, runsOfMask } from "./mask.ts";
import type { Kind, WeakLabels } from "./weak.ts";

/** An image and its labels, in the original frame. */
export interface Item {
  imageId: number;
  path: string;
  width: number;
  height: number;
  kind: Kind | "masks";
  /** Class index (0..K-1) of each target; for tags empty. */
  classes: number[];
  /** Kind points: the pixel of each target. */
  points: [x: number, y: number][];
  /** Kinds boxes and masks. */
  boxes: Box[];
  /** Kind masks. */
  runs: Runs[];
  /** The set of classes in the image, ascending. */
  tags: number[];
}

/** SAM's candidates for one target, computed once on the original image. */
export interface Proxy {
  candidates: Runs[];
  /** SAM's own estimate for each candidate. */
  iou: number[];
}

/** What one training step sees of an image; frame: the network's. */
export interface Sample {
  imageId: number;
  /** Index in the loader's items. */
  item: number;
  /** (height, width, 3), padded at the right and below. */
  rgb: Uint8Array;
  width: number;
  height: number;
  /** Part of the frame that shows the image; it starts at the left upper corner. */
  valid: [width: number, height: number];
  kind: Kind | "masks";
  /** Classes for the tag loss. Kind tags: of the whole image, whatever the crop shows; else of the targets that are left. */
  tags: number[];
  /** Class index of each target. Targets that the crop leaves outside are dropped. */
  classes: number[];
  /** Index of each target in its item. */
  source: number[];
  /** Kind points: pixel coordinates, the centre of pixel (x, y) lies at (x + 0.5, y + 0.5). */
  points: [x: number, y: number][];
  /** Kinds boxes (clipped to the crop) and masks (of the mask in the crop): edges. */
  boxes: [x0: number, y0: number, x1: number, y1: number][];
  /** Kind masks: 0/1, (height / maskStride, width / maskStride). */
  masks: Uint8Array[];
  /** Where the loader was given proxies: each target's candidates in the masks' form. */
  proxies?: { masks: Uint8Array[]; iou: number[] }[];
  /** From the original image to this frame. */
  affine: Affine;
  originalWidth: number;
  originalHeight: number;
}

/** The labelled images of a weak labels file. */
export function weakItems(weak: WeakLabels, imagesDir: string): Item[] {
  const images = new Map(weak.images.map((image) => [image.id, image]));
  const classes = classIndex(weak.categories);
  const toClass = ({ categoryId }: { categoryId: number }) => classes.get(categoryId)!;
  return weak.entries.map((entry): Item => {
    const image = images.get(entry.imageId)!;
    const { width, height } = image;
    const targets =
      entry.kind === "tags" ? [] : entry.kind === "points" ? entry.points.map(toClass) : entry.boxes.map(toClass);
    return {
      imageId: image.id,
      path: imagePath(imagesDir, image),
      width,
      height,
      kind: entry.kind,
      classes: targets,
      points: entry.kind === "points" ? entry.points.map(({ x, y }) => [x, y]) : [],
      boxes: entry.kind === "boxes" ? entry.boxes.map(({ box }) => box) : [],
      runs: [],
      tags: ascending(entry.kind === "tags" ? entry.categoryIds.map((id) => classes.get(id)!) : targets),
    };
  });
}

/** All images of an instances file with their masks, for full supervision; crowd regions are left out. */
export function maskItems(data: Instances, imagesDir: string): Item[] {
  const byImage = instancesByImage(data);
  const index = classIndex(data.categories);
  return data.images.map((image): Item => {
    const instances = byImage.get(image.id)!.filter(({ crowd }) => !crowd);
    const classes = instances.map(({ categoryId }) => index.get(categoryId)!);
    return {
      imageId: image.id,
      path: imagePath(imagesDir, image),
      width: image.width,
      height: image.height,
      kind: "masks",
      classes,
      points: [],
      boxes: instances.map(({ box }) => box),
      runs: instances.map((instance) => instanceRuns(instance, image)),
      tags: ascending(classes),
    };
  });
}

function ascending(classes: readonly number[]): number[] {
  return [...new Set(classes)].sort((a, b) => a - b);
}

export interface SampleOptions {
  augment: AugmentOptions;
  /** Masks are given at this fraction of the frame (default 1: whole). */
  maskStride?: number;
  /** SAM's candidates of an item's targets, in the item's order; undefined for items that have none. */
  proxies?: (item: Item, index: number) => readonly Proxy[] | undefined | Promise<readonly Proxy[] | undefined>;
}

/** Reads and augments one item. Throws BadInput naming the image when it cannot be read or is not as large as the labels say. */
export async function loadSample(item: Item, index: number, options: SampleOptions, random: Random): Promise<Sample> {
  const [image, proxies] = await Promise.all([readImage(item.path), options.proxies?.(item, index)]);
  checkSize(item.path, image, item);
  const { augment: jitter, maskStride = 1 } = options;
  const { width, height } = jitter;
  const augment = drawAugment(item, jitter, item.kind, random);
  const { affine, valid } = augment;
  const warp = (runs: Runs) => warpMask(runs, affine, width, height, maskStride);

  const sample: Sample = {
    imageId: item.imageId,
    item: index,
    rgb: applyAugment(image, augment, jitter),
    width,
    height,
    valid,
    kind: item.kind,
    tags: item.tags,
    classes: [],
    source: [],
    points: [],
    boxes: [],
    masks: [],
    affine,
    originalWidth: item.width,
    originalHeight: item.height,
  };
  if (proxies !== undefined) sample.proxies = [];
  item.classes.forEach((label, i) => {
    if (item.kind === "points") {
      const point = pointToNetwork(affine, ...item.points[i]!);
      if (!isInside(point, valid)) return;
      sample.points.push(point);
    } else if (item.kind === "boxes") {
      const box = boxToNetwork(affine, item.boxes[i]!, valid);
      if (box === undefined) return;
      sample.boxes.push(box);
    } else {
      const mask = warp(item.runs[i]!);
      const [x, y, w, h] = boxOfRuns(runsOfMask(mask, Math.ceil(width / maskStride), Math.ceil(height / maskStride)));
      if (w === 0) return;
      sample.masks.push(mask);
      sample.boxes.push([x * maskStride, y * maskStride, (x + w) * maskStride, (y + h) * maskStride]);
    }
    sample.classes.push(label);
    sample.source.push(i);
    if (proxies === undefined) return;
    const proxy = proxies[i];
    if (proxy === undefined)
      throw new Error(`${item.path}: has ${item.classes.length} targets, but proxies for ${proxies.length}`);
    sample.proxies?.push({ masks: proxy.candidates.map(warp), iou: proxy.iou });
  });
  if (item.kind !== "tags") sample.tags = ascending(sample.classes);
  return sample;
}

/** Where a run stands in its data: samples handed out so far are `epoch` times all items and `position` more. */
export interface LoaderState {
  seed: number;
  items: number;
  epoch: number;
  position: number;
}

export interface LoaderOptions extends SampleOptions {
  items: readonly Item[];
  batch: number;
  seed: number;
  /** Batches read ahead (default 2). */
  prefetch?: number;
}

export class Loader {
  readonly #options: LoaderOptions;
  readonly #random: Random;
  /** Samples handed out. */
  #done = 0;
  #ahead: Promise<Sample[]>[] = [];
  #order: { epoch: number; items: number[] } = { epoch: -1, items: [] };

  /** Throws BadInput where there is nothing to train on. */
  constructor(options: LoaderOptions) {
    if (options.items.length === 0)
      throw new BadInput("there are no labelled images to train on; check the labels file");
    if (!(Number.isInteger(options.batch) && options.batch > 0)) {
      throw new BadInput(`the batch must be a whole number from 1, got ${options.batch}`);
    }
    this.#options = options;
    this.#random = new Random(options.seed).fork("loader");
  }

  /** Batches in an epoch, the last of which is filled up from the next epoch. */
  get stepsPerEpoch(): number {
    return Math.ceil(this.#options.items.length / this.#options.batch);
  }

  /** The next batch, always full. Rejects with BadInput when one of its images cannot be read. */
  next(): Promise<Sample[]> {
    const { batch, prefetch = 2 } = this.#options;
    while (this.#ahead.length <= prefetch) this.#ahead.push(this.#load(this.#done + this.#ahead.length * batch));
    this.#done += batch;
    return this.#ahead.shift()!;
  }

  /** The place after the batches handed out; those read ahead do not count. Plain JSON. */
  get state(): LoaderState {
    const items = this.#options.items.length;
    return {
      seed: this.#options.seed,
      items,
      epoch: Math.floor(this.#done / items),
      position: this.#done % items,
    };
  }

  /** Goes on from a state of a loader with the same seed and data. Throws BadInput where they differ. */
  restore(state: LoaderState): void {
    const { seed, items } = this.state;
    if (state.seed !== seed || state.items !== items) {
      throw new BadInput(
        `the run was started with seed ${state.seed} on ${state.items} images, now it has seed ${seed} and ${items} images; resume with the same data and seed`,
      );
    }
    this.#ahead = [];
    this.#done = state.epoch * items + state.position;
  }

  /** Drops what was read ahead. */
  close(): void {
    this.#ahead = [];
  }

  #load(first: number): Promise<Sample[]> {
    const places = Array.from({ length: this.#options.batch }, (_, i) => first + i);
    const batch = Promise.all(
      places.map((place) => {
        const index = this.#itemAt(place);
        return loadSample(this.#options.items[index]!, index, this.#options, this.#random.fork(`sample ${place}`));
      }),
    );
    // A failure is reported when its batch is asked for, not while it is read ahead.
    batch.catch(() => {});
    return batch;
  }

  #itemAt(place: number): number {
    const count = this.#options.items.length;
    const epoch = Math.floor(place / count);
    if (this.#order.epoch !== epoch) {
      const items = this.#random.fork(`epoch ${epoch}`).shuffle(Array.from({ length: count }, (_, i) => i));
      this.#order = { epoch, items };
    }
    return this.#order.items[place % count]!;
  }
}

/** An image as evaluation and prediction show it to the network. */
export interface Shown {
  rgb: Uint8Array;
  width: number;
  height: number;
  valid: [width: number, height: number];
  affine: Affine;
  originalWidth: number;
  originalHeight: number;
}

/**
 * Either the shorter side becomes `short` unless the longer one would pass `long` (nothing is padded), or the image is fitted
 * into a frame of `width` x `height`, at its left upper corner, and padded.
 */
export async function evalSample(
  source: string | Image,
  size: { short: number; long: number } | { width: number; height: number; pad?: number },
): Promise<Shown> {
  const image = typeof source === "string" ? await readImage(source) : source;
  const original = { originalWidth: image.width, originalHeight: image.height };
  if ("width" in size) {
    const { width, height } = size;
    const augment = fitAugment(image, size);
    return {
      rgb: applyAugment(image, augment, size),
      width,
      height,
      valid: augment.valid,
      affine: augment.affine,
      ...original,
    };
  }
  const [width, height] = shortestEdge(image, size);
  const affine = { scaleX: width / image.width, offsetX: 0, scaleY: height / image.height, offsetY: 0 };
  const rgb = resizeImage(image, width, height).data;
  return { rgb, width, height, valid: [width, height], affine, ...original };
}

/** detectron2's ResizeShortestEdge. */
export function shortestEdge(
  { width, height }: { width: number; height: number },
  { short, long }: { short: number; long: number },
): [width: number, height: number] {
  let scale = short / Math.min(width, height);
  if (Math.max(width, height) * scale > long) scale = long / Math.max(width, height);
  const side = (length: number) => Math.max(1, Math.floor(length * scale + 0.5));
  return [side(width), side(height)];
}
