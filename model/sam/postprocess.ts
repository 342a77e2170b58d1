// From low-resolution logits to masks of the image's size, on host arrays.
import type { Size } from "./preprocess.ts";

/** Logits above this are mask. */
export const MASK_THRESHOLD = 0;

/** Which of its candidates SAM rates best; of equals the first. */
export function bestRated(iou: readonly number[] | Float32Array): number {
  return iou.indexOf(Math.max(...iou));
}

/** SAM's postprocessing on the host: bilinear to the square input, cut to the image, bilinear to its size, above 0 is mask. */
export function maskOfLogits(
  low: Float32Array,
  side: number,
  S: number,
  [h, w]: Size,
  [height, width]: Size,
): Uint8Array {
  const square = bilinear(low, side, side, side, S, S);
  const full = bilinear(square, S, w, h, width, height);
  // A loop: Uint8Array.from with a function takes thirty times as long.
  const mask = new Uint8Array(full.length);
  for (let i = 0; i < full.length; i++) if (full[i]! > MASK_THRESHOLD) mask[i] = 1;
  return mask;
}

/** The left upper w x h of rows of `stride` values -> W x H, as F.interpolate does without aligned corners. */
function bilinear(x: Float32Array, stride: number, w: number, h: number, W: number, H: number): Float32Array {
  const taps = (n: number, N: number): { at: Int32Array; next: Int32Array; share: Float32Array } => {
    const [at, next, share] = [new Int32Array(N), new Int32Array(N), new Float32Array(N)];
    for (let i = 0; i < N; i++) {
      const place = Math.max(0, ((i + 0.5) * n) / N - 0.5);
      at[i] = Math.min(n - 1, Math.floor(place));
      next[i] = Math.min(n - 1, at[i]! + 1);
      share[i] = place - at[i]!;
    }
    return { at, next, share };
  };
  const [across, down] = [taps(w, W), taps(h, H)];
  const rows = new Float32Array(h * W);
  for (let j = 0; j < h; j++)
    for (let i = 0; i < W; i++) {
      const u = across.share[i]!;
      rows[j * W + i] = x[j * stride + across.at[i]!]! * (1 - u) + x[j * stride + across.next[i]!]! * u;
    }
  const out = new Float32Array(W * H);
  for (let j = 0; j < H; j++) {
    const [a, b, v] = [down.at[j]! * W, down.next[j]! * W, down.share[j]!];
    for (let i = 0; i < W; i++) out[j * W + i] = rows[a + i]! * (1 - v) + rows[b + i]! * v;
  }
  return out;
}
