/** Operations that move elements and compute nothing. */
import { checkNoMore, checkNumbers, checkTensors, describe } from "../check.ts";
import { axis, broadcastShapes, type Shape, sameShape, show, sizeOf, stridesOf } from "../shape.ts";
import { record } from "../tape.ts";
import { alias, empty, type Tensor } from "../tensor.ts";
import { sumTo } from "./reduce.ts";
import { expandTo, permuteData, stridedRead, stridedWrite } from "./strided.ts";

/** The same elements under another shape; one size may be -1. Shares memory with x. */
export function reshape(x: Tensor, shape: Shape): Tensor {
  checkTensors("reshape", { x }, true);
  checkNumbers("reshape", "shape", shape, -1);
  const known = sizeOf(shape.filter((d) => d !== -1));
  const full = shape.map((d) => (d === -1 ? x.size / known : d));
  if (shape.filter((d) => d === -1).length > 1 || sizeOf(full) !== x.size || full.some((d) => !Number.isInteger(d)))
    throw new Error(`reshape: ${show(x.shape)} has ${x.size} elements, which do not fill ${show(shape)}`);
  return record("reshape", [x], alias(x, full), (gy) => [alias(gy, x.shape)]);
}

/** Dimensions in another order. */
export function permute(x: Tensor, dims: readonly number[]): Tensor {
  checkTensors("permute", { x });
  checkNumbers("permute", "dims", dims);
  const order = dims.map((d) => axis("permute", d, x.shape.length));
  if (order.length !== x.shape.length || new Set(order).size !== order.length)
    throw new Error(`permute: dims must name each of the ${x.shape.length} dimensions once; got ${show(dims)}`);
  const back = order.map((_, d) => order.indexOf(d));
  return record("permute", [x], permuteData(x, order), (gy) => [permuteData(gy, back)]);
}

/** Swaps two dimensions. */
export function transpose(x: Tensor, a: number, b: number): Tensor {
  checkTensors("transpose", { x });
  const dims = [...x.shape.keys()];
  const [i, j] = [axis("transpose", a, dims.length), axis("transpose", b, dims.length)];
  [dims[i], dims[j]] = [j, i];
  return permute(x, dims);
}

/** Repeats dimensions of size 1; -1 keeps a size. */
export function expand(x: Tensor, shape: Shape): Tensor {
  checkTensors("expand", { x });
  checkNumbers("expand", "shape", shape, -1);
  const lead = shape.length - x.shape.length;
  const full = shape.map((d, i) => (d === -1 ? (x.shape[i - lead] ?? 1) : d));
  if (lead < 0 || !sameShape(broadcastShapes("expand", x.shape, full), full))
    throw new Error(`expand: ${show(x.shape)} cannot be repeated to ${show(shape)}`);
  return record("expand", [x], expandTo(x, full, 1), (gy) => [sumTo(gy, x.shape)]);
}

/** x[start:end] along `dim`; negative positions count from the end. */
export function slice(x: Tensor, dim: number, start: number, end?: number, ...more: never[]): Tensor {
  checkTensors("slice", { x });
  checkNoMore("slice", more);
  const d = axis("slice", dim, x.shape.length);
  const n = x.shape[d]!;
  const stop = end ?? n;
  checkNumbers("slice", "[start, end]", [start, stop]);
  const from = Math.min(Math.max(start < 0 ? start + n : start, 0), n);
  const to = Math.min(Math.max(stop < 0 ? stop + n : stop, from), n);
  if (from === 0 && to === n) return record("slice", [x], alias(x), (gy) => [gy]);
  const strides = stridesOf(x.shape);
  const shape = x.shape.map((s, k) => (k === d ? to - from : s));
  const y = stridedRead(x, shape, { offset: from * strides[d]!, strides });
  return record("slice", [x], y, (gy) => [padData(gy, x.shape, d === 0 ? [from] : [...new Array(d).fill(0), from])]);
}

/** Places x at position `before` of zeros of `shape` (negative: cuts). */
function padData(x: Tensor, shape: Shape, before: readonly number[]): Tensor {
  const strides = stridesOf(x.shape);
  const low = x.shape.map((_, d) => -(before[d] ?? 0));
  return stridedRead(x, shape, {
    offset: low.reduce((sum, l, d) => sum + l * strides[d]!, 0),
    strides,
    low,
    bound: x.shape,
  });
}

/** Pads (or, where negative, cuts) the last two dimensions with zeros: [left, right, top, bottom]; two numbers pad the last alone. */
export function pad(x: Tensor, padding: readonly number[], ...more: never[]): Tensor {
  checkTensors("pad", { x });
  checkNumbers("pad", "padding", padding);
  checkNoMore("pad", more);
  const rank = x.shape.length;
  if (padding.length % 2 !== 0 || padding.length / 2 > rank)
    throw new Error(`pad: padding takes pairs for the last dimensions of ${show(x.shape)}; got ${show(padding)}`);
  const before = new Array<number>(rank).fill(0);
  const shape = [...x.shape];
  for (let k = 0; k < padding.length / 2; k++) {
    const d = rank - 1 - k;
    before[d] = padding[2 * k]!;
    shape[d] = x.shape[d]! + padding[2 * k]! + padding[2 * k + 1]!;
    if (shape[d]! < 0) throw new Error(`pad: cutting ${show(padding)} leaves nothing of ${show(x.shape)}`);
  }
  return record("pad", [x], padData(x, shape, before), (gy) => [
    padData(
      gy,
      x.shape,
      before.map((b) => -b),
    ),
  ]);
}

function checkList(op: string, xs: readonly Tensor[]): void {
  if (!Array.isArray(xs) || xs.length === 0)
    throw new Error(
      `${op}: the tensors come in an array, at least one; got ${xs?.length === 0 ? "none" : describe(xs)}`,
    );
  checkTensors(op, Object.fromEntries(xs.map((x, i) => [`tensor ${i}`, x])));
}

/** Joins tensors along a dimension in which alone they may differ. */
export function cat(xs: readonly Tensor[], dim: number): Tensor {
  checkList("cat", xs);
  const first = xs[0]!;
  const d = axis("cat", dim, first.shape.length);
  for (const [i, x] of xs.entries())
    if (
      x.dtype !== first.dtype ||
      x.shape.length !== first.shape.length ||
      x.shape.some((n, k) => k !== d && n !== first.shape[k])
    )
      throw new Error(
        `cat: tensor ${i} is ${x.dtype} ${show(x.shape)}, which does not join ${first.dtype} ${show(first.shape)} along dimension ${d}`,
      );
  const shape = first.shape.map((n, k) => (k === d ? xs.reduce((sum, x) => sum + x.shape[d]!, 0) : n));
  const y = empty(first.device, shape, first.dtype);
  const strides = stridesOf(shape);
  const starts: number[] = [];
  let at = 0;
  for (const x of xs) {
    stridedWrite(x, y, at * strides[d]!, strides);
    starts.push(at);
    at += x.shape[d]!;
  }
  return record("cat", xs, y, (gy) =>
    xs.map((x, i) => (x.requiresGrad ? stridedRead(gy, x.shape, { offset: starts[i]! * strides[d]!, strides }) : null)),
  );
}

/** Joins tensors of one shape along a new dimension. */
export function stack(xs: readonly Tensor[], dim: number): Tensor {
  checkList("stack", xs);
  const rank = xs[0]!.shape.length + 1;
  const d = axis("stack", dim, rank);
  return cat(
    xs.map((x) => reshape(x, [...x.shape.slice(0, d), 1, ...x.shape.slice(d)])),
    d,
  );
}
