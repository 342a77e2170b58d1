/**
 * The three products behind convolution: `correlate` (images by windows), `spread` (its transpose, the gradient of the images) and `weigh` (the
 * gradient of the weights). Each is a matrix product whose one side is gathered from the images; no tape here.
 */
import type { Device } from "../device.ts";
import { type Finish, finishing } from "../epilogue.ts";
import { type Lanes, linearGroups, run } from "../kernel.ts";
import { keep, scope } from "../scope.ts";
import type { Shape } from "../shape.ts";
import { empty, fill, type Tensor } from "../tensor.ts";
import { KERNELS, lanesFor, panelWidth, splitOf, TILED, type Variant, variantsFor } from "./conv-variants.ts";
import { depthwiseForward, depthwiseSpread, depthwiseWeigh, isDepthwise } from "./depthwise.ts";
import { area, type ConvSizes, planeGroups } from "./window.ts";

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

/** Pixels that a subgroup owns in conv2d_subgroup.wgsl's forward, and k in its weight. */
const TILE = 8;
const TILE_K = 8;

function allTaps(s: ConvSizes): [Taps, Taps] {
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
function phaseTaps(s: ConvSizes, d: 0 | 1, phase: number): Taps {
  const found: number[] = [];
  for (let k = 0; k < s.kernel[d]; k++) if ((phase + s.start[d] - k * s.dilation[d]) % s.stride[d] === 0) found.push(k);
  const at = (k: number): number => (phase + s.start[d] - k * s.dilation[d]) / s.stride[d];
  const [a = 0, b = a] = found;
  return { first: a, step: b - a, count: found.length, shift: found.length > 0 ? at(a) : 0, shiftStep: at(b) - at(a) };
}

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
  const h = size[0] + top + after[0]!;
  const w = Math.ceil((size[1] + left + after[1]!) / 4) * 4; // conv_border.wgsl writes by fours
  const planes = x.size / area(size);
  const framed = empty(x.device, [planes, h, w]);
  run(x.device, "conv_border", "forward", {
    bind: { x, y: framed },
    params: { planes, in_h: size[0], in_w: size[1], frame_h: h, frame_w: w, top, left },
    groups: planeGroups(planes, Math.ceil((h * w) / 4 / 512)),
  });
  return { x: framed, size: [h, w], start: [top, left] };
}

/** The order of k and of the channels in which the kernels read and write; see conv_pack.wgsl. */
interface Layout {
  /** Where each k meets the frame. */
  table: Tensor;
  /** k, filled up. */
  rows: number;
  panels: number;
  /** Vectors of four channels in a panel. */
  width: number;
  /** Of the subgroup variant. */
  lanes: Lanes | undefined;
  params: Record<string, number>;
}

/** Tables by what they depend on: a model asks for the same few at every step. */
const tables = new WeakMap<Device, Map<string, Tensor>>();
const MOST_TABLES = 2048;

function tableOf(device: Device, params: Record<string, number>): Tensor {
  const { rows, ci, taps_y, taps_x, ty0, ty_step, tx0, tx_step, frame_h, frame_w } = params;
  const key = [rows, ci, taps_y, taps_x, ty0, ty_step, tx0, tx_step, frame_h, frame_w].join();
  let known = tables.get(device);
  if (!known || known.size >= MOST_TABLES) tables.set(device, (known = new Map()));
  let table = known.get(key);
  if (!table) {
    const made = keep(empty(device, [rows!], "i32"));
    const groups = linearGroups(Math.ceil(rows! / 64));
    device.unrecorded(() => run(device, "conv_pack", "offsets", { bind: { table: made }, params, groups }));
    table = made;
    known.set(key, table);
  }
  return table;
}

/** One product: windows of the frame, `taps` wide and `read` apart, at the pixels `grid` of an output of size `out`. */
interface Product {
  s: ConvSizes;
  taps: readonly [Taps, Taps];
  frame: Frame;
  grid: Grid;
  read: readonly [number, number];
  out: readonly [number, number];
  /** Images and weights are numbers that f16 holds. */
  halves: boolean;
  /** It sums over output channels and gives input channels. */
  transposed: boolean;
}

const channelsOf = ({ s, transposed }: Product): [number, number] => (transposed ? [s.co, s.ci] : [s.ci, s.co]);

/** k, filled up. */
const rowsFor = (k: number): number => Math.max(8, Math.ceil(k / 8) * 8);

function layoutOf(device: Device, variant: Variant, product: Product): Layout {
  const { s, taps, frame, transposed } = product;
  const [ky, kx] = taps;
  const [ci, co] = channelsOf(product);
  const perInput = area(s.kernel);
  const lanes = variant === "subgroup" ? lanesFor(device, co) : undefined;
  const width = panelWidth(device, variant, co);
  const rows = rowsFor(ci * ky.count * kx.count);
  const panels = Math.ceil(co / (4 * width));
  const params = {
    groups: s.groups,
    ci,
    co,
    panels,
    lanes: width,
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
  return { table: tableOf(device, params), rows, panels, width, lanes, params };
}

/** Parameters of the kernels of conv2d*.wgsl. */
function kernelParams({ s, frame, grid, read, out }: Product, p: Layout) {
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

/** Runs one kernel: `product` into its pixels of y. */
function dispatch(variant: Variant, product: Product, weight: Tensor, finish: Finish, y: Tensor): void {
  const { device } = y;
  const { bias, rest, activation } = finish;
  const { frame } = product;
  const p = layoutOf(device, variant, product);
  const params = kernelParams(product, p);
  const { lanes } = p;
  const packed = empty(device, [params.groups, p.panels, p.rows, p.width * 4]);
  run(device, "conv_pack", "weights", {
    bind: { weight, packed },
    params: p.params,
    constants: { HALF: weight.dtype === "f16" ? 1 : 0 },
    groups: linearGroups(Math.ceil(packed.size / 4 / 64)),
  });
  const pixels = params.batch * params.grid_h * params.grid_w;
  const panels = p.panels * params.groups;
  // The grid is all of y, and no four pixels in a row belong to two planes: they are written at once.
  const whole = params.grid_h === params.out_h && params.grid_w === params.out_w;
  const quads = lanes !== undefined && whole && (params.grid_h * params.grid_w) % 4 === 0;
  const unused = (): Tensor => empty(device, [4]);
  const added = rest ?? packed;
  const workgroups = lanes
    ? Math.ceil(pixels / (TILE * lanes.tiles)) * panels
    : variant === "tiled"
      ? Math.ceil(pixels / TILED) * panels
      : Math.ceil((Math.ceil(pixels / 4) * panels) / 64);
  const { shader, forward } = KERNELS[variant];
  run(device, finishing(shader, activation), forward, {
    lanes,
    bind: {
      x: frame.x,
      packed,
      table: p.table,
      bias: bias ?? packed,
      rest: added,
      ...(lanes && { rest4: added }),
      ...(!lanes ? { y } : quads ? { y: unused(), y4: y } : { y, y4: unused() }),
    },
    params: { ...params, has_bias: bias ? 1 : 0 },
    constants: {
      REST: rest ? 1 : 0,
      ...(lanes && { QUADS: quads ? 1 : 0 }),
      ...(variant === "tiled" && { WIDTH: p.width }),
    },
    halves: variant === "tiled" && product.halves && device.hasHalves,
    groups: linearGroups(workgroups),
    flops: 2 * pixels * params.groups * params.co * params.ci * p.params.taps_y! * p.params.taps_x!,
  });
}

/** Normal numbers in the places of a product's operands, for measurements. */
function trial(product: Product, weight: Tensor, { bias }: Finish, y: Tensor): (variant: string) => Tensor {
  const { device, shape } = y;
  const { frame } = product;
  const x = device.randn(frame.x.shape, { seed: 1 });
  const w = device.randn(weight.shape, { seed: 2 });
  const finish = bias ? { bias: device.randn(bias.shape, { seed: 3 }) } : {};
  return (variant) => {
    const out = fill(empty(device, shape), 0); // Of a phase's product, the other pixels.
    dispatch(variant as Variant, { ...product, frame: { ...frame, x } }, w, finish, out);
    return out;
  };
}

/** Multiplies windows of the frame with the weights into the pixels `grid` of y. What it packs is freed by the caller's scope. */
function multiply(product: Product, weight: Tensor, finish: Finish, y: Tensor): void {
  const { s, taps, grid, read } = product;
  const { device } = y;
  const [ci, co] = channelsOf(product);
  const pixels = s.batch * area(grid.size);
  const sizes = [pixels, ci, taps[0].count * taps[1].count, co, s.groups];
  const flags = read[1] === 1 ? "windows" : "windows apart";
  const variant = device.tuner.pick("conv2d", sizes, flags, variantsFor(device, pixels, co), () =>
    trial(product, weight, finish, y),
  );
  dispatch(variant as Variant, product, weight, finish, y);
}

/**
 * y (B, groups * co, output) = activation(windows of x (B, groups * ci, input) times weight (groups * co, ci, kernel) + bias + rest). `halves`, here
 * and below: x, or the gradient in its place, was rounded to f16.
 */
export function correlate(x: Tensor, weight: Tensor, s: ConvSizes, halves: boolean, finish: Finish = {}): Tensor {
  const { device } = x;
  const y = empty(device, [s.batch, s.groups * s.co, ...s.output]);
  if (y.size === 0) return y;
  if (isDepthwise(s)) {
    depthwiseForward(x, weight, s, y, finish);
    return y;
  }
  const taps = allTaps(s);
  const grid: Grid = { size: s.output, offset: [0, 0], step: [1, 1] };
  scope(() => {
    const frame = frameOf(x, s.input, [{ taps, grid }], s.stride);
    const product = { s, taps, frame, grid, read: s.stride, out: s.output, transposed: false };
    multiply({ ...product, halves: halves && weight.dtype === "f16" }, weight, finish, y);
  });
  return y;
}

/** The transpose of `correlate`: gx (B, groups * ci, input) from gy (B, groups * co, output). `bias` (groups * ci) is added to it. */
export function spread(gy: Tensor, weight: Tensor, s: ConvSizes, halves: boolean, bias?: Tensor): Tensor {
  const { device } = gy;
  const gx = empty(device, [s.batch, s.groups * s.ci, ...s.input]);
  if (gx.size === 0) return gx;
  if (isDepthwise(s) && !bias) {
    depthwiseSpread(gy, weight, s, gx);
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
  scope(() => {
    const frame = frameOf(gy, s.output, windows, [1, 1]);
    const product = { s, frame, read: [1, 1], out: s.input, transposed: true } as const;
    for (const { taps, grid } of windows)
      multiply({ ...product, taps, grid, halves: halves && weight.dtype === "f16" }, weight, { bias }, gx);
  });
  return gx;
}

/** Gradient of the weights (groups * co, ci, kernel) from x and gy. The sum over pixels is cut into splits which a second pass adds up. */
export function weigh(x: Tensor, gy: Tensor, weight: Tensor, s: ConvSizes, halves: boolean): Tensor {
  const { device } = x;
  const pixels = s.batch * area(s.output);
  if (weight.size === 0) return empty(device, weight.shape);
  if (isDepthwise(s)) return depthwiseWeigh(x, gy, weight, s);
  if (pixels === 0) return fill(empty(device, weight.shape), 0);
  const sizes = [pixels, s.ci, area(s.kernel), s.co, s.groups];
  const flags = s.stride[1] === 1 ? "weights" : "weights apart";
  const variant = device.tuner.pick(
    "conv2d",
    sizes,
    flags,
    variantsFor(device, rowsFor(s.ci * area(s.kernel)), s.co),
    () => {
      const inputs = [device.randn(x.shape, { seed: 1 }), device.randn(gy.shape, { seed: 2 })] as const;
      return (variant) => weighBy(variant as Variant, ...inputs, weight.shape, s, false);
    },
  );
  return weighBy(variant as Variant, x, gy, weight.shape, s, halves);
}

function weighBy(variant: Variant, x: Tensor, gy: Tensor, shape: Shape, s: ConvSizes, halves: boolean): Tensor {
  const { device } = x;
  const gw = empty(device, shape);
  const taps = allTaps(s);
  const grid: Grid = { size: s.output, offset: [0, 0], step: [1, 1] };
  const frame = frameOf(x, s.input, [{ taps, grid }], s.stride);
  const product: Product = { s, taps, frame, grid, read: s.stride, out: s.output, halves, transposed: false };
  const p = layoutOf(device, variant, product);
  const { lanes, width, rows } = p;
  const plane = area(s.output);
  const pixels = s.batch * plane;
  const split = splitOf(device, s, rows, pixels);
  const splits = Math.ceil(pixels / split);
  const filled = Math.ceil(pixels / 8) * 8;
  const turned = empty(device, [s.groups, p.panels, filled, width * 4]);
  const packParams = { ...p.params, pixels: plane, filled, splits };
  const fours = plane % 4 === 0;
  run(device, "conv_pack", fours ? "pixels_fours" : "pixels", {
    bind: fours ? { gy4: gy, packed: turned } : { gy, packed: turned },
    params: packParams,
    groups: linearGroups(Math.ceil(turned.size / (fours ? 16 : 4) / 64)),
  });
  const panels = s.groups * p.panels;
  const parts = empty(device, [splits, s.groups, p.panels, rows, width * 4]);
  const workgroups = lanes
    ? splits * panels * Math.ceil(rows / (TILE_K * lanes.tiles))
    : variant === "tiled"
      ? splits * panels * Math.ceil(rows / TILED)
      : Math.ceil((splits * panels * (rows / 4)) / 64);
  const { shader, weight: entry } = KERNELS[variant];
  run(device, shader, entry, {
    lanes,
    bind: { x: frame.x, packed: turned, [variant === "tiled" ? "table4" : "table"]: p.table, parts },
    params: { ...kernelParams(product, p), split, splits, filled },
    ...(variant === "tiled" && { constants: { WIDTH: width }, halves: halves && device.hasHalves }),
    groups: linearGroups(workgroups),
    flops: 2 * pixels * s.groups * s.co * s.ci * area(s.kernel),
  });
  run(device, "conv_pack", "sum_weights", {
    bind: { parts, gw },
    params: packParams,
    groups: linearGroups(Math.ceil((s.groups * s.ci * area(s.kernel) * Math.ceil(s.co / 4)) / 64)),
  });
  return gw;
}
