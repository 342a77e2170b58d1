/** Normalisation: over the last axis, over groups of channels, over the batch. */
import { checkFloats, checkOptions } from "../check.ts";
import { linearGroups, run } from "../kernel.ts";
import { sameShape, show } from "../shape.ts";
import { isRecomputing, record } from "../tape.ts";
import { alias, empty, type Tensor } from "../tensor.ts";
import { sumTo } from "./reduce.ts";
import { workgroupPerRow } from "./softmax.ts";
import { planeGroups } from "./window.ts";

function checkAffine(op: string, x: Tensor, c: number, named: Record<string, Tensor | undefined>): void {
  for (const [name, t] of Object.entries(named)) {
    if (t === undefined) continue;
    checkFloats(op, { x, [name]: t });
    if (!sameShape(t.shape, [c]))
      throw new Error(`${op}: x is ${show(x.shape)}, so ${name} must be (${c}); got ${show(t.shape)}`);
  }
}

export interface LayerNormOptions {
  eps?: number;
}

/** Normalises the last axis of x to mean 0 and variance 1, then scales and shifts it: (…, C), (C), (C) -> (…, C). Either of weight and bias may be undefined. */
export function layerNorm(x: Tensor, weight?: Tensor, bias?: Tensor, options: LayerNormOptions = {}): Tensor {
  checkFloats("layerNorm", { x });
  const c = x.shape.at(-1);
  if (c === undefined) throw new Error("layerNorm: x must have at least one dimension; got a single number");
  return normalise("layerNorm", x, c, 1, weight, bias, options, 1e-5);
}

/** Normalises the channels of (B, C, H, W) at each pixel; weight and bias are (C). Segment Anything's LayerNorm2d, without moving the channels last. */
export function layerNorm2d(x: Tensor, weight?: Tensor, bias?: Tensor, options: LayerNormOptions = {}): Tensor {
  checkFloats("layerNorm2d", { x });
  if (x.shape.length !== 4) throw new Error(`layerNorm2d: x must be (B, C, H, W); got ${show(x.shape)}`);
  return normalise("layerNorm2d", x, x.shape[1]!, x.shape[2]! * x.shape[3]!, weight, bias, options, 1e-6);
}

/** Normalises the middle axis of x seen as (outer, c, inner). */
function normalise(
  op: string,
  x: Tensor,
  c: number,
  inner: number,
  weight: Tensor | undefined,
  bias: Tensor | undefined,
  options: LayerNormOptions,
  usualEps: number,
): Tensor {
  checkAffine(op, x, c, { weight, bias });
  checkOptions(op, options, { eps: "number" });
  const { eps = usualEps } = options;
  const { device } = x;
  const y = empty(device, x.shape);
  const rows = c === 0 ? 0 : x.size / c;
  const stats = empty(device, [rows, 2]);
  const params = { rows, c, eps, has_weight: weight ? 1 : 0, has_bias: bias ? 1 : 0, inner, block: 0, blocks: 0 };
  const wide = inner === 1 && workgroupPerRow(device, rows, c);
  const fours = !wide && inner === 1 && c % 4 === 0;
  const groups = linearGroups(wide ? rows : Math.ceil(rows / 32));
  run(device, "layer_norm", wide ? "row_forward" : fours ? "forward4" : "forward", {
    bind: fours
      ? { x4: x, weight4: weight ?? x, bias4: bias ?? x, y4: y, stats_out: stats }
      : { x, weight: weight ?? x, bias: bias ?? x, y, stats_out: stats },
    params,
    groups,
  });

  return record(op, [x, weight ?? x, bias ?? x], y, (gy) => {
    let gx: Tensor | null = null;
    if (x.requiresGrad) {
      gx = empty(device, x.shape);
      run(device, "layer_norm", wide ? "row_grad_x" : fours ? "grad_x4" : "grad_x", {
        bind: fours
          ? { x4: x, weight4: weight ?? x, stats, gy4: gy, gx4: gx }
          : { x, weight: weight ?? x, stats, gy, gx },
        params,
        groups,
      });
    }
    if (!weight?.requiresGrad && !bias?.requiresGrad) return [gx, null, null];
    // Blocks of rows that keep a few thousand invocations busy; their sums are added up in a second pass.
    const block = Math.max(16, Math.min(256, Math.ceil((rows * c) / 8192)));
    const blocks = Math.ceil(rows / block);
    const [gw, gb] = [empty(device, [blocks, c]), empty(device, [blocks, c])];
    run(device, "layer_norm", "grad_affine", {
      bind: { x, stats, gy, gw, gb },
      params: { ...params, block, blocks },
      groups: linearGroups(Math.ceil((blocks * c) / 32)),
    });
    return [gx, weight?.requiresGrad ? sumTo(gw, [c]) : null, bias?.requiresGrad ? sumTo(gb, [c]) : null];
  });
}

/** Which planes of (B, C, …) share their statistics; see plane_norm.wgsl. */
interface Rows {
  rows: number;
  rowStep: number;
  planeStep: number;
  count: number;
  per: number;
}

interface Affine {
  weight: Tensor | undefined;
  bias: Tensor | undefined;
  eps: number;
}

/** Numbers of a plane that one invocation sums. */
const PIECE = 256;

class PlaneNorm {
  readonly x: Tensor;
  readonly affine: Affine;
  readonly params: Record<string, number>;
  readonly planes: number;
  readonly pieces: number;
  readonly rows: number;

  constructor(x: Tensor, rows: Rows, affine: Affine, batchStats: boolean, momentum = 0) {
    this.x = x;
    this.affine = affine;
    const c = x.shape[1]!;
    this.planes = x.shape[0]! * c;
    const hw = this.planes === 0 ? 0 : x.size / this.planes;
    this.pieces = Math.ceil(hw / PIECE);
    this.rows = rows.rows;
    this.params = {
      planes: this.planes,
      hw,
      c,
      rows: rows.rows,
      row_step: rows.rowStep,
      plane_step: rows.planeStep,
      count: rows.count,
      per: rows.per,
      piece: PIECE,
      pieces: this.pieces,
      eps: affine.eps,
      momentum,
      has_weight: affine.weight ? 1 : 0,
      has_bias: affine.bias ? 1 : 0,
      batch_stats: batchStats ? 1 : 0,
    };
  }

  #run(entry: string, bind: Record<string, Tensor>, invocations: number): void {
    const groups = linearGroups(Math.ceil(invocations / 64));
    run(this.x.device, "plane_norm", entry, { bind, params: this.params, groups });
  }

  /** A workgroup writes 512 numbers of a plane. */
  #runPlanes(entry: string, bind: Record<string, Tensor>): void {
    const groups = planeGroups(this.planes, Math.ceil(this.params.hw! / 512));
    run(this.x.device, "plane_norm", entry, { bind, params: this.params, groups });
  }

  /** The name of an entry and of its bindings of images, for planes that can be read four numbers at a time. */
  #fours(name: string): string {
    return this.params.hw! % 4 === 0 ? `${name}4` : name;
  }

  /** (rows, 2): mean and biased variance of each row of x. */
  statistics(): Tensor {
    const { x } = this;
    const parts = empty(x.device, [this.planes, this.pieces, 2]);
    this.#run(this.#fours("piece_stats"), { [this.#fours("x")]: x, parts_out: parts }, this.planes * this.pieces);
    const stats = empty(x.device, [this.rows, 2]);
    this.#run("merge_stats", { parts, stats_out: stats }, this.rows);
    return stats;
  }

  fixed(mean: Tensor, variance: Tensor): Tensor {
    const stats = empty(this.x.device, [this.rows, 2]);
    this.#run("fixed_stats", { mean, variance, stats_out: stats }, this.rows);
    return stats;
  }

  updateRunning(stats: Tensor, mean: Tensor, variance: Tensor): void {
    this.#run("update_running", { stats, running_mean: mean, running_variance: variance }, this.rows);
  }

  forward(op: string, stats: Tensor): Tensor {
    const { x, affine } = this;
    const { weight, bias } = affine;
    const y = empty(x.device, x.shape);
    const [inName, outName] = [this.#fours("x"), this.#fours("y")];
    const bind = { [inName]: x, stats, weight: weight ?? stats, bias: bias ?? stats, [outName]: y };
    this.#runPlanes(this.#fours("forward"), bind);
    return record(op, [x, weight ?? x, bias ?? x], y, (gy) => this.#gradients(stats, gy));
  }

  #gradients(stats: Tensor, gy: Tensor): (Tensor | null)[] {
    const { x, planes, pieces } = this;
    const { weight, bias } = this.affine;
    const { device } = x;
    const affine = weight?.requiresGrad || bias?.requiresGrad;
    const batchStats = this.params.batch_stats === 1;
    const images = { [this.#fours("x")]: x, [this.#fours("gy")]: gy };
    let sums = stats;
    if (affine || batchStats) {
      const parts = empty(device, [planes, pieces, 2]);
      this.#run(this.#fours("grad_pieces"), { ...images, stats, parts_out: parts }, planes * pieces);
      sums = alias(sumTo(parts, [planes, 1, 2]), [planes, 2]);
    }
    let gx: Tensor | null = null;
    if (x.requiresGrad) {
      let rowSums = stats;
      if (batchStats) {
        rowSums = empty(device, [this.rows, 2]);
        this.#run("grad_rows", { parts: sums, weight: weight ?? x, row_sums_out: rowSums }, this.rows);
      }
      gx = empty(device, x.shape);
      const bind = { ...images, stats, weight: weight ?? x, row_sums: rowSums, [this.#fours("gx")]: gx };
      this.#runPlanes(this.#fours("grad_x"), bind);
    }
    if (!affine) return [gx, null, null];
    const c = x.shape[1]!;
    const [gw, gb] = [empty(device, [c]), empty(device, [c])];
    this.#run("grad_affine", { parts: sums, gw, gb }, c);
    return [gx, weight?.requiresGrad ? gw : null, bias?.requiresGrad ? gb : null];
  }
}

export interface GroupNormOptions {
  weight?: Tensor | undefined;
  bias?: Tensor | undefined;
  eps?: number;
}

/** Normalises each of `groups` groups of neighbouring channels of each image: (B, C, …) -> (B, C, …); weight and bias are (C). */
export function groupNorm(x: Tensor, groups: number, options: GroupNormOptions = {}): Tensor {
  checkFloats("groupNorm", { x });
  checkOptions("groupNorm", options, { weight: "tensor", bias: "tensor", eps: "number" });
  const [b, c] = x.shape;
  if (b === undefined || c === undefined) throw new Error(`groupNorm: x must be (B, C, …); got ${show(x.shape)}`);
  if (!Number.isInteger(groups) || groups < 1 || c % groups !== 0)
    throw new Error(`groupNorm: groups must divide the ${c} channels of x ${show(x.shape)}; got ${groups}`);
  const { weight, bias, eps = 1e-5 } = options;
  checkAffine("groupNorm", x, c, { weight, bias });
  const each = c / groups;
  const norm = new PlaneNorm(
    x,
    { rows: b * groups, rowStep: each, planeStep: 1, count: each, per: each },
    { weight, bias, eps },
    true,
  );
  return norm.forward("groupNorm", norm.statistics());
}

export interface BatchNormOptions {
  /** Running mean (C). */
  mean?: Tensor | undefined;
  /** Running variance (C). */
  variance?: Tensor | undefined;
  weight?: Tensor | undefined;
  bias?: Tensor | undefined;
  /** True: normalises by the batch's own statistics and moves the running ones, where given, towards them in place. */
  training?: boolean;
  momentum?: number;
  eps?: number;
}

const BATCH_NORM = {
  mean: "tensor",
  variance: "tensor",
  weight: "tensor",
  bias: "tensor",
  training: "boolean",
  momentum: "number",
  eps: "number",
} as const;

/** Normalises each channel over the batch: (B, C, …) -> (B, C, …); every vector is (C). Without `training`, by the running statistics. */
export function batchNorm(x: Tensor, options: BatchNormOptions = {}): Tensor {
  checkFloats("batchNorm", { x });
  checkOptions("batchNorm", options, BATCH_NORM);
  const [b, c] = x.shape;
  if (b === undefined || c === undefined) throw new Error(`batchNorm: x must be (B, C, …); got ${show(x.shape)}`);
  const { mean, variance, weight, bias, training = false, momentum = 0.1, eps = 1e-5 } = options;
  checkAffine("batchNorm", x, c, { mean, variance, weight, bias });
  if (!mean !== !variance)
    throw new Error(`batchNorm: mean and variance go together; got only ${mean ? "mean" : "variance"}`);
  if (!training && (!mean || !variance))
    throw new Error("batchNorm: outside training, mean and variance must be given");
  const count = c === 0 ? 0 : x.size / c;
  if (training && count < 2)
    throw new Error(`batchNorm: in training each channel needs more than one number; got x ${show(x.shape)}`);
  const norm = new PlaneNorm(
    x,
    { rows: c, rowStep: 1, planeStep: c, count: b, per: 1 },
    { weight, bias, eps },
    training,
    momentum,
  );
  if (!training) return norm.forward("batchNorm", norm.fixed(mean!, variance!));
  const stats = norm.statistics();
  if (mean && variance && !isRecomputing()) norm.updateRunning(stats, mean, variance);
  return norm.forward("batchNorm", stats);
}
