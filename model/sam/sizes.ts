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
  if (metadata.config !== undefined) return writtenSizes(metadata.config, file);
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

function writtenSizes(text: string, file: string): SamConfig {
  const fail = (what: string): never => {
    throw new CheckpointError(`${file}: metadata "config": ${what}`);
  };
  let config: unknown;
  try {
    config = JSON.parse(text);
  } catch {
    return fail("is no JSON");
  }
  const kind = (config as Partial<SamConfig> | null)?.encoder?.kind;
  for (const like of [samVitB(), mobileSam()])
    if (kind === undefined || kind === like.encoder.kind) {
      const problem = difference(config, like, "");
      return problem === undefined ? (config as SamConfig) : fail(problem);
    }
  return fail(`encoder.kind must be vit or tiny-vit; got ${JSON.stringify(kind)}`);
}

/** Where sizes are not built as others are: the first place, and what it must be. */
function difference(value: unknown, like: unknown, at: string): string | undefined {
  const must = (what: string): string => `${at || "it"} must be ${what}; got ${JSON.stringify(value) ?? "nothing"}`;
  const isSize = (n: unknown): boolean => Number.isSafeInteger(n) && (n as number) >= 0;
  if (typeof like === "string") return value === like ? undefined : must(like);
  if (typeof like === "number") return isSize(value) ? undefined : must("a whole number from 0");
  if (Array.isArray(like))
    return Array.isArray(value) && value.every(isSize) ? undefined : must("a list of whole numbers from 0");
  if (typeof value !== "object" || value === null || Array.isArray(value)) return must("the sizes of a SAM");
  for (const [key, inner] of Object.entries(like as object)) {
    const problem = difference((value as Record<string, unknown>)[key], inner, at ? `${at}.${key}` : key);
    if (problem) return problem;
  }
  return undefined;
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
