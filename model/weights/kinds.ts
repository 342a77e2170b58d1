// Which model a checkpoint holds, told by its keys. To add one: a row in MODELS.
import type { Shapes } from "./compare.ts";
import {
  type MobileNetNaming,
  mobileNetShapes,
  NUMBERED_MOBILENET,
  TIMM_MOBILENET,
  TORCHVISION_MOBILENET,
  TRANSFORMERS_MOBILENET,
} from "./mobilenet-shapes.ts";
import { resNetTensors } from "./resnet-shapes.ts";
import { swinShapes } from "./swin-shapes.ts";
import type { HostTensor } from "./tensors.ts";
import { bareKey, isUnused } from "./wrappers.ts";

type Tensors = ReadonlyMap<string, HostTensor>;

/** What is done with it: SAM is loaded by model/sam, Mask2Former by model/mask2former, backbones by model/parameters.ts. */
export type Family = "sam" | "mask2former" | "backbone" | "unknown";

export interface ModelKind {
  readonly family: Family;
  /** SAM ViT-B, MobileSAM, Mask2Former, ResNet-50, … */
  readonly name: string;
  /** A key that inference does not use, and that may be absent. */
  readonly isUnused: (key: string) => boolean;
  /** The tensors that such a model has, under the names here; undefined where those who load it compare. */
  readonly expected: Shapes | undefined;
}

interface Model {
  readonly family: Family;
  /** A backbone's, as it has them behind all prefixes. */
  readonly keys: RegExp;
  /** Most of the keys must be such; otherwise one is enough, so that a checkpoint that lacks some is still known, and refused as such. */
  readonly most?: boolean;
  readonly name: (tensors: Tensors) => string;
  /** Not a backbone's, which wrappers.ts tells. */
  readonly unused?: RegExp;
  readonly expected?: (tensors: Tensors) => Shapes;
}

function resNet(keys: RegExp): Model {
  return {
    family: "backbone",
    keys,
    most: true,
    name: (tensors) => `ResNet-${resNetTensors(tensors).layers}`,
    expected: (tensors) => resNetTensors(tensors).shapes,
  };
}

function mobileNet(keys: RegExp, naming: MobileNetNaming): Model {
  return {
    family: "backbone",
    keys,
    most: true,
    name: () => "MobileNetV2",
    expected: (tensors) => mobileNetShapes(tensors, naming),
  };
}

/** The first that fits. Keys are the original repositories', of Mask2Former also transformers'. */
const MODELS: readonly Model[] = [
  {
    family: "sam",
    keys: /^(image_encoder|prompt_encoder|mask_decoder)\./,
    name: samName,
    // The classifier and the buffers are MobileSAM's.
    unused:
      /^image_encoder\.(norm_head|head)\.(weight|bias)$|\.(num_batches_tracked|attention_bias_idxs)$|^pixel_(mean|std)$/,
  },
  {
    family: "mask2former",
    keys: /^sem_seg_head\.|^(model\.)?(pixel_level_module|transformer_module)\./,
    name: () => "Mask2Former",
    unused:
      /^criterion\.|\.(num_batches_tracked|relative_position_index)$|^pixel_(mean|std)$|^(model\.)?pixel_level_module\.encoder\.(swin\.|model\.)?layernorm\./,
  },
  resNet(/^(conv1|bn1|fc|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))\.\w+$/),
  resNet(/^(stem\.conv1|res[2-5]\.\d+\.(conv[123]|shortcut))\./),
  resNet(
    /^(embedder\.embedder|encoder\.stages\.\d\.layers\.\d+\.(layer\.\d|shortcut))\.(convolution|normalization)\.\w+$/,
  ),
  mobileNet(/^features\.((0|18)\.[01]|\d+\.conv\.\d(\.\d)?)\.\w+$/, TORCHVISION_MOBILENET),
  mobileNet(/^(conv_stem|conv_head|blocks\.\d\.\d\.(conv_(dw|pw|pwl)|bn[123]))\.\w+$/, TIMM_MOBILENET),
  mobileNet(
    /^(conv_stem\.(first_conv|conv_3x3|reduce_1x1)|layer\.\d+\.(expand_1x1|conv_3x3|reduce_1x1)|conv_1x1)\.(convolution|normalization)\.\w+$/,
    TRANSFORMERS_MOBILENET,
  ),
  {
    family: "backbone",
    // Microsoft's and timm's, torchvision's, transformers'; SwinV2 has no such tables.
    keys: /\.relative_position_bias_table$/,
    name: swinName,
    expected: swinShapes,
  },
  // Numbered layers in TensorFlow's order, as the engine's own has.
  mobileNet(/^\d\d\.(dw)?conv\.\w+$/, NUMBERED_MOBILENET),
];

export function kindOf(tensors: Tensors): ModelKind {
  const keys = [...tensors.keys()];
  const bare = keys.map(bareKey);
  const model = MODELS.find(({ family, keys: pattern, most }) => {
    const fitting = (family === "backbone" ? bare : keys).filter((key) => pattern.test(key)).length;
    return fitting > (most ? keys.length / 2 : 0);
  });
  if (!model) return { family: "unknown", name: "unknown", isUnused: () => false, expected: undefined };
  const { family, name, unused, expected } = model;
  return {
    family,
    name: name(tensors),
    isUnused: unused ? (key) => unused.test(key) : isUnused,
    expected: expected?.(tensors),
  };
}

/** [width, blocks] of the encoder */
const VITS: readonly (readonly [number, number, string])[] = [
  [768, 12, "SAM ViT-B"],
  [1024, 24, "SAM ViT-L"],
  [1280, 32, "SAM ViT-H"],
];

function samName(tensors: Tensors): string {
  if (tensors.has("image_encoder.patch_embed.seq.0.c.weight"))
    return tensors.get("image_encoder.layers.3.blocks.0.attn.qkv.weight")?.shape[1] === 320
      ? "MobileSAM"
      : "SAM (TinyViT)";
  const width = tensors.get("image_encoder.pos_embed")?.shape[3];
  const has = (block: number) => tensors.has(`image_encoder.blocks.${block}.attn.qkv.weight`);
  const named = VITS.find(([dim, depth]) => dim === width && has(depth - 1) && !has(depth));
  return named ? named[2] : "SAM (ViT)";
}

/** [width, blocks] */
const SWINS: readonly (readonly [number, number, string])[] = [
  [96, 12, "Swin-T"],
  [96, 24, "Swin-S"],
  [128, 24, "Swin-B"],
  [192, 24, "Swin-L"],
];

function swinName(tensors: Tensors): string {
  const keys = [...tensors.keys()];
  const blocks = keys.filter((key) => key.endsWith(".relative_position_bias_table")).length;
  const embedding = keys.find((key) =>
    /(patch_embed\.proj|patch_embeddings\.projection|\bfeatures\.0\.0)\.weight$/.test(key),
  );
  const width = embedding === undefined ? undefined : tensors.get(embedding)?.shape[0];
  return SWINS.find(([dim, count]) => dim === width && count === blocks)?.[2] ?? "Swin";
}
