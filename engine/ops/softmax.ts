/** softmax and its relatives over one dimension. */
import { checkFloats, checkNoMore, checkOptions } from "../check.ts";
import type { Device } from "../device.ts";
import { linearGroups, run } from "../kernel.ts";
import { axis, show, sizeOf } from "../shape.ts";
import { record } from "../tape.ts";
import { empty, type Tensor } from "../tensor.ts";

interface Rows {
  rows: number;
  r: number;
  inner: number;
}

function split(op: string, x: Tensor, dim: number): Rows & { d: number } {
  checkFloats(op, { x });
  const d = axis(op, dim, x.shape.length);
  const r = x.shape[d] ?? 1;
  if (r === 0) throw new Error(`${op}: dimension ${d} of x ${show(x.shape)} is empty`);
  const inner = sizeOf(x.shape.slice(d + 1));
  return { d, r, inner, rows: x.size / r };
}

/** Rows that lie side by side and whose length is a multiple of four are read four values at a time. */
const inFours = ({ r, inner }: Rows): boolean => inner === 1 && r % 4 === 0;

/** Whether a row gets a workgroup of its own: on GPUs always but for the shortest; on CPUs, where barriers are dear, few long ones. */
export function workgroupPerRow(device: Device, rows: number, r: number): boolean {
  return device.isSoftware ? rows < 64 && r >= 512 : r >= 32;
}

function normalise(op: string, x: Tensor, dim: number, kind: number): Tensor {
  const { rows, r, inner } = split(op, x, dim);
  const params = { rows, r, inner };
  const wide = inner === 1 && workgroupPerRow(x.device, rows, r);
  const groups = linearGroups(wide ? rows : Math.ceil(rows / 64));
  const constants = { KIND: kind };
  const four = !wide && inFours(params);
  const y = empty(x.device, x.shape);
  run(x.device, "softmax", wide ? "row_forward" : four ? "forward4" : "forward", {
    bind: four ? { x4: x, y4: y } : { x, y },
    params,
    constants,
    groups,
  });
  return record(op, [x], y, (g) => {
    const gx = empty(x.device, x.shape);
    run(x.device, "softmax", wide ? "row_grad" : four ? "grad4" : "grad", {
      bind: four ? { y_in4: y, g4: g, gx4: gx } : { y_in: y, g, gx },
      params,
      constants,
      groups,
    });
    return [gx];
  });
}

/** exp(x) / sum exp(x) along `dim`, stable for large x. */
export function softmax(x: Tensor, dim: number, ...more: never[]): Tensor {
  checkNoMore("softmax", more);
  return normalise("softmax", x, dim, 0);
}

/** log(softmax(x)) along `dim`, without the logarithm of small numbers. */
export function logSoftmax(x: Tensor, dim: number, ...more: never[]): Tensor {
  checkNoMore("logSoftmax", more);
  return normalise("logSoftmax", x, dim, 1);
}

/** log sum exp(x) along `dim`, stable for large x. */
export function logSumExp(x: Tensor, dim: number, options: { keepdim?: boolean } = {}): Tensor {
  checkOptions("logSumExp", options, { keepdim: "boolean" });
  const { d, rows, r, inner } = split("logSumExp", x, dim);
  const params = { rows, r, inner };
  const shape = options.keepdim ? x.shape.map((n, k) => (k === d ? 1 : n)) : x.shape.filter((_, k) => k !== d);
  const y = empty(x.device, shape);
  run(x.device, "softmax", "log_sum", { bind: { x, y }, params, groups: linearGroups(Math.ceil(rows / 64)) });
  return record("logSumExp", [x], y, (g) => {
    const gx = empty(x.device, x.shape);
    run(x.device, "softmax", "grad_log_sum", {
      bind: { x, y_in: y, g, gx },
      params,
      groups: linearGroups(Math.ceil(x.size / 64)),
    });
    return [gx];
  });
}
