/**
 * Convolution and its transpose. Three products do all the work: `correlate` (images by windows), `spread` (its transpose, the gradient of
 * the images) and `weigh` (the gradient of the weights); a transposed convolution is the same three in other roles.
 */
import type { Device } from "../device.ts";
import { linearGroups, run } from "../kernel.ts";
import { sameShape, show } from "../shape.ts";
import { record } from "../tape.ts";
import { alias, empty, type Tensor } from "../tensor.ts";
import { sum, sumTo } from "./reduce.ts";
import { outputSize, type Pair, pair, planeGroups } from "./window.ts";

/** A convolution's sizes. `ci` and `co` count the channels of one group. */
interface Sizes {
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

/** Taps of one direction: kernel position `first + step * i` reads at a shift of `shift + shiftStep * i`, for i < count. */
interface Taps {
  first: number;
  step: number;
  count: number;
  shift: number;
  shiftStep: number;
}

/** Pixels that a pass over the image visits: `size` of them, the first at `offset` of the output, `step` apart there. */
interface Grid {
  size: readonly [number, number];
  offset: readonly [number, number];
  step: readonly [number, number];
}

/** Pixels that a subgroup owns in conv2d_subgroup*.wgsl's forward, and k in its weight. */
const TILE = 8;
const TILE_K = 8;

const area = (size: readonly [number, number]): number => size[0] * size[1];

function allTaps(s: Sizes): [Taps, Taps] {
  const taps = (d: 0 | 1): Taps => ({
    first: 0,
    step: 1,
    count: s.kernel[d],
    shift: -s.start[d],
    shiftStep: s.dilation[d],
  });
  return [taps(0), taps(1)];
}

/** The taps that reach input positions `phase`, `phase + stride`, … and where in the output they stand. */
function phaseTaps(s: Sizes, d: 0 | 1, phase: number): Taps {
  const found: number[] = [];
  for (let k = 0; k < s.kernel[d]; k++) if ((phase + s.start[d] - k * s.dilation[d]) % s.stride[d] === 0) found.push(k);
  const at = (k: number): number => (phase + s.start[d] - k * s.dilation[d]) / s.stride[d];
  const [a = 0, b = a] = found;
  return { first: a, step: b - a, count: found.length, shift: found.length > 0 ? at(a) : 0, shiftStep: at(b) - at(a) };
}

/** Lanes of the subgroups where there is a kernel for that many and `co` channels fill half a panel; otherwise 1. */
function lanesOf(device: Device, co: number): 1 | 4 | 8 {
  const lanes = device.subgroupSize;
  return (lanes === 4 || lanes === 8) && co > 2 * lanes ? lanes : 1;
}

const kernelOf = (lanes: number): string => (lanes === 1 ? "conv2d" : `conv2d_subgroup${lanes}`);

/** An image with room for every window around it, and where in it the image starts. */
interface Frame {
  x: Tensor;
  size: readonly [number, number];
  start: readonly [number, number];
}

/** The frame of x (B, C, size) for windows of any of `taps` at the pixels 0, read, …, (grid - 1) * read: x itself where they all lie inside. */
function frameOf(
  x: Tensor,
  size: readonly [number, number],
  windows: readonly { taps: [Taps, Taps]; grid: Grid }[],
  read: readonly [number, number],
): Frame {
  const before = [0, 0];
  const after = [0, 0];
  for (const { taps, grid } of windows)
    for (const d of [0, 1] as const) {
      const { count, shift, shiftStep } = taps[d];
      if (taps[0].count * taps[1].count === 0) continue;
      const ends = [shift, shift + (count - 1) * shiftStep];
      before[d] = Math.max(before[d]!, -Math.min(...ends));
      after[d] = Math.max(after[d]!, Math.max(...ends) + (grid.size[d] - 1) * read[d] - (size[d] - 1));
    }
  const [top, left] = before as [number, number];
  if (top + left + after[0]! + after[1]! === 0) return { x, size, start: [0, 0] };
  const [h, w] = [size[0] + top + after[0]!, size[1] + left + after[1]!];
  const planes = x.size / area(size);
  const framed = empty(x.device, [planes, h, w]);
  run(x.device, "conv_border", "forward", {
    bind: { x, y: framed },
    params: { rows: planes * h, in_h: size[0], in_w: size[1], frame_h: h, frame_w: w, top, left },
    groups: linearGroups(planes * h),
  });
  return { x: framed, size: [h, w], start: [top, left] };
}

interface Packed {
  packed: Tensor;
  table: Tensor;
  rows: number;
  panels: number;
  params: Record<string, number>;
}

/**
 * The weights in the order in which the kernels read them, and the table of where their numbers meet the frame; see conv_pack.wgsl.
 * `transposed` sums over output channels and gives input channels.
 */
function pack(weight: Tensor, s: Sizes, [ky, kx]: [Taps, Taps], frame: Frame, transposed: boolean): Packed {
  const [ci, co] = transposed ? [s.co, s.ci] : [s.ci, s.co];
  const perInput = area(s.kernel);
  const lanes = lanesOf(weight.device, co);
  const rows = Math.max(8, Math.ceil((ci * ky.count * kx.count) / 8) * 8);
  const panels = Math.ceil(co / (4 * lanes));
  const packed = empty(weight.device, [s.groups, panels, rows, lanes * 4]);
  const table = empty(weight.device, [rows], "i32");
  const params = {
    groups: s.groups,
    ci,
    co,
    panels,
    lanes,
    rows,
    taps_y: ky.count,
    taps_x: kx.count,
    ky0: ky.first,
    ky_step: ky.step,
    kx0: kx.first,
    kx_step: kx.step,
    kw: s.kernel[1],
    w_group: s.co * s.ci * perInput,
    w_in: transposed ? s.ci * perInput : perInput,
    w_out: transposed ? perInput : s.ci * perInput,
    ty0: ky.shift + frame.start[0],
    ty_step: ky.shiftStep,
    tx0: kx.shift + frame.start[1],
    tx_step: kx.shiftStep,
    frame_h: frame.size[0],
    frame_w: frame.size[1],
    batch: s.batch,
    pixels: 0,
    filled: 0,
    splits: 0,
  };
  run(weight.device, "conv_pack", "weights", {
    bind: { weight, packed, table },
    params,
    groups: linearGroups(Math.ceil(packed.size / 4 / 64)),
  });
  return { packed, table, rows, panels, params };
}

/** Parameters of the kernels of conv2d*.wgsl. */
function kernelParams(
  s: Sizes,
  p: Packed,
  frame: Frame,
  grid: Grid,
  read: readonly [number, number],
  out: readonly [number, number],
) {
  return {
    batch: s.batch,
    groups: s.groups,
    ci: p.params.ci!,
    co: p.params.co!,
    panels: p.panels,
    rows: p.rows,
    in_h: frame.size[0],
    in_w: frame.size[1],
    grid_h: grid.size[0],
    grid_w: grid.size[1],
    step_y: read[0],
    step_x: read[1],
    out_h: out[0],
    out_w: out[1],
    out_step_y: grid.step[0],
    out_step_x: grid.step[1],
    out_y: grid.offset[0],
    out_x: grid.offset[1],
    has_bias: 0,
    split: 0,
    splits: 0,
    filled: 0,
  };
}

/** Multiplies windows of the frame with packed weights into the pixels `grid` of y. */
function product(
  frame: Frame,
  p: Packed,
  bias: Tensor | undefined,
  y: Tensor,
  params: ReturnType<typeof kernelParams>,
): void {
  const pixels = params.batch * params.grid_h * params.grid_w;
  const lanes = lanesOf(y.device, params.co);
  const panels = p.panels * params.groups;
  run(y.device, kernelOf(lanes), "forward", {
    bind: { x: frame.x, packed: p.packed, table: p.table, bias: bias ?? p.packed, y },
    params: { ...params, has_bias: bias ? 1 : 0 },
    groups: linearGroups(
      lanes === 1 ? Math.ceil((Math.ceil(pixels / 4) * panels) / 64) : Math.ceil(pixels / TILE) * panels,
    ),
  });
}

function isDepthwise(s: Sizes): boolean {
  return s.ci === 1 && s.groups > 1;
}

/** Parameters of conv_depthwise.wgsl for writing planes of `size`, and the workgroups that do so, `each` numbers an invocation. */
function depthwise(s: Sizes, size: readonly [number, number], planes: number, each: number) {
  const gcd = (a: number, b: number): number => (b === 0 ? a : gcd(b, a % b));
  // Every tapStep-th tap meets the same outputs' phase; the output moves by outStep between two of them.
  const tapStep = (d: 0 | 1): number => s.stride[d] / gcd(s.stride[d], s.dilation[d]);
  const outStep = (d: 0 | 1): number => (s.dilation[d] * tapStep(d)) / s.stride[d];
  const params = {
    planes,
    c: s.groups,
    multiplier: s.co,
    in_h: s.input[0],
    in_w: s.input[1],
    out_h: s.output[0],
    out_w: s.output[1],
    kh: s.kernel[0],
    kw: s.kernel[1],
    step_y: s.stride[0],
    step_x: s.stride[1],
    reach_y: s.dilation[0],
    reach_x: s.dilation[1],
    top: s.start[0],
    left: s.start[1],
    has_bias: 0,
    flipped: 0,
    tap_step_y: tapStep(0),
    tap_step_x: tapStep(1),
    out_step_y: outStep(0),
    out_step_x: outStep(1),
    batch: s.batch,
    block: 0,
    blocks: 0,
  };
  return { params, groups: planeGroups(planes, Math.ceil((size[0] * Math.ceil(size[1] / each)) / 64)) };
}

/** y (B, groups * co, output) = windows of x (B, groups * ci, input) times weight (groups * co, ci, kernel). */
function correlate(x: Tensor, weight: Tensor, s: Sizes, bias?: Tensor): Tensor {
  const { device } = x;
  const y = empty(device, [s.batch, s.groups * s.co, ...s.output]);
  if (y.size === 0) return y;
  if (isDepthwise(s)) {
    const { params, groups } = depthwise(s, s.output, s.batch * s.groups * s.co, 4);
    run(device, "conv_depthwise", "forward", {
      bind: { x, weight, bias: bias ?? weight, y },
      params: { ...params, has_bias: bias ? 1 : 0 },
      groups,
    });
    return y;
  }
  const taps = allTaps(s);
  const grid: Grid = { size: s.output, offset: [0, 0], step: [1, 1] };
  const frame = frameOf(x, s.input, [{ taps, grid }], s.stride);
  const p = pack(weight, s, taps, frame, false);
  product(frame, p, bias, y, kernelParams(s, p, frame, grid, s.stride, s.output));
  return y;
}

/** The transpose of `correlate`: gx (B, groups * ci, input) from gy (B, groups * co, output). `bias` (groups * ci) is added to it. */
function spread(gy: Tensor, weight: Tensor, s: Sizes, bias?: Tensor): Tensor {
  const { device } = gy;
  const gx = empty(device, [s.batch, s.groups * s.ci, ...s.input]);
  if (gx.size === 0) return gx;
  if (isDepthwise(s) && !bias) {
    const planes = s.batch * s.groups;
    if (s.co === 1 && area(s.stride) === 1) {
      // The same convolution with its taps in reverse order, of gy.
      const start = [0, 1].map((d) => s.dilation[d]! * (s.kernel[d]! - 1) - s.start[d]!) as [number, number];
      const { params, groups } = depthwise({ ...s, input: s.output, output: s.input, start }, s.input, planes, 4);
      run(device, "conv_depthwise", "forward", {
        bind: { x: gy, weight, bias: weight, y: gx },
        params: { ...params, flipped: 1 },
        groups,
      });
    } else run(device, "conv_depthwise", "grad_x", { bind: { gy, weight, gx }, ...depthwise(s, s.input, planes, 1) });
    return gx;
  }
  // With a stride, pixels of different phase see different taps: one pass a phase wastes none.
  const windows: { taps: [Taps, Taps]; grid: Grid }[] = [];
  for (let py = 0; py < Math.min(s.stride[0], s.input[0]); py++)
    for (let px = 0; px < Math.min(s.stride[1], s.input[1]); px++) {
      const size = [Math.ceil((s.input[0] - py) / s.stride[0]), Math.ceil((s.input[1] - px) / s.stride[1])] as const;
      windows.push({
        taps: [phaseTaps(s, 0, py), phaseTaps(s, 1, px)],
        grid: { size, offset: [py, px], step: s.stride },
      });
    }
  const frame = frameOf(gy, s.output, windows, [1, 1]);
  for (const { taps, grid } of windows) {
    const p = pack(weight, s, taps, frame, true);
    product(frame, p, bias, gx, kernelParams(s, p, frame, grid, [1, 1], s.input));
  }
  return gx;
}

/** Gradient of the weights (groups * co, ci, kernel) from x and gy. The sum over pixels is cut into splits which a second pass adds up. */
function weigh(x: Tensor, gy: Tensor, weight: Tensor, s: Sizes): Tensor {
  const { device } = x;
  const gw = empty(device, weight.shape);
  if (gw.size === 0) return gw;
  if (isDepthwise(s)) {
    const rows = s.batch * s.output[0];
    // An invocation owns four taps of a row.
    const pieces = (gw.size / s.kernel[1]) * Math.ceil(s.kernel[1] / 4);
    const block = Math.max(1, Math.ceil(rows / Math.max(1, Math.ceil(4096 / pieces))));
    const parts = empty(device, [Math.ceil(rows / block), gw.size]);
    run(device, "conv_depthwise", "grad_weight", {
      bind: { x, gy, parts },
      params: { ...depthwise(s, s.input, 0, 1).params, block, blocks: parts.shape[0]! },
      groups: linearGroups(Math.ceil((pieces * parts.shape[0]!) / 64)),
    });
    return alias(sumTo(parts, [1, gw.size]), weight.shape);
  }
  const taps = allTaps(s);
  const grid: Grid = { size: s.output, offset: [0, 0], step: [1, 1] };
  const frame = frameOf(x, s.input, [{ taps, grid }], s.stride);
  const p = pack(weight, s, taps, frame, false);
  const plane = area(s.output);
  const pixels = s.batch * plane;
  const lanes = lanesOf(device, s.co);
  // Splits of about 1024 pixels keep the gradient's panel in the cache and rounding small; more of them where few tiles are to be had.
  const tiles = s.groups * p.panels * (p.rows / 8);
  const wanted = Math.max(
    1,
    Math.min(Math.ceil(pixels / 64), Math.max(Math.ceil(128 / tiles), Math.ceil(pixels / 1024))),
  );
  const split = Math.ceil(pixels / wanted / 8) * 8;
  const splits = Math.ceil(pixels / split);
  const filled = Math.ceil(pixels / 8) * 8;
  const turned = empty(device, [s.groups, p.panels, filled, lanes * 4]);
  const packParams = { ...p.params, pixels: plane, filled, splits };
  run(device, "conv_pack", "pixels", {
    bind: { gy, packed: turned },
    params: packParams,
    groups: linearGroups(Math.ceil(turned.size / 4 / 64)),
  });
  const parts = empty(device, [splits, s.groups, p.panels, p.rows, lanes * 4]);
  run(device, kernelOf(lanes), "weight", {
    bind: { x: frame.x, packed: turned, table: p.table, parts },
    params: { ...kernelParams(s, p, frame, grid, s.stride, s.output), split, splits, filled },
    groups: linearGroups(
      lanes === 1 ? Math.ceil((splits * tiles * 2) / 64) : splits * s.groups * p.panels * (p.rows / TILE_K),
    ),
  });
  run(device, "conv_pack", "sum_weights", {
    bind: { parts, gw },
    params: packParams,
    groups: linearGroups(Math.ceil(gw.size / 64)),
  });
  return gw;
}

export interface Conv2dOptions {
  /** (out). */
  bias?: Tensor | undefined;
  stride?: Pair | undefined;
  /** One number, (y, x), or [left, right, top, bottom] as F.pad counts them. */
  padding?: Pair | readonly [number, number, number, number] | undefined;
  dilation?: Pair | undefined;
  groups?: number | undefined;
}

function checkImages(op: string, x: Tensor, weight: Tensor): void {
  if (x.shape.length !== 4) throw new Error(`${op}: x must be (B, C, H, W); got ${show(x.shape)}`);
  if (weight.shape.length !== 4) throw new Error(`${op}: weight must have four dimensions; got ${show(weight.shape)}`);
  for (const [name, t] of Object.entries({ x, weight }))
    if (t.dtype !== "f32") throw new Error(`${op}: ${name} must be f32; got ${t.dtype}`);
}

function checkBias(op: string, bias: Tensor | undefined, channels: number): void {
  if (bias && !sameShape(bias.shape, [channels]))
    throw new Error(`${op}: bias must be (${channels}); got ${show(bias.shape)}`);
}

/** (B, in, H, W), (out, in / groups, kh, kw), (out) -> (B, out, H', W'): torch.nn.functional.conv2d. */
export function conv2d(x: Tensor, weight: Tensor, options: Conv2dOptions = {}): Tensor {
  checkImages("conv2d", x, weight);
  const { bias, padding = 0, groups = 1 } = options;
  const stride = pair("conv2d", "stride", options.stride ?? 1, 1);
  const dilation = pair("conv2d", "dilation", options.dilation ?? 1, 1);
  const [batch, channels, h, w] = x.shape as [number, number, number, number];
  const [out, ci, kh, kw] = weight.shape as [number, number, number, number];
  if (!Number.isInteger(groups) || groups < 1 || out % groups !== 0 || channels !== ci * groups)
    throw new Error(
      `conv2d: x is ${show(x.shape)} in ${groups} groups, so weight must be (a multiple of ${groups}, ${channels / groups}, kh, kw); got ${show(weight.shape)}`,
    );
  checkBias("conv2d", bias, out);
  let [left, right, top, bottom] = [0, 0, 0, 0];
  if (typeof padding !== "number" && padding.length === 4) [left, right, top, bottom] = padding;
  else {
    const [py, px] = pair("conv2d", "padding", padding as Pair, 0);
    [left, right, top, bottom] = [px, px, py, py];
  }
  const s: Sizes = {
    batch,
    groups,
    ci,
    co: out / groups,
    input: [h, w],
    output: [
      outputSize("conv2d", x.shape, h, kh, stride[0], top + bottom, dilation[0]),
      outputSize("conv2d", x.shape, w, kw, stride[1], left + right, dilation[1]),
    ],
    kernel: [kh, kw],
    stride,
    dilation,
    start: [top, left],
  };
  return record("conv2d", bias ? [x, weight, bias] : [x, weight], correlate(x, weight, s, bias), (gy) => [
    x.requiresGrad ? spread(gy, weight, s) : null,
    weight.requiresGrad ? weigh(x, gy, weight, s) : null,
    bias?.requiresGrad ? sum(gy, [0, 2, 3]) : null,
  ]);
}

export interface ConvTranspose2dOptions {
  /** (out). */
  bias?: Tensor | undefined;
  stride?: Pair | undefined;
  padding?: Pair | undefined;
}

/** (B, in, H, W), (in, out, kh, kw), (out) -> (B, out, (H - 1) * stride - 2 * padding + kh, …): torch.nn.functional.conv_transpose2d. */
export function convTranspose2d(x: Tensor, weight: Tensor, options: ConvTranspose2dOptions = {}): Tensor {
  checkImages("convTranspose2d", x, weight);
  const { bias } = options;
  const stride = pair("convTranspose2d", "stride", options.stride ?? 1, 1);
  const padding = pair("convTranspose2d", "padding", options.padding ?? 0, 0);
  const [batch, channels, h, w] = x.shape as [number, number, number, number];
  const [ci, out, kh, kw] = weight.shape as [number, number, number, number];
  if (ci !== channels)
    throw new Error(
      `convTranspose2d: x is ${show(x.shape)}, so weight must be (${channels}, out, kh, kw); got ${show(weight.shape)}`,
    );
  checkBias("convTranspose2d", bias, out);
  const size = [(h - 1) * stride[0] - 2 * padding[0] + kh, (w - 1) * stride[1] - 2 * padding[1] + kw] as const;
  if (size[0] < 1 || size[1] < 1)
    throw new Error(
      `convTranspose2d: x ${show(x.shape)} with a kernel ${kh} x ${kw} and padding ${padding.join(", ")} leaves nothing`,
    );
  // The convolution whose transpose this is maps the output back onto x.
  const s: Sizes = {
    batch,
    groups: 1,
    ci: out,
    co: ci,
    input: size,
    output: [h, w],
    kernel: [kh, kw],
    stride,
    dilation: [1, 1],
    start: padding,
  };
  return record("convTranspose2d", bias ? [x, weight, bias] : [x, weight], spread(x, weight, s, bias), (gy) => [
    x.requiresGrad ? correlate(gy, weight, s) : null,
    weight.requiresGrad ? weigh(gy, x, weight, s) : null,
    bias?.requiresGrad ? sum(gy, [0, 2, 3]) : null,
  ]);
}
