// Mask2Former's transformer decoder (modeling/transformer_decoder/mask2former_transformer_decoder.py): N queries, each attending only
// where the mask predicted so far says yes, one level a layer, coarse to fine and round again. Post-norm, no dropout.
import { type Device, F, nn, noGrad, scope, type Tensor } from "../../engine/index.ts";
import { recomputed } from "../blocks.ts";
import type { PromptPlace } from "../config.ts";
import { constant, flattenGrid, MLP, MultiheadAttention, sinePositions } from "../layers.ts";
import type { PixelFeatures } from "./pixel-decoder.ts";

export interface DecoderSizes {
  /** K; class K means "no object". */
  classes: number;
  dim: number;
  levels: number;
  queries: number;
  layers: number;
  heads: number;
  ffn: number;
  /** Tokens and width of the prompt latents that each query predicts (WISH); absent in Mask2Former. */
  prompt?: { tokens: number; dim: number; place: PromptPlace };
}

/**
 * Masks before their last product. Whoever needs all of them calls `maskLogits`; at 1024 pixels the masks of every query after every layer
 * are 250 MiB, while those at some points, at a coarser size or of the matched queries are products of parts of these two.
 */
export interface Masks {
  /** (B, N, C) */
  maskEmbedding: Tensor;
  /** (B, C, H / 4, W / 4), the same for all layers. */
  maskFeatures: Tensor;
}

/** The heads' answer after a layer. */
export interface Prediction extends Masks {
  /** (B, N, K + 1) */
  classLogits: Tensor;
  /** (B, N, T, D) where the model has a prompt head. */
  promptLatents: Tensor | undefined;
  /** (h, w) of the level where the next layer attends by these masks; none after the last layer. */
  attends?: readonly [number, number] | undefined;
}

/** (B, N, C), (B, C, h, w) -> (B, N, h, w) */
export function maskLogits({ maskEmbedding, maskFeatures }: Masks): Tensor {
  const [B, C, h, w] = maskFeatures.shape as [number, number, number, number];
  const masks = F.matmul(maskEmbedding, F.reshape(maskFeatures, [B, C, h * w]));
  return F.reshape(masks, [B, maskEmbedding.shape[1]!, h, w]);
}

/** The masks at a level's size: the next layer attends where they are not negative. (B, N, C), (B, C, H / 4, W / 4) -> (B, N, h, w) */
export function attentionLogits({ maskEmbedding, maskFeatures }: Masks, size: readonly [number, number]): Tensor {
  return maskLogits({ maskEmbedding, maskFeatures: resized(maskFeatures, size) });
}

/** Resizing and the product with the queries' embeddings may change places: both are linear. */
function resized(maskFeatures: Tensor, [h, w]: readonly [number, number]): Tensor {
  return F.interpolate(maskFeatures, { size: [h, w], mode: "bilinear", alignCorners: false });
}

export class MaskedTransformerDecoder extends nn.Module {
  transformer_self_attention_layers: SelfAttentionLayer[];
  transformer_cross_attention_layers: CrossAttentionLayer[];
  transformer_ffn_layers: FeedForwardLayer[];
  decoder_norm: nn.LayerNorm;
  query_feat: nn.Embedding; // X0, the queries' content
  query_embed: nn.Embedding; // their positions
  level_embed: nn.Embedding;
  class_embed: nn.Linear;
  mask_embed: MLP;
  prompt_embed: MLP | undefined;
  readonly #prompt: DecoderSizes["prompt"];

  constructor(gpu: Device, sizes: DecoderSizes) {
    super();
    const { classes, dim, levels, queries, layers, heads, ffn, prompt } = sizes;
    const each = <T>(make: () => T): T[] => Array.from({ length: layers }, make);
    this.transformer_self_attention_layers = each(() => new SelfAttentionLayer(gpu, dim, heads));
    this.transformer_cross_attention_layers = each(() => new CrossAttentionLayer(gpu, dim, heads));
    this.transformer_ffn_layers = each(() => new FeedForwardLayer(gpu, dim, ffn));
    this.decoder_norm = new nn.LayerNorm(gpu, dim);
    this.query_feat = new nn.Embedding(gpu, queries, dim);
    this.query_embed = new nn.Embedding(gpu, queries, dim);
    this.level_embed = new nn.Embedding(gpu, levels, dim);
    this.class_embed = new nn.Linear(gpu, dim, classes + 1);
    this.mask_embed = new MLP(gpu, dim, dim, dim, 3);
    // The prompt head has the mask head's form; the paper only says that there is one.
    const promptInput = prompt?.place === "mask" ? 2 * dim : dim;
    this.prompt_embed = prompt ? new MLP(gpu, promptInput, dim, prompt.tokens * prompt.dim, 3) : undefined;
    this.#prompt = prompt;
  }

  /** Predictions before the first layer and after each: layers + 1 of them, the last is the output. */
  forward({ maskFeatures, levels }: PixelFeatures): Prediction[] {
    const gpu = maskFeatures.device;
    const [B] = maskFeatures.shape as [number];
    const sources = levels.map((x, level) => {
      const [, C, h, w] = x.shape as [number, number, number, number];
      // The level's embedding goes to keys and values, the position to the keys alone.
      const value = F.add(flattenGrid(x), F.slice(this.level_embed.weight, 0, level, level + 1)); // (B, h w, C)
      const sine = constant(gpu, `sine ${h}x${w}x${C}`, [1, h * w, C], () => sinePositions(h, w, C));
      const size = [h, w] as const;
      return { key: F.add(value, sine), value, size, features: noGrad(() => resized(maskFeatures, size)) };
    });
    const [N, C] = this.query_feat.weight.shape as [number, number];
    const queryPositions = F.reshape(this.query_embed.weight, [1, N, C]);
    let queries = F.expand(F.reshape(this.query_feat.weight, [1, N, C]), [B, N, C]);

    const layers = this.transformer_ffn_layers;
    const predict = (after: number): Prediction => {
      const attends = after < layers.length ? sources[after % sources.length]!.size : undefined;
      return { ...this.#predict(queries, maskFeatures), attends };
    };
    const predictions = [predict(0)];
    for (const [i, ffn] of layers.entries()) {
      const { key, value, features } = sources[i % sources.length]!;
      const mask = attentionMask({ ...predictions.at(-1)!, maskFeatures: features });
      const layer = (x: Tensor, positions: Tensor, k: Tensor, v: Tensor, where: Tensor): Tensor => {
        const seen = this.transformer_cross_attention_layers[i]!.forward(x, positions, k, v, where);
        return ffn.forward(this.transformer_self_attention_layers[i]!.forward(seen, positions));
      };
      queries = recomputed(layer, queries, queryPositions, key, value, mask);
      predictions.push(predict(i + 1));
    }
    return predictions;
  }

  /** queries (B, N, C), mask features (B, C, h, w) */
  #predict(queries: Tensor, maskFeatures: Tensor): Prediction {
    const [B, N] = queries.shape as [number, number];
    const x = this.decoder_norm.forward(queries);
    const maskEmbedding = this.mask_embed.forward(x);
    const told = this.#prompt?.place === "mask" ? F.cat([x, maskPlace({ maskEmbedding, maskFeatures })], 2) : x;
    const latents = this.prompt_embed?.forward(told);
    return {
      classLogits: this.class_embed.forward(x),
      maskEmbedding,
      maskFeatures,
      promptLatents:
        latents && this.#prompt ? F.reshape(latents, [B, N, this.#prompt.tokens, this.#prompt.dim]) : undefined,
    };
  }
}

/**
 * Where each query may look: masks at a level's size (h, w) -> boolean (B, 1, N, h w), true where the mask has a probability of at least one
 * half. A query whose mask is empty at this level looks everywhere, else its softmax would have nothing. Not differentiated.
 */
function attentionMask(masks: Masks): Tensor {
  return scope(() =>
    noGrad(() => {
      const coarse = maskLogits(masks);
      const [B, N, h, w] = coarse.shape as [number, number, number, number];
      const logits = F.reshape(coarse, [B, 1, N, h * w]);
      const empty = F.lt(F.max(logits, [3], { keepdim: true }), 0); // (B, 1, N, 1)
      return F.logicalOr(F.ge(logits, 0), empty);
    }),
  );
}

/**
 * Where each query's mask lies: the mean of the sine positions over it, which also shrinks with its extent: (B, N, C). Not
 * differentiated: the prompt loss shall read the masks, not move them.
 */
function maskPlace(masks: Masks): Tensor {
  return scope(() =>
    noGrad(() => {
      const logits = maskLogits(masks);
      const [B, N, h, w] = logits.shape as [number, number, number, number];
      const C = masks.maskEmbedding.shape[2]!;
      const inside = F.reshape(F.sigmoid(logits), [B, N, h * w]);
      const share = F.div(inside, F.add(F.sum(inside, [2], { keepdim: true }), 1e-6));
      const sine = constant(logits.device, `sine ${h}x${w}x${C}`, [1, h * w, C], () => sinePositions(h, w, C));
      return F.matmul(share, sine); // (B, N, h w) x (1, h w, C)
    }),
  );
}

class SelfAttentionLayer extends nn.Module {
  self_attn: MultiheadAttention;
  norm: nn.LayerNorm;

  constructor(gpu: Device, dim: number, heads: number) {
    super();
    this.self_attn = new MultiheadAttention(gpu, dim, heads);
    this.norm = new nn.LayerNorm(gpu, dim);
  }

  /** x (B, N, C), positions (1, N, C) -> (B, N, C) */
  forward(x: Tensor, positions: Tensor): Tensor {
    const q = F.add(x, positions);
    return this.norm.forward(F.add(x, this.self_attn.forward(q, q, x)));
  }
}

class CrossAttentionLayer extends nn.Module {
  multihead_attn: MultiheadAttention;
  norm: nn.LayerNorm;

  constructor(gpu: Device, dim: number, heads: number) {
    super();
    this.multihead_attn = new MultiheadAttention(gpu, dim, heads);
    this.norm = new nn.LayerNorm(gpu, dim);
  }

  /** x (B, N, C), key and value (B, S, C), mask (B, 1, N, S) -> (B, N, C) */
  forward(x: Tensor, positions: Tensor, key: Tensor, value: Tensor, mask: Tensor): Tensor {
    return this.norm.forward(F.add(x, this.multihead_attn.forward(F.add(x, positions), key, value, mask)));
  }
}

class FeedForwardLayer extends nn.Module {
  linear1: nn.Linear;
  linear2: nn.Linear;
  norm: nn.LayerNorm;

  constructor(gpu: Device, dim: number, ffn: number) {
    super();
    this.linear1 = new nn.Linear(gpu, dim, ffn);
    this.linear2 = new nn.Linear(gpu, ffn, dim);
    this.norm = new nn.LayerNorm(gpu, dim);
    for (const { weight } of [this.linear1, this.linear2]) nn.init.xavierUniform_(weight);
  }

  /** (B, N, C) -> (B, N, C) */
  forward(x: Tensor): Tensor {
    const inner = this.linear1.forward(x, { activation: "relu", forProducts: true });
    return this.norm.forward(this.linear2.forward(inner, { residual: x }));
  }
}
