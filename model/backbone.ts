// What every backbone promises: features at four resolutions, and its own idea of how pixels become numbers.
import { type Device, F, nn, type Tensor } from "../engine/index.ts";

export type FeatureName = "res2" | "res3" | "res4" | "res5";

/** res2 … res5, each (B, C, H / stride, W / stride). Convolutions read them, so that autocast and memory.activations may make them f16. */
export type Features = Record<FeatureName, Tensor>;

/** Deepest stride of a backbone. At 16 or 8 the later stages keep the resolution and dilate instead (16 is detectron2's RES5_DILATION 2). */
export type OutputStride = 32 | 16 | 8;

export interface PixelOptions {
  /** Valid [height, width] of each image of the batch; what lies right of or below it counts as padding. Default: all of it. */
  sizes?: readonly (readonly [number, number])[];
}

/** Images are padded on the right and bottom to a multiple of this (Mask2Former's SIZE_DIVISIBILITY). */
export const SIZE_DIVISIBILITY = 32;

/** What ImageNet networks of PyTorch subtract and divide by, in 0..255 (RGB). */
export const IMAGENET_PIXELS = { mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375] } as const;
/** What TensorFlow's slim networks use: -1..1. */
export const INCEPTION_PIXELS = { mean: [127.5, 127.5, 127.5], std: [127.5, 127.5, 127.5] } as const;

export abstract class Backbone extends nn.Module {
  /** Channels of res2 … res5. */
  abstract readonly channels: Record<FeatureName, number>;
  // Private names are not part of the parameter tree, so that these constants stay out of checkpoints, as the reference's do.
  readonly #scale: Tensor; // (1, 3, 1, 1)
  readonly #shift: Tensor;

  constructor(gpu: Device, pixels: { mean: readonly number[]; std: readonly number[] }) {
    super();
    this.#scale = gpu.tensor(
      Float32Array.from(pixels.std, (s) => 1 / s),
      [1, 3, 1, 1],
    );
    this.#shift = gpu.tensor(
      Float32Array.from(pixels.mean, (m, c) => -m / pixels.std[c]!),
      [1, 3, 1, 1],
    );
  }

  /** Normalised and padded images (B, 3, H, W), H and W multiples of 32 -> features. */
  abstract features(x: Tensor): Features;

  /** RGB images (B, 3, H, W), 0..255 -> features. */
  forward(images: Tensor, options: PixelOptions = {}): Features {
    return this.features(this.normalise(images, options));
  }

  /**
   * RGB (B, 3, H, W), 0..255 -> normalised (B, 3, H', W') with H', W' the next multiples of 32. Padding is zero AFTER the normalisation
   * (the mean colour), inside the batch (`sizes`) as at its border.
   */
  normalise(images: Tensor, { sizes }: PixelOptions = {}): Tensor {
    const [B, C, H, W] = images.shape as [number, number, number, number];
    if (images.shape.length !== 4 || C !== 3)
      throw new Error(`backbone: images must be (B, 3, H, W), RGB, 0 to 255; got (${images.shape})`);
    let x = F.add(F.mul(images, this.#scale), this.#shift);
    if (sizes?.some(([h, w]) => h < H || w < W)) x = F.mul(x, validMask(images.device, sizes, B, H, W));
    const [bottom, right] = [padding(H), padding(W)];
    return bottom + right > 0 ? F.pad(x, [0, right, 0, bottom]) : x;
  }
}

/** Rows or columns missing to the next multiple of 32. */
export function padding(length: number): number {
  return (SIZE_DIVISIBILITY - (length % SIZE_DIVISIBILITY)) % SIZE_DIVISIBILITY;
}

/** 1 inside each image's valid rectangle, 0 outside: (B, 1, H, W). */
export function validMask(
  gpu: Device,
  sizes: readonly (readonly [number, number])[],
  B: number,
  H: number,
  W: number,
): Tensor {
  if (sizes.length !== B) throw new Error(`backbone: sizes must name ${B} images (the batch); got ${sizes.length}`);
  const mask = new Float32Array(B * H * W);
  for (const [b, [h, w]] of sizes.entries()) {
    for (let y = 0; y < Math.min(h, H); y++) mask.fill(1, (b * H + y) * W, (b * H + y) * W + Math.min(w, W));
  }
  return gpu.tensor(mask, [B, 1, H, W]);
}

/** Stride and dilation of a stage whose stride would be 2, given the stride reached so far. */
export function strideOrDilate(
  reached: number,
  dilation: number,
  outputStride: OutputStride,
): { stride: number; dilation: number } {
  return reached * 2 <= outputStride ? { stride: 2, dilation } : { stride: 1, dilation: dilation * 2 };
}
