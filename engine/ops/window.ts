/** Sizes of sliding windows, shared by convolution and pooling: no GPU here. */
import { describe } from "../check.ts";
import { type Shape, show } from "../shape.ts";

/** One number for both directions, or (y, x). */
export type Pair = number | readonly [number, number];

/** (y, x), each a whole number from `least` up. */
export function pair(op: string, name: string, value: Pair, least: number): [number, number] {
  const both = typeof value === "number" ? [value, value] : value;
  if (!Array.isArray(both) || both.length !== 2 || both.some((n) => !Number.isInteger(n) || n < least)) {
    const came = typeof value === "string" ? describe(value) : show([value].flat());
    throw new Error(`${op}: ${name} takes one or two whole numbers from ${least} up; got ${came}`);
  }
  return both as [number, number];
}

/** Windows of `size` (spread by `dilation`) every `stride` in `n` numbers and `padding` more. */
export function outputSize(
  op: string,
  shape: Shape,
  n: number,
  size: number,
  stride: number,
  padding: number,
  dilation: number,
): number {
  const reach = dilation * (size - 1) + 1;
  if (n + padding < reach)
    throw new Error(
      `${op}: a window that reaches over ${reach} does not fit into ${n} and ${padding} of padding; x is ${show(shape)}`,
    );
  return Math.floor((n + padding - reach) / stride) + 1;
}

/** A convolution's sizes. `ci` and `co` count the channels of one group. */
export interface ConvSizes {
  batch: number;
  groups: number;
  ci: number;
  co: number;
  input: readonly [number, number];
  output: readonly [number, number];
  kernel: readonly [number, number];
  stride: readonly [number, number];
  dilation: readonly [number, number];
  /** Padding above and to the left; what is below and to the right follows from the output's size. */
  start: readonly [number, number];
}

export const area = (size: readonly [number, number]): number => size[0] * size[1];

/** Workgroups for kernels that count a plane's work in x and the planes in y and z: `plane = id.y + id.z * num_groups.y`, which may pass the last. */
export function planeGroups(planes: number, perPlane: number): [number, number, number] {
  const y = Math.min(planes, 65535);
  return [perPlane, y, Math.ceil(planes / Math.max(y, 1))];
}
