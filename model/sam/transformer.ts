// SAM's two-way transformer (segment-anything: modeling/transformer.py): P prompts, T tokens each, N = g*g image tokens.
import { type Device, F, nn, type Tensor } from "../../engine/index.ts";
import { MLPBlock } from "./image-encoder.ts";

/** Cross attentions project to half the width. */
const DOWNSAMPLE = 2;

export interface TransformerSizes {
  readonly dim: number;
  readonly depth: number;
  readonly heads: number;
  readonly mlp: number;
}

/** queries (P, T, C), keys (P, N, C) */
interface Streams {
  readonly queries: Tensor;
  readonly keys: Tensor;
}

export class TwoWayTransformer extends nn.Module {
  layers: TwoWayAttentionBlock[];
  final_attn_token_to_image: Attention;
  norm_final_attn: nn.LayerNorm;

  constructor(gpu: Device, sizes: TransformerSizes) {
    super();
    this.layers = Array.from({ length: sizes.depth }, (_, i) => new TwoWayAttentionBlock(gpu, sizes, i === 0));
    this.final_attn_token_to_image = new Attention(gpu, sizes.dim, sizes.heads, DOWNSAMPLE);
    this.norm_final_attn = new nn.LayerNorm(gpu, sizes.dim);
  }

  /** imageEmbedding (P, N, C), imagePe (1, N, C), tokens (P, T, C); the tokens are their own positional encoding. */
  forward(imageEmbedding: Tensor, imagePe: Tensor, tokens: Tensor): Streams {
    let queries = tokens;
    let keys = imageEmbedding;
    for (const layer of this.layers) ({ queries, keys } = layer.forward(queries, keys, tokens, imagePe));
    const attended = this.final_attn_token_to_image.forward(F.add(queries, tokens), F.add(keys, imagePe), keys);
    return { queries: this.norm_final_attn.forward(F.add(queries, attended)), keys };
  }
}

/** Post-norm: tokens to tokens, tokens to image, MLP, image to tokens. */
class TwoWayAttentionBlock extends nn.Module {
  self_attn: Attention;
  norm1: nn.LayerNorm;
  cross_attn_token_to_image: Attention;
  norm2: nn.LayerNorm;
  mlp: MLPBlock;
  norm3: nn.LayerNorm;
  norm4: nn.LayerNorm;
  cross_attn_image_to_token: Attention;
  readonly #first: boolean;

  constructor(gpu: Device, { dim, heads, mlp }: TransformerSizes, first: boolean) {
    super();
    this.self_attn = new Attention(gpu, dim, heads, 1);
    this.norm1 = new nn.LayerNorm(gpu, dim);
    this.cross_attn_token_to_image = new Attention(gpu, dim, heads, DOWNSAMPLE);
    this.norm2 = new nn.LayerNorm(gpu, dim);
    this.mlp = new MLPBlock(gpu, dim, mlp, "relu");
    this.norm3 = new nn.LayerNorm(gpu, dim);
    this.norm4 = new nn.LayerNorm(gpu, dim);
    this.cross_attn_image_to_token = new Attention(gpu, dim, heads, DOWNSAMPLE);
    this.#first = first;
  }

  forward(queries: Tensor, keys: Tensor, queryPe: Tensor, keyPe: Tensor): Streams {
    queries = this.norm1.forward(this.#selfAttention(queries, queryPe));

    const placedKeys = F.add(keys, keyPe);
    const fromImage = this.cross_attn_token_to_image.forward(F.add(queries, queryPe), placedKeys, keys);
    queries = this.norm2.forward(F.add(queries, fromImage));

    queries = this.norm3.forward(this.mlp.forward(queries, queries));

    const fromTokens = this.cross_attn_image_to_token.forward(placedKeys, F.add(queries, queryPe), queries);
    keys = this.norm4.forward(F.add(keys, fromTokens));
    return { queries, keys };
  }

  /** In the first layer the queries are their own positions: neither added again nor kept as a residual. */
  #selfAttention(queries: Tensor, queryPe: Tensor): Tensor {
    if (this.#first) return this.self_attn.forward(queries, queries, queries);
    const placed = F.add(queries, queryPe);
    return F.add(queries, this.self_attn.forward(placed, placed, queries));
  }
}

/** Multi-head attention that projects to C / downsample. */
class Attention extends nn.Module {
  q_proj: nn.Linear;
  k_proj: nn.Linear;
  v_proj: nn.Linear;
  out_proj: nn.Linear;
  readonly #heads: number;

  constructor(gpu: Device, dim: number, heads: number, downsample: number) {
    super();
    const inner = dim / downsample;
    this.q_proj = new nn.Linear(gpu, dim, inner);
    this.k_proj = new nn.Linear(gpu, dim, inner);
    this.v_proj = new nn.Linear(gpu, dim, inner);
    this.out_proj = new nn.Linear(gpu, inner, dim);
    this.#heads = heads;
  }

  /** q (P, T, C), k and v (P, S, C) -> (P, T, C) */
  forward(q: Tensor, k: Tensor, v: Tensor): Tensor {
    const split = this.#separateHeads(this.q_proj.forward(q));
    const attended = F.scaledDotProductAttention(
      split,
      this.#separateHeads(this.k_proj.forward(k)),
      this.#separateHeads(this.v_proj.forward(v)),
    );
    const [P, M, T, hd] = attended.shape as [number, number, number, number];
    return this.out_proj.forward(F.reshape(F.permute(attended, [0, 2, 1, 3]), [P, T, M * hd]));
  }

  /** (P, T, inner) -> (P, M, T, hd) */
  #separateHeads(x: Tensor): Tensor {
    const [P, T, inner] = x.shape as [number, number, number];
    return F.permute(F.reshape(x, [P, T, this.#heads, inner / this.#heads]), [0, 2, 1, 3]);
  }
}
