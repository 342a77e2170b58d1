/** Cases of reading and adding up by index: equal indices, none at all, indices outside, indices that reach a part alone. */
import * as F from "../functional.ts";
import { type Shape, sizeOf, stridesOf } from "../shape.ts";
import { type Case, type Cases, whole } from "./case.ts";

const indices = (shape: Shape, n: number) => ({ shape, values: whole(n), dtype: "i32" }) as const;

/** For every element of `shape`: its own offset in x, with the coordinate along d replaced by `index` of that element; -1 where outside. */
function offsets(x: Shape, shape: Shape, d: number, index: (i: number) => number): Int32Array {
  const strides = stridesOf(x);
  const own = stridesOf(shape);
  return Int32Array.from({ length: sizeOf(shape) }, (_, i) => {
    const k = index(i);
    if (k < 0 || k >= x[d]!) return -1;
    return shape.reduce((at, n, dim) => at + (dim === d ? k : Math.floor(i / own[dim]!) % n) * strides[dim]!, 0);
  });
}

/** `f` of an index, worked out once: the twins are asked many times for the same one. */
function once<T>(f: (index: Float64Array) => T): (index: Float64Array) => T {
  let known: { index: Float64Array; value: T } | undefined;
  return (index) => {
    if (known?.index !== index) known = { index, value: f(index) };
    return known.value;
  };
}

const read = (a: Float64Array, at: Int32Array): Float64Array => Float64Array.from(at, (k) => (k < 0 ? 0 : a[k]!));

function gather(name: string, x: Shape, dim: number, index: Shape, range = x.at(dim)!): Case {
  const d = dim < 0 ? dim + x.length : dim;
  const from = once((i) => offsets(x, index, d, (k) => i[k]!));
  return {
    name,
    inputs: [x, indices(index, range)],
    run: ([a, i]) => F.gather(a!, dim, i!),
    reference: (a, i) => read(a, from(i)),
  };
}

function scatterAdd(
  name: string,
  x: Shape,
  dim: number,
  index: Shape,
  source: Shape = index,
  range = x.at(dim)!,
): Case {
  const d = dim < 0 ? dim + x.length : dim;
  const step = stridesOf(index)[d]!;
  const from = offsets(source, index, d, (k) => Math.floor(k / step) % index[d]!);
  const to = once((i) => offsets(x, index, d, (k) => i[k]!));
  return {
    name,
    inputs: [x, indices(index, range), source],
    run: ([a, i, s]) => F.scatterAdd(a!, dim, i!, s!),
    reference: (a, i, s) => {
      const y = Float64Array.from(a);
      const places = to(i);
      for (let k = 0; k < places.length; k++) if (places[k]! >= 0) y[places[k]!]! += s[from[k]!]!;
      return y;
    },
  };
}

function indexSelect(name: string, x: Shape, dim: number, n: number, range = x.at(dim)!): Case {
  const d = dim < 0 ? dim + x.length : dim;
  const shape = x.map((s, k) => (k === d ? n : s));
  const step = stridesOf(shape)[d]!;
  const from = once((i) => offsets(x, shape, d, (k) => i[Math.floor(k / step) % n]!));
  return {
    name,
    inputs: [x, indices([n], range)],
    run: ([a, i]) => F.indexSelect(a!, dim, i!),
    reference: (a, i) => read(a, from(i)),
  };
}

function embedding(name: string, index: Shape, weight: readonly [number, number], range = weight[0]): Case {
  const n = sizeOf(index);
  const from = once((i) => offsets(weight, [n, weight[1]], 0, (k) => i[Math.floor(k / weight[1])]!));
  return {
    name,
    inputs: [indices(index, range), weight],
    run: ([i, w]) => F.embedding(i!, w!),
    reference: (i, w) => read(w, from(i)),
  };
}

export const gatherCases: Cases = {
  gather: [
    gather("1", [1], 0, [1]),
    gather("middle dimension", [3, 7, 5], 1, [3, 4, 5]),
    gather("longer than x", [2, 7], -1, [2, 130]),
    gather("a corner of x", [4, 7, 5], 2, [3, 6, 9]),
    gather("indices outside", [3, 7], 1, [3, 9], 9),
    gather("one past a workgroup, all equal", [5, 13], 1, [5, 13], 1),
    gather("real: class scores", [100, 81], 1, [100, 1]),
  ],
  scatterAdd: [
    scatterAdd("1", [1], 0, [1]),
    scatterAdd("many to few", [3, 5], 1, [3, 130]),
    scatterAdd("all to one", [2, 70], 0, [65, 70], [65, 70], 1),
    scatterAdd("source larger than index", [4, 7, 5], 1, [4, 9, 5], [5, 10, 6]),
    scatterAdd("a corner of x", [4, 7, 5], 0, [6, 3, 4]),
    scatterAdd("indices outside", [7], 0, [130], [130], 9),
    scatterAdd("real", [21, 256], 0, [100, 256]),
  ],
  indexSelect: [
    indexSelect("1", [1], 0, 1),
    indexSelect("middle dimension", [2, 7, 5], 1, 9),
    indexSelect("last dimension, outside", [3, 7], -1, 130, 8),
    indexSelect("all equal", [65, 3], 0, 200, 1),
    indexSelect("real: queries", [2, 100, 64], 1, 17),
  ],
  embedding: [
    embedding("1", [1], [1, 1]),
    embedding("odd", [3, 7], [5, 3]),
    embedding("outside", [130], [7, 5], 9),
    embedding("all equal", [65], [4, 64], 1),
    embedding("real: queries", [100], [100, 64]),
  ],
};
