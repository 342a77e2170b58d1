// A trained Mask2Former (detectron2's or transformers' checkpoint, ResNet or Swin backbone) -> a model of the sizes that its tensors tell.
import { type Device, nn } from "../../engine/index.ts";
import type { BackboneConfig, WishConfig } from "../config.ts";
import type { ResNetDepth } from "../resnet.ts";
import { listKeys } from "../weights/compare.ts";
import { mostCommon, type Place, sizeAt, sizeOf } from "../weights/majority.ts";
import { checkNamed, loadNamed, type Named, type Source, shapesOf } from "../weights/renaming.ts";
import { CheckpointError } from "../weights/tensors.ts";
import { Wish } from "../wish.ts";
import { mask2FormerKeys } from "./names.ts";

const PIXEL = "sem_seg_head.pixel_decoder";
const QUERY = "sem_seg_head.predictor";

/** Of the pixel decoder's norms, in every published model. */
const GROUPS = 32;

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
  const make = (device: Device): Wish => nn.init.skip(() => new Wish(device, sizes));
  // Before any memory of the GPU is taken.
  checkNamed(make(gpu.dry()).stateDict(), named, state);
  const model = make(gpu);
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
  at(place: Place): number | undefined;
  /** What most of the places say. */
  size(...places: Place[]): number;
  /** The file's keys of what belongs to none of the heads. */
  others(): string[];
  /** One more than the largest number that stands behind the prefix, so that one tensor less does not change what is expected. */
  count(prefix: string): number;
  /** @param what follows the file's name of the tensor and its shape */
  fail(name: string, what: string): never;
}

function shown(named: Named, state: ReadonlyMap<string, Source>): Shown {
  const shapes = shapesOf(named, state);
  const keyOf = (name: string): string => named.theirs(name)[0]!;
  const refuse = (what: string): never => {
    throw new CheckpointError(what);
  };
  return {
    has: (name) => shapes.has(name),
    at: (place) => sizeAt(shapes, place),
    size: (...places) => sizeOf(shapes, places, keyOf, refuse),
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
        if (!(number < shapes.size)) refuse(`${keyOf(name)}: there are not as many blocks in ${shapes.size} tensors`);
        most = Math.max(most, number);
      }
      return most + 1;
    },
    fail: (name, what) => refuse(`${keyOf(name)} is (${shapes.get(name)?.shape.join(", ")}): ${what}`),
  };
}

function sizesOf(named: Named, state: ReadonlyMap<string, Source>, given: number | undefined): WishConfig {
  const tensors = shown(named, state);
  const { at, size, count } = tensors;
  const layers = `${PIXEL}.transformer.encoder.layers.`;
  const [queries, positions] = [`${QUERY}.query_feat.weight`, `${QUERY}.query_embed.weight`];
  const levels =
    mostCommon([
      count(`${PIXEL}.input_proj.`) || undefined,
      at([`${QUERY}.level_embed.weight`, 0]),
      at([`${PIXEL}.transformer.level_embed`, 0]),
    ]) ?? size([`${QUERY}.level_embed.weight`, 0]);
  const hiddenDim = size([queries, 1], [positions, 1], [`${QUERY}.decoder_norm.weight`, 0]);
  if (hiddenDim % GROUPS !== 0)
    tensors.fail(queries, `${hiddenDim} channels do not divide into the ${GROUPS} groups of the pixel decoder's norms`);
  const ffn = (at: string): number =>
    size([`${at}.linear1.weight`, 0], [`${at}.linear1.bias`, 0], [`${at}.linear2.weight`, 1]);
  return {
    classes: size([`${QUERY}.class_embed.weight`, 0], [`${QUERY}.class_embed.bias`, 0]) - 1,
    backbone: backboneOf(tensors),
    hiddenDim,
    levels,
    groups: GROUPS,
    encoder: { layers: count(layers), ...headsOf(tensors, levels, hiddenDim, given), ffn: ffn(`${layers}0`) },
    decoder: {
      layers: count(`${QUERY}.transformer_ffn_layers.`),
      heads: headsOf(tensors, levels, hiddenDim, given).heads,
      ffn: ffn(`${QUERY}.transformer_ffn_layers.0`),
    },
    queries: size([queries, 0], [positions, 0]),
    prompt: { mode: "none", dim: 256 },
    cam: { feature: "none" },
  };
}

/** Heads and the points that each of them looks at in a level, from the number of offsets: heads, levels, points, (x, y). */
function headsOf(
  tensors: Shown,
  levels: number,
  hiddenDim: number,
  given: number | undefined,
): { heads: number; points: number } {
  const attention = `${PIXEL}.transformer.encoder.layers.0.self_attn`;
  const name = `${attention}.sampling_offsets.weight`;
  const weights = tensors.at([`${attention}.attention_weights.bias`, 0]);
  const offsets =
    mostCommon([
      tensors.at([name, 0]),
      tensors.at([`${attention}.sampling_offsets.bias`, 0]),
      weights === undefined ? undefined : 2 * weights,
    ]) ?? tensors.size([name, 0]);
  const heads = given ?? offsets / (POINTS * levels * 2);
  const points = offsets / (heads * levels * 2);
  if (!Number.isInteger(points) || !Number.isInteger(heads) || hiddenDim % heads !== 0)
    tensors.fail(
      name,
      `${offsets} sampling offsets and ${hiddenDim} channels do not divide into ${heads} heads and ${levels} levels${given === undefined ? ` of ${POINTS} points` : ""}`,
    );
  return { heads, points };
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

function resNetOf({ has, at, size, count, fail }: Shown): BackboneConfig {
  const each = <T>(value: (stage: string) => T): [T, T, T, T] =>
    [2, 3, 4, 5].map((stage) => value(`backbone.res${stage}.`)) as [T, T, T, T];
  const bottleneck = each((stage) => has(`${stage}0.conv3.weight`)).some(Boolean);
  const block = bottleneck ? "bottleneck" : "basic";
  const blocks = each(count);
  const channels = (conv: string): number =>
    size([`${conv}.weight`, 0], [`${conv}.norm.weight`, 0], [`${conv}.norm.bias`, 0]);
  const widths = each((stage) => channels(`${stage}0.${bottleneck ? "conv3" : "conv2"}`));
  const stem = channels("backbone.stem.conv1");
  if (has("backbone.stem.conv1.weight") && at(["backbone.stem.conv1.weight", 2]) !== 7)
    fail("backbone.stem.conv1.weight", "a ResNet's stem has a kernel of 7");
  const depth = stem === 64 ? DEPTHS[`${block} ${blocks} ${widths}`] : undefined;
  const common = { norm: "frozenBN", outputStride: 32 } as const;
  if (depth) return { kind: "resnet", depth, width: stem, ...common };
  return { kind: "residual", block, blocks, widths, stem, stemKind: "7x7", ...common };
}

function swinOf({ at, size, count, fail }: Shown): BackboneConfig {
  const stages = count("backbone.layers.");
  if (stages !== 4) throw new CheckpointError(`the backbone has ${stages} stages; a Swin under Mask2Former has 4`);
  const each = <T>(value: (stage: number) => T): [T, T, T, T] => [value(0), value(1), value(2), value(3)];
  const depths = each((stage) => count(`backbone.layers.${stage}.blocks.`));
  // ((2 window - 1)^2, heads) of each block.
  const tables = depths.map((depth, stage) =>
    Array.from(
      { length: Math.max(1, depth) },
      (_, i) => `backbone.layers.${stage}.blocks.${i}.attn.relative_position_bias_table`,
    ),
  );
  const patches = "backbone.patch_embed";
  const embedDim = size([`${patches}.proj.weight`, 0], [`${patches}.proj.bias`, 0], [`${patches}.norm.weight`, 0]);
  const heads = each((stage) => {
    const width = embedDim * 2 ** stage;
    const places = tables[stage]!.map((table): Place => [table, 1]);
    const fitting = places.filter((place) => width % (at(place) ?? Number.NaN) === 0);
    if (fitting.length > 0) return size(...fitting);
    return fail(places[0]![0], `${size(...places)} heads do not divide the ${width} channels of the stage`);
  });
  const rows = size(...tables.flat().map((table): Place => [table, 0]));
  const window = (Math.sqrt(rows) + 1) / 2;
  if (!Number.isInteger(window)) fail(tables[0]![0]!, `${rows} rows are not the (2 w - 1)^2 of a window of w x w`);
  return { kind: "swin", embedDim, depths, heads, window, dropPath: 0.3 };
}
