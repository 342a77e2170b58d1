/**
 * One training sample: an image is read, augmented and brought into the network's frame with its labels. It depends on nothing but the job,
 * so that it does not matter on which thread it is made.
 */
import { Random, type RandomState } from "../../engine/random.ts";
import {
  type Affine,
  type AugmentOptions,
  applyAugment,
  boxToNetwork,
  drawAugment,
  isInside,
  pointToNetwork,
  warpMask,
} from "./augment.ts";
import { checkSize, readImage } from "./image.ts";
import { type Box, boxOfRuns, type Runs, runsOfMask } from "./mask.ts";
import type { Kind } from "./weak.ts";

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
export interface TargetMasks {
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

/** All that a sample depends on, as plain data. */
export interface SampleJob {
  item: Item;
  /** Its place among the loader's items. */
  index: number;
  /** SAM's candidates of the item's targets, in the item's order. */
  proxies: readonly TargetMasks[] | undefined;
  augment: AugmentOptions;
  maskStride: number;
  random: RandomState;
}

/** Reads and augments one item. Throws BadInput naming the image when it cannot be read or is not as large as the labels say. */
export async function loadSample(job: SampleJob): Promise<Sample> {
  const { item, index, proxies, augment: jitter, maskStride } = job;
  const image = await readImage(item.path);
  checkSize(item.path, image, item);
  const random = new Random(0);
  random.restore(job.random);
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

/** A set of classes, in order. */
export function ascending(classes: readonly number[]): number[] {
  return [...new Set(classes)].sort((a, b) => a - b);
}
