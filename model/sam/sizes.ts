// The sizes of a SAM model from its tensors' shapes. Shapes show all but the input's size under TinyViT, the merging strides, the decoder's
// heads; those are SAM's, unless the file's metadata say otherwise.
import { CheckpointError } from "../weights/tensors.ts";
import { type EncoderConfig, mobileSam, type SamConfig, samVitB } from "./config.ts";

type Shapes = ReadonlyMap<string, { readonly shape: readonly number[] }>;

/** TinyViT's merging keeps the grid's size where the next stage is this wide (the rule of the reference). */
const STRIDE_ONE_WIDTHS = new Set([320, 448, 576]);

/** The file's key of a tensor, for messages. */
type KeyOf = (name: string) => string;

/**
 * @param metadata of a safetensors file; `config` holds a SamConfig as JSON
 */
export function samConfigOf(
  tensors: Shapes,
  file: string,
  metadata: Readonly<Record<string, string>> = {},
  keyOf: KeyOf = (name) => name,
): SamConfig {
  const written = metadata.config;
  if (written !== undefined) {
    let config: unknown;
    try {
      config = JSON.parse(written);
    } catch {
      throw new CheckpointError(`${file}: metadata "config" is no JSON`);
    }
    if (!areSizes(config)) throw new CheckpointError(`${file}: metadata "config" does not hold the sizes of a SAM`);
    return config as SamConfig;
  }
  const [shape, count] = [shapeIn(tensors, file, keyOf), countIn(tensors)];
  return {
    ...encoderSizes(tensors, shape, count),
    promptDim: shape("mask_decoder.iou_token.weight", 1),
    maskChannels: shape("prompt_encoder.mask_downscaling.3.weight", 0),
    decoder: {
      depth: count("mask_decoder.transformer.layers."),
      heads: samVitB().decoder.heads,
      mlp: shape("mask_decoder.transformer.layers.0.mlp.lin1.weight", 0),
      iouHidden: shape("mask_decoder.iou_prediction_head.layers.0.weight", 0),
      iouDepth: count("mask_decoder.iou_prediction_head.layers."),
      candidates: shape("mask_decoder.mask_tokens.weight", 0) - 1,
    },
  };
}

/** The same of an image encoder alone. */
export function samEncoderOf(tensors: Shapes, file: string, keyOf: KeyOf): EncoderConfig {
  const shape = shapeIn(tensors, file, keyOf);
  return { ...encoderSizes(tensors, shape, countIn(tensors)), promptDim: shape("image_encoder.neck.2.weight", 0) };
}

function encoderSizes(tensors: Shapes, shape: ShapeOf, count: CountOf): Pick<SamConfig, "imageSize" | "encoder"> {
  if ([...tensors.keys()].some((key) => key.startsWith("image_encoder.layers.")))
    return { imageSize: mobileSam().imageSize, encoder: tinyVitSizes(shape, count) };
  const imageSize = shape("image_encoder.pos_embed", 1) * shape("image_encoder.patch_embed.proj.weight", 2);
  return { imageSize, encoder: vitSizes(shape, count) };
}

/** Whole numbers, and the encoder's kind. */
function areSizes(value: unknown): boolean {
  if (typeof value === "object" && value !== null) return Object.values(value).every(areSizes);
  return value === "vit" || value === "tiny-vit" || (Number.isSafeInteger(value) && (value as number) >= 0);
}

type ShapeOf = (key: string, dim: number) => number;
type CountOf = (prefix: string) => number;

function shapeIn(tensors: Shapes, file: string, keyOf: KeyOf): ShapeOf {
  return (key, dim) => {
    const found = tensors.get(key)?.shape;
    const value = found?.[dim];
    if (value !== undefined) return value;
    const what = found ? `has ${found.length} dimensions, ${dim + 1} at least were expected` : "is missing";
    throw new CheckpointError(`${file}: no SAM checkpoint: ${keyOf(key)} ${what}`);
  };
}

function countIn(tensors: Shapes): CountOf {
  return (prefix) => {
    const keys = [...tensors.keys()].filter((key) => key.startsWith(prefix));
    const numbers = new Set(keys.map((key) => key.slice(prefix.length).split(".", 1)[0]));
    let n = 0;
    while (numbers.has(String(n))) n++;
    return n;
  };
}

function vitSizes(shape: ShapeOf, count: CountOf): SamConfig["encoder"] {
  const depth = count("image_encoder.blocks.");
  const dim = shape("image_encoder.pos_embed", 3);
  const grid = shape("image_encoder.pos_embed", 1);
  const sides = Array.from({ length: depth }, (_, i) => (shape(`image_encoder.blocks.${i}.attn.rel_pos_h`, 0) + 1) / 2);
  return {
    kind: "vit",
    dim,
    depth,
    heads: dim / shape("image_encoder.blocks.0.attn.rel_pos_h", 1),
    patch: shape("image_encoder.patch_embed.proj.weight", 2),
    mlp: shape("image_encoder.blocks.0.mlp.lin1.weight", 0),
    window: sides.find((side) => side !== grid) ?? 0,
    globalBlocks: sides.flatMap((side, i) => (side === grid ? [i] : [])),
  };
}

function tinyVitSizes(shape: ShapeOf, count: CountOf): SamConfig["encoder"] {
  const layers = "image_encoder.layers.";
  const stages = count(layers);
  const indices = Array.from({ length: stages }, (_, i) => i);
  const dims = indices.map((i) =>
    i === 0
      ? shape("image_encoder.patch_embed.seq.2.c.weight", 0)
      : shape(`${layers}${i - 1}.downsample.conv3.c.weight`, 0),
  );
  const bias = (i: number, dim: number) => shape(`${layers}${i}.blocks.0.attn.attention_biases`, dim);
  return {
    kind: "tiny-vit",
    dims,
    depths: indices.map((i) => count(`${layers}${i}.blocks.`)),
    heads: indices.map((i) => (i === 0 ? 1 : bias(i, 0))),
    windows: indices.map((i) => (i === 0 ? 1 : Math.round(Math.sqrt(bias(i, 1))))),
    strides: dims.slice(1).map((dim) => (STRIDE_ONE_WIDTHS.has(dim) ? 1 : 2)),
  };
}
