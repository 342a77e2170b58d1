/** What the objects of a batch are: on the host, object by object, and as tensors for matching and losses. */
import type { Device, Random, Tensor } from "../engine/index.ts";

/** What a weak label says, in pixels of the network's input: [x, y] of a point's pixel or [x0, y0, x1, y1] of a box's edges. */
export interface Prompt {
  kind: "point" | "box";
  coords: readonly number[];
}

/** One object of one image, in the network's frame. */
export interface Target {
  classIndex: number;
  /** Masks it may have: SAM's three, or the true one. Row by row, 0 to 1 (Uint8Array: 0 or 1), all of one size. */
  candidates: readonly (Uint8Array | Float32Array)[];
  /** SAM's own rating of each; true masks have 1. */
  iou: readonly number[];
  prompt?: Prompt;
}

export interface ImageTargets {
  targets: Target[];
  /** False where it is unknown what objects there are (tags whose CAM has no peak): then "no object" is not taught either. */
  supervised: boolean;
  /** Class indices known to be in the image. */
  tags: readonly number[];
  /** [width, height] of the part of the input that is image. */
  valid: readonly [number, number];
}

/** The objects of a batch side by side: T of them, object t of image b being row offsets[b] + t. */
export interface TargetTensors {
  images: readonly ImageTargets[];
  offsets: readonly number[];
  total: number;
  /** Most objects in one image. */
  most: number;
  /** Candidate masks of each object. */
  candidates: number;
  /** (T * candidates, 1, h, w); undefined where T is 0. */
  masks: Tensor | undefined;
  /** usable[row][candidate]: false for an empty mask. */
  usable: readonly (readonly boolean[])[];
}

/** @param size [width, height] of the candidate masks */
export function uploadTargets(
  gpu: Device,
  images: readonly ImageTargets[],
  size: readonly [number, number],
): TargetTensors {
  const [w, h] = size;
  const all = images.flatMap((image) => image.targets);
  const candidates = all[0]?.candidates.length ?? 1;
  const offsets: number[] = [];
  let total = 0;
  for (const { targets } of images) {
    offsets.push(total);
    total += targets.length;
  }
  const values = new Float32Array(total * candidates * w * h);
  for (const [row, target] of all.entries()) {
    if (target.candidates.length !== candidates)
      throw new Error(
        `uploadTargets: every object has ${candidates} candidate masks in this batch; got ${target.candidates.length}`,
      );
    for (const [c, mask] of target.candidates.entries()) {
      if (mask.length !== w * h) throw new Error(`uploadTargets: masks must be ${w} x ${h}; got ${mask.length} values`);
      values.set(mask, (row * candidates + c) * w * h);
    }
  }
  return {
    images,
    offsets,
    total,
    most: images.reduce((n, image) => Math.max(n, image.targets.length), 0),
    candidates,
    masks: total > 0 ? gpu.tensor(values, [total * candidates, 1, h, w]) : undefined,
    usable: all.map((target) => target.candidates.map((mask) => mask.some((v) => v > 0))),
  };
}

/** For each image its rows, filled up to `most` with `pad`: (B * most). */
export function paddedRows(targets: TargetTensors, pad: number): Int32Array {
  const rows = new Int32Array(targets.images.length * targets.most).fill(pad);
  for (const [b, { targets: objects }] of targets.images.entries())
    for (let t = 0; t < objects.length; t++) rows[b * targets.most + t] = targets.offsets[b]! + t;
  return rows;
}

export function indexTensor(gpu: Device, values: ArrayLike<number>): Tensor {
  return gpu.tensor(Int32Array.from(values), [values.length], { dtype: "i32" });
}

/** n random coordinates from -1 to 1. A loop: Float32Array.from with a function takes many times as long, and a step needs 100,000. */
export function randomPoints(n: number, random: Random): Float32Array {
  const out = new Float32Array(n);
  for (let i = 0; i < n; i++) out[i] = random.uniform(-1, 1);
  return out;
}
