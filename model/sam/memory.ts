// The largest tensor that a model of given sizes makes, so that an adapter which cannot bind it is refused before any work.
import type { Device } from "../../engine/index.ts";
import { gridSize, type SamConfig, type TinyVitSizes, type VitSizes } from "./config.ts";
import { samShapes } from "./shapes.ts";

export interface LargeTensor {
  readonly what: string;
  readonly bytes: number;
}

export interface PassSizes {
  /** Images encoded at once. */
  readonly images?: number;
  /** Prompts decoded at once. */
  readonly prompts?: number;
}

/** Of the weights, of a forward pass and, as gradients have the shapes of what they belong to, of a training step. */
export function largestTensor(config: SamConfig, { images = 1, prompts = 1 }: PassSizes = {}): LargeTensor {
  const { encoder, promptDim: C, imageSize: S, decoder } = config;
  const grid = gridSize(config);
  const numbers: [what: string, numbers: number][] = [
    ["the image", images * 3 * framed(S) ** 2],
    ["the image embedding", images * C * framed(grid) ** 2],
    ["the mask decoder's upscaled embedding", prompts * (C / 8) * (4 * grid) ** 2],
    ["the masks", prompts * (decoder.candidates + 1) * (4 * grid) ** 2],
    ["the masks at the input's size", (decoder.candidates + 1) * S * S],
    ...(encoder.kind === "vit" ? vit(encoder, grid, images) : tinyVit(encoder, S, images)),
  ];
  for (const [key, { shape }] of samShapes(config)) numbers.push([key, shape.reduce((product, d) => product * d, 1)]);
  const [what, most] = numbers.reduce((a, b) => (b[1] > a[1] ? b : a));
  return { what, bytes: 4 * most };
}

/** What is wrong where the adapter cannot bind a tensor; undefined where it can. */
export function bindingExcess(gpu: Device, { what, bytes }: LargeTensor): string | undefined {
  const limit = gpu.gpu.limits.maxStorageBufferBindingSize;
  if (bytes <= limit) return undefined;
  return `${what} takes a tensor of ${bytes} bytes, more than the ${limit} that ${gpu.name} can bind at once; use a smaller model, image or batch, or another --adapter`;
}

/** A 3x3 convolution reads a frame of one pixel around its image. */
function framed(side: number): number {
  return side + 2;
}

function padded(side: number, window: number): number {
  return window === 0 ? side : Math.ceil(side / window) * window;
}

/** Scores of an attention, where it works in pieces, are of at most so many numbers (engine/ops/attention-chunked.ts). */
const SCORES = 2 ** 23;

function vit({ dim, mlp, heads, window }: VitSizes, grid: number, images: number): [string, number][] {
  const tokens = grid * grid;
  return [
    ["queries, keys and values of an attention", images * Math.max(tokens, padded(grid, window) ** 2) * 3 * dim],
    ["the hidden layer of an MLP", images * tokens * mlp],
    ["the relative positions of an attention", images * heads * tokens * grid],
    ["the scores of an attention", Math.min(SCORES, images * heads * tokens ** 2)],
  ];
}

/** Stage 0 is convolutional, the others attend in windows whose scores stand in memory. */
function tinyVit({ dims, heads, windows, strides }: TinyVitSizes, S: number, images: number): [string, number][] {
  const out: [string, number][] = [
    ["the first convolution", images * (dims[0]! / 2) * framed(S / 2) ** 2],
    ["the hidden layer of stage 0", images * 4 * dims[0]! * framed(S / 4) ** 2],
  ];
  let side = S / 4;
  for (const [i, stride] of [...strides, 1].entries()) {
    if (i > 0) {
      const tokens = padded(side, windows[i]!) ** 2;
      out.push(
        [`queries, keys and values of stage ${i}`, images * tokens * 3 * dims[i]!],
        [`the scores of stage ${i}`, images * tokens * heads[i]! * windows[i]! ** 2],
        [`the hidden layer of stage ${i}`, images * side * side * 4 * dims[i]!],
      );
    }
    if (i < dims.length - 1) out.push([`the merging after stage ${i}`, images * dims[i + 1]! * framed(side) ** 2]);
    side /= stride;
  }
  return out;
}
