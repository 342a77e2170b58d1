/**
 * The three products behind convolution: `correlate` (images by windows), `spread` (its transpose, the gradient of the images) and `weigh` (the
 * gradient of the weights). Each is a matrix product whose one side is gathered from the images; no tape here.
 */
import type { Device } from "../device.ts";
import { type Finish, finishing } from "../epilogue.ts";
import { type Lanes, linearGroups, run } from "../kernel.ts";
import { keep } from "../scope.ts";
import { empty, fill, type Tensor } from "../tensor.ts";
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
/** Numbers that the parts of a weight's gradient may have together: 32 MiB. */
const MAX_PARTS = 2 ** 23;

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

/**
 * How conv2d_subgroup.wgsl lays `co` channels on this adapter's subgroups: panels of 4 channels a lane, of all lanes or of a quad's, whichever
 * leaves fewer of them empty. Undefined where there is no kernel for such subgroups, or the channels do not fill half of the least panel.
 */
function lanesFor(device: Device, co: number): Lanes | undefined {
  const size = device.subgroupSize;
  if ((size !== 4 && size !== 8) || co < 8) return undefined;
  const filled = (lanes: number): number => Math.ceil(co / (4 * lanes)) * lanes;
  return filled(4) < filled(size) ? { lanes: 4, tiles: size / 4 } : { lanes: size, tiles: 1 };
}

const kernelOf = (lanes: Lanes | undefined): string => (lanes ? "conv2d_subgroup" : "conv2d");

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

/** `transposed` sums over output channels and gives input channels. */
function layoutOf(device: Device, s: ConvSizes, [ky, kx]: [Taps, Taps], frame: Frame, transposed: boolean): Layout {
  const [ci, co] = transposed ? [s.co, s.ci] : [s.ci, s.co];
  const perInput = area(s.kernel);
  const lanes = lanesFor(device, co);
  const width = lanes?.lanes ?? 1;
  const rows = Math.max(8, Math.ceil((ci * ky.count * kx.count) / 8) * 8);
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
function kernelParams(
  s: ConvSizes,
  p: Layout,
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

/** Multiplies windows of the frame with the weights into the pixels `grid` of y. */
function product(
  frame: Frame,
  weight: Tensor,
  p: Layout,
  { bias, rest, activation }: Finish,
  y: Tensor,
  params: ReturnType<typeof kernelParams>,
): void {
  const { device } = y;
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
  run(device, finishing(kernelOf(lanes), activation), "forward", {
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
    constants: { REST: rest ? 1 : 0, ...(lanes && { QUADS: quads ? 1 : 0 }) },
    groups: linearGroups(
      lanes ? Math.ceil(pixels / (TILE * lanes.tiles)) * panels : Math.ceil((Math.ceil(pixels / 4) * panels) / 64),
    ),
    flops: 2 * pixels * params.groups * params.co * params.ci * p.params.taps_y! * p.params.taps_x!,
  });
}

/** y (B, groups * co, output) = activation(windows of x (B, groups * ci, input) times weight (groups * co, ci, kernel) + bias + rest). */
export function correlate(x: Tensor, weight: Tensor, s: ConvSizes, finish: Finish = {}): Tensor {
  const { device } = x;
  const y = empty(device, [s.batch, s.groups * s.co, ...s.output]);
  if (y.size === 0) return y;
  if (isDepthwise(s)) {
    depthwiseForward(x, weight, s, y, finish);
    return y;
  }
  const taps = allTaps(s);
  const grid: Grid = { size: s.output, offset: [0, 0], step: [1, 1] };
  const frame = frameOf(x, s.input, [{ taps, grid }], s.stride);
  const p = layoutOf(device, s, taps, frame, false);
  product(frame, weight, p, finish, y, kernelParams(s, p, frame, grid, s.stride, s.output));
  return y;
}

/** The transpose of `correlate`: gx (B, groups * ci, input) from gy (B, groups * co, output). `bias` (groups * ci) is added to it. */
export function spread(gy: Tensor, weight: Tensor, s: ConvSizes, bias?: Tensor): Tensor {
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
  const frame = frameOf(gy, s.output, windows, [1, 1]);
  for (const { taps, grid } of windows) {
    const p = layoutOf(device, s, taps, frame, true);
    product(frame, weight, p, { bias }, gx, kernelParams(s, p, frame, grid, [1, 1], s.input));
  }
  return gx;
}

/** Gradient of the weights (groups * co, ci, kernel) from x and gy. The sum over pixels is cut into splits which a second pass adds up. */
export function weigh(x: Tensor, gy: Tensor, weight: Tensor, s: ConvSizes): Tensor {
  const { device } = x;
  const gw = empty(device, weight.shape);
  if (gw.size === 0) return gw;
  if (isDepthwise(s)) return depthwiseWeigh(x, gy, weight, s);
  const taps = allTaps(s);
  const grid: Grid = { size: s.output, offset: [0, 0], step: [1, 1] };
  const frame = frameOf(x, s.input, [{ taps, grid }], s.stride);
  const p = layoutOf(device, s, taps, frame, false);
  const { lanes, width } = p;
  const plane = area(s.output);
  const pixels = s.batch * plane;
  if (pixels === 0) return fill(gw, 0);
  // Splits of about 1024 pixels keep the gradient's panel in the cache and rounding small; more of them where few tiles are to be had, fewer
  // where their parts would fill the memory.
  const tiles = s.groups * p.panels * (p.rows / 8);
  const most = Math.max(1, Math.min(Math.ceil(pixels / 64), Math.floor(MAX_PARTS / (tiles * 8 * width * 4))));
  const wanted = Math.min(most, Math.max(Math.ceil(128 / tiles), Math.ceil(pixels / 1024)));
  const split = Math.ceil(pixels / wanted / 8) * 8;
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
  const parts = empty(device, [splits, s.groups, p.panels, p.rows, p.width * 4]);
  run(device, kernelOf(lanes), "weight", {
    lanes,
    bind: { x: frame.x, packed: turned, table: p.table, parts },
    params: { ...kernelParams(s, p, frame, grid, s.stride, s.output), split, splits, filled },
    groups: linearGroups(
      lanes
        ? splits * s.groups * p.panels * Math.ceil(p.rows / (TILE_K * lanes.tiles))
        : Math.ceil((splits * tiles * 2) / 64),
    ),
    flops: 2 * pixels * s.groups * s.co * s.ci * area(s.kernel),
  });
  run(device, "conv_pack", "sum_weights", {
    bind: { parts, gw },
    params: packParams,
    groups: linearGroups(Math.ceil(gw.size / 64)),
  });
  return gw;
}
