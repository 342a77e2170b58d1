/** One attention as its ways of working see it, with all leading dimensions folded into one. */
import type { Tensor } from "../tensor.ts";

export interface Problem {
  batch: number;
  n: number;
  m: number;
  d: number;
  dv: number;
  q: Tensor;
  k: Tensor;
  v: Tensor;
  mask: Mask | undefined;
  relH: Tensor | undefined;
  relW: Tensor | undefined;
}

/** A mask as (outer, inner, rows, M) over the batch (outer · inner), N and M; sizes of 1 are repeated. */
export interface Mask {
  x: Tensor;
  size: [number, number, number, number];
  split: number;
}

/** The output, (batch, N, Dv), and the gradients of q, k, v, mask, relH and relW, null where there is none. */
export interface Attended {
  y: Tensor;
  grad: (gy: Tensor) => (Tensor | null)[];
}

/** How a kernel finds the mask of a batch entry and a query; its strides are in elements, that of keys is 1. */
export function maskParams({ mask, m }: Problem) {
  const size = mask?.size ?? [1, 1, 1, 1];
  return {
    mask_kind: mask ? (mask.x.dtype === "f32" ? 2 : 1) : 0,
    split: mask?.split ?? 1,
    mask_outer: size[0] > 1 ? size[1] * size[2] * m : 0,
    mask_inner: size[1] > 1 ? size[2] * m : 0,
    mask_row: size[2] > 1 ? m : 0,
  };
}
