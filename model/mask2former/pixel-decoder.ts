// Mask2Former's pixel decoder (modeling/pixel_decoder/msdeformattn.py): deformable attention over the coarse levels, then a feature
// pyramid down to stride 4. Levels run from coarse to fine: level 0 is res5.
import { type Device, F, nn, type Tensor } from "../../engine/index.ts";
import type { FeatureName, Features } from "../backbone.ts";
import { block, unblocked } from "../blocks.ts";
import { ConvNorm, constant, flattenGrid, sinePositions, unflattenGrid, xavierByFanIn_ } from "../layers.ts";
import { MSDeformAttn } from "./deformable.ts";

export interface PixelDecoderSizes {
  /** Channels of the backbone's features. */
  inChannels: Record<FeatureName, number>;
  /** Channels inside and of the outputs (CONVS_DIM = MASK_DIM = 256). */
  dim: number;
  /** Levels of deformable attention: 3 are res5, res4, res3. */
  levels: number;
  /** Groups of the GroupNorms (32). */
  groups: number;
  layers: number;
  heads: number;
  points: number;
  ffn: number;
}

/** What the transformer decoder reads. */
export interface PixelFeatures {
  /** (B, C, H / 4, W / 4) */
  maskFeatures: Tensor;
  /** Coarse to fine, each (B, C, h, w). */
  levels: Tensor[];
}

const FINE_TO_COARSE: readonly FeatureName[] = ["res2", "res3", "res4", "res5"];

export class MSDeformAttnPixelDecoder extends nn.Module {
  input_proj: { 0: nn.Conv2d; 1: nn.GroupNorm }[];
  transformer: { level_embed: Tensor; encoder: { layers: EncoderLayer[] } };
  mask_features: nn.Conv2d;
  // adapter_K and layer_K, K = 1 for res2, 2 for res3 …: the pyramid's levels that deformable attention leaves out. The checkpoint
  // numbers them at the root, so they are properties set by number; #pyramid holds them in the order of use (coarse to fine).
  readonly #pyramid: { feature: FeatureName; adapter: ConvNorm; layer: ConvNorm }[];
  readonly #attended: FeatureName[];

  constructor(gpu: Device, sizes: PixelDecoderSizes) {
    super();
    const { inChannels, dim, levels, groups, layers } = sizes;
    if (levels < 1 || levels > 4)
      throw new Error(`MSDeformAttnPixelDecoder: levels must be 1 to 4 (of res2 … res5); got ${levels}`);
    if (dim % groups !== 0)
      throw new Error(
        `MSDeformAttnPixelDecoder: ${dim} channels do not divide into ${groups} norm groups; change one of them`,
      );
    this.#attended = FINE_TO_COARSE.slice(4 - levels).reverse();
    this.input_proj = this.#attended.map((name) => {
      const conv = new nn.Conv2d(gpu, inChannels[name], dim, 1);
      nn.init.xavierUniform_(conv.weight);
      nn.init.zeros_(conv.bias!);
      return { 0: conv, 1: new nn.GroupNorm(gpu, groups, dim) };
    });
    this.transformer = {
      level_embed: nn.parameter(gpu.randn([levels, dim])),
      encoder: { layers: Array.from({ length: layers }, () => new EncoderLayer(gpu, sizes)) },
    };
    this.mask_features = new nn.Conv2d(gpu, dim, dim, 1);
    xavierByFanIn_(this.mask_features);
    this.#pyramid = FINE_TO_COARSE.slice(0, 4 - levels).map((feature, i) => {
      const adapter = new ConvNorm(gpu, inChannels[feature], dim, 1, new nn.GroupNorm(gpu, groups, dim));
      const layer = new ConvNorm(gpu, dim, dim, 3, new nn.GroupNorm(gpu, groups, dim), { padding: 1 });
      xavierByFanIn_(adapter);
      xavierByFanIn_(layer);
      Object.assign(this, { [`adapter_${i + 1}`]: adapter, [`layer_${i + 1}`]: layer });
      return { feature, adapter, layer };
    });
    this.#pyramid.reverse();
  }

  forward(features: Features): PixelFeatures {
    const projected = this.#attended.map((name, level) => {
      const { 0: conv, 1: norm } = this.input_proj[level]!;
      return norm.forward(conv.forward(features[name])); // (B, C, h, w)
    });
    const levels = this.#attend(projected);
    for (const { feature, adapter, layer } of this.#pyramid) {
      const lateral = adapter.forward(features[feature]);
      const size = lateral.shape.slice(2) as [number, number];
      // The reference's comment says nearest; its code is bilinear, and so are its weights.
      const above = F.interpolate(levels.at(-1)!, { size, mode: "bilinear", alignCorners: false });
      levels.push(layer.forward(F.add(lateral, above), { activation: "relu" }));
    }
    return { maskFeatures: this.mask_features.forward(levels.at(-1)!), levels: levels.slice(0, this.#attended.length) };
  }

  /** Deformable self-attention over all levels together: [(B, C, h, w)…] -> the same shapes. */
  #attend(projected: Tensor[]): Tensor[] {
    const gpu = projected[0]!.device;
    const shapes = projected.map((x) => x.shape.slice(2) as [number, number]);
    const C = projected[0]!.shape[1]!;
    const source = F.cat(projected.map(flattenGrid), 1); // (B, S, C), S = sum of h w
    const positions = F.cat(
      shapes.map(([h, w], level) => {
        const sine = constant(gpu, `sine ${h}x${w}x${C}`, [1, h * w, C], () => sinePositions(h, w, C));
        return F.add(sine, F.slice(this.transformer.level_embed, 0, level, level + 1));
      }),
      1,
    ); // (1, S, C)
    const references = constant(gpu, `references ${shapes.join(" ")}`, [1, source.shape[1]!, 1, 2], () =>
      gridCentres(shapes),
    );
    let x = source;
    for (const layer of this.transformer.encoder.layers)
      x = block((input, at) => layer.forward(input, at, references, shapes), x, positions);
    x = unblocked(x);
    let start = 0;
    return shapes.map(([h, w]) => {
      const level = F.slice(x, 1, start, start + h * w);
      start += h * w;
      return unflattenGrid(level, h, w);
    });
  }
}

/** Deformable self-attention and a feed-forward net, post-norm. */
class EncoderLayer extends nn.Module {
  self_attn: MSDeformAttn;
  norm1: nn.LayerNorm;
  linear1: nn.Linear;
  linear2: nn.Linear;
  norm2: nn.LayerNorm;

  constructor(gpu: Device, { dim, levels, heads, points, ffn }: PixelDecoderSizes) {
    super();
    this.self_attn = new MSDeformAttn(gpu, { dim, levels, heads, points });
    this.norm1 = new nn.LayerNorm(gpu, dim);
    this.linear1 = new nn.Linear(gpu, dim, ffn);
    this.linear2 = new nn.Linear(gpu, ffn, dim);
    this.norm2 = new nn.LayerNorm(gpu, dim);
    for (const { weight } of [this.linear1, this.linear2]) nn.init.xavierUniform_(weight);
  }

  /** x (B, S, C), positions (1, S, C), references (1, S, 1, 2) -> (B, S, C) */
  forward(x: Tensor, positions: Tensor, references: Tensor, shapes: [number, number][]): Tensor {
    const attended = this.norm1.forward(F.add(x, this.self_attn.forward(F.add(x, positions), references, x, shapes)));
    const inner = this.linear1.forward(attended, { activation: "relu", forProducts: true });
    return this.norm2.forward(this.linear2.forward(inner, { residual: attended }));
  }
}

/** Centres of all cells of all levels, (x, y) in 0..1: the points that each token looks around. */
function gridCentres(shapes: [number, number][]): Float32Array {
  return Float32Array.from(
    shapes
      .flatMap(([h, w]) =>
        Array.from({ length: h * w }, (_, i) => [((i % w) + 0.5) / w, (Math.floor(i / w) + 0.5) / h]),
      )
      .flat(),
  );
}
