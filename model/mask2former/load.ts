// A trained Mask2Former (detectron2's or transformers' checkpoint, ResNet or Swin backbone) -> a model of the sizes that its tensors tell.
import { type Device, nn } from "../../engine/index.ts";
import type { BackboneConfig, WishConfig } from "../config.ts";
import type { ResNetDepth } from "../resnet.ts";
import { listKeys } from "../weights/compare.ts";
import { loadNamed, type Named, type Source, shapesOf } from "../weights/renaming.ts";
import { CheckpointError } from "../weights/tensors.ts";
import { Wish } from "../wish.ts";
import { mask2FormerKeys } from "./names.ts";

const PIXEL = "sem_seg_head.pixel_decoder";
const QUERY = "sem_seg_head.predictor";

/** Points that a head looks at in each level: 4 in detectron2's and transformers' code, whatever else is set. */
const POINTS = 4;

/**
 * The model of a checkpoint, with its weights, without prompt head and CAM. `heads` is what shapes alone do not tell; by default it follows
 * from 4 points a head and level, as in every published model. Throws a line with the file's own names where a tensor is missing, left over or of another shape, and where the backbone is
 * neither a ResNet nor a Swin.
 */
export function loadMask2Former(
  gpu: Device,
  state: ReadonlyMap<string, Source>,
  { heads }: { heads?: number } = {},
): Wish {
  const named = mask2FormerKeys(state.keys());
  const sizes = sizesOf(named, state, heads);
  const model = nn.init.skip(() => new Wish(gpu, sizes));
  loadNamed(model, named, state);
  return model.eval();
}

/** The sizes behind a state. */
export function mask2FormerConfig(state: ReadonlyMap<string, Source>, heads?: number): WishConfig {
  return sizesOf(mask2FormerKeys(state.keys()), state, heads);
}

/** What the tensors' shapes tell, under our names; errors speak of the file's. */
interface Shown {
  has(name: string): boolean;
  shape(name: string): readonly number[];
  /** The file's keys of what belongs to none of the heads. */
  others(): string[];
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
    others: () =>
      [...named.parts].flatMap(([name, keys]) =>
        name.startsWith("sem_seg_head.") ? [] : keys.filter((key) => key !== undefined),
      ),
    count(prefix) {
      let most = -1;
      for (const name of shapes.keys()) {
        if (!name.startsWith(prefix)) continue;
        const number = Number.parseInt(name.slice(prefix.length), 10);
        // A model of that many blocks would fill the memory before its names are compared.
        if (!(number < shapes.size))
          throw new CheckpointError(`${named.theirs(name)[0]}: there are not as many blocks in ${shapes.size} tensors`);
        most = Math.max(most, number);
      }
      return most + 1;
    },
  };
}

function sizesOf(named: Named, state: ReadonlyMap<string, Source>, given: number | undefined): WishConfig {
  const tensors = shown(named, state);
  const { shape, count } = tensors;
  const [queries, hiddenDim] = shape(`${QUERY}.query_feat.weight`) as [number, number];
  const levels = shape(`${QUERY}.level_embed.weight`)[0]!;
  const encoderLayers = `${PIXEL}.transformer.encoder.layers.`;
  const offsets = shape(`${encoderLayers}0.self_attn.sampling_offsets.weight`)[0]!; // heads, levels, points, (x, y)
  const heads = given ?? offsets / (POINTS * levels * 2);
  const points = offsets / (heads * levels * 2);
  if (!Number.isInteger(points) || !Number.isInteger(heads) || hiddenDim % heads !== 0)
    throw new CheckpointError(
      `${offsets} sampling offsets and ${hiddenDim} channels do not divide into ${heads} heads and ${levels} levels; pass the model's heads`,
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
  if (tensors.count("backbone.res2.") > 0) return resNetOf(tensors);
  if (tensors.count("backbone.layers.") > 0) return swinOf(tensors);
  throw new CheckpointError(
    `the checkpoint's backbone is neither a ResNet nor a Swin: its keys are ${listKeys(tensors.others())}`,
  );
}

const DEPTHS: Record<string, ResNetDepth> = {
  "basic 2,2,2,2 64,128,256,512": 18,
  "basic 3,4,6,3 64,128,256,512": 34,
  "bottleneck 3,4,6,3 256,512,1024,2048": 50,
  "bottleneck 3,4,23,3 256,512,1024,2048": 101,
};

function resNetOf({ has, shape, count }: Shown): BackboneConfig {
  const each = <T>(value: (stage: string) => T): [T, T, T, T] =>
    [2, 3, 4, 5].map((stage) => value(`backbone.res${stage}.`)) as [T, T, T, T];
  const bottleneck = each((stage) => has(`${stage}0.conv3.weight`)).some(Boolean);
  const block = bottleneck ? "bottleneck" : "basic";
  const blocks = each(count);
  const widths = each((stage) => shape(`${stage}0.${bottleneck ? "conv3" : "conv2"}.weight`)[0]!);
  const [stem, , kernel] = shape("backbone.stem.conv1.weight") as [number, number, number];
  if (kernel !== 7) throw new CheckpointError(`the backbone's stem has a kernel of ${kernel}; a ResNet has one of 7`);
  const depth = stem === 64 ? DEPTHS[`${block} ${blocks} ${widths}`] : undefined;
  const common = { norm: "frozenBN", outputStride: 32 } as const;
  if (depth) return { kind: "resnet", depth, width: stem, ...common };
  return { kind: "residual", block, blocks, widths, stem, stemKind: "7x7", ...common };
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
