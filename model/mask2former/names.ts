// Names of parameters in other people's checkpoints -> detectron2's, which this model uses. Exact rules, no guessing by substrings;
// a key that no rule knows stays as it is, so that loading reports it.
import { F, type Tensor } from "../../engine/index.ts";

type Rule = readonly [from: RegExp, to: string | ((...groups: string[]) => string)];

/** torchvision and timm: conv1, bn1, layer1 … layer4, downsample.{0,1}. */
const TORCHVISION: readonly Rule[] = [
  [/^conv1\.weight$/, "stem.conv1.weight"],
  [/^bn1\.(\w+)$/, "stem.conv1.norm.$1"],
  [/^layer1\.(\d+)\.(.+)$/, "res2.$1.$2"],
  [/^layer2\.(\d+)\.(.+)$/, "res3.$1.$2"],
  [/^layer3\.(\d+)\.(.+)$/, "res4.$1.$2"],
  [/^layer4\.(\d+)\.(.+)$/, "res5.$1.$2"],
  [/^(res\d\.\d+)\.bn(\d)\.(\w+)$/, "$1.conv$2.norm.$3"],
  [/^(res\d\.\d+)\.downsample\.0\.weight$/, "$1.shortcut.weight"],
  [/^(res\d\.\d+)\.downsample\.1\.(\w+)$/, "$1.shortcut.norm.$2"],
];

const PIXEL = "sem_seg_head.pixel_decoder";
const QUERY = "sem_seg_head.predictor";

/** Checkpoints of Mask2Former's first weeks: no `pixel_decoder.` level, and another word for the queries. */
const FIRST_VERSION: readonly Rule[] = [
  [/^sem_seg_head\.(input_proj|transformer|adapter_\d|layer_\d|mask_features)\b/, `${PIXEL}.$1`],
  [/^sem_seg_head\.predictor\.static_query\./, `${QUERY}.query_feat.`],
];

/** A convolution's parts are apart in transformers' ResNet; in detectron2 the norm hangs on the convolution. */
const part = (kind: string, leaf: string): string => (kind === "convolution" ? leaf : `norm.${leaf}`);

/** transformers' Mask2FormerForUniversalSegmentation, after the prefix `model.` is gone. Attention's q, k, v are merged apart. */
const HUGGING_FACE: readonly Rule[] = [
  [
    /^pixel_level_module\.encoder\.embedder\.embedder\.(\w+)\.(\w+)$/,
    (_, kind, leaf) => `backbone.stem.conv1.${part(kind!, leaf!)}`,
  ],
  [
    /^pixel_level_module\.encoder\.encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.(\w+)\.(\w+)$/,
    (_, stage, block, index, kind, leaf) =>
      `backbone.res${Number(stage) + 2}.${block}.conv${Number(index) + 1}.${part(kind!, leaf!)}`,
  ],
  [
    /^pixel_level_module\.encoder\.encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.(\w+)\.(\w+)$/,
    (_, stage, block, kind, leaf) => `backbone.res${Number(stage) + 2}.${block}.shortcut.${part(kind!, leaf!)}`,
  ],
  [/^pixel_level_module\.decoder\.input_projections\.(\d+)\.(.+)$/, `${PIXEL}.input_proj.$1.$2`],
  [/^pixel_level_module\.decoder\.level_embed$/, `${PIXEL}.transformer.level_embed`],
  [/^pixel_level_module\.decoder\.(adapter|layer)_(\d)\.0\.weight$/, `${PIXEL}.$1_$2.weight`],
  [/^pixel_level_module\.decoder\.(adapter|layer)_(\d)\.1\.(.+)$/, `${PIXEL}.$1_$2.norm.$3`],
  [/^pixel_level_module\.decoder\.mask_projection\.(.+)$/, `${PIXEL}.mask_features.$1`],
  [
    /^pixel_level_module\.decoder\.encoder\.layers\.(\d+)\.self_attn_layer_norm\.(.+)$/,
    `${PIXEL}.transformer.encoder.layers.$1.norm1.$2`,
  ],
  [
    /^pixel_level_module\.decoder\.encoder\.layers\.(\d+)\.final_layer_norm\.(.+)$/,
    `${PIXEL}.transformer.encoder.layers.$1.norm2.$2`,
  ],
  [
    /^pixel_level_module\.decoder\.encoder\.layers\.(\d+)\.fc([12])\.(.+)$/,
    `${PIXEL}.transformer.encoder.layers.$1.linear$2.$3`,
  ],
  [
    /^pixel_level_module\.decoder\.encoder\.layers\.(\d+)\.self_attn\.(.+)$/,
    `${PIXEL}.transformer.encoder.layers.$1.self_attn.$2`,
  ],
  [/^transformer_module\.queries_embedder\.weight$/, `${QUERY}.query_embed.weight`],
  [/^transformer_module\.queries_features\.weight$/, `${QUERY}.query_feat.weight`],
  [/^transformer_module\.level_embed\.weight$/, `${QUERY}.level_embed.weight`],
  [/^transformer_module\.decoder\.layernorm\.(.+)$/, `${QUERY}.decoder_norm.$1`],
  [/^transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.(.+)$/, `${QUERY}.mask_embed.layers.$1.$2`],
  [
    /^transformer_module\.decoder\.layers\.(\d+)\.self_attn_layer_norm\.(.+)$/,
    `${QUERY}.transformer_self_attention_layers.$1.norm.$2`,
  ],
  [
    /^transformer_module\.decoder\.layers\.(\d+)\.self_attn\.(.+)$/,
    `${QUERY}.transformer_self_attention_layers.$1.self_attn.$2`,
  ],
  [
    /^transformer_module\.decoder\.layers\.(\d+)\.cross_attn_layer_norm\.(.+)$/,
    `${QUERY}.transformer_cross_attention_layers.$1.norm.$2`,
  ],
  [
    /^transformer_module\.decoder\.layers\.(\d+)\.cross_attn\.(.+)$/,
    `${QUERY}.transformer_cross_attention_layers.$1.multihead_attn.$2`,
  ],
  [/^transformer_module\.decoder\.layers\.(\d+)\.fc([12])\.(.+)$/, `${QUERY}.transformer_ffn_layers.$1.linear$2.$3`],
  [
    /^transformer_module\.decoder\.layers\.(\d+)\.final_layer_norm\.(.+)$/,
    `${QUERY}.transformer_ffn_layers.$1.norm.$2`,
  ],
  [/^class_predictor\.(.+)$/, `${QUERY}.class_embed.$1`],
  [/^criterion\.empty_weight$/, "criterion.empty_weight"],
];

const RULES = [...HUGGING_FACE, ...FIRST_VERSION];

/** Applies every rule in turn, each at most once, to one name. */
function rename(name: string, rules: readonly Rule[]): string {
  return rules.reduce((n, [from, to]) => n.replace(from, to as string), name);
}

/** A torchvision or timm ResNet's state -> detectron2's names. The classifier and the batch counters are left out. */
export function resNetNames(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  const renamed = new Map<string, Tensor>();
  for (const [name, tensor] of state) {
    if (/^fc\.|\.num_batches_tracked$/.test(name)) continue;
    renamed.set(rename(name, TORCHVISION), tensor);
  }
  return renamed;
}

/** A Mask2Former state, of transformers or an older one of detectron2 -> detectron2's names; the three projections of self-attention become one. */
export function mask2FormerNames(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  const renamed = new Map<string, Tensor>();
  for (const [key, tensor] of state) {
    if (!key.endsWith(".num_batches_tracked")) renamed.set(rename(key.replace(/^model\./, ""), RULES), tensor);
  }
  for (const name of [...renamed.keys()]) {
    const parts = /^(.*transformer_self_attention_layers\.\d+\.self_attn)\.q_proj\.(weight|bias)$/.exec(name);
    if (!parts) continue;
    const [, attention, kind] = parts;
    const projections = ["q", "k", "v"].map((p) => `${attention}.${p}_proj.${kind}`);
    const missing = projections.find((p) => !renamed.has(p));
    if (missing) throw new Error(`mask2FormerNames: the checkpoint has ${name} but not ${missing}; it is incomplete`);
    renamed.set(
      `${attention}.in_proj_${kind}`,
      F.cat(
        projections.map((p) => renamed.get(p)!),
        0,
      ),
    );
    for (const p of projections) renamed.delete(p);
  }
  return renamed;
}
