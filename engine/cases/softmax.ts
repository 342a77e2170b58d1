import * as F from "../functional.ts";
import type { Shape } from "../shape.ts";
import type { Case, Cases } from "./case.ts";

/** Applies `f` to every row along dimension `d`; f's results may be of another length. */
export function alongRows(
  x: Float64Array,
  shape: Shape,
  d: number,
  f: (row: Float64Array) => ArrayLike<number>,
): Float64Array {
  const r = shape[d]!;
  const inner = shape.slice(d + 1).reduce((a, b) => a * b, 1);
  const outer = x.length / (r * inner);
  let out = new Float64Array(0);
  for (let o = 0; o < outer; o++)
    for (let i = 0; i < inner; i++) {
      const y = f(Float64Array.from({ length: r }, (_, k) => x[(o * r + k) * inner + i]!));
      if (out.length === 0) out = new Float64Array(outer * y.length * inner);
      for (let k = 0; k < y.length; k++) out[(o * y.length + k) * inner + i] = y[k]!;
    }
  return out;
}

export const logSumExp64 = (row: ArrayLike<number>): number => {
  let m = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < row.length; i++) m = Math.max(m, row[i]!);
  let s = 0;
  for (let i = 0; i < row.length; i++) s += Math.exp(row[i]! - m);
  return m + Math.log(s);
};

const SHAPES: readonly (readonly [Shape, number])[] = [
  [[1], 0],
  [[3, 7], -1],
  [[3, 7], 0],
  [[2, 130, 5], 1],
  [[65, 8], 1],
  [[5, 130], 1],
  [[100, 256], 1],
  [[2, 1025], 1],
];

const of = (
  run: (x: Parameters<typeof F.softmax>[0], dim: number) => ReturnType<typeof F.softmax>,
  row: (row: Float64Array) => ArrayLike<number>,
): Case[] => [
  ...SHAPES.map(([shape, dim]) => ({
    inputs: [shape],
    run: ([x]: Parameters<Case["run"]>[0]) => run(x!, dim),
    reference: (x: Float64Array) => alongRows(x, shape, dim < 0 ? dim + shape.length : dim, row),
  })),
  {
    name: "large values",
    inputs: [{ shape: [4, 12], values: (random, i) => random.normal() + 90 * (i % 3) }],
    run: ([x]) => run(x!, 1),
    reference: (x) => alongRows(x, [4, 12], 1, row),
  },
];

export const softmaxCases: Cases = {
  softmax: of(F.softmax, (row) => {
    const l = logSumExp64(row);
    return row.map((v) => Math.exp(v - l));
  }),
  logSoftmax: of(F.logSoftmax, (row) => {
    const l = logSumExp64(row);
    return row.map((v) => v - l);
  }),
  logSumExp: of(
    (x, dim) => F.logSumExp(x, dim, { keepdim: dim === 1 }),
    (row) => [logSumExp64(row)],
  ),
};
