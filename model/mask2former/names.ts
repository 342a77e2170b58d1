// Names of parameters in other people's Mask2Former checkpoints -> detectron2's, which this model uses.
import { F, type Tensor } from "../../engine/index.ts";
import {
  TORCHVISION_RESNET,
  TRANSFORMERS_RESNET,
  TRANSFORMERS_SWIN,
  TRANSFORMERS_SWIN_IN_MEMORY,
  TRANSFORMERS_SWIN_NORMS,
} from "../weights/backbone-names.ts";
import { below, type Named, nameKeys, type Rule } from "../weights/renaming.ts";
import { CheckpointError } from "../weights/tensors.ts";

const PIXEL = "sem_seg_head.pixel_decoder";
const QUERY = "sem_seg_head.predictor";

/** Checkpoints of Mask2Former's first weeks: no `pixel_decoder.` level, and another word for the queries. */
const FIRST_VERSION: readonly Rule[] = [
  ...["input_proj.*", "transformer.*", "adapter_#.*", "layer_#.*", "mask_features.*"].map(
    (name): Rule => [`sem_seg_head.${name}`, `${PIXEL}.${name}`],
  ),
  ["sem_seg_head.predictor.static_query.*", `${QUERY}.query_feat.*`],
];

/** transformers' decoders, below `model.`. */
const TRANSFORMERS_DECODERS: readonly Rule[] = [
  ...below("pixel_level_module.decoder.", `${PIXEL}.`, [
    ["input_projections.#.*", "input_proj.#.*"],
    ["level_embed", "transformer.level_embed"],
    ["adapter_#.0.weight", "adapter_#.weight"],
    ["adapter_#.1.*", "adapter_#.norm.*"],
    ["layer_#.0.weight", "layer_#.weight"],
    ["layer_#.1.*", "layer_#.norm.*"],
    ["mask_projection.*", "mask_features.*"],
    ...below("encoder.layers.#.", "transformer.encoder.layers.#.", [
      ["self_attn_layer_norm.*", "norm1.*"],
      ["final_layer_norm.*", "norm2.*"],
      ["fc1.*", "linear1.*"],
      ["fc2.*", "linear2.*"],
      ["self_attn.*", "self_attn.*"],
    ]),
  ]),
  ...below("transformer_module.", `${QUERY}.`, [
    ["queries_embedder.weight", "query_embed.weight"],
    ["queries_features.weight", "query_feat.weight"],
    ["level_embed.weight", "level_embed.weight"],
    ["decoder.layernorm.*", "decoder_norm.*"],
    ["decoder.mask_predictor.mask_embedder.#.0.*", "mask_embed.layers.#.*"],
    ...below("decoder.layers.#.", "transformer_", [
      ["self_attn_layer_norm.*", "self_attention_layers.#.norm.*"],
      ["self_attn.out_proj.*", "self_attention_layers.#.self_attn.out_proj.*"],
      [
        ["self_attn.q_proj.*", "self_attn.k_proj.*", "self_attn.v_proj.*"],
        "self_attention_layers.#.self_attn.in_proj_*",
      ],
      ["cross_attn_layer_norm.*", "cross_attention_layers.#.norm.*"],
      ["cross_attn.*", "cross_attention_layers.#.multihead_attn.*"],
      ["fc1.*", "ffn_layers.#.linear1.*"],
      ["fc2.*", "ffn_layers.#.linear2.*"],
      ["final_layer_norm.*", "ffn_layers.#.norm.*"],
    ]),
  ]),
];

/** transformers' backbones below `model.pixel_level_module.encoder.`; what a Swin is wrapped in changed from version to version. */
const TRANSFORMERS_BACKBONES: readonly (readonly Rule[])[] = [
  TRANSFORMERS_RESNET,
  below("_backbone.", "", TORCHVISION_RESNET),
  ...["", "model.", "swin."].map((wrapper) => below(wrapper, "", TRANSFORMERS_SWIN)),
  below("swin.", "", TRANSFORMERS_SWIN_IN_MEMORY),
];

/** Every table: detectron2's own names, older ones, and transformers' Mask2FormerForUniversalSegmentation and Mask2FormerModel. */
const TABLES: readonly (readonly Rule[])[] = [
  [],
  FIRST_VERSION,
  ...["model.", ""].flatMap((prefix) =>
    TRANSFORMERS_BACKBONES.map((backbone) => [
      ...below(`${prefix}pixel_level_module.encoder.`, "backbone.", [...backbone, ...TRANSFORMERS_SWIN_NORMS]),
      ...below(prefix, "", TRANSFORMERS_DECODERS),
      ["class_predictor.*", `${QUERY}.class_embed.*`] as const,
    ]),
  ),
];

/** What belongs to training, is made anew, or is never used; behind the wrapper. */
const UNUSED =
  /^criterion\.|\.num_batches_tracked$|^pixel_(mean|std)$|\.relative_position_index$|^(model\.)?pixel_level_module\.encoder\.(swin\.|model\.)?layernorm\./;

/** Keys that no other model has. */
const OWN = /^sem_seg_head\.(predictor|pixel_decoder)\.|^(model\.)?(transformer_module|pixel_level_module)\./;

/** What DataParallel, torch.compile and the like put in front of every key. */
function wrapperOf(keys: readonly string[]): string {
  const wrappers = ["module.", "_orig_mod.", "model.module.", "model."];
  return wrappers.find((wrapper) => keys.length > 0 && keys.every((key) => key.startsWith(wrapper))) ?? "";
}

export function isMask2Former(keys: Iterable<string>): boolean {
  const all = [...keys];
  const wrapper = wrapperOf(all);
  return all.some((key) => OWN.test(key.slice(wrapper.length)));
}

/** Our names of a checkpoint's keys; what no model needs is left out. */
export function mask2FormerKeys(keys: Iterable<string>): Named {
  const all = [...keys];
  const wrapper = wrapperOf(all);
  const used = all.filter((key) => !UNUSED.test(key.slice(wrapper.length)));
  const tables = wrapper === "" ? TABLES : TABLES.map((rules) => below(wrapper, "", [...rules, ["*", "*"]]));
  return nameKeys(used, tables, (name) => /^(backbone|sem_seg_head\.(pixel_decoder|predictor))\./.test(name));
}

/** A Mask2Former state under detectron2's names, parts of one tensor joined. */
export function mask2FormerNames(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  const { parts, theirs } = mask2FormerKeys(state.keys());
  const renamed = new Map<string, Tensor>();
  for (const [name, keys] of parts) {
    const missing = keys.indexOf(undefined);
    if (missing >= 0)
      throw new CheckpointError(
        `the checkpoint has ${keys.find((key) => key)} but not ${theirs(name)[missing]}; it is incomplete`,
      );
    const tensors = keys.map((key) => state.get(key!)!);
    renamed.set(name, tensors.length === 1 ? tensors[0]! : F.cat(tensors, 0));
  }
  return renamed;
}
