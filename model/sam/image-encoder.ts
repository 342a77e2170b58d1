// SAM's ViT image encoder (segment-anything: modeling/image_encoder.py). Tokens stay (B, H, W, C) between blocks.
import { type Device, F, nn, type Tensor } from "../../engine/index.ts";
import { inTurn } from "../layers.ts";
import type { VitSizes } from "./config.ts";
import { Neck } from "./neck.ts";
import { relativePositions } from "./relative-position.ts";
import { windowPartition, windowUnpartition } from "./windows.ts";

const LAYER_NORM = { eps: 1e-6 } as const;

export class ImageEncoderViT extends nn.Module {
  patch_embed: { proj: nn.Conv2d };
  pos_embed: Tensor; // (1, g, g, D)
  blocks: Block[];
  neck: Neck;

  constructor(gpu: Device, sizes: VitSizes, imageSize: number, outDim: number) {
    super();
    const grid = imageSize / sizes.patch;
    this.patch_embed = { proj: new nn.Conv2d(gpu, 3, sizes.dim, sizes.patch, { stride: sizes.patch }) };
    this.pos_embed = nn.parameter(gpu.zeros([1, grid, grid, sizes.dim]));
    this.blocks = Array.from({ length: sizes.depth }, (_, i) => {
      return new Block(gpu, sizes, grid, sizes.globalBlocks.includes(i) ? 0 : sizes.window);
    });
    this.neck = new Neck(gpu, sizes.dim, outDim);
  }

  /** (B, 3, S, S) normalised and padded -> (B, C, g, g) */
  forward(image: Tensor): Tensor {
    let x = F.permute(this.patch_embed.proj.forward(image), [0, 2, 3, 1]); // (B, g, g, D)
    x = inTurn(this.blocks, F.add(x, this.pos_embed));
    return this.neck.forward(F.permute(x, [0, 3, 1, 2]));
  }
}

/** Pre-norm transformer block; `window` 0 attends to the whole grid. */
class Block extends nn.Module {
  norm1: nn.LayerNorm;
  attn: Attention;
  norm2: nn.LayerNorm;
  mlp: MLPBlock;
  readonly #window: number;

  constructor(gpu: Device, sizes: VitSizes, grid: number, window: number) {
    super();
    this.norm1 = new nn.LayerNorm(gpu, sizes.dim, LAYER_NORM);
    this.attn = new Attention(gpu, sizes.dim, sizes.heads, window === 0 ? grid : window);
    this.norm2 = new nn.LayerNorm(gpu, sizes.dim, LAYER_NORM);
    this.mlp = new MLPBlock(gpu, sizes.dim, sizes.mlp, "gelu");
    this.#window = window;
  }

  /** (B, H, W, C) -> (B, H, W, C) */
  forward(x: Tensor): Tensor {
    const [, H, W] = x.shape as [number, number, number, number];
    const y = this.norm1.forward(x);
    // The padding comes after the norm: padded tokens are zeros there, not the norm's bias.
    const attended = this.#window === 0 ? this.attn.forward(y, H, W) : this.#attendInWindows(y, H, W);
    const h = F.add(x, F.reshape(attended, x.shape));
    return this.mlp.forward(this.norm2.forward(h), h);
  }

  #attendInWindows(y: Tensor, H: number, W: number): Tensor {
    const size = this.#window;
    const { windows, padded } = windowPartition(y, size);
    return windowUnpartition(this.attn.forward(windows, size, size), size, padded, H, W);
  }
}

/** Multi-head self-attention with decomposed relative positions. */
class Attention extends nn.Module {
  qkv: nn.Linear;
  proj: nn.Linear;
  rel_pos_h: Tensor; // (2 size - 1, hd)
  rel_pos_w: Tensor;
  readonly #heads: number;

  constructor(gpu: Device, dim: number, heads: number, size: number) {
    super();
    this.qkv = new nn.Linear(gpu, dim, 3 * dim);
    this.proj = new nn.Linear(gpu, dim, dim);
    this.rel_pos_h = nn.parameter(gpu.zeros([2 * size - 1, dim / heads]));
    this.rel_pos_w = nn.parameter(gpu.zeros([2 * size - 1, dim / heads]));
    this.#heads = heads;
  }

  /** Tokens of an H x W grid, (B, H, W, C) or (B, H*W, C) -> (B, H*W, C) */
  forward(x: Tensor, H: number, W: number): Tensor {
    const N = H * W;
    const C = x.shape.at(-1)!;
    const B = x.size / (N * C);
    const M = this.#heads;
    const packed = F.reshape(this.qkv.forward(x), [B, N, 3, M, C / M]);
    const qkv = F.permute(packed, [2, 0, 3, 1, 4]); // (3, B, M, N, hd)
    const [q, k, v] = [0, 1, 2].map((i) => F.reshape(F.slice(qkv, 0, i, i + 1), [B, M, N, C / M])) as [
      Tensor,
      Tensor,
      Tensor,
    ];
    const bias = relativePositions(q, this.rel_pos_h, this.rel_pos_w, H, W);
    const y = F.scaledDotProductAttention(q, k, v, bias); // (B, M, N, hd)
    return this.proj.forward(F.reshape(F.permute(y, [0, 2, 1, 3]), [B, N, C]));
  }
}

/** Two linear layers with an activation between them, keys `lin1`, `lin2`. */
export class MLPBlock extends nn.Module {
  lin1: nn.Linear;
  lin2: nn.Linear;
  readonly #activation: F.ActivationName;

  constructor(gpu: Device, dim: number, hidden: number, activation: F.ActivationName) {
    super();
    this.lin1 = new nn.Linear(gpu, dim, hidden);
    this.lin2 = new nn.Linear(gpu, hidden, dim);
    this.#activation = activation;
  }

  /** The block (…, dim) -> (…, dim), plus `residual` where given. */
  forward(x: Tensor, residual?: Tensor): Tensor {
    return this.lin2.forward(this.lin1.forward(x, { activation: this.#activation, forProducts: true }), { residual });
  }
}
