/** Sums, means, extrema and argmax over dimensions. */

import type { Fold } from "../chain.ts";
import { checkFloats, checkOptions, checkTensors, isPlain } from "../check.ts";
import type { Device } from "../device.ts";
import { reduction } from "../fusion.ts";
import { linearGroups, run } from "../kernel.ts";
import { axis, type Shape, sameShape, show, sizeOf } from "../shape.ts";
import { record } from "../tape.ts";
import { alias, empty, type Tensor } from "../tensor.ts";
import { expandTo } from "./strided.ts";

const SUM = 0;
const MAX = 1;
const MIN = 2;

/**
 * How many rows each invocation folds, `each` numbers of them at once: all where the columns alone keep the adapter busy; long, few columns
 * are cut into pieces near the square root.
 */
function pieceOf(device: Device, columns: number, rows: number, each: number): number {
  const length = rows / each;
  if (length <= 256 || (columns >= (device.isSoftware ? 256 : 2048) && length <= 4096)) return Math.max(rows, 1);
  return each * Math.max(64, Math.min(1024, 2 ** Math.ceil(Math.log2(Math.sqrt(length)))));
}

/** (outer, R, inner) -> (outer, inner), in as many passes as keep each invocation's share short. */
function reduceMiddle(x: Tensor, outer: number, r: number, inner: number, kind: number, scale: number): Tensor {
  const { device } = x;
  const float = x.dtype === "f32";
  let from = x;
  let rows = r;
  for (;;) {
    const fours = float && (inner % 4 === 0 || (inner === 1 && rows % 4 === 0));
    const columns = fours && inner > 1 ? (outer * inner) / 4 : outer * inner;
    const piece = pieceOf(device, columns, rows, fours && inner === 1 ? 4 : 1);
    const pieces = Math.max(1, Math.ceil(rows / piece));
    const fold = { outer, r: rows, inner, pieces, piece, scale: pieces === 1 ? scale : 1 };
    from = fours && from.size > 0 ? reduction(from, { ...fold, kind }) : reduceOnes(from, fold, kind);
    if (pieces === 1) return from;
    rows = pieces;
  }
}

/** One number after the other, of any type. */
function reduceOnes(x: Tensor, fold: Omit<Fold, "kind">, kind: number): Tensor {
  const { outer, inner, pieces } = fold;
  const float = x.dtype === "f32";
  const unsigned = x.dtype === "u32";
  const y = empty(x.device, [outer, pieces, inner], float ? "f32" : unsigned ? "u32" : "i32");
  run(x.device, "reduce", float ? "forward" : "forward_whole", {
    bind: float ? { x, y } : { whole: x, whole_out: y },
    params: { ...fold },
    constants: float ? { KIND: kind } : { KIND: kind, UNSIGNED: unsigned ? 1 : 0 },
    groups: linearGroups(Math.ceil((outer * inner * pieces) / 64)),
  });
  return y;
}

type Dims = number | readonly number[] | undefined;

/** The dimensions named, sorted; all of them where none is. */
function listed(op: string, x: Tensor, dims: Dims): number[] {
  const rank = x.shape.length;
  if (isPlain(dims))
    throw new Error(`${op}: dims come before the options: ${op}(x, dims, { keepdim }); dims undefined: all`);
  if (dims === undefined || (Array.isArray(dims) && dims.length === 0)) return [...x.shape.keys()];
  const list = [dims]
    .flat()
    .map((d) => axis(op, d, rank))
    .sort((a, b) => a - b);
  if (list.some((d, i) => d === list[i - 1]))
    throw new Error(`${op}: each dimension is named once; got dims ${show([dims].flat())} of ${show(x.shape)}`);
  return list;
}

/** Reduces `dims` (sorted) to size 1, one run of neighbours after the other from the last to the first: nothing is moved in between. */
function reduceDims(x: Tensor, dims: readonly number[], kind: number, scale: number): Tensor {
  const wanted = dims.filter((d) => x.shape[d] !== 1);
  const shape = [...x.shape];
  let y = x;
  do {
    // The last run: neighbours, or parted by sizes of 1 alone.
    let first = wanted.length - 1;
    while (first > 0 && shape.slice(wanted[first - 1]! + 1, wanted[first]).every((n) => n === 1)) first--;
    const run = wanted.splice(Math.max(first, 0));
    const [from, to] = [run[0] ?? 0, run.at(-1) ?? -1];
    const r = sizeOf(shape.slice(from, to + 1));
    y = reduceMiddle(
      y,
      sizeOf(shape.slice(0, from)),
      r,
      sizeOf(shape.slice(to + 1)),
      kind,
      wanted.length === 0 ? scale : 1,
    );
    for (const d of run) shape[d] = 1;
  } while (wanted.length > 0);
  return alias(y, shape);
}

function reducedShape(shape: Shape, dims: readonly number[], keepdim: boolean): number[] {
  return keepdim ? shape.map((n, d) => (dims.includes(d) ? 1 : n)) : shape.filter((_, d) => !dims.includes(d));
}

export interface ReduceOptions {
  keepdim?: boolean;
}
const OPTIONS = { keepdim: "boolean" } as const;

function total(op: string, x: Tensor, dims: Dims, options: ReduceOptions, mean: boolean): Tensor {
  const list = listed(op, x, dims);
  checkOptions(op, options, OPTIONS);
  const scale = mean ? 1 / sizeOf(list.map((d) => x.shape[d]!)) : 1;
  const y = alias(reduceDims(x, list, SUM, scale), reducedShape(x.shape, list, options.keepdim ?? false));
  const kept = reducedShape(x.shape, list, true);
  return record(op, [x], y, (gy) => [expandTo(alias(gy, kept), x.shape, scale)]);
}

/** Sum over `dims` (default, or empty: all). Whole numbers give whole numbers, truth values their count (i32). */
export function sum(x: Tensor, dims?: Dims, options: ReduceOptions = {}): Tensor {
  checkTensors("sum", { x });
  return total("sum", x, dims, options, false);
}

/** Mean over `dims` (default, or empty: all). */
export function mean(x: Tensor, dims?: Dims, options: ReduceOptions = {}): Tensor {
  checkFloats("mean", { x });
  return total("mean", x, dims, options, true);
}

function extremum(op: "max" | "min", x: Tensor, dims: Dims, options: ReduceOptions): Tensor {
  checkTensors(op, { x });
  const list = listed(op, x, dims);
  if (list.some((d) => x.shape[d] === 0))
    throw new Error(`${op}: there is nothing to choose from along dims ${list} of shape ${show(x.shape)}`);
  checkOptions(op, options, OPTIONS);
  const kept = reducedShape(x.shape, list, true);
  const y = alias(
    reduceDims(x, list, op === "max" ? MAX : MIN, 1),
    reducedShape(x.shape, list, options.keepdim ?? false),
    x.dtype,
  );
  return record(op, [x], y, (gy) => {
    // 1 where x is the extremum; several share the gradient.
    const hit = empty(x.device, x.shape);
    const top = expandTo(alias(y, kept), x.shape, 1);
    run(x.device, "ties", "mark", {
      bind: { x, top, hit },
      params: { n: x.size },
      groups: linearGroups(Math.ceil(x.size / 64)),
    });
    const count = expandTo(sumTo(hit, kept), x.shape, 1);
    const g = expandTo(alias(gy, kept), x.shape, 1);
    const gx = empty(x.device, x.shape);
    run(x.device, "ties", "share", {
      bind: { hit_in: hit, count, g, gx },
      params: { n: x.size },
      groups: linearGroups(Math.ceil(x.size / 64)),
    });
    return [gx];
  });
}

/** Largest value over `dims` (torch.amax; default, or empty: all): values only, ties share the gradient. NaN where there is one. */
export function max(x: Tensor, dims?: Dims, options: ReduceOptions = {}): Tensor {
  return extremum("max", x, dims, options);
}

/** Smallest value over `dims` (torch.amin). */
export function min(x: Tensor, dims?: Dims, options: ReduceOptions = {}): Tensor {
  return extremum("min", x, dims, options);
}

/** Index (i32) of the first largest element along `dim`, or of the first NaN. */
export function argmax(x: Tensor, dim: number, options: ReduceOptions = {}): Tensor {
  checkFloats("argmax", { x });
  checkOptions("argmax", options, OPTIONS);
  const d = axis("argmax", dim, x.shape.length);
  if (x.shape[d] === 0) throw new Error(`argmax: there is nothing to choose from along dim ${d} of ${show(x.shape)}`);
  const outer = sizeOf(x.shape.slice(0, d));
  const inner = sizeOf(x.shape.slice(d + 1));
  const index = empty(x.device, reducedShape(x.shape, [d], options.keepdim ?? false), "i32");
  run(x.device, "reduce", "argmax", {
    bind: { x, index },
    params: { outer, r: x.shape[d]!, inner, pieces: 1, piece: 0, scale: 1 },
    groups: linearGroups(Math.ceil((outer * inner) / 64)),
  });
  return index;
}

/** Sums a gradient back to the shape that was broadcast to its own. */
export function sumTo(g: Tensor, shape: Shape): Tensor {
  if (sameShape(g.shape, shape)) return g;
  const lead = g.shape.length - shape.length;
  const dims = [...g.shape.keys()].filter((d) => d < lead || (shape[d - lead] === 1 && g.shape[d] !== 1));
  if (dims.length === 0) return alias(g, shape);
  return alias(reduceDims(g, dims, SUM, 1), shape);
}
