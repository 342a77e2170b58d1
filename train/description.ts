/** What stands beside the weights in a file of a model of ours: sizes, classes, kinds of labels, size of images. Checked when it is read. */
import { z } from "zod";
import { type Device, nn } from "../engine/index.ts";
import { Wish, type WishConfig } from "../model/index.ts";
import { compareTensors, describeDifference } from "../model/weights/index.ts";
import { checkpointHead } from "./checkpoint.ts";
import { backbones, type Config, resolveConfig, testSize, whole } from "./config.ts";
import type { Category } from "./data/coco.ts";
import { BadInput } from "./errors.ts";
import { resolveSettings } from "./settings.ts";
import { refusal } from "./weights.ts";

const WEIGHTS_FORMAT = "wgpu-wish model 1";

/** Test-time size of an image and the number of instances: `val` of the configuration. */
export type Inference = Pick<Config["val"], "short" | "long" | "topk">;

export interface Description {
  sizes: WishConfig;
  categories: Category[];
  /** What kinds of labels it was trained with, for inference through SAM. */
  kinds: string[];
  /** The size of images that it was judged at; undefined where the file does not say. */
  inference?: Inference | undefined;
  /** Of a checkpoint: the run's configuration. */
  config: Config | undefined;
  step?: number | undefined;
}

const layers = z.number().int().min(0);
const widths = z.tuple([whole, whole, whole, whole]);

/** A backbone that a checkpoint of others has brought along. */
const residual = z.strictObject({
  kind: z.literal("residual"),
  blocks: widths,
  widths,
  stem: whole,
  stemKind: z.enum(["7x7", "3x3"]),
  block: z.enum(["basic", "bottleneck"]),
  norm: z.enum(["frozenBN", "batchNorm", "groupNorm"]),
  outputStride: z.union([z.literal(32), z.literal(16), z.literal(8)]),
});

/** Each entry of the metadata, as JSON. */
const schema = z.strictObject({
  model: z.strictObject({
    classes: whole,
    backbone: z.discriminatedUnion("kind", [...backbones, residual]),
    hiddenDim: whole,
    levels: whole.max(4),
    groups: whole,
    encoder: z.strictObject({ layers, heads: whole, points: whole, ffn: whole }),
    decoder: z.strictObject({ layers, heads: whole, ffn: whole }),
    queries: whole,
    prompt: z.strictObject({
      mode: z.enum(["none", "mean", "sparse", "typed"]),
      dim: whole,
      place: z.enum(["query", "mask"]).optional(),
    }),
    cam: z.strictObject({ feature: z.enum(["none", "res3", "res4", "res5"]) }),
  }),
  categories: z.array(
    z.object({ id: z.number().int(), name: z.string().min(1), supercategory: z.string().optional() }),
  ),
  kinds: z.array(z.enum(["tags", "points", "boxes", "masks"])).default([]),
  inference: z.strictObject(testSize).optional(),
  step: z.number().int().min(0).optional(),
});

/** Of weights alone or a checkpoint. Throws BadInput naming the file and the entry. */
export function descriptionOf(file: string, metadata: Record<string, string>): Description {
  if (metadata.format === WEIGHTS_FORMAT) {
    const { model, categories, kinds, inference } = metadata;
    const given = Object.entries({ model, categories, kinds, inference }).flatMap(([key, text]) =>
      text === undefined ? [] : [[key, parsed(file, key, text)] as const],
    );
    return { ...checked(file, Object.fromEntries(given)), config: undefined };
  }
  const { state, config: saved } = checkpointHead(file, metadata);
  const { sizes, categories, kinds, step } = state;
  if (!sizes || !categories)
    throw new BadInput(
      `${file}: holds no segmentation model (the sizes are missing); is it a checkpoint of sam-train?`,
    );
  const config = resolveConfig(saved, [], file);
  const inference = inferenceOf(config);
  return { ...checked(file, { model: sizes, categories, kinds, inference, step }), config };
}

/** The classes in a file's metadata, as many as its model has. Throws BadInput. */
export function categoriesOf(file: string, text: string, classes: number): Category[] {
  const given = { categories: parsed(file, "categories", text) };
  const { categories } = readable(() =>
    resolveSettings(schema.pick({ categories: true }), given, [], `${file}: metadata`),
  );
  checkClasses(file, categories, classes, "its tensors tell");
  return categories as Category[];
}

export function inferenceOf({ val: { short, long, topk } }: Config): Inference {
  return { short, long, topk };
}

function checked(file: string, given: object): Omit<Description, "config"> {
  const { model, categories, ...rest } = readable(() => resolveSettings(schema, given, [], `${file}: metadata`));
  checkClasses(file, categories, model.classes, "model.classes");
  return { sizes: model as WishConfig, categories: categories as Category[], ...rest };
}

function checkClasses(file: string, { length }: readonly unknown[], classes: number, teller: string): void {
  if (length !== classes)
    throw new BadInput(`${file}: metadata: categories: ${classes} as ${teller} were expected; got ${length}`);
}

function readable<T>(work: () => T): T {
  try {
    return work();
  } catch (cause) {
    throw cause instanceof BadInput ? refusal(cause.message) : cause;
  }
}

function parsed(file: string, key: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new BadInput(`${file}: metadata: ${key}: is not JSON; the file is damaged`);
  }
}

/** Refuses sizes that are not those of the tensors, before a model is made of them. Throws BadInput. */
export function checkSizes(gpu: Device, file: string, sizes: WishConfig, tensors: Tensors): void {
  const problem = tooManyBlocks(sizes, tensors.size) ?? misfit(gpu, sizes, tensors);
  if (problem) throw refusal(`${file}: metadata: model${problem}`);
}

type Tensors = ReadonlyMap<string, { readonly shape: readonly number[] }>;

/** A model of that many would fill the memory before its tensors are compared. */
function tooManyBlocks({ backbone, encoder, decoder }: WishConfig, tensors: number): string | undefined {
  const blocks = {
    "backbone.blocks": "blocks" in backbone ? backbone.blocks : [],
    "backbone.depths": "depths" in backbone ? backbone.depths : [],
    "encoder.layers": [encoder.layers],
    "decoder.layers": [decoder.layers],
  };
  const [key, counts] = Object.entries(blocks).find(([, n]) => n.some((count) => count > tensors)) ?? [];
  return key && `.${key}: the file's ${tensors} tensors cannot be that many; got ${counts}`;
}

function misfit(gpu: Device, sizes: WishConfig, tensors: Tensors): string | undefined {
  let own: Tensors;
  try {
    own = nn.init.skip(() => new Wish(gpu.dry(), sizes)).stateDict();
  } catch (cause) {
    return `: no model can be made of these sizes: ${(cause as Error).message}`;
  }
  const difference = describeDifference(compareTensors(own, tensors));
  return difference && `: the tensors are not those of a model of these sizes: ${difference}`;
}

/** What stands in a file of weights beside them. */
export function weightsMetadata({
  model,
  categories,
  kinds,
  inference,
}: {
  model: Pick<Wish, "config">;
  categories: readonly Category[];
  kinds: readonly string[];
  inference?: Inference | undefined;
}): Record<string, string> {
  return {
    format: WEIGHTS_FORMAT,
    model: JSON.stringify(model.config),
    categories: JSON.stringify(categories),
    kinds: JSON.stringify(kinds),
    ...(inference ? { inference: JSON.stringify(inference) } : {}),
  };
}
