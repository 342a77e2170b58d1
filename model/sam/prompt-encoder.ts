// SAM's prompt encoder (segment-anything: modeling/prompt_encoder.py). Coordinates come from the host, in pixels of the resized frame.
import { type Device, F, nn, type Tensor } from "../../engine/index.ts";

export interface PointPrompts {
  /** (k, n, 2): x, y of n points for each of k prompts. */
  readonly coords: ArrayLike<number>;
  /** (k, n): 1 object, 0 background, -1 padding; 2 and 3 a box's corners, as in SAM's ONNX export. */
  readonly labels: ArrayLike<number>;
  readonly count: number;
  /** The labels already hold padding and corners (as SAM's ONNX export takes them): no padding token is added. */
  readonly complete?: boolean;
}

export interface Prompts {
  readonly points?: PointPrompts | undefined;
  /** (k, 4): x0, y0, x1, y1. */
  readonly boxes?: ArrayLike<number> | undefined;
  /** (k, 1, 4g, 4g) logits of an earlier prediction. */
  readonly masks?: Tensor | undefined;
}

export interface EncodedPrompts {
  /** (k, T, C): n points and one padding token, or n points, top left and bottom right. */
  readonly sparse: Tensor;
  /** (k, C, g, g), or (1, C, g, g) where there is no mask. */
  readonly dense: Tensor;
}

/** Labels -1, 0, 1, 2, 3 are rows 0 to 4 of the label table. */
const FIRST_LABEL = -1;
const LABELS = 5;

/** Random Fourier features of positions in 0..1. */
class PositionEmbeddingRandom extends nn.Module {
  positional_encoding_gaussian_matrix: Tensor; // (2, C / 2), a buffer

  constructor(gpu: Device, features: number, seed: number) {
    super();
    this.positional_encoding_gaussian_matrix = gpu.randn([2, features], { seed });
  }

  /** (…, 2) x, y in 0..1 -> (…, C) */
  forward(coords: Tensor): Tensor {
    const centred = F.add(F.mul(coords, 2), -1);
    const angles = F.mul(F.matmul(centred, this.positional_encoding_gaussian_matrix), 2 * Math.PI);
    return F.cat([F.sin(angles), F.cos(angles)], angles.shape.length - 1);
  }
}

export interface PromptEncoderSizes {
  readonly dim: number;
  readonly grid: number;
  readonly imageSize: number;
  readonly maskChannels: number;
}

export class PromptEncoder extends nn.Module {
  pe_layer: PositionEmbeddingRandom;
  point_embeddings: nn.Embedding[];
  not_a_point_embed: nn.Embedding;
  mask_downscaling: { 0: nn.Conv2d; 1: nn.LayerNorm2d; 3: nn.Conv2d; 4: nn.LayerNorm2d; 6: nn.Conv2d };
  no_mask_embed: nn.Embedding;
  readonly #sizes: PromptEncoderSizes;
  readonly #gpu: Device;

  constructor(gpu: Device, sizes: PromptEncoderSizes, seed = 0) {
    super();
    const { dim, maskChannels } = sizes;
    this.pe_layer = new PositionEmbeddingRandom(gpu, dim / 2, seed);
    this.point_embeddings = Array.from({ length: 4 }, () => new nn.Embedding(gpu, 1, dim));
    this.not_a_point_embed = new nn.Embedding(gpu, 1, dim);
    this.mask_downscaling = {
      0: new nn.Conv2d(gpu, 1, maskChannels / 4, 2, { stride: 2 }),
      1: new nn.LayerNorm2d(gpu, maskChannels / 4, { eps: 1e-6 }),
      3: new nn.Conv2d(gpu, maskChannels / 4, maskChannels, 2, { stride: 2 }),
      4: new nn.LayerNorm2d(gpu, maskChannels, { eps: 1e-6 }),
      6: new nn.Conv2d(gpu, maskChannels, dim, 1),
    };
    this.no_mask_embed = new nn.Embedding(gpu, 1, dim);
    this.#sizes = sizes;
    this.#gpu = gpu;
  }

  /** At least one of points, boxes and masks; all prompts of a call have the same number of points. */
  forward(prompts: Prompts): EncodedPrompts {
    const { coords, labels, count, tokens } = hostTokens(prompts);
    const { dim, imageSize } = this.#sizes;
    const k = count;
    const sparse = tokens === 0 ? this.#gpu.zeros([k, 0, dim]) : this.#embed(coords, labels, k, tokens, imageSize);
    return { sparse, dense: prompts.masks ? this.#embedMasks(prompts.masks, k) : this.noMask() };
  }

  /** The dense embedding of "no mask given": (1, C, g, g). */
  noMask(): Tensor {
    const { dim, grid } = this.#sizes;
    return F.expand(F.reshape(this.no_mask_embed.weight, [1, dim, 1, 1]), [1, dim, grid, grid]);
  }

  /** Positional encoding of the grid's cell centres: (1, C, g, g). */
  densePe(): Tensor {
    const { dim, grid } = this.#sizes;
    const centres = new Float32Array(grid * grid * 2);
    for (let i = 0; i < grid * grid; i++) {
      centres[2 * i] = ((i % grid) + 0.5) / grid;
      centres[2 * i + 1] = (Math.trunc(i / grid) + 0.5) / grid;
    }
    const pe = this.pe_layer.forward(this.#gpu.tensor(centres, [grid * grid, 2])); // (g*g, C)
    return F.reshape(F.permute(pe, [1, 0]), [1, dim, grid, grid]);
  }

  /** (k, T, 2) pixels and (k, T) labels -> (k, T, C) */
  #embed(coords: Float32Array, labels: Int32Array, k: number, T: number, imageSize: number): Tensor {
    // +0.5: from a pixel's index to its centre.
    const inFrame = coords.map((v) => (v + 0.5) / imageSize);
    const pe = this.pe_layer.forward(this.#gpu.tensor(inFrame, [k, T, 2]));
    const isPoint = this.#gpu.tensor(
      Float32Array.from(labels, (label) => (label === FIRST_LABEL ? 0 : 1)),
      [k, T, 1],
    );
    const table = F.cat([this.not_a_point_embed.weight, ...this.point_embeddings.map((e) => e.weight)], 0); // (5, C)
    const rows = this.#gpu.tensor(
      labels.map((label) => label - FIRST_LABEL),
      [k, T],
      { dtype: "i32" },
    );
    return F.add(F.mul(pe, isPoint), F.embedding(rows, table));
  }

  /** (k, 1, 4g, 4g) -> (k, C, g, g) */
  #embedMasks(masks: Tensor, k: number): Tensor {
    const side = 4 * this.#sizes.grid;
    const [n, c, h, w] = masks.shape;
    if (masks.shape.length !== 4 || n !== k || c !== 1 || h !== side || w !== side) {
      throw new Error(`PromptEncoder: masks must be (${k}, 1, ${side}, ${side}); got (${masks.shape.join(", ")})`);
    }
    const layers = this.mask_downscaling;
    const x = F.gelu(layers[1].forward(layers[0].forward(masks)));
    return layers[6].forward(F.gelu(layers[4].forward(layers[3].forward(x))));
  }
}

/** Joins points and box corners into one list of labelled coordinates a prompt; without a box a padding token follows the points. */
function hostTokens({ points, boxes, masks }: Prompts): {
  coords: Float32Array;
  labels: Int32Array;
  count: number;
  tokens: number;
} {
  const count = points?.count ?? (boxes ? boxes.length / 4 : (masks?.shape[0] ?? 0));
  if (!Number.isInteger(count) || count < 1)
    throw new Error("PromptEncoder: give points, boxes (four numbers each) or masks");
  if (boxes && boxes.length !== 4 * count) {
    throw new Error(`PromptEncoder: boxes must hold 4 numbers for each of ${count} prompts; got ${boxes.length}`);
  }
  const n = points ? points.labels.length / count : 0;
  if (points && (!Number.isInteger(n) || points.coords.length !== 2 * n * count)) {
    throw new Error(
      `PromptEncoder: ${count} prompts need (k, n, 2) coords and (k, n) labels; got ${points.coords.length} and ${points.labels.length} numbers`,
    );
  }
  const extra = boxes ? 2 : points && !points.complete ? 1 : 0;
  const T = n + extra;
  const coords = new Float32Array(count * T * 2);
  const labels = new Int32Array(count * T).fill(FIRST_LABEL);
  for (let i = 0; i < count; i++) {
    for (let j = 0; j < n; j++) {
      const label = points!.labels[i * n + j]!;
      if (!Number.isInteger(label) || label < FIRST_LABEL || label >= FIRST_LABEL + LABELS) {
        throw new Error(`PromptEncoder: a point's label is 1, 0 or -1 (2 and 3 for corners); got ${label}`);
      }
      labels[i * T + j] = label;
      coords[(i * T + j) * 2] = points!.coords[(i * n + j) * 2]!;
      coords[(i * T + j) * 2 + 1] = points!.coords[(i * n + j) * 2 + 1]!;
    }
    if (!boxes) continue;
    for (let j = 0; j < 2; j++) {
      labels[i * T + n + j] = 2 + j;
      coords[(i * T + n + j) * 2] = boxes[i * 4 + j * 2]!;
      coords[(i * T + n + j) * 2 + 1] = boxes[i * 4 + j * 2 + 1]!;
    }
  }
  return { coords, labels, count, tokens: T };
}
