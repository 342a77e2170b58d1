// What libraries call the tensors of ResNet and Swin -> detectron2's names, without `backbone.`.
import { below, type Rule } from "./renaming.ts";
import { backbonePrefixes } from "./wrappers.ts";

/** Stages are res2 … res5 here, and counted from 0 or 1 elsewhere. */
const STAGES = [0, 1, 2, 3] as const;

/** torchvision and timm. */
export const TORCHVISION_RESNET: readonly Rule[] = [
  ["conv1.weight", "stem.conv1.weight"],
  ["bn1.*", "stem.conv1.norm.*"],
  ...STAGES.flatMap((s) =>
    below(`layer${s + 1}.#.`, `res${s + 2}.#.`, [
      ...[1, 2, 3].flatMap((i): Rule[] => [
        [`conv${i}.weight`, `conv${i}.weight`],
        [`bn${i}.*`, `conv${i}.norm.*`],
      ]),
      ["downsample.0.weight", "shortcut.weight"],
      ["downsample.1.*", "shortcut.norm.*"],
    ]),
  ),
];

/** transformers' ResNetModel. */
export const TRANSFORMERS_RESNET: readonly Rule[] = [
  ["embedder.embedder.convolution.weight", "stem.conv1.weight"],
  ["embedder.embedder.normalization.*", "stem.conv1.norm.*"],
  ...STAGES.flatMap((s) =>
    below(`encoder.stages.${s}.layers.#.`, `res${s + 2}.#.`, [
      ...[0, 1, 2].flatMap((i): Rule[] => [
        [`layer.${i}.convolution.weight`, `conv${i + 1}.weight`],
        [`layer.${i}.normalization.*`, `conv${i + 1}.norm.*`],
      ]),
      ["shortcut.convolution.weight", "shortcut.weight"],
      ["shortcut.normalization.*", "shortcut.norm.*"],
    ]),
  ),
];

/** timm from 0.9 on: patches merge at the start of the next stage. With features_only the stages are layers_0 …. */
const TIMM_SWIN: readonly (readonly Rule[])[] = [".", "_"].map((dot) => [
  ["patch_embed.*", "patch_embed.*"],
  ...STAGES.flatMap((s): Rule[] => [
    [`layers${dot}${s + 1}.downsample.*`, `layers.${s}.downsample.*`],
    [`layers${dot}${s}.blocks.*`, `layers.${s}.blocks.*`],
  ]),
]);

/** torchvision: features.0 embeds, 1, 3, 5, 7 are the stages, 2, 4, 6 merge. */
const TORCHVISION_SWIN: readonly Rule[] = [
  ["features.0.0.*", "patch_embed.proj.*"],
  ["features.0.2.*", "patch_embed.norm.*"],
  ...STAGES.flatMap((s): Rule[] => [
    ...below(`features.${2 * s + 1}.#.`, `layers.${s}.blocks.#.`, [
      ["mlp.0.*", "mlp.fc1.*"],
      ["mlp.3.*", "mlp.fc2.*"],
      ["norm1.*", "norm1.*"],
      ["norm2.*", "norm2.*"],
      ["attn.*", "attn.*"],
    ]),
    [`features.${2 * s + 2}.*`, `layers.${s}.downsample.*`],
  ]),
];

/** Each way of transformers' to name a block: as files have it, and as models have it in memory since 5.23. */
const TRANSFORMERS_BLOCKS: readonly Rule[] = [
  ["layernorm_before.*", "norm1.*"],
  ["layernorm_after.*", "norm2.*"],
  [["attention.self.query.*", "attention.self.key.*", "attention.self.value.*"], "attn.qkv.*"],
  ["attention.self.relative_position_bias_table", "attn.relative_position_bias_table"],
  ["attention.output.dense.*", "attn.proj.*"],
  ["intermediate.dense.*", "mlp.fc1.*"],
  ["output.dense.*", "mlp.fc2.*"],
];
const TRANSFORMERS_BLOCKS_IN_MEMORY: readonly Rule[] = [
  ["layernorm_before.*", "norm1.*"],
  ["layernorm_after.*", "norm2.*"],
  [["attention.q_proj.*", "attention.k_proj.*", "attention.v_proj.*"], "attn.qkv.*"],
  ["attention.relative_position_bias.relative_position_bias_table", "attn.relative_position_bias_table"],
  ["attention.o_proj.*", "attn.proj.*"],
  ["mlp.*", "mlp.*"],
];

const transformersSwin = (blocks: readonly Rule[]): Rule[] => [
  ["embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"],
  ["embeddings.norm.*", "patch_embed.norm.*"],
  ...below("encoder.layers.#.blocks.#.", "layers.#.blocks.#.", blocks),
  ["encoder.layers.#.downsample.*", "layers.#.downsample.*"],
];

/** transformers' SwinModel. */
export const TRANSFORMERS_SWIN = transformersSwin(TRANSFORMERS_BLOCKS);
export const TRANSFORMERS_SWIN_IN_MEMORY = transformersSwin(TRANSFORMERS_BLOCKS_IN_MEMORY);
/** Of transformers' SwinBackbone: a norm for each output. */
export const TRANSFORMERS_SWIN_NORMS: readonly Rule[] = STAGES.map((s) => [
  `hidden_states_norms.stage${s + 1}.*`,
  `norm${s}.*`,
]);

/** Libraries' names, beside detectron2's own. */
export const RESNET_NAMES: readonly (readonly Rule[])[] = [TORCHVISION_RESNET, TRANSFORMERS_RESNET];
export const SWIN_NAMES: readonly (readonly Rule[])[] = [
  ...TIMM_SWIN,
  TORCHVISION_SWIN,
  ...[TRANSFORMERS_SWIN, TRANSFORMERS_SWIN_IN_MEMORY].map((rules) => [...rules, ...TRANSFORMERS_SWIN_NORMS]),
];

/** For `nameKeys`: detectron2's names and these libraries', behind every prefix that keys have. */
export function backboneTables(
  keys: readonly string[],
  libraries: readonly (readonly Rule[])[],
): readonly (readonly Rule[])[] {
  return backbonePrefixes(keys).flatMap((prefix) => [
    [[`${prefix}*`, "*"]] satisfies Rule[],
    ...libraries.map((rules) => below(prefix, "", rules)),
  ]);
}
