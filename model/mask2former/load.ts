// A trained Mask2Former (detectron2's or transformers' checkpoint, ResNet or Swin backbone) -> a model of the sizes that its tensors tell.
import { type Device, nn } from "../../engine/index.ts";
import type { BackboneConfig, WishConfig } from "../config.ts";
import type { ResNetDepth } from "../resnet.ts";
import { loadNamed, type Named, type Source, shapesOf } from "../weights/renaming.ts";
import { CheckpointError } from "../weights/tensors.ts";
import { Wish } from "../wish.ts";
import { mask2FormerKeys } from "./names.ts";

const PIXEL = "sem_seg_head.pixel_decoder";
const QUERY = "sem_seg_head.predictor";

/**
 * The model of a checkpoint, with its weights, without prompt head and CAM. `heads` is what shapes do not tell: 8 in every published
 * model. Throws a line with the file's own names where a tensor is missing, left over or of another shape, and where the backbone is
 * neither a ResNet nor a Swin.
 */
export function loadMask2Former(
  gpu: Device,
  state: ReadonlyMap<string, Source>,
  { heads = 8 }: { heads?: number } = {},
): Wish {
  const named = mask2FormerKeys(state.keys());
  const sizes = sizesOf(named, state, heads);
  const model = nn.init.undrawn(() => new Wish(gpu, sizes));
  loadNamed(model, named, state);
  return model.eval();
}

/** The sizes behind a state. */
export function mask2FormerConfig(state: ReadonlyMap<string, Source>, heads = 8): WishConfig {
  return sizesOf(mask2FormerKeys(state.keys()), state, heads);
}

/** What the tensors' shapes tell, under our names; errors speak of the file's. */
interface Shown {
  has(name: string): boolean;
  shape(name: string): readonly number[];
  /** One more than the largest number that stands behind the prefix, so that one tensor less does not change what is expected. */
  count(prefix: string): number;
}

function shown(named: Named, state: ReadonlyMap<string, Source>): Shown {
  const shapes = shapesOf(named, state);
  return {
    has: (name) => shapes.has(name),
    shape(name) {
      const found = shapes.get(name);
      if (!found)
        throw new CheckpointError(
          `the checkpoint has no ${named.theirs(name)[0]}; is it a Mask2Former with an MSDeformAttn pixel decoder?`,
        );
      return found.shape;
    },
    count(prefix) {
      const numbers = [...shapes.keys()].flatMap((name) =>
        name.startsWith(prefix) ? [Number.parseInt(name.slice(prefix.length), 10)] : [],
      );
      return numbers.length === 0 ? 0 : Math.max(...numbers) + 1;
    },
  };
}

function sizesOf(named: Named, state: ReadonlyMap<string, Source>, heads: number): WishConfig {
  const tensors = shown(named, state);
  const { shape, count } = tensors;
  const [queries, hiddenDim] = shape(`${QUERY}.query_feat.weight`) as [number, number];
  const levels = shape(`${QUERY}.level_embed.weight`)[0]!;
  const encoderLayers = `${PIXEL}.transformer.encoder.layers.`;
  const offsets = shape(`${encoderLayers}0.self_attn.sampling_offsets.weight`)[0]!; // heads, levels, points, (x, y)
  const points = offsets / (heads * levels * 2);
  if (!Number.isInteger(points))
    throw new CheckpointError(
      `${offsets} sampling offsets do not divide into ${heads} heads and ${levels} levels; pass the model's heads`,
    );
  return {
    classes: shape(`${QUERY}.class_embed.weight`)[0]! - 1,
    backbone: backboneOf(tensors),
    hiddenDim,
    levels,
    groups: 32,
    encoder: { layers: count(encoderLayers), heads, points, ffn: shape(`${encoderLayers}0.linear1.weight`)[0]! },
    decoder: {
      layers: count(`${QUERY}.transformer_ffn_layers.`),
      heads,
      ffn: shape(`${QUERY}.transformer_ffn_layers.0.linear1.weight`)[0]!,
    },
    queries,
    prompt: { mode: "none", dim: 256 },
    cam: { feature: "none" },
  };
}

function backboneOf(tensors: Shown): BackboneConfig {
  if (tensors.has("backbone.stem.conv1.weight")) return resNetOf(tensors);
  if (tensors.has("backbone.patch_embed.proj.weight")) return swinOf(tensors);
  throw new CheckpointError(
    "the checkpoint's backbone is neither a ResNet nor a Swin: it has no stem.conv1.weight and no patch_embed.proj.weight",
  );
}

const DEPTHS: Record<string, ResNetDepth> = {
  "basic 2,2,2,2": 18,
  "basic 3,4,6,3": 34,
  "bottleneck 3,4,6,3": 50,
  "bottleneck 3,4,23,3": 101,
};

function resNetOf({ has, shape, count }: Shown): BackboneConfig {
  const blocks = [2, 3, 4, 5].map((stage) => count(`backbone.res${stage}.`));
  const bottleneck = has("backbone.res2.0.conv3.weight") || has("backbone.res5.0.conv3.weight");
  const kind = bottleneck ? "bottleneck" : "basic";
  const depth = DEPTHS[`${kind} ${blocks}`];
  if (!depth)
    throw new CheckpointError(
      `the backbone's ${kind} blocks ${blocks.join(", ")} are no ResNet-18, -34, -50 or -101; other depths are not supported`,
    );
  return { kind: "resnet", depth, norm: "frozenBN", outputStride: 32, width: shape("backbone.stem.conv1.weight")[0]! };
}

function swinOf({ shape, count }: Shown): BackboneConfig {
  const stages = count("backbone.layers.");
  if (stages !== 4) throw new CheckpointError(`the backbone has ${stages} stages; a Swin under Mask2Former has 4`);
  const table = (stage: number): readonly number[] =>
    shape(`backbone.layers.${stage}.blocks.0.attn.relative_position_bias_table`);
  const each = <T>(value: (stage: number) => T): [T, T, T, T] => [value(0), value(1), value(2), value(3)];
  return {
    kind: "swin",
    embedDim: shape("backbone.patch_embed.proj.weight")[0]!,
    depths: each((stage) => count(`backbone.layers.${stage}.blocks.`)),
    heads: each((stage) => table(stage)[1]!),
    window: (Math.sqrt(table(0)[0]!) + 1) / 2, // (2w - 1)^2 rows
    dropPath: 0.3,
  };
}
