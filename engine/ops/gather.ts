/** Reading and adding up elements by index. Sums run in the order of their sources, so that they come out the same every time. */
import { checkFloats, checkNoMore, checkTensors } from "../check.ts";
import { linearGroups, run } from "../kernel.ts";
import { axis, show, sizeOf } from "../shape.ts";
import { record } from "../tape.ts";
import { empty, fill, type Tensor } from "../tensor.ts";
import { pad, reshape, slice } from "./movement.ts";
import { add } from "./pointwise.ts";
import { groupByKey } from "./sort.ts";

/** x as (outer, j, inner), read at i places of the middle axis; one index for all outer and inner where `shared`. */
interface Layout {
  outer: number;
  j: number;
  i: number;
  inner: number;
  shared: boolean;
}

function checkIndex(op: string, x: Record<string, Tensor>, index: Tensor): void {
  checkTensors(op, { ...x, index });
  if (index.dtype !== "i32" && index.dtype !== "u32")
    throw new Error(`${op}: index must be i32 or u32; got ${index.dtype}: F.cast(index, "i32") first`);
}

const groupsFor = (n: number): [number, number] => linearGroups(Math.ceil(n / 64));
const constants = (l: Layout): Record<string, number> => ({ SHARED: l.shared ? 1 : 0 });
/** Rows of whole vectors are moved four elements at a time. */
const inFours = (l: Layout): boolean => l.shared && l.inner % 4 === 0;

function read(x: Tensor, index: Tensor, shape: readonly number[], l: Layout): Tensor {
  const y = empty(x.device, shape, x.dtype);
  const { outer, j, i } = l;
  const four = inFours(l);
  run(x.device, "gather", four ? "gather4" : "gather", {
    bind: four ? { x4: x, index, y4: y } : { x, index, y },
    params: { outer, j, i, inner: four ? l.inner / 4 : l.inner, count: 0, has_base: 0 },
    constants: constants(l),
    groups: groupsFor(four ? y.size / 4 : y.size),
  });
  return y;
}

/** base (default 0) with the elements of g added where the index sends them. */
function collect(g: Tensor, index: Tensor, shape: readonly number[], l: Layout, base?: Tensor): Tensor {
  const y = empty(g.device, shape);
  const { outer, j, i, inner } = l;
  if (index.size === 0) return fill(y, 0);
  const count = l.shared ? j : outer * j * inner;
  const params = { outer, j, i, inner, count, has_base: base ? 1 : 0 };
  const keys = empty(g.device, [index.size], "u32");
  run(g.device, "gather", "destinations", {
    bind: { index, keys },
    params,
    constants: constants(l),
    groups: groupsFor(index.size),
  });
  const { order, start } = groupByKey(keys, index.size, count);
  const four = inFours(l) && !base;
  run(g.device, "gather", four ? "collect4" : "collect", {
    bind: four ? { order, start, g4: g, gx4: y } : { order, start, g, base: base ?? g, gx: y },
    params: { ...params, inner: four ? inner / 4 : inner },
    constants: constants(l),
    groups: groupsFor(four ? y.size / 4 : y.size),
  });
  return y;
}

function readRecorded(op: string, x: Tensor, index: Tensor, shape: readonly number[], l: Layout): Tensor {
  return record(op, [x], read(x, index, shape, l), (gy) => [x.dtype === "f32" ? collect(gy, index, x.shape, l) : null]);
}

/** The corner of x that an index of `shape` reaches: all of dimension d, as much of the others as the index has. */
function corner(op: string, x: Tensor, shape: readonly number[], d: number): Tensor {
  if (x.shape.length !== shape.length || shape.some((n, k) => k !== d && n > x.shape[k]!))
    throw new Error(
      `${op}: index must have as many dimensions as x and be no larger but along dim ${d}; got ${show(shape)} for x ${show(x.shape)}`,
    );
  return shape.reduce((y, n, k) => (k === d || n === y.shape[k] ? y : slice(y, k, 0, n)), x);
}

function layout(x: Tensor, d: number, i: number): Layout {
  return { outer: sizeOf(x.shape.slice(0, d)), j: x.shape[d]!, i, inner: sizeOf(x.shape.slice(d + 1)), shared: false };
}

/** torch.gather: y[…, k, …] = x[…, index[…, k, …], …] along `dim`. An index outside the dimension reads 0 and passes no gradient. */
export function gather(x: Tensor, dim: number, index: Tensor): Tensor {
  checkIndex("gather", { x }, index);
  const d = axis("gather", dim, x.shape.length);
  const from = corner("gather", x, index.shape, d);
  return readRecorded("gather", from, index, index.shape, layout(from, d, index.shape[d]!));
}

/**
 * torch.scatter_add: x with source[…, k, …] added at index[…, k, …] along `dim`. Sources of one place are added in their order; an index
 * outside the dimension adds nothing.
 */
export function scatterAdd(x: Tensor, dim: number, index: Tensor, source: Tensor): Tensor {
  checkIndex("scatterAdd", { x }, index);
  checkFloats("scatterAdd", { x, source });
  const d = axis("scatterAdd", dim, x.shape.length);
  const i = index.shape[d]!;
  if (source.shape.length !== index.shape.length || index.shape.some((n, k) => n > source.shape[k]!))
    throw new Error(
      `scatterAdd: index must be no larger than source; got ${show(index.shape)} for source ${show(source.shape)}`,
    );
  const used = index.shape.reduce((y, n, k) => (n === y.shape[k] ? y : slice(y, k, 0, n)), source);
  const target = corner("scatterAdd", x, index.shape, d);
  const l = layout(target, d, i);
  if (target !== x) {
    // The index reaches a corner of x alone: add what arrives there to the whole.
    const sum = record("scatterAdd", [used], collect(used, index, target.shape, l), (gy) => [
      read(gy, index, index.shape, l),
    ]);
    const padding = [...x.shape.keys()].reverse().flatMap((k) => [0, x.shape[k]! - target.shape[k]!]);
    return add(x, pad(sum, padding));
  }
  if (index.size === 0) return reshape(x, x.shape);
  return record("scatterAdd", [x, used], collect(used, index, x.shape, l, x), (gy) => [
    gy,
    used.requiresGrad ? read(gy, index, index.shape, l) : null,
  ]);
}

/** torch.index_select: the slices of x at `index` (I) along `dim`. An index outside the dimension reads 0 and passes no gradient. */
export function indexSelect(x: Tensor, dim: number, index: Tensor): Tensor {
  checkIndex("indexSelect", { x }, index);
  if (index.shape.length !== 1) throw new Error(`indexSelect: index must have one dimension; got ${show(index.shape)}`);
  const d = axis("indexSelect", dim, x.shape.length);
  const shape = x.shape.map((n, k) => (k === d ? index.size : n));
  return readRecorded("indexSelect", x, index, shape, { ...layout(x, d, index.size), shared: true });
}

/** Rows of weight (V, D) by index (…): (…, D). An index outside 0..V-1 gives 0 and passes no gradient. */
export function embedding(index: Tensor, weight: Tensor, ...more: never[]): Tensor {
  checkNoMore("embedding", more);
  checkIndex("embedding", { weight }, index);
  if (weight.shape.length !== 2) throw new Error(`embedding: weight must be (V, D); got ${show(weight.shape)}`);
  const [j, inner] = weight.shape as [number, number];
  return readRecorded("embedding", weight, index, [...index.shape, inner], {
    outer: 1,
    j,
    i: index.size,
    inner,
    shared: true,
  });
}
