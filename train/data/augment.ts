/**
 * Large-scale jitter (Mask2Former's: flip, resize by a random scale, random crop or padding to a fixed size) for images and for all
 * labels that lie on them. Everything that happened to the coordinates is one affine map, so that CAM peaks find their way back.
 *
 * Coordinates are continuous: pixel (x, y) covers x..x+1 and y..y+1. A point label names a pixel, so its place is half a pixel
 * further; a box names edges.
 */
import type { Random } from "../../engine/random.ts";
import { type Image, resizeImage } from "./image.ts";
import { type Box, boxOfRuns, maskOfRuns, type Runs } from "./mask.ts";
import type { Kind } from "./weak.ts";

/** network = scale * original + offset; scaleX is negative where the image is flipped. */
export interface Affine {
  scaleX: number;
  offsetX: number;
  scaleY: number;
  offsetY: number;
}

export interface AugmentOptions {
  /** Size of what comes out, in pixels. */
  width: number;
  height: number;
  /** Mirror half of the images. */
  flip: boolean;
  /** Range of the scale relative to the one at which the image just fits; 0.1 to 2 in Mask2Former, [1, 1] for none. */
  scale: readonly [number, number];
  /**
   * The same for images that carry tags alone (default: `scale`). A crop may leave a tagged object outside, and nothing tells:
   * a maximum of 1 pads only.
   */
  tagScale?: readonly [number, number];
  /** Strength of brightness, contrast and saturation changes: 0 (none, the default) to 1. */
  colour?: number;
  /** Grey level beside the image (128, as detectron2's). */
  pad?: number;
}

export interface Augment {
  affine: Affine;
  /** Size the whole image is resized to before the crop. */
  resized: [width: number, height: number];
  /** Left upper corner of the crop in the resized image. */
  crop: [x: number, y: number];
  /** Part of the network's frame that shows the image; it starts at the left upper corner. */
  valid: [width: number, height: number];
  flipped: boolean;
  /** Factors of brightness, contrast and saturation. */
  colour: [number, number, number] | undefined;
}

/** Draws what happens to an image of this size. */
export function drawAugment(
  { width, height }: { width: number; height: number },
  options: AugmentOptions,
  kind: Kind | "masks",
  random: Random,
): Augment {
  const flipped = random.uniform() < 0.5 && options.flip;
  const [least, most] = (kind === "tags" ? options.tagScale : undefined) ?? options.scale;
  const fit = random.uniform(least, most) * Math.min(options.width / width, options.height / height);
  const resized: [number, number] = [Math.max(1, Math.round(width * fit)), Math.max(1, Math.round(height * fit))];
  const where = random.uniform();
  const crop: [number, number] = [
    Math.round(Math.max(0, resized[0] - options.width) * where),
    Math.round(Math.max(0, resized[1] - options.height) * where),
  ];
  const strength = 0.4 * (options.colour ?? 0);
  const factor = () => random.uniform(1 - strength, 1 + strength);
  const colour: [number, number, number] | undefined = strength > 0 ? [factor(), factor(), factor()] : undefined;
  return { ...placed(width, height, resized, crop, flipped, options), colour };
}

/** No change but the size: the whole image, as large as it fits, at the left upper corner. */
export function fitAugment(
  { width, height }: { width: number; height: number },
  frame: { width: number; height: number },
): Augment {
  const fit = Math.min(frame.width / width, frame.height / height);
  const side = (length: number, most: number) => Math.min(most, Math.max(1, Math.round(length * fit)));
  const resized: [number, number] = [side(width, frame.width), side(height, frame.height)];
  return { ...placed(width, height, resized, [0, 0], false, frame), colour: undefined };
}

function placed(
  width: number,
  height: number,
  resized: [number, number],
  crop: [number, number],
  flipped: boolean,
  frame: { width: number; height: number },
): Omit<Augment, "colour"> {
  const [scaleX, scaleY] = [resized[0] / width, resized[1] / height];
  const affine = {
    scaleX: flipped ? -scaleX : scaleX,
    offsetX: (flipped ? resized[0] : 0) - crop[0],
    scaleY,
    offsetY: -crop[1],
  };
  const valid: [number, number] = [
    Math.min(frame.width, resized[0] - crop[0]),
    Math.min(frame.height, resized[1] - crop[1]),
  ];
  return { affine, resized, crop, valid, flipped };
}

/** The image in the network's frame: (height, width, 3), padded at the right and below. */
export function applyAugment(
  image: Image,
  augment: Augment,
  { width, height, pad = 128 }: { width: number; height: number; pad?: number },
): Uint8Array {
  const [w, h] = augment.valid;
  const window = cropOf(image, augment);
  if (augment.colour !== undefined) jitterColour(window, augment.colour);
  const out = new Uint8Array(width * height * 3).fill(pad);
  for (let y = 0; y < h; y++) out.set(window.subarray(y * w * 3, (y + 1) * w * 3), y * width * 3);
  return out;
}

/** The valid part of the resized (and flipped) image: (valid height, valid width, 3). */
function cropOf(image: Image, { resized, crop, valid, flipped }: Augment): Uint8Array {
  const [w, h] = valid;
  const out = new Uint8Array(w * h * 3);
  // A flipped crop from the left is the unflipped one from the right.
  const left = flipped ? resized[0] - crop[0] - w : crop[0];
  if (resized[0] >= image.width && resized[1] >= image.height) {
    enlarge(image, resized, [left, crop[1]], valid, out);
  } else {
    const { data } = resizeImage(image, ...resized);
    for (let y = 0; y < h; y++) {
      const from = ((y + crop[1]) * resized[0] + left) * 3;
      out.set(data.subarray(from, from + w * 3), y * w * 3);
    }
  }
  if (flipped) mirror(out, w, h);
  return out;
}

/** Bilinear enlargement of a window alone: at scale 2 the crop is a quarter of the resized image. */
function enlarge(
  { data, width, height }: Image,
  resized: [number, number],
  [left, top]: [number, number],
  [w, h]: [number, number],
  out: Uint8Array,
): void {
  const taps = (from: number, to: number, first: number, count: number) => {
    const [at, next, share] = [new Int32Array(count), new Int32Array(count), new Float32Array(count)];
    for (let i = 0; i < count; i++) {
      const place = Math.min(Math.max(((first + i + 0.5) * from) / to - 0.5, 0), from - 1);
      at[i] = Math.floor(place);
      next[i] = Math.min(at[i]! + 1, from - 1);
      share[i] = place - at[i]!;
    }
    return { at, next, share };
  };
  const across = taps(width, resized[0], left, w);
  const down = taps(height, resized[1], top, h);
  for (let y = 0; y < h; y++) {
    const [upper, lower, v] = [down.at[y]! * width, down.next[y]! * width, down.share[y]!];
    for (let x = 0; x < w; x++) {
      const [a, b, u] = [across.at[x]!, across.next[x]!, across.share[x]!];
      for (let c = 0; c < 3; c++) {
        const above = data[(upper + a) * 3 + c]! * (1 - u) + data[(upper + b) * 3 + c]! * u;
        const below = data[(lower + a) * 3 + c]! * (1 - u) + data[(lower + b) * 3 + c]! * u;
        out[(y * w + x) * 3 + c] = above * (1 - v) + below * v + 0.5;
      }
    }
  }
}

function mirror(data: Uint8Array, width: number, height: number): void {
  for (let y = 0; y < height; y++) {
    for (let a = y * width, b = a + width - 1; a < b; a++, b--) {
      for (let c = 0; c < 3; c++) {
        const kept = data[a * 3 + c]!;
        data[a * 3 + c] = data[b * 3 + c]!;
        data[b * 3 + c] = kept;
      }
    }
  }
}

/** In place: brightness, then contrast around the mean grey, then saturation around each pixel's grey. */
function jitterColour(data: Uint8Array, [brightness, contrast, saturation]: [number, number, number]): void {
  const grey = (at: number) => 0.299 * data[at]! + 0.587 * data[at + 1]! + 0.114 * data[at + 2]!;
  let sum = 0;
  for (let at = 0; at < data.length; at += 3) sum += grey(at);
  const mean = (sum / Math.max(1, data.length / 3)) * brightness;
  for (let at = 0; at < data.length; at += 3) {
    const own = grey(at);
    for (let c = 0; c < 3; c++) {
      const lit = (own + (data[at + c]! - own) * saturation) * brightness;
      data[at + c] = Math.min(255, Math.max(0, Math.round(mean + (lit - mean) * contrast)));
    }
  }
}

/** Continuous coordinates of the original image -> of the network's frame. */
export function toNetwork(affine: Affine, x: number, y: number): [x: number, y: number] {
  return [affine.scaleX * x + affine.offsetX, affine.scaleY * y + affine.offsetY];
}

/** Continuous coordinates of the network's frame -> of the original image. */
export function toOriginal(affine: Affine, x: number, y: number): [x: number, y: number] {
  return [(x - affine.offsetX) / affine.scaleX, (y - affine.offsetY) / affine.scaleY];
}

/** A point label, which names a pixel: its centre is mapped, and the result names a pixel (with a fraction) again. */
export function pointToNetwork(affine: Affine, x: number, y: number): [x: number, y: number] {
  const [u, v] = toNetwork(affine, x + 0.5, y + 0.5);
  return [u - 0.5, v - 0.5];
}

export function pointToOriginal(affine: Affine, x: number, y: number): [x: number, y: number] {
  const [u, v] = toOriginal(affine, x + 0.5, y + 0.5);
  return [u - 0.5, v - 0.5];
}

/** Whether a point label that was mapped still lies on the image. */
export function isInside([x, y]: readonly [number, number], [width, height]: readonly [number, number]): boolean {
  return x + 0.5 >= 0 && y + 0.5 >= 0 && x + 0.5 < width && y + 0.5 < height;
}

/** Boxes this thin are dropped (Box2Mask's rule). */
const THIN = 1e-5;

/** Box [x, y, width, height] -> corners [x0, y0, x1, y1] clipped to the valid region; undefined where nothing is left. */
export function boxToNetwork(
  affine: Affine,
  [x, y, width, height]: Box,
  valid: readonly [number, number],
): [x0: number, y0: number, x1: number, y1: number] | undefined {
  const [ax, ay] = toNetwork(affine, x, y);
  const [bx, by] = toNetwork(affine, x + width, y + height);
  const clip = (value: number, most: number) => Math.min(Math.max(value, 0), most);
  const [x0, x1] = [clip(Math.min(ax, bx), valid[0]), clip(Math.max(ax, bx), valid[0])];
  const [y0, y1] = [clip(Math.min(ay, by), valid[1]), clip(Math.max(ay, by), valid[1])];
  return x1 - x0 > THIN && y1 - y0 > THIN ? [x0, y0, x1, y1] : undefined;
}

/**
 * A mask of the original image in the network's frame, by the nearest pixel: 0/1, (height/stride, width/stride). Beside the
 * image it is 0.
 */
export function warpMask(runs: Runs, affine: Affine, width: number, height: number, stride = 1): Uint8Array {
  const [w, h] = [Math.ceil(width / stride), Math.ceil(height / stride)];
  const out = new Uint8Array(w * h);
  const box = boxOfRuns(runs);
  if (box[2] === 0) return out;
  const source = maskOfRuns(runs);
  const [ax, ay] = toNetwork(affine, box[0], box[1]);
  const [bx, by] = toNetwork(affine, box[0] + box[2], box[1] + box[3]);
  const first = (value: number) => Math.max(0, Math.floor(value / stride - 1));
  const last = (value: number, most: number) => Math.min(most - 1, Math.ceil(value / stride + 1));
  for (let j = first(Math.min(ay, by)); j <= last(Math.max(ay, by), h); j++) {
    for (let i = first(Math.min(ax, bx)); i <= last(Math.max(ax, bx), w); i++) {
      const [x, y] = toOriginal(affine, (i + 0.5) * stride, (j + 0.5) * stride);
      const [column, row] = [Math.floor(x), Math.floor(y)];
      if (column < 0 || row < 0 || column >= runs.width || row >= runs.height) continue;
      out[j * w + i] = source[row * runs.width + column]!;
    }
  }
  return out;
}
