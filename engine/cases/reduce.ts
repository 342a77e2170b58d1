import * as F from "../functional.ts";
import { broadcastStrides, type Shape, sizeOf, stridesOf } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { type Case, type Cases, halved } from "./case.ts";

/** Gathers the elements that fall on each output of a reduction and folds them. */
function fold(shape: Shape, dims: readonly number[], fn: (v: number[]) => number): (x: Float64Array) => Float64Array {
  const all = dims.map((d) => (d < 0 ? d + shape.length : d));
  const kept = shape.map((n, d) => (all.includes(d) ? 1 : n));
  const out = broadcastStrides(kept, shape);
  const own = stridesOf(shape);
  const target = Array.from({ length: sizeOf(shape) }, (_, i) =>
    own.reduce((at, s, d) => at + (Math.floor(i / s) % shape[d]!) * out[d]!, 0),
  );
  return (x) => {
    const buckets: number[][] = Array.from({ length: sizeOf(kept) }, () => []);
    for (let i = 0; i < x.length; i++) buckets[target[i]!]!.push(x[i]!);
    return Float64Array.from(buckets, fn);
  };
}

type Reduction = (x: Tensor, dims?: number | readonly number[], options?: { keepdim?: boolean }) => Tensor;
const SHAPES: readonly [Shape, readonly number[] | undefined][] = [
  [[1], undefined],
  [[7], [0]],
  [[3, 130], [-1]],
  [[130, 3], [0]],
  [
    [3, 5, 4],
    [0, 2],
  ],
  [
    [2, 3, 5, 2],
    [1, 2],
  ],
  [[2, 3, 5], undefined],
  [[5000], undefined],
  [[3, 1100], [1]],
  [
    [64, 40, 40],
    [1, 2],
  ],
];

function reduction(op: Reduction, fn: (v: number[]) => number, values?: Case["inputs"][number]): Case[] {
  void values;
  return SHAPES.map(([shape, dims], i) => ({
    ...(i === SHAPES.length - 1 ? { name: "real" } : {}),
    inputs: [shape],
    run: ([x]) => op(x!, dims, { keepdim: i % 2 === 0 }),
    reference: fold(shape, dims ?? shape.map((_, d) => d), fn),
  }));
}

const largest = (v: number[]): number => v.reduce((a, b) => Math.max(a, b));
const smallest = (v: number[]): number => v.reduce((a, b) => Math.min(a, b));
const total = (v: number[]): number => v.reduce((s, x) => s + x, 0);
/** Distinct values a tenth apart, in an order that depends on the place: no ties, and steps of the differences never swap two. */
const distinct = (shape: Shape) => ({
  shape,
  values: (_: unknown, i: number) => ((i * 7919) % sizeOf(shape)) / 10 - 3,
});

function extremum(op: Reduction, fn: (v: number[]) => number): Case[] {
  return SHAPES.slice(0, 9).map(([shape, dims]) => ({
    inputs: [distinct(shape)],
    run: ([x]) => op(x!, dims),
    reference: fold(shape, dims ?? shape.map((_, d) => d), fn),
  }));
}

/** Whole numbers that f32 cannot hold, and truth values. */
function whole(op: Reduction, fn: (v: number[]) => number): Case[] {
  return (["i32", "u32", "bool"] as const).flatMap((dtype) =>
    (
      [
        [
          [3, 5, 4],
          [0, 2],
        ],
        [[5000], undefined],
      ] as const
    ).map(([shape, dims]) => ({
      name: `exact ${dtype}`,
      inputs: [
        {
          shape,
          dtype,
          values: (r) =>
            dtype === "bool" ? r.int(2) : dtype === "u32" ? 2 ** 31 + r.int(2 ** 24) : r.int(2 ** 25) - 2 ** 24,
        },
      ],
      run: ([x]) => op(x!, dims),
      reference: fold(shape, dims ?? [0], (v) => (dtype === "u32" ? fn(v) >>> 0 : fn(v) | 0)),
    })),
  );
}

/** x W^T + b; with `end`, of which there is a kernel, that of it and a residual. */
function linear(lead: Shape, width: number, out: number, end?: typeof Math.tanh, name?: string): Case {
  const shape = [...lead, out];
  return {
    ...(name && { name }),
    inputs: [[...lead, width], [out, width], [out], ...(end ? [shape] : [])],
    run: ([x, w, b, residual]) => F.linear(x!, w!, b!, end ? { residual, activation: "tanh" } : {}),
    reference: (x, w, b, residual) =>
      Float64Array.from({ length: sizeOf(shape) }, (_, i) => {
        const [row, o] = [Math.floor(i / out), i % out];
        let sum = b![o]!;
        for (let k = 0; k < width; k++) sum += x![row * width + k]! * w![o * width + k]!;
        return end ? end(sum + residual![i]!) : sum;
      }),
  };
}

export const reduceCases: Cases = {
  sum: [...reduction(F.sum, total), ...whole(F.sum, total)],
  mean: reduction(F.mean, (v) => total(v) / v.length),
  max: [...extremum(F.max, largest), ...whole(F.max, largest)],
  min: [...extremum(F.min, smallest), ...whole(F.min, smallest)],
  argmax: SHAPES.slice(1, 4).map(([shape, dims]) => ({
    inputs: [{ shape, differentiable: false }],
    run: ([x]) => F.argmax(x!, dims![0]!),
    reference: fold(shape, dims!, (v) => v.indexOf(v.reduce((a, b) => Math.max(a, b)))),
  })),
};

function product(batchA: Shape, batchB: Shape, m: number, k: number, n: number): Case["reference"] {
  const rank = Math.max(batchA.length, batchB.length);
  const batch = Array.from({ length: rank }, (_, d) =>
    Math.max(batchA[d - rank + batchA.length] ?? 1, batchB[d - rank + batchB.length] ?? 1),
  );
  const [sa, sb] = [broadcastStrides(batchA, batch), broadcastStrides(batchB, batch)];
  const own = stridesOf(batch);
  return (a, b) => {
    const y = new Float64Array(sizeOf(batch) * m * n);
    for (let i = 0; i < sizeOf(batch); i++) {
      const at = (s: number[]): number => own.reduce((sum, o, d) => sum + (Math.floor(i / o) % batch[d]!) * s[d]!, 0);
      const [ia, ib] = [at(sa) * m * k, at(sb) * k * n];
      for (let r = 0; r < m; r++)
        for (let q = 0; q < k; q++) {
          const v = a![ia + r * k + q]!;
          for (let c = 0; c < n; c++) y[(i * m + r) * n + c]! += v * b![ib + q * n + c]!;
        }
    }
    return y;
  };
}

const PRODUCTS: readonly [Shape, Shape, number, number, number][] = [
  [[], [], 1, 1, 1],
  [[], [], 7, 5, 3],
  [[], [], 9, 17, 36],
  [[], [], 13, 8, 64],
  [[2], [2], 5, 9, 8],
  [[3, 1], [1, 2], 4, 3, 5],
  [[2, 3], [], 4, 6, 8],
  [[], [3], 9, 10, 12],
  [[], [], 130, 33, 7],
  [[], [], 5, 70, 6],
  [[], [], 130, 20, 66],
  // So few outputs of so long a sum are computed in parts.
  [[], [], 2, 16400, 3],
  [[2], [2], 4, 16390, 8],
  [[4], [4], 65, 32, 100],
];

const products = PRODUCTS.map(
  ([ba, bb, m, k, n], i): Case => ({
    ...(i === PRODUCTS.length - 1 ? { name: "real" } : {}),
    inputs: [
      [...ba, m, k],
      [...bb, k, n],
    ],
    run: ([a, b]) => F.matmul(a!, b!),
    reference: product(ba, bb, m, k, n),
  }),
);

export const matmulCases: Cases = {
  matmul: [
    ...products,
    // Either side, and both; the long sums need not be seen so often.
    ...products.slice(0, 11).map((test, i) => halved(test, ...[[1], [0], [0, 1]][i % 3]!)),
    ...products.slice(1, 6).map((test) => halved(test, 0, 1)),
    halved(products[12]!, 1),
    { name: "vectors", inputs: [[5], [5]], run: ([a, b]) => F.matmul(a!, b!), reference: product([], [], 1, 5, 1) },
    {
      name: "matrix x vector",
      inputs: [[3, 5], [5]],
      run: ([a, b]) => F.matmul(a!, b!),
      reference: product([], [], 3, 5, 1),
    },
  ],
  linear: [
    linear([3], 5, 7),
    linear([2], 0, 3),
    linear([2, 9], 16, 8),
    linear([130], 33, 64),
    linear([3], 16388, 5),
    linear([16400], 4, 8),
    linear([5], 3, 7, Math.tanh),
    linear([2, 9], 16, 40, Math.tanh),
    linear([2], 16388, 4, Math.tanh),
    halved(linear([3], 5, 7), 1),
    halved(linear([2, 9], 16, 8), 1),
    halved(linear([130], 33, 64), 0, 1),
    halved(linear([5], 3, 7, Math.tanh), 0),
    halved(linear([2, 9], 16, 40, Math.tanh), 0, 1),
    halved(linear([3], 16388, 5), 1),
    linear([2, 300], 64, 128, undefined, "real"),
  ],
};
