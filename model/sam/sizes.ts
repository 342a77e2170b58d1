// The sizes of a SAM model from its tensors' shapes. Shapes show all but the input's size under TinyViT, the merging strides, the decoder's
// heads; those are SAM's, unless the file's metadata say otherwise.
import { mostCommon, type Place, sizeAt, sizeOf } from "../weights/majority.ts";
import { CheckpointError } from "../weights/tensors.ts";
import { type EncoderConfig, mobileSam, type SamConfig, samVitB, type TinyVitSizes, type VitSizes } from "./config.ts";

type Shapes = ReadonlyMap<string, { readonly shape: readonly number[] }>;

/** TinyViT's merging keeps the grid's size where the next stage is this wide (the rule of the reference). */
const STRIDE_ONE_WIDTHS = new Set([320, 448, 576]);

/** The file's key of a tensor, for messages. */
type KeyOf = (name: string) => string;

/**
 * @param metadata of a safetensors file; `config` holds a SamConfig as JSON, which counts alone
 * @param decoderHeads default: SAM's
 */
export function samConfigOf(
  tensors: Shapes,
  file: string,
  metadata: Readonly<Record<string, string>> = {},
  keyOf: KeyOf = (name) => name,
  decoderHeads: number = samVitB().decoder.heads,
): SamConfig {
  if (metadata.config !== undefined) return writtenSizes(metadata.config, file);
  const found = new Found(tensors, file, keyOf);
  const iou = "mask_decoder.iou_prediction_head.layers.";
  const iouDepth = found.count(iou);
  const mlp = "mask_decoder.transformer.layers.0.mlp";
  const downscaling = "prompt_encoder.mask_downscaling";
  const tokens = found.size(
    ["mask_decoder.mask_tokens.weight", 0],
    [`${iou}${iouDepth - 1}.weight`, 0],
    [`${iou}${iouDepth - 1}.bias`, 0],
  );
  return {
    ...encoderSizes(found),
    promptDim: found.size(
      ["mask_decoder.iou_token.weight", 1],
      ["mask_decoder.mask_tokens.weight", 1],
      ["prompt_encoder.no_mask_embed.weight", 1],
    ),
    maskChannels: found.size(
      [`${downscaling}.3.weight`, 0],
      [`${downscaling}.3.bias`, 0],
      [`${downscaling}.4.bias`, 0],
    ),
    decoder: {
      depth: found.count("mask_decoder.transformer.layers."),
      heads: decoderHeads,
      mlp: found.size([`${mlp}.lin1.weight`, 0], [`${mlp}.lin1.bias`, 0], [`${mlp}.lin2.weight`, 1]),
      iouHidden: found.size([`${iou}0.weight`, 0], [`${iou}0.bias`, 0], [`${iou}1.weight`, 1]),
      iouDepth,
      candidates: tokens - 1,
    },
  };
}

/** The same of an image encoder alone. */
export function samEncoderOf(tensors: Shapes, file: string, keyOf: KeyOf): EncoderConfig {
  const found = new Found(tensors, file, keyOf);
  const neck = "image_encoder.neck";
  const promptDim = found.size([`${neck}.2.weight`, 0], [`${neck}.0.weight`, 0], [`${neck}.3.bias`, 0]);
  return { ...encoderSizes(found), promptDim };
}

function encoderSizes(found: Found): Pick<SamConfig, "imageSize" | "encoder"> {
  if (found.count("image_encoder.layers.") > 0)
    return { imageSize: mobileSam().imageSize, encoder: tinyVitSizes(found) };
  const { grid, ...encoder } = vitSizes(found);
  return { imageSize: grid * encoder.patch, encoder };
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

/** A file's tensors, asked for sizes. */
class Found {
  readonly #tensors: Shapes;
  readonly #file: string;
  readonly #keyOf: KeyOf;

  constructor(tensors: Shapes, file: string, keyOf: KeyOf) {
    this.#tensors = tensors;
    this.#file = file;
    this.#keyOf = keyOf;
  }

  at(place: Place): number | undefined {
    return sizeAt(this.#tensors, place);
  }

  size(...places: Place[]): number {
    return sizeOf(this.#tensors, places, this.#keyOf, (what) => this.#refuse(what));
  }

  /** Numbers from 0 on behind the prefix, up to the first that is not there. */
  count(prefix: string): number {
    const keys = [...this.#tensors.keys()].filter((key) => key.startsWith(prefix));
    const numbers = new Set(keys.map((key) => key.slice(prefix.length).split(".", 1)[0]));
    let n = 0;
    while (numbers.has(String(n))) n++;
    return n;
  }

  fail(key: string, what: string): never {
    return this.#refuse(`${this.#keyOf(key)} ${what}`);
  }

  #refuse(what: string): never {
    throw new CheckpointError(`${this.#file}: no SAM checkpoint: ${what}`);
  }
}

function vitSizes(found: Found): VitSizes & { grid: number } {
  const depth = found.count("image_encoder.blocks.");
  const [embed, patches] = ["image_encoder.pos_embed", "image_encoder.patch_embed.proj"];
  const dim = found.size([embed, 3], [`${patches}.weight`, 0], [`${patches}.bias`, 0]);
  // Relative positions (2 side - 1, dim / heads) along both axes of a block.
  const tables = Array.from({ length: depth }, (_, i) =>
    ["h", "w"].map((axis) => `image_encoder.blocks.${i}.attn.rel_pos_${axis}`),
  );
  const sides = tables.map((keys) => keys.map((key) => ((found.at([key, 0]) ?? 0) + 1) / 2));
  const confirmed = sides.flatMap(([h, w]) => (h === w ? [h!] : []));
  const largest = confirmed.length > 0 ? Math.max(...confirmed) : undefined;
  const grid = mostCommon([found.at([embed, 1]), found.at([embed, 2]), largest]) ?? found.size([embed, 1]);
  const window = mostCommon(sides.flat().filter((side) => side !== grid && Number.isInteger(side))) ?? 0;
  const globalBlocks = sides.flatMap((both, i) =>
    (both.find((side) => side === grid || side === window) ?? window) === grid ? [i] : [],
  );
  const perHead = found.size(...tables.flat().map((key): Place => [key, 1]));
  if (dim % perHead !== 0)
    found.fail(tables[0]![0]!, `has ${perHead} channels a head, which do not divide the ${dim} of the encoder`);
  const mlp = "image_encoder.blocks.0.mlp";
  return {
    kind: "vit",
    dim,
    depth,
    heads: dim / perHead,
    patch: found.size([`${patches}.weight`, 2]),
    mlp: found.size([`${mlp}.lin1.weight`, 0], [`${mlp}.lin1.bias`, 0], [`${mlp}.lin2.weight`, 1]),
    window,
    globalBlocks,
    grid,
  };
}

function tinyVitSizes(found: Found): TinyVitSizes {
  const layers = "image_encoder.layers.";
  const indices = Array.from({ length: found.count(layers) }, (_, i) => i);
  const dims = indices.map((i) => {
    const at = i === 0 ? "image_encoder.patch_embed.seq.2" : `${layers}${i - 1}.downsample.conv3`;
    return found.size([`${at}.c.weight`, 0], [`${at}.bn.weight`, 0], [`${at}.bn.bias`, 0]);
  });
  const depths = indices.map((i) => found.count(`${layers}${i}.blocks.`));
  // Of a stage without blocks, the first that it lacks.
  const biases = (i: number): string[] =>
    Array.from({ length: Math.max(1, depths[i]!) }, (_, j) => `${layers}${i}.blocks.${j}.attn.attention_biases`);
  return {
    kind: "tiny-vit",
    dims,
    depths,
    heads: indices.map((i) => (i === 0 ? 1 : headsOf(found, biases(i), dims[i]!))),
    windows: indices.map((i) => (i === 0 ? 1 : windowOf(found, biases(i)))),
    strides: dims.slice(1).map((dim) => (STRIDE_ONE_WIDTHS.has(dim) ? 1 : 2)),
  };
}

/** @param keys of the stage's blocks, whose tables are (heads, window^2) */
function headsOf(found: Found, keys: readonly string[], dim: number): number {
  const places = keys.map((key): Place => [key, 0]);
  const fitting = places.filter((place) => dim % (found.at(place) ?? Number.NaN) === 0);
  if (fitting.length > 0) return found.size(...fitting);
  const heads = found.size(...places);
  return found.fail(keys[0]!, `has ${heads} heads, which do not divide the ${dim} channels of its stage`);
}

function windowOf(found: Found, keys: readonly string[]): number {
  const places = keys.map((key): Place => [key, 1]);
  const fitting = places.filter((place) => Number.isInteger(Math.sqrt(found.at(place) ?? Number.NaN)));
  return Math.round(Math.sqrt(found.size(...(fitting.length > 0 ? fitting : places))));
}
