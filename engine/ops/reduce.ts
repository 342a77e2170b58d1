/** Sums, means, extrema and argmax over dimensions. */
import { linearGroups, run } from "../kernel.ts";
import { axis, type Shape, sameShape, show, sizeOf } from "../shape.ts";
import { record } from "../tape.ts";
import { alias, empty, type Tensor } from "../tensor.ts";
import { expandTo } from "./strided.ts";

const SUM = 0;
const MAX = 1;
const MIN = 2;

/** (outer, R, inner) -> (outer, inner), in as many passes as keep each invocation's share short. */
function reduceMiddle(x: Tensor, outer: number, r: number, inner: number, kind: number, scale: number): Tensor {
  let from = x;
  let rows = r;
  for (;;) {
    const columns = outer * inner;
    // One pass where the columns alone keep the adapter busy; long, few columns are cut into pieces near the square root.
    const whole = rows <= 256 || (columns >= 2048 && rows <= 4096);
    const piece = whole ? Math.max(rows, 1) : Math.max(64, Math.min(1024, 2 ** Math.ceil(Math.log2(Math.sqrt(rows)))));
    const pieces = Math.max(1, Math.ceil(rows / piece));
    const y = empty(x.device, [outer, pieces, inner]);
    run(x.device, "reduce", "forward", {
      bind: { x: from, y },
      params: { outer, r: rows, inner, pieces, piece, scale: pieces === 1 ? scale : 1 },
      constants: { KIND: kind },
      groups: linearGroups(Math.ceil((columns * pieces) / 64)),
    });
    if (pieces === 1) return y;
    from = y;
    rows = pieces;
  }
}

/** The dimensions named, sorted; all of them by default. */
function listed(op: string, x: Tensor, dims: number | readonly number[] | undefined): number[] {
  const rank = x.shape.length;
  if (dims === undefined) return [...x.shape.keys()];
  return [...new Set([dims].flat().map((d) => axis(op, d, rank)))].sort((a, b) => a - b);
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

function total(
  op: string,
  x: Tensor,
  dims: number | readonly number[] | undefined,
  options: ReduceOptions,
  mean: boolean,
): Tensor {
  if (x.dtype !== "f32") throw new Error(`${op}: x must be f32; got ${x.dtype}: F.cast(x, "f32") first`);
  const list = listed(op, x, dims);
  const scale = mean ? 1 / sizeOf(list.map((d) => x.shape[d]!)) : 1;
  const y = alias(reduceDims(x, list, SUM, scale), reducedShape(x.shape, list, options.keepdim ?? false));
  const kept = reducedShape(x.shape, list, true);
  return record(op, [x], y, (gy) => [expandTo(alias(gy, kept), x.shape, scale)]);
}

/** Sum over `dims` (default: all). */
export function sum(x: Tensor, dims?: number | readonly number[], options: ReduceOptions = {}): Tensor {
  return total("sum", x, dims, options, false);
}

/** Mean over `dims` (default: all). */
export function mean(x: Tensor, dims?: number | readonly number[], options: ReduceOptions = {}): Tensor {
  return total("mean", x, dims, options, true);
}

function extremum(
  op: "max" | "min",
  x: Tensor,
  dims: number | readonly number[] | undefined,
  options: ReduceOptions,
): Tensor {
  if (x.dtype !== "f32") throw new Error(`${op}: x must be f32; got ${x.dtype}: F.cast(x, "f32") first`);
  const list = listed(op, x, dims);
  if (list.some((d) => x.shape[d] === 0))
    throw new Error(`${op}: there is nothing to choose from along dims ${list} of shape ${show(x.shape)}`);
  const kept = reducedShape(x.shape, list, true);
  const y = alias(
    reduceDims(x, list, op === "max" ? MAX : MIN, 1),
    reducedShape(x.shape, list, options.keepdim ?? false),
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

/** Largest value over `dims` (torch.amax): values only, ties share the gradient. */
export function max(x: Tensor, dims?: number | readonly number[], options: ReduceOptions = {}): Tensor {
  return extremum("max", x, dims, options);
}

/** Smallest value over `dims` (torch.amin). */
export function min(x: Tensor, dims?: number | readonly number[], options: ReduceOptions = {}): Tensor {
  return extremum("min", x, dims, options);
}

/** Index (i32) of the first largest element along `dim`. */
export function argmax(x: Tensor, dim: number): Tensor {
  const d = axis("argmax", dim, x.shape.length);
  if (x.dtype !== "f32") throw new Error(`argmax: x must be f32; got ${x.dtype}: F.cast(x, "f32") first`);
  const outer = sizeOf(x.shape.slice(0, d));
  const inner = sizeOf(x.shape.slice(d + 1));
  const index = empty(
    x.device,
    x.shape.filter((_, k) => k !== d),
    "i32",
  );
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
