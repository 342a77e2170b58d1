/**
 * Training samples in a seeded order, read ahead while the GPU works. A sample depends on the seed and its place in the run alone,
 * so a run that is resumed at a place sees what it would have seen.
 */
import { Random } from "../../engine/random.ts";
import { BadInput } from "../errors.ts";
import { type Affine, type AugmentOptions, applyAugment, fitAugment } from "./augment.ts";
import { classIndex, type Instances, imagePath, instanceRuns, instancesByImage } from "./coco.ts";
import { type Image, readImage, resizeImage } from "./image.ts";
import { ascending, type Item, loadSample, type Sample, type SampleJob, type TargetMasks } from "./sample.ts";
import { SamplePool, threadsFor } from "./sample-pool.ts";
import type { WeakLabels } from "./weak.ts";

export type { Item, Sample, TargetMasks };

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
    const bare = instances.find(({ segmentation }) => segmentation === undefined);
    if (bare !== undefined)
      throw new BadInput(
        `${data.file}: annotation ${bare.id} has no segmentation, and full supervision needs masks; boxes alone are weak labels: wgpu-wish dataset ${data.file} --weak --out weak.json`,
      );
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

/** Where a run stands in its data: samples handed out so far are `epoch` times all items and `position` more. */
export interface LoaderState {
  seed: number;
  items: number;
  epoch: number;
  position: number;
}

export interface LoaderOptions {
  items: readonly Item[];
  batch: number;
  seed: number;
  augment: AugmentOptions;
  /** Masks are given at this fraction of the frame (default 1: whole). */
  maskStride?: number;
  /** SAM's candidates of an item's targets, in the item's order; undefined for items that have none. */
  proxies?: (item: Item, index: number) => readonly TargetMasks[] | undefined;
  /** Makes up for rarer kinds of labels: an image stands (most / own)^balance times in an epoch. Default 0: once. */
  balance?: number;
  /** Threads that make samples; 0: the caller's own. Default: by the size of the frame. What comes out is the same. */
  threads?: number | undefined;
  /** Batches read ahead (default 2, more where that leaves threads idle). */
  prefetch?: number;
}

export class Loader {
  readonly #options: LoaderOptions;
  readonly #random: Random;
  /** Samples handed out. */
  #done = 0;
  #ahead: Promise<Sample[]>[] = [];
  readonly #pool: SamplePool | undefined;
  readonly #prefetch: number;
  /** Items of an epoch, in their own order. */
  readonly #epoch: readonly number[];
  #order: { epoch: number; items: number[] } = { epoch: -1, items: [] };

  /** Throws BadInput where there is nothing to train on. */
  constructor(options: LoaderOptions) {
    if (options.items.length === 0)
      throw new BadInput("there are no labelled images to train on; check the labels file");
    if (!(Number.isInteger(options.batch) && options.batch > 0)) {
      throw new BadInput(`the batch must be a whole number from 1, got ${options.batch}`);
    }
    this.#options = options;
    this.#epoch = epochOf(options.items, options.balance ?? 0);
    this.#random = new Random(options.seed).fork("loader");
    const threads = options.threads ?? threadsFor(options.augment);
    this.#pool = threads > 0 ? new SamplePool(threads) : undefined;
    this.#prefetch = options.prefetch ?? Math.max(2, Math.ceil((2 * threads) / options.batch));
  }

  /** Batches in an epoch, the last of which is filled up from the next epoch. */
  get stepsPerEpoch(): number {
    return Math.ceil(this.#epoch.length / this.#options.batch);
  }

  /** The next batch, always full. Rejects with BadInput when one of its images cannot be read. */
  next(): Promise<Sample[]> {
    const { batch } = this.#options;
    while (this.#ahead.length <= this.#prefetch) this.#ahead.push(this.#load(this.#done + this.#ahead.length * batch));
    this.#done += batch;
    return this.#ahead.shift()!;
  }

  /** The place after the batches handed out; those read ahead do not count. Plain JSON. */
  get state(): LoaderState {
    const items = this.#epoch.length;
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

  /** Drops what was read ahead and ends the threads. */
  close(): void {
    this.#ahead = [];
    this.#pool?.close();
  }

  #load(first: number): Promise<Sample[]> {
    const places = Array.from({ length: this.#options.batch }, (_, i) => first + i);
    const batch = Promise.all(
      places.map((place) => {
        const job = this.#jobAt(place);
        return this.#pool?.run(job) ?? loadSample(job);
      }),
    );
    // A failure is reported when its batch is asked for, not while it is read ahead.
    batch.catch(() => {});
    return batch;
  }

  #jobAt(place: number): SampleJob {
    const { items, proxies, augment, maskStride = 1 } = this.#options;
    const index = this.#itemAt(place);
    const item = items[index]!;
    const random = this.#random.fork(`sample ${place}`).state;
    // Whatever else is known of a proxy stays here.
    const masks = proxies?.(item, index)?.map(({ candidates, iou }) => ({ candidates, iou }));
    return { item, index, proxies: masks, augment, maskStride, random };
  }

  #itemAt(place: number): number {
    const count = this.#epoch.length;
    const epoch = Math.floor(place / count);
    if (this.#order.epoch !== epoch) {
      const items = this.#random.fork(`epoch ${epoch}`).shuffle([...this.#epoch]);
      this.#order = { epoch, items };
    }
    return this.#order.items[place % count]!;
  }
}

/** Indices of an epoch's items: those of rarer kinds stand in it more than once. */
function epochOf(items: readonly Pick<Item, "kind">[], balance: number): number[] {
  const counts = new Map<string, number>();
  for (const { kind } of items) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  const most = Math.max(...counts.values());
  return items.flatMap(({ kind }, i) => new Array<number>(Math.round((most / counts.get(kind)!) ** balance)).fill(i));
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
