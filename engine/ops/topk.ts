/** The largest elements of rows. */
import { checkFloats, checkNoMore } from "../check.ts";
import { linearGroups, run } from "../kernel.ts";
import { scope } from "../scope.ts";
import { show } from "../shape.ts";
import { record } from "../tape.ts";
import { empty, fill, type Tensor } from "../tensor.ts";
import { sortKeys } from "./sort.ts";

/**
 * The k largest of the last dimension, from the largest down, with their indices (i32): (…, n) -> two of (…, k). Of equal ones the lower
 * index comes first, so the result is the same every time; NaN counts as the largest. Values pass gradients.
 */
export function topk(x: Tensor, k: number, ...more: never[]): { values: Tensor; indices: Tensor } {
  checkFloats("topk", { x });
  checkNoMore("topk", more);
  const n = x.shape.at(-1);
  if (n === undefined) throw new Error("topk: x must have at least one dimension; got a single number");
  if (!Number.isInteger(k) || k < 0 || k > n)
    throw new Error(`topk: k must lie in 0..${n}, the last dimension of x ${show(x.shape)}; got ${k}`);
  const { device } = x;
  const shape = [...x.shape.slice(0, -1), k];
  const values = empty(device, shape);
  const indices = empty(device, shape, "i32");
  const rows = n === 0 ? 0 : x.size / n;
  const params = { rows, n, k };
  const groups = linearGroups(Math.ceil(values.size / 64));
  scope(() => {
    const keys = empty(device, [rows, n], "u32");
    run(device, "topk", "keys", { bind: { x, keys_out: keys }, params, groups: linearGroups(Math.ceil(x.size / 64)) });
    const { order } = sortKeys(keys, rows, n, 32);
    run(device, "topk", "pick", { bind: { x, order, values, indices }, params, groups });
  });
  record("topk", [x], values, (g) => {
    const gx = fill(empty(device, x.shape), 0);
    run(device, "topk", "grad", { bind: { g, indices_in: indices, gx }, params, groups });
    return [gx];
  });
  return { values, indices };
}
