// Swin Transformer as Mask2Former's backbone (modeling/backbone/swin.py): attention inside windows that every other block shifts by half
// a window, a norm for each output. Tokens stay (B, H W, C); keys are detectron2's.
import { type Device, F, keep, nn, type Tensor } from "../engine/index.ts";
import { Backbone, type FeatureName, type Features, IMAGENET_PIXELS } from "./backbone.ts";
import { block, unblocked } from "./blocks.ts";
import { unflattenGrid } from "./layers.ts";
import { inPieces } from "./pieces.ts";
import { type WindowGrid, windowGrid } from "./swin-windows.ts";

export interface SwinSizes {
  /** Channels of res2; each stage doubles them. */
  embedDim: number;
  /** Blocks of res2 … res5. */
  depths: readonly [number, number, number, number];
  /** Attention heads of res2 … res5. */
  heads: readonly [number, number, number, number];
  /** Side of a window in tokens. */
  window: number;
  /** Largest probability that an image skips a block's branch while training; it grows from 0 at the first block. Default 0.3. */
  dropPath?: number;
}

const PATCH = 4;
const MLP_RATIO = 4;
const FEATURES = ["res2", "res3", "res4", "res5"] as const;

export class SwinTransformer extends Backbone {
  readonly channels: Record<FeatureName, number>;
  patch_embed: { proj: nn.Conv2d; norm: nn.LayerNorm };
  layers: Stage[];
  // The checkpoint has a norm for each output at the root.
  norm0: nn.LayerNorm;
  norm1: nn.LayerNorm;
  norm2: nn.LayerNorm;
  norm3: nn.LayerNorm;

  constructor(gpu: Device, sizes: SwinSizes) {
    super(gpu, IMAGENET_PIXELS);
    const { embedDim, depths, heads, window, dropPath = 0.3 } = sizes;
    const width = (stage: number): number => embedDim * 2 ** stage;
    this.channels = { res2: width(0), res3: width(1), res4: width(2), res5: width(3) };
    this.patch_embed = {
      proj: new nn.Conv2d(gpu, 3, embedDim, PATCH, { stride: PATCH }),
      norm: new nn.LayerNorm(gpu, embedDim),
    };
    const last = depths.reduce((sum, depth) => sum + depth, 0) - 1;
    let at = 0;
    this.layers = depths.map((depth, stage) => {
      const dropPaths = Array.from({ length: depth }, () => (dropPath * at++) / Math.max(last, 1));
      const blockSizes = { dim: width(stage), heads: heads[stage]!, window, dropPaths };
      return new Stage(gpu, blockSizes, stage < 3 ? new PatchMerging(gpu, width(stage)) : undefined);
    });
    [this.norm0, this.norm1, this.norm2, this.norm3] = [0, 1, 2, 3].map(
      (stage) => new nn.LayerNorm(gpu, width(stage)),
    ) as [nn.LayerNorm, nn.LayerNorm, nn.LayerNorm, nn.LayerNorm];
  }

  features(x: Tensor): Features {
    const norms = [this.norm0, this.norm1, this.norm2, this.norm3];
    let { tokens, H, W } = this.#patches(x);
    const features: Partial<Features> = {};
    for (const [stage, { blocks, downsample }] of this.layers.entries()) {
      const [h, w] = [H, W];
      tokens = unblocked(blocks.reduce((y, each) => block((input) => each.forward(input, h, w), y), tokens));
      features[FEATURES[stage]!] = unflattenGrid(norms[stage]!.forward(tokens), H, W);
      if (!downsample) continue;
      tokens = downsample.forward(tokens, H, W);
      [H, W] = [Math.ceil(H / 2), Math.ceil(W / 2)];
    }
    return features as Features;
  }

  /** (B, 3, H, W) -> normalised tokens (B, H W / 16, C); what is missing to whole patches is zero. */
  #patches(x: Tensor): { tokens: Tensor; H: number; W: number } {
    const [B, , height, width] = x.shape as [number, number, number, number];
    const [H, W] = [Math.ceil(height / PATCH), Math.ceil(width / PATCH)];
    const whole = H * PATCH > height || W * PATCH > width ? F.pad(x, [0, W * PATCH - width, 0, H * PATCH - height]) : x;
    const patches = this.patch_embed.proj.forward(whole); // (B, C, H, W)
    const tokens = F.permute(F.reshape(patches, [B, -1, H * W]), [0, 2, 1]);
    return { tokens: this.patch_embed.norm.forward(tokens), H, W };
  }
}

/** Blocks of one resolution and what leads to the next. */
class Stage extends nn.Module {
  blocks: SwinBlock[];
  downsample: PatchMerging | undefined;

  constructor(
    gpu: Device,
    sizes: { dim: number; heads: number; window: number; dropPaths: readonly number[] },
    downsample: PatchMerging | undefined,
  ) {
    super();
    const { dim, heads, window, dropPaths } = sizes;
    this.blocks = dropPaths.map((dropPath, i) => {
      return new SwinBlock(gpu, { dim, heads, window, shift: i % 2 === 0 ? 0 : Math.floor(window / 2), dropPath });
    });
    this.downsample = downsample;
  }
}

interface BlockSizes {
  dim: number;
  heads: number;
  window: number;
  shift: number;
  dropPath: number;
}

/** Window attention and an MLP, both with the norm before them. */
class SwinBlock extends nn.Module {
  norm1: nn.LayerNorm;
  attn: WindowAttention;
  norm2: nn.LayerNorm;
  mlp: { fc1: nn.Linear; fc2: nn.Linear };
  readonly #sizes: BlockSizes;

  constructor(gpu: Device, sizes: BlockSizes) {
    super();
    const { dim, heads, window } = sizes;
    this.norm1 = new nn.LayerNorm(gpu, dim);
    this.attn = new WindowAttention(gpu, dim, heads, window);
    this.norm2 = new nn.LayerNorm(gpu, dim);
    this.mlp = { fc1: linear(gpu, dim, MLP_RATIO * dim), fc2: linear(gpu, MLP_RATIO * dim, dim) };
    this.#sizes = sizes;
  }

  /** (B, H W, C) -> (B, H W, C) */
  forward(x: Tensor, H: number, W: number): Tensor {
    const { window, shift } = this.#sizes;
    const grid = windowGrid(x.device, H, W, window, shift);
    const h = this.#join(x, this.attn.forward(this.norm1.forward(x), grid));
    const C = h.shape[2]!;
    const rows = F.reshape(h, [-1, C]);
    const residual = !this.#drops;
    const branch = inPieces(rows, MLP_RATIO * C * 4, (piece) => {
      const inner = this.mlp.fc1.forward(this.norm2.forward(piece), { activation: "gelu", forProducts: true });
      return this.mlp.fc2.forward(inner, residual ? { residual: piece } : {});
    });
    const y = F.reshape(branch, h.shape);
    return residual ? y : this.#join(h, y);
  }

  get #drops(): boolean {
    return this.training && this.#sizes.dropPath > 0;
  }

  /** x + branch; while training some images of the batch leave the branch out, and the others weigh it more (stochastic depth). */
  #join(x: Tensor, branch: Tensor): Tensor {
    if (!this.#drops) return F.add(x, branch);
    const kept = F.dropout(x.device.ones([x.shape[0]!, 1, 1]), this.#sizes.dropPath);
    return F.add(x, F.mul(branch, kept));
  }
}

/** Attention inside windows, with a learnt summand for each head and each offset between two tokens. */
class WindowAttention extends nn.Module {
  relative_position_bias_table: Tensor; // ((2w - 1)^2, M): row (dy + w - 1) (2w - 1) + dx + w - 1
  qkv: nn.Linear;
  proj: nn.Linear;
  readonly #heads: number;
  readonly #offsets: Tensor; // (N, N), N = w^2: the table's row for each query and key

  constructor(gpu: Device, dim: number, heads: number, window: number) {
    super();
    if (dim % heads !== 0)
      throw new Error(`Swin: ${dim} channels do not divide into ${heads} heads; change embedDim or heads`);
    this.relative_position_bias_table = nn.parameter(gpu.empty([(2 * window - 1) ** 2, heads]));
    nn.init.truncNormal_(this.relative_position_bias_table, 0, 0.02);
    this.qkv = linear(gpu, dim, 3 * dim);
    this.proj = linear(gpu, dim, dim);
    this.#heads = heads;
    // Kept by hand: a scope would not find it behind the private name.
    this.#offsets = keep(gpu.tensor(windowOffsets(window), [window ** 2, window ** 2]));
  }

  /** (B, H W, C) -> (B, H W, C). Tokens that fill up the last windows are zeros and take part, as in the reference. */
  forward(x: Tensor, grid: WindowGrid): Tensor {
    const [B, , C] = x.shape as [number, number, number];
    const M = this.#heads;
    const { windows, length: N } = grid;
    const inWindows = F.reshape(F.indexSelect(x, 1, grid.toWindows), [B * windows, N, C]);
    const mask = F.permute(F.embedding(this.#offsets, this.relative_position_bias_table), [2, 0, 1]); // (M, N, N)
    const seams = grid.seams(B, M);
    const attended = inPieces(inWindows, N * 3 * C * 4, (piece, first) => {
      const count = piece.shape[0]!;
      const packed = F.reshape(this.qkv.forward(piece), [count, N, 3, M, C / M]);
      const qkv = F.permute(packed, [2, 0, 3, 1, 4]); // (3, count, M, N, D)
      const [q, k, v] = [0, 1, 2].map((i) => F.reshape(F.slice(qkv, 0, i, i + 1), [count, M, N, C / M])) as [
        Tensor,
        Tensor,
        Tensor,
      ];
      const part = seams && {
        relH: F.slice(seams.relH, 0, first, first + count),
        relW: F.slice(seams.relW, 0, first, first + count),
      };
      const y = F.scaledDotProductAttention(q, k, v, { mask, ...part });
      return F.reshape(F.permute(y, [0, 2, 1, 3]), [count, N, C]);
    });
    const tokens = F.reshape(attended, [B, windows * N, C]);
    return F.indexSelect(this.proj.forward(tokens), 1, grid.toGrid);
  }
}

/** Halves the resolution and doubles the channels: (B, H W, C) -> (B, ceil(H / 2) ceil(W / 2), 2C) */
class PatchMerging extends nn.Module {
  norm: nn.LayerNorm;
  reduction: nn.Linear;

  constructor(gpu: Device, dim: number) {
    super();
    this.norm = new nn.LayerNorm(gpu, 4 * dim);
    this.reduction = linear(gpu, 4 * dim, 2 * dim, { bias: false });
  }

  forward(x: Tensor, H: number, W: number): Tensor {
    const [B, , C] = x.shape as [number, number, number];
    const [h, w] = [Math.ceil(H / 2), Math.ceil(W / 2)];
    const grid = F.reshape(x, [B, H, W, C]);
    const even = H % 2 === 1 || W % 2 === 1 ? F.pad(grid, [0, 0, 0, W % 2, 0, H % 2]) : grid;
    const fours = F.permute(F.reshape(even, [B, h, 2, w, 2, C]), [0, 1, 3, 4, 2, 5]); // columns before rows: (B, h, w, x, y, C)
    return this.reduction.forward(this.norm.forward(F.reshape(fours, [B, h * w, 4 * C])));
  }
}

/** Normal with a deviation of 0.02, bias 0: the reference's initial values. */
function linear(gpu: Device, I: number, O: number, options: { bias?: boolean } = {}): nn.Linear {
  const layer = nn.init.skip(() => new nn.Linear(gpu, I, O, options));
  nn.init.truncNormal_(layer.weight, 0, 0.02);
  if (layer.bias) nn.init.zeros_(layer.bias);
  return layer;
}

/** Row of the bias table for each query and key of a window: (N, N), N = window^2. */
function windowOffsets(window: number): Int32Array {
  const N = window ** 2;
  return Int32Array.from({ length: N * N }, (_, i) => {
    const [query, key] = [Math.floor(i / N), i % N];
    const dy = Math.floor(query / window) - Math.floor(key / window);
    const dx = (query % window) - (key % window);
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1;
  });
}
