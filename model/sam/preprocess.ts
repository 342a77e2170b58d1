// From a photograph to SAM's input and from prompts' coordinates to its frame, on host arrays.
// SAM's reference resizes with Pillow's bilinear filter (antialiased, 8-bit result); its embeddings notice any other filter.

/** 8-bit RGB, row-major, channels last. */
export interface RgbImage {
  readonly width: number;
  readonly height: number;
  readonly data: Uint8Array; // (height, width, 3)
}

/** Pillow keeps this many fractional bits of a filter weight: 32 less 8 for the sample and 2 for overshoot and sign. */
const PRECISION_BITS = 22;

interface Taps {
  readonly first: Int32Array; // first source index of each output
  readonly count: Int32Array; // sources of each output
  readonly weights: Int32Array; // (outputs, width), fixed point
  readonly width: number;
}

/** The triangle filter's taps, widened by the scale when shrinking. */
function bilinearTaps(from: number, to: number): Taps {
  const scale = from / to;
  const support = Math.max(scale, 1);
  const width = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(to);
  const count = new Int32Array(to);
  const weights = new Int32Array(to * width);
  const row = new Float64Array(width);
  for (let i = 0; i < to; i++) {
    const center = (i + 0.5) * scale;
    const start = Math.max(Math.trunc(center - support + 0.5), 0);
    const n = Math.min(Math.trunc(center + support + 0.5), from) - start;
    let total = 0;
    for (let j = 0; j < n; j++) {
      const w = Math.max(1 - Math.abs((j + start - center + 0.5) * (1 / support)), 0);
      row[j] = w;
      total += w;
    }
    for (let j = 0; j < n; j++) {
      const w = total === 0 ? row[j]! : row[j]! / total;
      weights[i * width + j] = Math.trunc(0.5 + w * 2 ** PRECISION_BITS);
    }
    first[i] = start;
    count[i] = n;
  }
  return { first, count, weights, width };
}

type Samples = Uint8Array | Uint8ClampedArray;

/** (rows, size, channels) -> (rows, newSize, channels), rounded to 8 bits. To the vertical pass an image is one row, and each of its rows is a sample of many channels. */
function pass(data: Samples, rows: number, size: number, channels: number, newSize: number): Samples {
  if (newSize === size) return data;
  const { first, count, weights, width: taps } = bilinearTaps(size, newSize);
  const half = 2 ** (PRECISION_BITS - 1);
  const out = new Uint8Array(rows * newSize * channels);
  for (let row = 0; row < rows; row++)
    for (let i = 0; i < newSize; i++) {
      const from = (row * size + first[i]!) * channels;
      const to = (row * newSize + i) * channels;
      for (let c = 0; c < channels; c++) {
        let sum = half;
        for (let j = 0; j < count[i]!; j++) sum += data[from + j * channels + c]! * weights[i * taps + j]!;
        out[to + c] = Math.min(sum >> PRECISION_BITS, 255);
      }
    }
  return out;
}

/**
 * Pillow's `resize(…, BILINEAR)` of 8-bit samples, bit for bit: antialiased, in two passes, each rounded to 8 bits. The vertical one comes
 * first where it takes away more than twice as many rows as the other columns: so does Pillow from 13 on, and never did before.
 * @param data (height, width, channels)
 * @returns (newHeight, newWidth, channels)
 */
export function resizeBilinear(
  data: Samples,
  width: number,
  height: number,
  channels: number,
  newWidth: number,
  newHeight: number,
): Uint8Array {
  if (data.length !== width * height * channels) {
    throw new Error(
      `resizeBilinear: ${width}x${height}x${channels} takes ${width * height * channels} samples; got ${data.length}`,
    );
  }
  if (!(newWidth >= 1 && newHeight >= 1))
    throw new Error(`resizeBilinear: the new size must be at least 1x1; got ${newWidth}x${newHeight}`);
  const vertical = (from: Samples, columns: number): Samples => pass(from, 1, height, columns * channels, newHeight);
  const horizontal = (from: Samples, rows: number): Samples => pass(from, rows, width, channels, newWidth);
  const verticalFirst = newHeight < height && height - newHeight > 2 * (width - newWidth);
  const out = verticalFirst
    ? horizontal(vertical(data, width), newHeight)
    : vertical(horizontal(data, height), newWidth);
  return out === data ? Uint8Array.from(data) : (out as Uint8Array);
}

/** ImageNet's statistics in 0..255, SAM's `pixel_mean` and `pixel_std`. */
export const PIXEL_MEAN = [123.675, 116.28, 103.53] as const;
export const PIXEL_STD = [58.395, 57.12, 57.375] as const;

/** [height, width] */
export type Size = readonly [height: number, width: number];

export interface PreparedImage {
  /** (3, S, S): normalised, then zero-padded on the right and at the bottom. */
  readonly data: Float32Array;
  /** What of S x S the image fills. */
  readonly inputSize: Size;
  readonly originalSize: Size;
  /** Original pixels times this are pixels of the S x S frame, x and y. */
  readonly scale: readonly [x: number, y: number];
}

/** The size at which the longest side is `side` (SAM's ResizeLongestSide). */
export function longestSide(height: number, width: number, side: number): Size {
  const scale = side / Math.max(height, width);
  return [Math.max(1, Math.floor(height * scale + 0.5)), Math.max(1, Math.floor(width * scale + 0.5))];
}

/** SAM's preprocessing: longest side to `side` by Pillow's bilinear, normalise, pad with zeros. */
export function prepareImage(image: RgbImage, side: number): PreparedImage {
  const { width, height } = image;
  const [h, w] = longestSide(height, width, side);
  const pixels = resizeBilinear(image.data, width, height, 3, w, h);
  const data = new Float32Array(3 * side * side);
  for (let c = 0; c < 3; c++) {
    const mean = PIXEL_MEAN[c]!;
    const std = PIXEL_STD[c]!;
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++) data[(c * side + y) * side + x] = (pixels[(y * w + x) * 3 + c]! - mean) / std;
    }
  }
  return { data, inputSize: [h, w], originalSize: [height, width], scale: [w / width, h / height] };
}
