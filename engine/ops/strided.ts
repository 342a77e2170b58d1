/** The copies on which movement operations and gradients stand: no tape here. */
import { pointwise } from "../fusion.ts";
import { linearGroups, run } from "../kernel.ts";
import { broadcastStrides, collapse, type Shape, sizeOf, stridesOf } from "../shape.ts";
import { alias, BYTES, empty, type Tensor } from "../tensor.ts";

interface Window {
  offset?: number;
  strides: readonly number[];
  /** Coordinates outside `0..bound-1` after adding `low` read as 0. */
  low?: readonly number[];
  bound?: readonly number[];
  scale?: number;
}

/** The shader's RUN: neighbours that one thread copies; and the row from which that pays. */
const RUN = 16;
const LEAST_RUN = 4;

/** So few runs of neighbours, and so long ones, are moved by commands: a kernel costs as much as a dozen of those. */
const MOST_COPIES = 8;
const LEAST_COPIED = 256;

/** The starts of the walk's runs of neighbours where it has few, with their length; else undefined. */
function runsOf(walk: { shape: readonly number[]; strides: readonly (readonly number[])[] }): Runs | undefined {
  const { shape } = walk;
  const strides = walk.strides[0]!;
  if (shape.length === 0) return { starts: [0], length: 1 };
  if (strides.at(-1) !== 1) return undefined;
  const length = shape.at(-1)!;
  if (shape.length === 1) return { starts: [0], length };
  if (shape.length > 2 || shape[0]! > MOST_COPIES || length < LEAST_COPIED) return undefined;
  return { starts: Array.from({ length: shape[0]! }, (_, i) => i * strides[0]!), length };
}

interface Runs {
  starts: number[];
  length: number;
}

/** x in f32 where it is stored as f16, else x itself. */
export function widen(x: Tensor): Tensor {
  if (x.dtype !== "f16") return x;
  const y = empty(x.device, x.shape);
  convert("unpack", { packed: x, full_out: y }, x);
  return y;
}

/** x, f32, rounded to f16. */
export function narrowed(x: Tensor): Tensor {
  const y = empty(x.device, x.shape, "f16");
  if (x.size > 0) narrow(x, y);
  return y;
}

/** Rounds x, f32, into y, which is stored as f16. */
export function narrow(x: Tensor, y: Tensor): void {
  convert("pack", { full: x, packed_out: y }, x);
}

function convert(entry: string, bind: Record<string, Tensor>, { device, size }: Tensor): void {
  const pairs = Math.ceil(size / 2);
  run(device, "half", entry, { bind, params: { pairs }, groups: linearGroups(Math.ceil(pairs / 64)) });
}

/** y[k] = x[offset + k · strides] for every k in `shape`. */
export function stridedRead(x: Tensor, shape: Shape, window: Window): Tensor {
  const y = empty(x.device, shape, x.dtype);
  if (y.size === 0) return y;
  const bounded = window.low !== undefined;
  const walk = bounded ? { shape: [...shape], strides: [[...window.strides]] } : collapse(shape, [window.strides]);
  if (walk.shape.length > 8)
    throw new Error(`strided copy: more than 8 separate dimensions; got shape (${shape.join(", ")})`);
  const runs = !bounded && (window.scale ?? 1) === 1 && BYTES[x.dtype] === 4 ? runsOf(walk) : undefined;
  if (runs) {
    for (const [i, start] of runs.starts.entries())
      x.device.copy(x, (window.offset ?? 0) + start, y, i * runs.length, runs.length);
    return y;
  }
  const params = {
    n: y.size,
    rank: walk.shape.length,
    offset: window.offset ?? 0,
    scale: window.scale ?? 1,
    shape: walk.shape,
    stride: walk.strides[0]!,
    low: window.low ?? [],
    bound: window.bound ?? [],
  };
  const constants = { BOUNDED: bounded ? 1 : 0, SCALED: window.scale !== undefined && window.scale !== 1 ? 1 : 0 };
  const inner = walk.shape.at(-1) ?? 1;
  if (inner < LEAST_RUN) {
    run(x.device, "strided", "read_window", {
      bind: { x, y },
      params,
      constants,
      groups: linearGroups(Math.ceil(y.size / 64)),
    });
    return y;
  }
  const n = (y.size / inner) * Math.ceil(inner / RUN);
  const strides = walk.strides[0]!;
  const fours =
    !bounded &&
    strides.at(-1) === 1 &&
    inner % 4 === 0 &&
    params.offset % 4 === 0 &&
    strides.slice(0, -1).every((s) => s % 4 === 0);
  run(x.device, "strided", fours ? "read_runs4" : "read_runs", {
    bind: fours ? { x4: x, y4: y } : { x, y },
    params: { ...params, n },
    constants: fours ? { SCALED: constants.SCALED } : constants,
    groups: linearGroups(Math.ceil(n / 64)),
  });
  return y;
}

/** y[offset + k · strides] = x[k] for every k in x's shape; the rest of y stays. */
export function stridedWrite(x: Tensor, y: Tensor, offset: number, strides: readonly number[]): void {
  if (x.size === 0) return;
  const walk = collapse(x.shape, [strides]);
  const runs = BYTES[x.dtype] === 4 ? runsOf(walk) : undefined;
  if (runs) {
    for (const [i, start] of runs.starts.entries()) x.device.copy(x, i * runs.length, y, offset + start, runs.length);
    return;
  }
  run(x.device, "strided", "write_window", {
    bind: { x, y },
    params: {
      n: x.size,
      rank: walk.shape.length,
      offset,
      scale: 1,
      shape: walk.shape,
      stride: walk.strides[0]!,
      low: [],
      bound: [],
    },
    constants: { BOUNDED: 0, SCALED: 0 },
    groups: linearGroups(Math.ceil(x.size / 64)),
  });
}

/** The array with its dimensions in another order; shares the buffer where only sizes of 1 move. */
export function permuteData(x: Tensor, dims: readonly number[]): Tensor {
  const shape = dims.map((d) => x.shape[d]!);
  const moved = dims.filter((d) => x.shape[d] !== 1);
  if (moved.every((d, i) => i === 0 || d > moved[i - 1]!)) return alias(x, shape);
  const own = stridesOf(x.shape);
  return stridedRead(x, shape, { strides: dims.map((d) => own[d]!) });
}

const EXPAND = { name: "expand", expression: "a", dtype: "f32" } as const;
const SCALE = { name: "expand", expression: "a * b", dtype: "f32" } as const;

/** Repeats x along dimensions of size 1 up to `shape`, times `scale`. Of f32 numbers it is part of whatever chain reads it. */
export function expandTo(x: Tensor, shape: Shape, scale: number): Tensor {
  if (x.size === sizeOf(shape) && scale === 1) return alias(x, shape);
  if (x.dtype === "f32")
    return pointwise(scale === 1 ? EXPAND : SCALE, scale === 1 ? { a: x } : { a: x, b: scale }, shape);
  return stridedRead(x, shape, { strides: broadcastStrides(x.shape, shape), scale });
}
