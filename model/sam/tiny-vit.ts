// MobileSAM's image encoder (MobileSAM: modeling/tiny_vit_sam.py): convolutional stem, then window attention with a depthwise
// convolution in each block. Tokens are (B, L, C) between stages, as there.
import { type Device, F, keep, nn, type Tensor } from "../../engine/index.ts";
import { inTurn } from "../layers.ts";
import type { TinyVitSizes } from "./config.ts";
import { Neck } from "./neck.ts";
import { windowPartition, windowUnpartition } from "./windows.ts";

/** The reference's expansion of both the inverted bottlenecks and the blocks' MLPs. */
const EXPANSION = 4;

/** Convolution without bias and batch norm, keys `c` and `bn`. */
class ConvBN extends nn.Module {
  c: nn.Conv2d;
  bn: nn.BatchNorm2d;

  constructor(gpu: Device, I: number, O: number, kernel: number, { stride = 1, groups = 1 } = {}) {
    super();
    this.c = new nn.Conv2d(gpu, I, O, kernel, { stride, padding: (kernel - 1) / 2, groups, bias: false });
    this.bn = new nn.BatchNorm2d(gpu, O);
  }

  forward(x: Tensor): Tensor {
    return this.bn.forward(this.c.forward(x));
  }
}

/** Two strided convolutions: stride 4. */
class PatchEmbed extends nn.Module {
  seq: { 0: ConvBN; 2: ConvBN };

  constructor(gpu: Device, dim: number) {
    super();
    this.seq = { 0: new ConvBN(gpu, 3, dim / 2, 3, { stride: 2 }), 2: new ConvBN(gpu, dim / 2, dim, 3, { stride: 2 }) };
  }

  /** (B, 3, S, S) -> (B, C, S/4, S/4) */
  forward(image: Tensor): Tensor {
    return this.seq[2].forward(F.gelu(this.seq[0].forward(image)));
  }
}

/** Inverted bottleneck; the last activation comes after the residual. */
class MBConv extends nn.Module {
  conv1: ConvBN;
  conv2: ConvBN;
  conv3: ConvBN;

  constructor(gpu: Device, dim: number) {
    super();
    const hidden = EXPANSION * dim;
    this.conv1 = new ConvBN(gpu, dim, hidden, 1);
    this.conv2 = new ConvBN(gpu, hidden, hidden, 3, { groups: hidden });
    this.conv3 = new ConvBN(gpu, hidden, dim, 1);
    // A block starts as the identity, as in the reference.
    nn.init.zeros_(this.conv3.bn.weight);
  }

  /** (B, C, H, W) -> (B, C, H, W) */
  forward(x: Tensor): Tensor {
    const h = F.gelu(this.conv2.forward(F.gelu(this.conv1.forward(x))));
    return F.gelu(F.add(this.conv3.forward(h), x));
  }
}

/** From one stage to the next: (B, C, H, W) -> (B, C', H', W') */
class PatchMerging extends nn.Module {
  conv1: ConvBN;
  conv2: ConvBN;
  conv3: ConvBN;

  constructor(gpu: Device, dim: number, outDim: number, stride: number) {
    super();
    this.conv1 = new ConvBN(gpu, dim, outDim, 1);
    this.conv2 = new ConvBN(gpu, outDim, outDim, 3, { stride, groups: outDim });
    this.conv3 = new ConvBN(gpu, outDim, outDim, 1);
  }

  forward(x: Tensor): Tensor {
    return this.conv3.forward(F.gelu(this.conv2.forward(F.gelu(this.conv1.forward(x)))));
  }
}

/** Stage 0. */
class ConvLayer extends nn.Module {
  blocks: MBConv[];
  downsample: PatchMerging | undefined;

  constructor(gpu: Device, dim: number, depth: number, downsample: PatchMerging | undefined) {
    super();
    this.blocks = Array.from({ length: depth }, () => new MBConv(gpu, dim));
    this.downsample = downsample;
  }

  /** (B, C, H, W) -> (B, C', H', W') */
  forward(x: Tensor): Tensor {
    const y = inTurn(this.blocks, x);
    return this.downsample ? this.downsample.forward(y) : y;
  }
}

/** LayerNorm inside, q, k and v side by side PER HEAD (the ViT's are head within q, k, v), a bias a head and distance (|dy|, |dx|). */
class Attention extends nn.Module {
  norm: nn.LayerNorm;
  qkv: nn.Linear;
  proj: nn.Linear;
  attention_biases: Tensor; // (M, window * window)
  readonly #heads: number;
  readonly #distances: Tensor; // (N * N) row of attention_biases for each pair of tokens

  constructor(gpu: Device, dim: number, heads: number, window: number) {
    super();
    this.norm = new nn.LayerNorm(gpu, dim);
    this.qkv = new nn.Linear(gpu, dim, 3 * dim);
    this.proj = new nn.Linear(gpu, dim, dim);
    this.attention_biases = nn.parameter(gpu.zeros([heads, window * window]));
    this.#heads = heads;
    const N = window * window;
    const index = new Int32Array(N * N);
    for (let i = 0; i < N; i++) {
      for (let j = 0; j < N; j++) {
        const dy = Math.abs(Math.trunc(i / window) - Math.trunc(j / window));
        index[i * N + j] = dy * window + Math.abs((i % window) - (j % window));
      }
    }
    // Kept by hand: a scope would not find it behind the private name.
    this.#distances = keep(gpu.tensor(index, [N * N]));
  }

  /** (B, N, C) windows -> (B, N, C) */
  forward(x: Tensor): Tensor {
    const [B, N, C] = x.shape as [number, number, number];
    const M = this.#heads;
    const hd = C / M;
    const packed = F.reshape(this.qkv.forward(this.norm.forward(x)), [B, N, M, 3, hd]);
    const qkv = F.permute(packed, [3, 0, 2, 1, 4]); // (3, B, M, N, hd)
    const [q, k, v] = [0, 1, 2].map((i) => F.reshape(F.slice(qkv, 0, i, i + 1), [B, M, N, hd])) as [
      Tensor,
      Tensor,
      Tensor,
    ];
    const bias = F.reshape(F.indexSelect(this.attention_biases, 1, this.#distances), [1, M, N, N]);
    // Windows are small (49 or 196 tokens), so the matrix may stand in memory, and its bias gets a gradient.
    const scores = F.matmul(F.mul(q, hd ** -0.5), F.permute(k, [0, 1, 3, 2])); // (B, M, N, N)
    const y = F.matmul(F.softmax(F.add(scores, bias), 3), v); // (B, M, N, hd)
    return this.proj.forward(F.reshape(F.permute(y, [0, 2, 1, 3]), [B, N, C]));
  }
}

class Mlp extends nn.Module {
  norm: nn.LayerNorm;
  fc1: nn.Linear;
  fc2: nn.Linear;

  constructor(gpu: Device, dim: number) {
    super();
    this.norm = new nn.LayerNorm(gpu, dim);
    this.fc1 = new nn.Linear(gpu, dim, EXPANSION * dim);
    this.fc2 = new nn.Linear(gpu, EXPANSION * dim, dim);
  }

  forward(x: Tensor): Tensor {
    return this.fc2.forward(this.fc1.forward(this.norm.forward(x), { activation: "gelu", forProducts: true }));
  }
}

/** Window attention, a depthwise convolution without residual, an MLP. */
class TinyViTBlock extends nn.Module {
  attn: Attention;
  mlp: Mlp;
  local_conv: ConvBN;
  readonly #window: number;

  constructor(gpu: Device, dim: number, heads: number, window: number) {
    super();
    this.attn = new Attention(gpu, dim, heads, window);
    this.mlp = new Mlp(gpu, dim);
    this.local_conv = new ConvBN(gpu, dim, dim, 3, { groups: dim });
    this.#window = window;
  }

  /** (B, H*W, C) -> (B, H*W, C) */
  forward(x: Tensor, H: number, W: number): Tensor {
    const [B, L, C] = x.shape as [number, number, number];
    const size = this.#window;
    // The padding comes before attn.norm here: padded tokens enter as the norm's bias.
    const { windows, padded } = windowPartition(F.reshape(x, [B, H, W, C]), size);
    const attended = windowUnpartition(this.attn.forward(windows), size, padded, H, W);
    const h = F.add(x, F.reshape(attended, [B, L, C]));
    const grid = this.local_conv.forward(F.reshape(F.permute(h, [0, 2, 1]), [B, C, H, W]));
    const y = F.permute(F.reshape(grid, [B, C, L]), [0, 2, 1]);
    return F.add(y, this.mlp.forward(y));
  }
}

/** Stages 1 and up. */
class BasicLayer extends nn.Module {
  blocks: TinyViTBlock[];
  downsample: PatchMerging | undefined;

  constructor(
    gpu: Device,
    dim: number,
    depth: number,
    heads: number,
    window: number,
    downsample: PatchMerging | undefined,
  ) {
    super();
    this.blocks = Array.from({ length: depth }, () => new TinyViTBlock(gpu, dim, heads, window));
    this.downsample = downsample;
  }

  /** (B, C, H, W) -> (B, C', H', W') */
  forward(x: Tensor): Tensor {
    const [B, C, H, W] = x.shape as [number, number, number, number];
    const blocks = this.blocks.map((block) => ({ forward: (tokens: Tensor) => block.forward(tokens, H, W) }));
    const tokens = inTurn(blocks, F.permute(F.reshape(x, [B, C, H * W]), [0, 2, 1])); // (B, H*W, C)
    const y = F.reshape(F.permute(tokens, [0, 2, 1]), [B, C, H, W]);
    return this.downsample ? this.downsample.forward(y) : y;
  }
}

export class TinyViT extends nn.Module {
  patch_embed: PatchEmbed;
  layers: (ConvLayer | BasicLayer)[];
  neck: Neck;

  constructor(gpu: Device, sizes: TinyVitSizes, outDim: number) {
    super();
    const { dims, depths, heads, windows, strides } = sizes;
    this.patch_embed = new PatchEmbed(gpu, dims[0]!);
    this.layers = dims.map((dim, i) => {
      const next = dims[i + 1];
      const downsample = next === undefined ? undefined : new PatchMerging(gpu, dim, next, strides[i]!);
      if (i === 0) return new ConvLayer(gpu, dim, depths[i]!, downsample);
      return new BasicLayer(gpu, dim, depths[i]!, heads[i]!, windows[i]!, downsample);
    });
    this.neck = new Neck(gpu, dims.at(-1)!, outDim);
  }

  /** (B, 3, S, S) normalised and padded -> (B, C, g, g) */
  forward(image: Tensor): Tensor {
    return this.neck.forward(inTurn([this.patch_embed, ...this.layers], image));
  }
}
