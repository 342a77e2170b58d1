// Whose checkpoint is it, and what are its tensors called here? Names here are the original repositories'; a table turns transformers' into them.
import type { Shapes } from "./compare.ts";
import { type Family, kindOf, type ModelKind } from "./kinds.ts";
import { below, bothWays, type Rule } from "./renaming.ts";
import { CheckpointError, type HostTensor } from "./tensors.ts";
import { commonPrefix, isPixelStatistic } from "./wrappers.ts";

/** The linear layers of a head: transformers tells the first and the last by name, and counts those between. */
function hubMlp(depth: number): Rule[] {
  const between = Array.from({ length: depth - 2 }, (_, i): Rule => [`layers.${i}.*`, `layers.${i + 1}.*`]);
  return [["proj_in.*", "layers.0.*"], ...between, ["proj_out.*", `layers.${depth - 1}.*`]];
}

/** Of transformers' head for the predicted IoU, whose depth its configuration gives: the first and the last layer and those that are counted. */
function hubIouDepth(keys: readonly string[]): number {
  const counted = keys.map((key) => Number(/\biou_prediction_head\.layers\.(\d+)\./.exec(key)?.[1] ?? -1));
  // A number that is larger than the file can have layers is no layer's.
  return 2 + counted.reduce((most, i) => (i < keys.length ? Math.max(most, i + 1) : most), 0);
}

/** What transformers' SamModel builds, whatever its configuration says. */
const HUB_MASK_DEPTH = 3;

/** transformers' SamModel -> segment-anything. What is called the same in both stands in no rule. */
const hubSam = (iouDepth: number): readonly Rule[] => [
  ["shared_image_embedding.positional_embedding", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"],
  ...below("vision_encoder.", "image_encoder.", [
    ["pos_embed", "pos_embed"],
    ["patch_embed.projection.*", "patch_embed.proj.*"],
    ["layers.#.layer_norm#.*", "blocks.#.norm#.*"],
    ["layers.#.attn.*", "blocks.#.attn.*"],
    ["layers.#.mlp.*", "blocks.#.mlp.*"],
    ["neck.conv1.*", "neck.0.*"],
    ["neck.layer_norm1.*", "neck.1.*"],
    ["neck.conv2.*", "neck.2.*"],
    ["neck.layer_norm2.*", "neck.3.*"],
  ]),
  ...below("prompt_encoder.", "prompt_encoder.", [
    ["mask_embed.conv1.*", "mask_downscaling.0.*"],
    ["mask_embed.layer_norm1.*", "mask_downscaling.1.*"],
    ["mask_embed.conv2.*", "mask_downscaling.3.*"],
    ["mask_embed.layer_norm2.*", "mask_downscaling.4.*"],
    ["mask_embed.conv3.*", "mask_downscaling.6.*"],
    ["point_embed.#.*", "point_embeddings.#.*"],
  ]),
  ...below("mask_decoder.", "mask_decoder.", [
    ["transformer.layers.#.layer_norm#.*", "transformer.layers.#.norm#.*"],
    ["transformer.layer_norm_final_attn.*", "transformer.norm_final_attn.*"],
    ["upscale_conv1.*", "output_upscaling.0.*"],
    ["upscale_layer_norm.*", "output_upscaling.1.*"],
    ["upscale_conv2.*", "output_upscaling.3.*"],
    ...below("output_hypernetworks_mlps.#.", "output_hypernetworks_mlps.#.", hubMlp(HUB_MASK_DEPTH)),
    ...below("iou_prediction_head.", "iou_prediction_head.", hubMlp(iouDepth)),
  ]),
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
  /** The file's key of a tensor; of one that it lacks the key that it would have there. */
  keyOf(name: string): string;
}

/** Detects the model, renames its tensors to the original repository's keys and drops what is known to be unused. */
export function nameTensors(found: ReadonlyMap<string, HostTensor>, file: string): NamedTensors {
  const keys = [...found.keys()];
  const prefix = commonPrefix(keys);
  const encoder = encoderOf(keys.map((key) => key.slice(prefix.length)));
  const fromHub = encoder === "vision_encoder." || keys.some((key) => key.startsWith(`${prefix}vision_encoder.`));
  const hub = fromHub ? bothWays(hubSam(hubIouDepth(keys))) : undefined;
  const all = new Map<string, HostTensor>();
  const before = new Map<string, string>();
  const unused: string[] = [];
  for (const [key, tensor] of found) {
    const bare = isPixelStatistic(key) ? key : encoder + key.slice(prefix.length);
    if (TWICE.test(bare)) {
      unused.push(key);
      continue;
    }
    const name = hub ? hub.ours(bare) : bare;
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
  const theirs = (name: string) => prefix + (hub ? hub.theirs(name) : name).slice(encoder.length);
  const keyOf = (name: string) => before.get(name) ?? theirs(name);
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
