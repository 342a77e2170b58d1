import * as F from "../functional.ts";
import { broadcastStrides, type Shape, sizeOf, stridesOf } from "../shape.ts";
import type { Case, Cases } from "./case.ts";

/** Output element at coordinates k takes input element `at(k)`, or 0 where that is undefined. */
function moved(shape: Shape, at: (k: number[]) => number | undefined): (x: Float64Array) => Float64Array {
  const own = stridesOf(shape);
  const source = Array.from({ length: sizeOf(shape) }, (_, i) => at(own.map((s, d) => Math.floor(i / s) % shape[d]!)));
  return (x) => Float64Array.from(source, (s) => (s === undefined ? 0 : x[s]!));
}

const dot = (k: readonly number[], strides: readonly number[]): number =>
  k.reduce((sum, v, d) => sum + v * strides[d]!, 0);

function permuted(shape: Shape, dims: number[]): Case {
  const own = stridesOf(shape);
  return {
    inputs: [shape],
    run: ([x]) => F.permute(x!, dims),
    reference: moved(
      dims.map((d) => shape[d]!),
      (k) =>
        dot(
          k,
          dims.map((d) => own[d]!),
        ),
    ),
  };
}

function sliced(shape: Shape, dim: number, start: number, end: number): Case {
  const own = stridesOf(shape);
  return {
    inputs: [shape],
    run: ([x]) => F.slice(x!, dim, start, end),
    reference: moved(
      shape.map((n, d) => (d === dim ? end - start : n)),
      (k) => dot(k, own) + start * own[dim]!,
    ),
  };
}

function padded(shape: Shape, padding: number[]): Case {
  const own = stridesOf(shape);
  const rank = shape.length;
  const before = shape.map((_, d) => padding[2 * (rank - 1 - d)] ?? 0);
  const after = shape.map((_, d) => padding[2 * (rank - 1 - d) + 1] ?? 0);
  return {
    inputs: [shape],
    run: ([x]) => F.pad(x!, padding),
    reference: moved(
      shape.map((n, d) => n + before[d]! + after[d]!),
      (k) => {
        const from = k.map((v, d) => v - before[d]!);
        return from.every((v, d) => v >= 0 && v < shape[d]!) ? dot(from, own) : undefined;
      },
    ),
  };
}

function joined(shapes: readonly Shape[], dim: number): Case {
  const shape = shapes[0]!.map((n, d) => (d === dim ? shapes.reduce((sum, s) => sum + s[d]!, 0) : n));
  const own = stridesOf(shape);
  return {
    inputs: [...shapes],
    run: (xs) => F.cat(xs, dim),
    reference: (...xs) =>
      Float64Array.from({ length: sizeOf(shape) }, (_, i) => {
        const k = own.map((s, d) => Math.floor(i / s) % shape[d]!);
        let which = 0;
        while (k[dim]! >= shapes[which]![dim]!) k[dim]! -= shapes[which++]![dim]!;
        return xs[which]![dot(k, stridesOf(shapes[which]!))]!;
      }),
  };
}

const same = (x: Float64Array): Float64Array => x;

export const movementCases: Cases = {
  reshape: [
    { inputs: [[2, 6]], run: ([x]) => F.reshape(x!, [3, -1]), reference: same },
    { inputs: [[1]], run: ([x]) => F.reshape(x!, []), reference: same },
  ],
  permute: [
    permuted([3, 5], [1, 0]),
    permuted([2, 3, 4, 5], [0, 2, 3, 1]),
    permuted([2, 1, 7], [2, 0, 1]),
    permuted([3, 4, 5], [2, 1, 0]),
    permuted([2, 64, 17, 9], [0, 2, 3, 1]),
  ],
  transpose: [
    { inputs: [[3, 4, 5]], run: ([x]) => F.transpose(x!, -1, -2), reference: permuted([3, 4, 5], [0, 2, 1]).reference },
  ],
  expand: [
    {
      inputs: [[3, 1]],
      run: ([x]) => F.expand(x!, [2, -1, 5]),
      reference: moved([2, 3, 5], (k) => dot(k, broadcastStrides([3, 1], [2, 3, 5]))),
    },
    { inputs: [[1]], run: ([x]) => F.expand(x!, [130]), reference: moved([130], () => 0) },
  ],
  slice: [sliced([7], 0, 2, 5), sliced([3, 9, 4], 1, 1, 8), sliced([3, 9, 4], 2, 3, 4), sliced([5, 2], 0, 0, 5)],
  pad: [padded([4, 5], [1, 2, 3, 0]), padded([2, 3, 4], [0, 1]), padded([6, 6], [-1, 2, 0, -3]), padded([7], [1, 1])],
  cat: [
    joined(
      [
        [2, 3],
        [1, 3],
        [4, 3],
      ],
      0,
    ),
    joined(
      [
        [2, 3, 2],
        [2, 1, 2],
      ],
      1,
    ),
    joined([[5], [7]], 0),
  ],
  stack: [
    { inputs: [[3], [3]], run: (xs) => F.stack(xs, 0), reference: (a, b) => [...a!, ...b!] },
    { inputs: [[3], [3]], run: (xs) => F.stack(xs, -1), reference: (a, b) => [...a!].flatMap((v, i) => [v, b![i]!]) },
  ],
  detach: [{ inputs: [{ shape: [3], differentiable: false }], run: ([x]) => F.detach(x!), reference: same }],
};
