// Whose checkpoint is it, and what are its tensors called here? Names here are the original repositories'; the tables turn others into them.
import { CheckpointError, type HostTensor } from "./tensors.ts";

/** Exact rules: the whole key must match, and each key may match one rule at most. */
type Rule = readonly [pattern: RegExp, original: string];

/** transformers' SamModel -> segment-anything. */
const HF_SAM: readonly Rule[] = [
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

/** Keys that mean nothing for inference; transformers stores the shared embedding twice, MobileSAM keeps its classifier. */
const UNUSED: readonly RegExp[] = [
  /^prompt_encoder\.shared_embedding\.positional_embedding$/,
  /^image_encoder\.(norm_head|head)\.(weight|bias)$/,
  /\.num_batches_tracked$/,
  /\.attention_bias_idxs$/,
  /^pixel_(mean|std)$/,
];

/** A key that only transformers' Mask2Former has; model/mask2former/names.ts turns its names into detectron2's. */
const HF_MASK2FORMER = /(^|\.)transformer_module\.queries_features\.weight$/;

export type ModelKind =
  | "SAM ViT-B"
  | "SAM ViT-L"
  | "SAM ViT-H"
  | "SAM (ViT)"
  | "MobileSAM"
  | "SAM (TinyViT)"
  | "Mask2Former"
  | "backbone"
  | "unknown";

export interface NamedTensors {
  /** Original names; keys that inference does not use are left out. */
  readonly tensors: Map<string, HostTensor>;
  readonly kind: ModelKind;
  /** What was left out. */
  readonly unused: string[];
}

/** Detects the model, renames its tensors to the original repository's keys and drops what is known to be unused. */
export function nameTensors(found: ReadonlyMap<string, HostTensor>, file: string): NamedTensors {
  const keys = [...found.keys()];
  const prefix = commonPrefix(keys);
  const fromHub = keys.some((key) => key.startsWith(`${prefix}vision_encoder.`));
  const tensors = new Map<string, HostTensor>();
  const unused: string[] = [];
  for (const [key, tensor] of found) {
    const bare = key.slice(prefix.length);
    if (UNUSED.some((pattern) => pattern.test(bare))) {
      unused.push(key);
      continue;
    }
    const name = fromHub ? rename(bare, HF_SAM) : bare;
    if (tensors.has(name)) throw new CheckpointError(`${file}: ${key} and another key both mean ${name}`);
    tensors.set(name, tensor);
  }
  return { tensors, kind: kindOf(tensors), unused };
}

/** A key without a rule stays: the comparison with the model then lists it as unexpected. */
function rename(key: string, rules: readonly Rule[]): string {
  for (const [pattern, original] of rules) if (pattern.test(key)) return key.replace(pattern, original);
  return key;
}

/** What wrappers (DataParallel, Lightning, transformers' heads) put in front of every key. */
function commonPrefix(keys: readonly string[]): string {
  return (
    ["module.", "model.", "sam."].find((prefix) => keys.length > 0 && keys.every((key) => key.startsWith(prefix))) ?? ""
  );
}

function kindOf(tensors: ReadonlyMap<string, HostTensor>): ModelKind {
  const has = (key: string) => tensors.has(key);
  if (has("mask_decoder.iou_token.weight")) {
    const width = tensors.get("image_encoder.pos_embed")?.shape[3];
    if (width !== undefined) {
      const named: Record<number, ModelKind> = { 768: "SAM ViT-B", 1024: "SAM ViT-L", 1280: "SAM ViT-H" };
      return named[width] ?? "SAM (ViT)";
    }
    if (has("image_encoder.patch_embed.seq.0.c.weight")) {
      return tensors.get("image_encoder.layers.3.blocks.0.attn.qkv.weight")?.shape[1] === 320
        ? "MobileSAM"
        : "SAM (TinyViT)";
    }
  }
  if (has("sem_seg_head.predictor.query_feat.weight") || [...tensors.keys()].some((key) => HF_MASK2FORMER.test(key)))
    return "Mask2Former";
  if (has("stem.conv1.weight") || has("conv1.weight") || has("features.0.0.weight")) return "backbone";
  return "unknown";
}

export interface Comparison {
  readonly missing: string[];
  readonly unexpected: string[];
  readonly misshaped: { readonly key: string; readonly expected: readonly number[]; readonly got: readonly number[] }[];
}

/** What a checkpoint lacks of a model, has beyond it, and has in another shape. */
export function compareTensors(
  expected: ReadonlyMap<string, { readonly shape: readonly number[] }>,
  got: ReadonlyMap<string, { readonly shape: readonly number[] }>,
): Comparison {
  const missing = [...expected.keys()].filter((key) => !got.has(key));
  const unexpected = [...got.keys()].filter((key) => !expected.has(key));
  const misshaped = [...expected].flatMap(([key, { shape }]) => {
    const other = got.get(key)?.shape;
    return other && (other.length !== shape.length || other.some((d, i) => d !== shape[i]))
      ? [{ key, expected: shape, got: other }]
      : [];
  });
  return { missing, unexpected, misshaped };
}

/** One line: how many keys are wrong in each way, the first few by name. Undefined when all agree. */
export function describe({ missing, unexpected, misshaped }: Comparison): string | undefined {
  const list = (keys: string[]) =>
    keys.length > 4 ? `${keys.slice(0, 4).join(", ")} and ${keys.length - 4} more` : keys.join(", ");
  const parts = [
    missing.length > 0 && `${missing.length} missing (${list(missing)})`,
    unexpected.length > 0 && `${unexpected.length} unexpected (${list(unexpected)})`,
    misshaped.length > 0 &&
      `${misshaped.length} misshaped (${list(misshaped.map((m) => `${m.key} is (${m.got.join(", ")}), not (${m.expected.join(", ")})`))})`,
  ].filter((part) => part !== false);
  return parts.length === 0 ? undefined : parts.join("; ");
}
