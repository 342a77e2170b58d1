/**
 * What sam-train learns from: images with instance masks, from procedural scenes and COCO-layout files mixed, and prompts drawn from the
 * masks. A batch depends on (seed, step) alone, so that a resumed run sees what an uninterrupted one would have seen.
 */
import { Random } from "../../engine/index.ts";
import { prepareImage, type RgbImage } from "../../model/sam/index.ts";
import { imagePath, instanceRuns, instancesByImage, readInstances } from "../data/coco.ts";
import { checkSize, readImage } from "../data/image.ts";
import { maskOfRuns, type Runs } from "../data/mask.ts";
import { makeScene } from "../data/scenes.ts";
import { BadInput } from "../errors.ts";

/** An image and its instances' masks, 0/1 row-major of the image's size. */
export interface Annotated {
  readonly image: RgbImage;
  readonly masks: readonly Uint8Array[];
}

export interface SamBatch {
  readonly images: Float32Array; // (B, 3, S, S) normalised and padded
  readonly coords: Float32Array; // (B*k, 2, 2) prompt tokens in the input's frame
  readonly labels: Int32Array; // (B*k, 2): 1, -1 a point; 2, 3 a box
  readonly targets: Float32Array; // (B*k, 4g * 4g) covered share of each cell
}

export interface SamDataOptions {
  readonly seed: number;
  readonly batch: number;
  readonly prompts: number;
  /** Side of the input. */
  readonly imageSize: number;
  /** Side of the low-resolution masks. */
  readonly maskSize: number;
  /** Share of the images that are scenes; 1 where no photographs are given. */
  readonly scenes: number;
  readonly sceneSeed: number;
  /** Standard deviation of a box's sides as a share of its size, cut at twice that. */
  readonly boxNoise: number;
  /** Photographs are cropped to a share of each side between this and 1. */
  readonly smallestCrop: number;
}

/** Instances smaller than this share of the input's area are no targets: at the mask's resolution little of them is left. */
const LEAST_AREA = 0.002;

/** Photographs of a COCO-layout file, decoded once and kept at no more than twice the input's size. */
export class Photographs {
  readonly #items: { image: RgbImage; runs: Runs[] }[];

  constructor(items: { image: RgbImage; runs: Runs[] }[]) {
    this.#items = items;
  }

  static async read(annotations: string, imagesDir: string): Promise<Photographs> {
    const data = readInstances(annotations);
    const byImage = instancesByImage(data);
    const items: { image: RgbImage; runs: Runs[] }[] = [];
    for (const entry of data.images) {
      const instances = (byImage.get(entry.id) ?? []).filter(
        (instance) => !instance.crowd && instance.segmentation !== undefined,
      );
      if (instances.length === 0) continue;
      const path = imagePath(imagesDir, entry);
      const image = await readImage(path);
      checkSize(path, image, entry);
      items.push({
        image,
        runs: instances.map((instance) => instanceRuns(instance, entry)),
      });
    }
    if (items.length === 0)
      throw new BadInput(`${annotations}: no image has an instance with a mask; sam-train learns from masks`);
    return new Photographs(items);
  }

  get length(): number {
    return this.#items.length;
  }

  /** Photograph i as it is. */
  at(i: number): Annotated {
    const { image, runs } = this.#items[i]!;
    return { image, masks: runs.map(maskOfRuns) };
  }

  /** A random one, cropped and perhaps mirrored. */
  draw(random: Random, smallestCrop: number): Annotated {
    const { image, runs } = this.#items[random.int(this.#items.length)]!;
    const share = random.uniform(smallestCrop, 1);
    const [width, height] = [
      Math.max(1, Math.round(image.width * share)),
      Math.max(1, Math.round(image.height * share)),
    ];
    const window: Window = {
      x: random.int(image.width - width + 1),
      y: random.int(image.height - height + 1),
      width,
      height,
      mirrored: random.uniform() < 0.5,
    };
    return {
      image: { width, height, data: cut(image.data, image.width, 3, window) },
      masks: runs.map((r) => cut(maskOfRuns(r), image.width, 1, window)),
    };
  }
}

interface Window {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
  readonly mirrored: boolean;
}

function cut(
  data: Uint8Array,
  stride: number,
  channels: number,
  { x, y, width, height, mirrored }: Window,
): Uint8Array {
  const out = new Uint8Array(width * height * channels);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const from = ((y + row) * stride + x + (mirrored ? width - 1 - column : column)) * channels;
      for (let c = 0; c < channels; c++) out[(row * width + column) * channels + c] = data[from + c]!;
    }
  }
  return out;
}

/** Scene `index` of a seed, in the form of photographs. */
export function scene(seed: number, index: number, size: number): Annotated {
  const { image, instances } = makeScene(seed, index, size);
  return { image, masks: instances.map((instance) => instance.mask) };
}

/** The images, prompts and targets of a step. `boxesOnly`: every prompt is a box. */
export function drawBatch(
  options: SamDataOptions,
  photographs: Photographs | undefined,
  step: number,
  boxesOnly: boolean,
): SamBatch {
  const { batch, prompts, imageSize: S, maskSize } = options;
  const random = new Random(options.seed).fork(step);
  const out: SamBatch = {
    images: new Float32Array(batch * 3 * S * S),
    coords: new Float32Array(batch * prompts * 4),
    labels: new Int32Array(batch * prompts * 2),
    targets: new Float32Array(batch * prompts * maskSize * maskSize),
  };
  for (let b = 0; b < batch; b++) {
    let index = (step * batch + b) * 16;
    let masks: Framed[] = [];
    let image: RgbImage;
    // An image may have no instance that is large enough; then another is drawn.
    do {
      const drawn =
        photographs && random.uniform() >= options.scenes
          ? photographs.draw(random, options.smallestCrop)
          : scene(options.sceneSeed, index++, S);
      image = drawn.image;
      masks = drawn.masks
        .map((mask) => toFrame(mask, image.width, image.height, S))
        .filter((mask) => mask.area >= LEAST_AREA * S * S);
    } while (masks.length === 0);
    out.images.set(prepareImage(image, S).data, b * 3 * S * S);
    const order = random.shuffle(masks.map((_, i) => i));
    for (let j = 0; j < prompts; j++) {
      const mask = masks[order[j % order.length]!]!;
      const at = b * prompts + j;
      if (boxesOnly || random.uniform() < 0.5) promptBox(out, at, mask, random, options.boxNoise);
      else promptPoint(out, at, mask, random);
      downsample(
        mask.data,
        S,
        maskSize,
        out.targets.subarray(at * maskSize * maskSize, (at + 1) * maskSize * maskSize),
      );
    }
  }
  return out;
}

/** A mask in the S x S frame. */
interface Framed {
  readonly data: Uint8Array;
  readonly side: number;
  readonly area: number;
  /** x0, y0, x1, y1 as edges */
  readonly box: readonly [number, number, number, number];
}

/** Samples a mask at the pixels of the frame that `prepareImage` puts its image into. */
function toFrame(mask: Uint8Array, width: number, height: number, side: number): Framed {
  const data = new Uint8Array(side * side);
  const scale = side / Math.max(width, height);
  const [w, h] = [Math.max(1, Math.floor(width * scale + 0.5)), Math.max(1, Math.floor(height * scale + 0.5))];
  let [area, x0, y0, x1, y1] = [0, side, side, 0, 0];
  for (let y = 0; y < h; y++) {
    const row = Math.min(height - 1, Math.floor(((y + 0.5) * height) / h)) * width;
    for (let x = 0; x < w; x++) {
      if (mask[row + Math.min(width - 1, Math.floor(((x + 0.5) * width) / w))] === 0) continue;
      data[y * side + x] = 1;
      area++;
      [x0, y0, x1, y1] = [Math.min(x0, x), Math.min(y0, y), Math.max(x1, x + 1), Math.max(y1, y + 1)];
    }
  }
  return { data, side, area, box: [x0, y0, x1, y1] };
}

function promptBox(out: SamBatch, at: number, { box }: Framed, random: Random, noise: number): void {
  for (let i = 0; i < 4; i++) {
    const size = box[2 + (i % 2)]! - box[i % 2]!;
    const shift = Math.max(-2, Math.min(2, random.normal())) * noise * size;
    out.coords[at * 4 + i] = box[i]! + shift;
  }
  out.labels.set([2, 3], at * 2);
}

function promptPoint(out: SamBatch, at: number, { data, side, area }: Framed, random: Random): void {
  let left = random.int(area);
  let pixel = 0;
  for (; ; pixel++) if (data[pixel] === 1 && left-- === 0) break;
  out.coords.set([pixel % side, Math.floor(pixel / side), 0, 0], at * 4);
  out.labels.set([1, -1], at * 2);
}

/** Share of each cell that the mask covers; `side` is a multiple of `cells`. */
function downsample(mask: Uint8Array, side: number, cells: number, out: Float32Array): void {
  const n = side / cells;
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      if (mask[y * side + x] === 1) out[Math.floor(y / n) * cells + Math.floor(x / n)]! += 1 / (n * n);
    }
  }
}
