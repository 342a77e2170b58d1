/** Models from configurations, and trained models from runs and weight files. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { type Device, free, type Tensor } from "../engine/index.ts";
import {
  loadBackbone,
  Wish,
  type WishConfig,
  type WishOverrides,
  wishMini,
  wishMobileNetV2,
  wishResNet18,
  wishResNet34,
  wishResNet50,
  wishResNet101,
  wishSwinB,
  wishSwinL,
  wishSwinS,
  wishSwinT,
} from "../model/index.ts";
import { bestCheckpoint, latestCheckpoint, saveWeights, weightsOf } from "./checkpoint.ts";
import { type Config, readConfig } from "./config.ts";
import type { Category } from "./data/coco.ts";
import {
  checkSizes,
  type Description,
  descriptionOf,
  type Inference,
  inferenceOf,
  weightsMetadata,
} from "./description.ts";
import { BadInput } from "./errors.ts";
import { loadPublished } from "./published.ts";
import { findAsset } from "./teacher.ts";
import { readWeightFile, type WeightFile } from "./weights.ts";

const PRESETS = {
  mini: wishMini,
  mobilenetV2: wishMobileNetV2,
  resnet18: wishResNet18,
  resnet34: wishResNet34,
  resnet50: wishResNet50,
  resnet101: wishResNet101,
  swinT: wishSwinT,
  swinS: wishSwinS,
  swinB: wishSwinB,
  swinL: wishSwinL,
};

/** The sizes of a run's model; promptDim is the width of the teacher's prompt embedding. */
export function modelConfig(config: Config, classes: number, promptDim: number): WishConfig {
  const { preset, backboneWeights: _, weights: __, ...given } = config.model;
  const { feature } = config.cam;
  const wish = config.mode === "wish";
  const overrides = {
    ...Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)),
    prompt: wish ? { mode: config.prompt.mode, dim: promptDim, place: config.prompt.place } : { mode: "none" },
    ...(wish ? (feature ? { cam: { feature } } : {}) : { cam: { feature: "none" } }),
  } as WishOverrides;
  return PRESETS[preset](classes, overrides);
}

/** A model as the configuration wants it at the start: drawn from the seed, then the weights it names. */
export async function newModel(
  gpu: Device,
  config: Config,
  sizes: WishConfig,
): Promise<{ model: Wish; notes: string[] }> {
  gpu.manualSeed(config.seed);
  const model = new Wish(gpu, sizes);
  const notes: string[] = [];
  const { backboneWeights, weights } = config.model;
  if (backboneWeights) {
    const path = findAsset(backboneWeights);
    const { tensors } = await readWeightFile(path, "weights of a pre-trained backbone (model.backboneWeights)");
    try {
      loadBackbone(model.backbone, tensors);
    } catch (cause) {
      throw new BadInput(`${path}: ${(cause as Error).message}`);
    }
    notes.push(`backbone from ${path}`);
  }
  if (weights) {
    const path = findAsset(weights);
    const found = await modelWeights(gpu, path);
    const { fitting, left } = fit(model, found);
    if (fitting.size === 0)
      throw new BadInput(`${path}: no tensor of it fits the model; name weights of this architecture and these sizes`);
    model.loadStateDict(fitting, { strict: false });
    for (const x of found.values()) free(x);
    notes.push(
      `weights from ${path}${left.length > 0 ? `; drawn anew: ${left.slice(0, 4).join(", ")}${left.length > 4 ? ` and ${left.length - 4} more` : ""}` : ""}`,
    );
  }
  return { model, notes };
}

/** Weights under this model's names: of a run, or of a Mask2Former that others have trained. */
async function modelWeights(gpu: Device, path: string): Promise<ReadonlyMap<string, Tensor>> {
  const read = await readWeightFile(path, "weights of a whole model (model.weights)");
  if (!isOwn(read)) return loadPublished(gpu, read).model.stateDict();
  const { weights, metadata } = await weightsOf(gpu, read);
  const { sizes } = descriptionOf(read.file, metadata);
  checkSizes(gpu, read.file, sizes, weights);
  return weights;
}

/** Written by this program, convert aside. */
function isOwn({ metadata }: WeightFile): boolean {
  return metadata.format?.startsWith("wgpu-wish") === true || metadata.state !== undefined;
}

function fit(model: Wish, tensors: ReadonlyMap<string, Tensor>): { fitting: Map<string, Tensor>; left: string[] } {
  const fitting = new Map<string, Tensor>();
  const left: string[] = [];
  for (const [name, own] of model.stateDict()) {
    const x = tensors.get(name);
    if (x && x.shape.join() === own.shape.join()) fitting.set(name, x);
    else left.push(name);
  }
  return { fitting, left };
}

export interface Trained extends Omit<Description, "sizes"> {
  model: Wish;
  /** The file the weights come from. */
  file: string;
}

/** The model of a run: its best checkpoint where one was evaluated, else its last. */
export async function loadRun(gpu: Device, run: string, which: "best" | "last" = "best"): Promise<Trained> {
  const file = (which === "best" ? bestCheckpoint(run) : undefined) ?? latestCheckpoint(run);
  if (!file)
    throw new BadInput(`${run}: holds no checkpoint; give the folder of a run that wgpu-wish train has written`);
  const configFile = join(run, "config.yaml");
  const trained = await loadTrained(gpu, file);
  if (!existsSync(configFile)) return trained;
  const config = readConfig(configFile);
  return { ...trained, config, inference: inferenceOf(config) };
}

/** The files that `loadRun` reads. */
export function runFiles(run: string): string[] {
  const file = bestCheckpoint(run) ?? latestCheckpoint(run);
  return [...(file ? [file] : []), ...["best", "last", "config.yaml"].map((name) => join(run, name))];
}

/** A model from a checkpoint, from weights written by `exportWeights`, or a Mask2Former that others have trained. */
export async function loadTrained(gpu: Device, file: string): Promise<Trained> {
  return trainedOf(gpu, await readWeightFile(file, "a checkpoint, or weights of a segmentation model"));
}

/** The same of a file that was read. */
export async function trainedOf(gpu: Device, read: WeightFile): Promise<Trained> {
  const { file } = read;
  if (!isOwn(read))
    return {
      ...loadPublished(gpu, read),
      config: undefined,
      inference: undefined,
      file,
      step: undefined,
      kinds: [],
    };
  const { weights, metadata } = await weightsOf(gpu, read);
  const { sizes, ...described } = descriptionOf(file, metadata);
  checkSizes(gpu, file, sizes, weights);
  let model: Wish;
  try {
    model = new Wish(gpu, sizes);
    model.loadStateDict(weights);
  } catch (cause) {
    throw new BadInput(`${file}: ${(cause as Error).message}`);
  }
  // The model has copies.
  for (const x of weights.values()) free(x);
  model.eval();
  return { ...described, model, file };
}

/** Writes a model's weights alone with all that is needed to use them. */
export async function exportWeights(
  path: string,
  model: Wish,
  categories: readonly Category[],
  kinds: readonly string[],
  options: { half?: boolean; inference?: Inference } = {},
): Promise<void> {
  const metadata = weightsMetadata({ model, categories, kinds, inference: options.inference });
  await saveWeights(path, model, metadata, options);
}
