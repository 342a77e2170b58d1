// Layers that several models share: convolution with a norm, multi-layer perceptron, attention with packed projections, sine positions.
// model/ knows engine/ and nothing else: no files, no losses, no Node. Property names are the checkpoint's keys (detectron2's spelling).
import { type Device, F, isRecording, keep, nn, scope, type Tensor } from "../engine/index.ts";

/** A normalisation of (B, C, H, W). */
export interface Norm extends nn.Module {
  forward(x: Tensor): Tensor;
}

/**
 * Batch norm whose statistics and affine never change: four buffers, no parameters (detectron2's FrozenBatchNorm2d, eps 1e-5).
 * Small batches would spoil the statistics of a pre-trained backbone; that is why the reference freezes them.
 */
export class FrozenBatchNorm2d extends nn.Module implements Norm {
  weight: Tensor;
  bias: Tensor;
  running_mean: Tensor;
  running_var: Tensor;

  constructor(gpu: Device, channels: number) {
    super();
    this.weight = gpu.ones([channels]);
    this.bias = gpu.zeros([channels]);
    this.running_mean = gpu.zeros([channels]);
    this.running_var = gpu.ones([channels]);
  }

  /** (B, C, H, W) -> (B, C, H, W) */
  forward(x: Tensor): Tensor {
    const { running_mean: mean, running_var: variance, weight, bias } = this;
    return F.batchNorm(x, { mean, variance, weight, bias, training: false });
  }

  /** The norm as a factor and a summand of each channel, both (C). */
  affine(): { factor: Tensor; summand: Tensor } {
    const factor = F.div(this.weight, F.sqrt(F.add(this.running_var, 1e-5)));
    return { factor, summand: F.sub(this.bias, F.mul(this.running_mean, factor)) };
  }
}

/** activation(norm(x) + residual) */
export function normed(norm: Norm, x: Tensor, { residual, activation }: F.FinishOptions): Tensor {
  const y = norm.forward(x);
  const sum = residual ? F.add(y, F.cast(residual, "f32")) : y;
  return activation ? F[activation](sum) : sum;
}

/** Groups for a GroupNorm of a backbone: 8 channels or more each, at most 32, dividing the channels. */
export function normGroups(channels: number): number {
  for (let groups = Math.min(32, Math.floor(channels / 8)); groups > 1; groups--)
    if (channels % groups === 0) return groups;
  return 1;
}

export interface ConvNormOptions {
  stride?: number;
  padding?: number;
  dilation?: number;
  groups?: number;
  /** Default false: the norm behind it has a bias of its own. */
  bias?: boolean;
}

/** A convolution that carries its norm under the key `norm`, as detectron2's Conv2d: (B, I, H, W) -> (B, O, H', W'). */
export class ConvNorm extends nn.Conv2d {
  norm: Norm | undefined;

  constructor(
    gpu: Device,
    I: number,
    O: number,
    kernel: number,
    norm: Norm | undefined,
    options: ConvNormOptions = {},
  ) {
    super(gpu, I, O, kernel, { bias: false, ...options });
    this.norm = norm;
  }

  /** activation(norm(convolution) + residual). A frozen norm becomes part of the weights, so that it costs nothing per pixel. */
  override forward(x: Tensor, finish: F.FinishOptions = {}): Tensor {
    const { norm, weight, options } = this;
    if (norm instanceof FrozenBatchNorm2d && !this.bias) {
      const { factor, summand } = norm.affine();
      const folded = F.mul(weight, F.reshape(factor, [-1, 1, 1, 1]));
      return F.conv2d(x, folded, { ...options, ...finish, bias: summand });
    }
    return norm ? normed(norm, super.forward(x), finish) : super.forward(x, finish);
  }
}

/** Uniform with variance 1 / fan-in, bias 0: detectron2's c2_xavier_fill. */
export function xavierByFanIn_(conv: nn.Conv2d): void {
  const fanIn = conv.weight.size / conv.weight.shape[0]!;
  const bound = Math.sqrt(3 / fanIn);
  nn.init.uniform_(conv.weight, -bound, bound);
  if (conv.bias) nn.init.zeros_(conv.bias);
}

/** Linear layers with ReLU between them, keys `layers.N` (DETR's MLP): (…, inDim) -> (…, outDim). */
export class MLP extends nn.Module {
  layers: nn.Linear[];

  constructor(gpu: Device, inDim: number, hiddenDim: number, outDim: number, depth: number) {
    super();
    this.layers = Array.from({ length: depth }, (_, i) => {
      return new nn.Linear(gpu, i === 0 ? inDim : hiddenDim, i === depth - 1 ? outDim : hiddenDim);
    });
  }

  forward(x: Tensor): Tensor {
    const inner = { activation: "relu", forProducts: true } as const;
    return this.layers.reduce((h, layer, i) => layer.forward(h, i < this.layers.length - 1 ? inner : {}), x);
  }
}

/** Attention with the three input projections packed in one matrix: torch.nn.MultiheadAttention, batch first, no dropout. */
export class MultiheadAttention extends nn.Module {
  in_proj_weight: Tensor; // (3C, C): rows of q, k, v
  in_proj_bias: Tensor; // (3C)
  out_proj: nn.Linear;
  readonly heads: number;

  constructor(gpu: Device, C: number, heads: number) {
    super();
    if (C % heads !== 0)
      throw new Error(`MultiheadAttention: ${C} channels do not divide into ${heads} heads; change one of them`);
    this.heads = heads;
    this.in_proj_weight = nn.parameter(gpu.empty([3 * C, C]));
    this.in_proj_bias = nn.parameter(gpu.zeros([3 * C]));
    this.out_proj = new nn.Linear(gpu, C, C);
    nn.init.xavierUniform_(this.in_proj_weight);
    nn.init.xavierUniform_(this.out_proj.weight);
    nn.init.zeros_(this.out_proj.bias!);
  }

  /**
   * q (B, Q, C), k and v (B, S, C) -> (B, Q, C).
   * `mask`, boolean and broadcastable to (B, M, Q, S): true takes part (the opposite sign of torch.nn.MultiheadAttention's attn_mask).
   */
  forward(q: Tensor, k: Tensor, v: Tensor, mask?: Tensor): Tensor {
    const [B, Q, C] = q.shape as [number, number, number];
    const project = (x: Tensor, part: number): Tensor => {
      const weight = F.slice(this.in_proj_weight, 0, part * C, (part + 1) * C);
      const bias = F.slice(this.in_proj_bias, 0, part * C, (part + 1) * C);
      return splitHeads(F.linear(x, weight, bias), this.heads);
    };
    const y = F.scaledDotProductAttention(project(q, 0), project(k, 1), project(v, 2), mask ? { mask } : {}); // (B, M, Q, D)
    return this.out_proj.forward(F.reshape(F.permute(y, [0, 2, 1, 3]), [B, Q, C]));
  }
}

/** (B, N, C) -> (B, M, N, C / M) */
function splitHeads(x: Tensor, heads: number): Tensor {
  const [B, N, C] = x.shape as [number, number, number];
  return F.permute(F.reshape(x, [B, N, heads, C / heads]), [0, 2, 1, 3]);
}

/**
 * DETR's sine positions of an H x W grid, normalised to 2 pi: host array of (H W, C), first half from y, second from x;
 * within a half, channel c is sin (c even) or cos (c odd) of position / 10000^(2 floor(c / 2) / half).
 */
export function sinePositions(H: number, W: number, C: number): Float32Array {
  const half = C / 2;
  const period = Float64Array.from({ length: half }, (_, c) => 10000 ** ((2 * Math.floor(c / 2)) / half));
  const axis = (length: number): Float64Array => {
    const rows = new Float64Array(length * half);
    for (let i = 0; i < length; i++) {
      const angle = ((i + 1) / (length + 1e-6)) * 2 * Math.PI;
      for (let c = 0; c < half; c++)
        rows[i * half + c] = c % 2 === 0 ? Math.sin(angle / period[c]!) : Math.cos(angle / period[c]!);
    }
    return rows;
  };
  const [ys, xs] = [axis(H), axis(W)];
  const positions = new Float32Array(H * W * C);
  for (let y = 0, at = 0; y < H; y++) {
    for (let x = 0; x < W; x++, at += C) {
      positions.set(ys.subarray(y * half, (y + 1) * half), at);
      positions.set(xs.subarray(x * half, (x + 1) * half), at + half);
    }
  }
  return positions;
}

/**
 * One block after another. Without a tape each gives back what it made, its input included, before the next begins: 32 blocks then take no
 * more memory than one.
 */
export function inTurn(blocks: readonly { forward(x: Tensor): Tensor }[], x: Tensor): Tensor {
  if (isRecording()) return blocks.reduce((y, block) => block.forward(y), x);
  // A scope owns what comes out of the scope inside it, and frees that at its end.
  const upTo = (n: number): Tensor => (n === 0 ? x : scope(() => blocks[n - 1]!.forward(upTo(n - 1))));
  return upTo(blocks.length);
}

/** (B, C, H, W) -> (B, H W, C) */
export function flattenGrid(x: Tensor): Tensor {
  const [B, C, H, W] = x.shape as [number, number, number, number];
  return F.permute(F.reshape(x, [B, C, H * W]), [0, 2, 1]);
}

/** (B, H W, C) -> (B, C, H, W) */
export function unflattenGrid(x: Tensor, H: number, W: number): Tensor {
  const [B, , C] = x.shape as [number, number, number];
  return F.reshape(F.permute(x, [0, 2, 1]), [B, C, H, W]);
}

const constants = new WeakMap<Device, Map<string, Tensor>>();
/** Constants kept per device: enough for the sizes that one data set's images have, few enough to stay small. */
const MAX_CONSTANTS = 128;

/** A tensor computed on the host once per device and name (positions, grids, cell sizes); it outlives the scope that asked first. */
export function constant(gpu: Device, name: string, shape: readonly number[], make: () => Float32Array): Tensor {
  const known = constants.get(gpu) ?? new Map<string, Tensor>();
  constants.set(gpu, known);
  const found = known.get(name);
  // A Map remembers the order of insertion: what was used last moves to the end, what was not used for longest is let go.
  known.delete(name);
  const tensor = found ?? keep(gpu.tensor(make(), shape));
  known.set(name, tensor);
  if (known.size > MAX_CONSTANTS) known.delete(known.keys().next().value!);
  return tensor;
}
