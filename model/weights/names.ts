// Whose checkpoint is it, and what are its tensors called here? Names here are the original repositories'; the tables turn others into them.
import type { Shapes } from "./compare.ts";
import { type Family, kindOf, type ModelKind } from "./kinds.ts";
import { CheckpointError, type HostTensor } from "./tensors.ts";
import { commonPrefix, isPixelStatistic } from "./wrappers.ts";

/** Exact rules: the whole key must match, and each key may match one rule at most. */
type KeyPattern = readonly [pattern: RegExp, original: string];

/** transformers' SamModel -> segment-anything. */
const HF_SAM: readonly KeyPattern[] = [
  [/^shared_image_embedding\.positional_embedding$/, "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"],
  [/^vision_encoder\.pos_embed$/, "image_encoder.pos_embed"],
  [/^vision_encoder\.patch_embed\.projection\.(weight|bias)$/, "image_encoder.patch_embed.proj.$1"],
  [/^vision_encoder\.layers\.(\d+)\.layer_norm([12])\.(weight|bias)$/, "image_encoder.blocks.$1.norm$2.$3"],
  [
    /^vision_encoder\.layers\.(\d+)\.attn\.(rel_pos_[hw]|(?:qkv|proj)\.(?:weight|bias))$/,
    "image_encoder.blocks.$1.attn.$2",
  ],
  [/^vision_encoder\.layers\.(\d+)\.mlp\.(lin[12])\.(weight|bias)$/, "image_encoder.blocks.$1.mlp.$2.$3"],
  [/^vision_encoder\.neck\.conv1\.weight$/, "image_encoder.neck.0.weight"],
  [/^vision_encoder\.neck\.layer_norm1\.(weight|bias)$/, "image_encoder.neck.1.$1"],
  [/^vision_encoder\.neck\.conv2\.weight$/, "image_encoder.neck.2.weight"],
  [/^vision_encoder\.neck\.layer_norm2\.(weight|bias)$/, "image_encoder.neck.3.$1"],
  [/^prompt_encoder\.mask_embed\.conv1\.(weight|bias)$/, "prompt_encoder.mask_downscaling.0.$1"],
  [/^prompt_encoder\.mask_embed\.layer_norm1\.(weight|bias)$/, "prompt_encoder.mask_downscaling.1.$1"],
  [/^prompt_encoder\.mask_embed\.conv2\.(weight|bias)$/, "prompt_encoder.mask_downscaling.3.$1"],
  [/^prompt_encoder\.mask_embed\.layer_norm2\.(weight|bias)$/, "prompt_encoder.mask_downscaling.4.$1"],
  [/^prompt_encoder\.mask_embed\.conv3\.(weight|bias)$/, "prompt_encoder.mask_downscaling.6.$1"],
  [/^prompt_encoder\.(no_mask_embed|not_a_point_embed)\.weight$/, "prompt_encoder.$1.weight"],
  [/^prompt_encoder\.point_embed\.([0-3])\.weight$/, "prompt_encoder.point_embeddings.$1.weight"],
  [/^mask_decoder\.(iou_token|mask_tokens)\.weight$/, "mask_decoder.$1.weight"],
  [
    /^mask_decoder\.transformer\.layers\.(\d+)\.layer_norm([1-4])\.(weight|bias)$/,
    "mask_decoder.transformer.layers.$1.norm$2.$3",
  ],
  [
    /^mask_decoder\.transformer\.layers\.(\d+)\.(self_attn|cross_attn_\w+|mlp)\.(\w+)\.(weight|bias)$/,
    "mask_decoder.transformer.layers.$1.$2.$3.$4",
  ],
  [
    /^mask_decoder\.transformer\.final_attn_token_to_image\.(\w+)\.(weight|bias)$/,
    "mask_decoder.transformer.final_attn_token_to_image.$1.$2",
  ],
  [/^mask_decoder\.transformer\.layer_norm_final_attn\.(weight|bias)$/, "mask_decoder.transformer.norm_final_attn.$1"],
  [/^mask_decoder\.upscale_conv1\.(weight|bias)$/, "mask_decoder.output_upscaling.0.$1"],
  [/^mask_decoder\.upscale_layer_norm\.(weight|bias)$/, "mask_decoder.output_upscaling.1.$1"],
  [/^mask_decoder\.upscale_conv2\.(weight|bias)$/, "mask_decoder.output_upscaling.3.$1"],
  [
    /^mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.proj_in\.(weight|bias)$/,
    "mask_decoder.$1.layers.0.$2",
  ],
  [
    /^mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.0\.(weight|bias)$/,
    "mask_decoder.$1.layers.1.$2",
  ],
  [
    /^mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.proj_out\.(weight|bias)$/,
    "mask_decoder.$1.layers.2.$2",
  ],
];

/** Stored twice by transformers: the original has it once. */
const TWICE = /^prompt_encoder\.shared_embedding\.positional_embedding$/;

export interface NamedTensors {
  /** Original names; keys that inference does not use are left out. */
  readonly tensors: Map<string, HostTensor>;
  readonly family: Family;
  /** SAM ViT-B, MobileSAM, Mask2Former, ResNet-50, … or unknown. */
  readonly kind: string;
  /** What was left out. */
  readonly unused: string[];
  /** Of this what the original has, too, under its names. */
  readonly spare: Map<string, HostTensor>;
  /** What such a model has, where that is known here: for `checkTensors`. */
  readonly expected: Shapes | undefined;
  /** The file's key of a tensor; of one that it lacks the original's, behind the prefix that its other keys have. */
  keyOf(name: string): string;
}

/** Detects the model, renames its tensors to the original repository's keys and drops what is known to be unused. */
export function nameTensors(found: ReadonlyMap<string, HostTensor>, file: string): NamedTensors {
  const keys = [...found.keys()];
  const prefix = commonPrefix(keys);
  const encoder = encoderOf(keys.map((key) => key.slice(prefix.length)));
  const fromHub = encoder === "vision_encoder." || keys.some((key) => key.startsWith(`${prefix}vision_encoder.`));
  const all = new Map<string, HostTensor>();
  const before = new Map<string, string>();
  const unused: string[] = [];
  for (const [key, tensor] of found) {
    const bare = isPixelStatistic(key) ? key : encoder + key.slice(prefix.length);
    if (TWICE.test(bare)) {
      unused.push(key);
      continue;
    }
    const name = fromHub ? rename(bare, HF_SAM) : bare;
    if (all.has(name)) throw new CheckpointError(`${file}: ${key} and another key both mean ${name}`);
    all.set(name, tensor);
    before.set(name, key);
  }
  const { family, name: kind, isUnused, expected } = kindIn(all, file);
  const [tensors, spare] = [new Map<string, HostTensor>(), new Map<string, HostTensor>()];
  for (const [name, tensor] of all) {
    if (isUnused(name)) unused.push(before.get(name)!);
    (isUnused(name) ? spare : tensors).set(name, tensor);
  }
  const keyOf = (name: string) => before.get(name) ?? (fromHub ? name : prefix + name.slice(encoder.length));
  return { tensors, family, kind, unused, spare, expected, keyOf };
}

/** What SAM calls its image encoder, where the keys are those of the encoder alone. */
function encoderOf(keys: readonly string[]): string {
  const has = (pattern: RegExp) => keys.some((key) => pattern.test(key));
  if (has(/^layers\.\d+\.attn\.rel_pos_h$/) && has(/^neck\.conv1\.weight$/)) return "vision_encoder.";
  const isEncoder = has(/^blocks\.\d+\.attn\.rel_pos_h$|^layers\.\d+\.blocks\.\d+\.attn\.attention_biases$/);
  return isEncoder && has(/^neck\.[0-3]\.weight$/) ? "image_encoder." : "";
}

function kindIn(tensors: ReadonlyMap<string, HostTensor>, file: string): ModelKind {
  try {
    return kindOf(tensors);
  } catch (error) {
    if (error instanceof CheckpointError) throw new CheckpointError(`${file}: ${error.message}`);
    throw error;
  }
}

/** A key without a rule stays: the comparison with the model then lists it as unexpected. */
function rename(key: string, rules: readonly KeyPattern[]): string {
  for (const [pattern, original] of rules) if (pattern.test(key)) return key.replace(pattern, original);
  return key;
}
