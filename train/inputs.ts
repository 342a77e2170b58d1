/** What a run is given, checked before any work on it: data sets, model sizes, and what may change when it goes on. */
import { readFileSync } from "node:fs";
import type { WishConfig } from "../model/index.ts";
import { type Config, resolveConfig } from "./config.ts";
import { type Category, type Instances, imagePath, readInstances } from "./data/coco.ts";
import { checkSize, imageSize } from "./data/image.ts";
import { readEach } from "./data/labelled.ts";
import { type Item, maskItems, weakItems } from "./data/loader.ts";
import { readWeak } from "./data/weak.ts";
import { BadInput } from "./errors.ts";
import { checkCategories } from "./evaluate.ts";
import { changes, refuseChanges } from "./settings.ts";

/** All that a run's data gives. */
export interface TrainData {
  items: Item[];
  categories: Category[];
  /** Bytes of the labels file: the key of the cache of proxies. */
  labels: Uint8Array;
  validation: Instances | undefined;
}

/** Throws BadInput. @param name what errors call the configuration, its file where it has one */
export function readData(config: Config, name = "config"): TrainData {
  const { images, labels, supercategories, width, height, maskStride } = config.data;
  if (!images || !labels)
    throw new BadInput(
      `${name}: data.${images ? "labels" : "images"} is empty; name ${images ? "the labels file" : "the folder of the training images"}`,
    );
  for (const side of ["width", "height"] as const)
    if (config.data[side] % 32 !== 0)
      throw new BadInput(`${name}: data.${side} must be a multiple of 32; got ${config.data[side]}`);
  if (width % maskStride !== 0 || height % maskStride !== 0)
    throw new BadInput(`${name}: data.maskStride must divide data.width and data.height; got ${maskStride}`);
  const found =
    config.mode === "wish" ? fromWeak(labels, images, supercategories) : fromMasks(labels, images, supercategories);
  if (found.items.length === 0)
    throw new BadInput(`${labels}: there are no labelled images to train on; name another file with data.labels`);
  const validation = config.val.annotations ? readInstances(config.val.annotations, { supercategories }) : undefined;
  if (validation) checkCategories(found.categories, validation);
  checkNames(found.categories, labels);
  return { ...found, labels: readFileSync(labels), validation };
}

function fromWeak(labels: string, images: string, supercategories: boolean): Pick<TrainData, "items" | "categories"> {
  const weak = readWeak(labels, { supercategories });
  return { items: weakItems(weak, images), categories: weak.categories };
}

function fromMasks(labels: string, images: string, supercategories: boolean): Pick<TrainData, "items" | "categories"> {
  const data = readInstances(labels, { supercategories });
  return { items: maskItems(data, images), categories: data.categories };
}

/** Results are told apart by their classes' names. */
function checkNames(categories: readonly Category[], file: string): void {
  const seen = new Map<string, number>();
  for (const { id, name } of categories) {
    if (seen.has(name))
      throw new BadInput(
        `${file}: the categories ${seen.get(name)} and ${id} are both called "${name}"; give each a name of its own`,
      );
    seen.set(name, id);
  }
}

/**
 * Looks whether the images that will be trained on and evaluated are there and as large as their labels say, before hours of training. Only
 * their headers are read. Throws BadInput for the first that is not.
 */
export async function checkImages(
  { items, validation }: TrainData,
  { val }: Config,
  onImage?: (done: number, total: number) => void,
): Promise<void> {
  const judged = validation?.images.slice(0, val.limit || undefined) ?? [];
  const files = [...items, ...judged.map((entry) => ({ ...entry, path: imagePath(val.images, entry) }))];
  const check = async (said: { path: string; width: number; height: number }): Promise<void> =>
    checkSize(said.path, await imageSize(said.path), said);
  await readEach(files, check, onImage);
}

/** Refuses sizes that do not fit each other. Throws BadInput naming the settings. */
export function checkModel({ hiddenDim, groups, encoder, decoder }: WishConfig, name: string): void {
  const parts = { "model.groups": groups, "model.encoder.heads": encoder.heads, "model.decoder.heads": decoder.heads };
  for (const [key, value] of Object.entries(parts))
    if (hiddenDim % value !== 0)
      throw new BadInput(`${name}: ${key} must divide model.hiddenDim; got ${value} and ${hiddenDim}`);
  // Sine positions take a sine and a cosine for each of two axes.
  if (hiddenDim % 4 !== 0) throw new BadInput(`${name}: model.hiddenDim must be a multiple of 4; got ${hiddenDim}`);
}

/** Refuses a way of storing blocks' inputs where none are stored. */
export function checkMemory({ memory }: Config, name: string): void {
  if (memory.activations === "f16" && !memory.checkpoint)
    throw new BadInput(
      `${name}: memory.activations=f16 is how memory.checkpoint=true stores what goes into the blocks; set both, or neither`,
    );
}

/** What a run's weights, its optimizer's moments or its place in the data depend on. */
const FIXED = ["seed", "mode", "batch", "accumulate", "model", "prompt.mode", "prompt.place", "cam.feature"];
const FIXED_DATA = ["data.images", "data.labels", "data.supercategories", "data.balance", "sam.checkpoint"];
/** What may change, but numbers are rounded in another way then: the run goes on with other bits than it would have. */
const ROUNDING = ["precision", "memory"];

/**
 * Refuses to go on from a checkpoint with settings that do not go with it. Throws BadInput naming the setting. Returns a line on those that
 * change its bits alone, where there are any.
 */
export function checkResumed(saved: object, step: number, config: Config, name: string): string | undefined {
  const before = resolveConfig(saved, [], `${config.run}: the checkpoint`);
  refuseChanges(before, config, [...FIXED, ...FIXED_DATA], name);
  if (step > config.steps)
    throw new BadInput(
      `${name}: steps is ${config.steps}, but ${config.run} has done ${step}; ask for at least as many, or start another run with run=DIR`,
    );
  const rounded = changes(before, config, ROUNDING).map(({ key, was, is }) => `${key} is ${is}, it was ${was}`);
  return rounded.length > 0
    ? `${config.run}: from step ${step} on ${rounded.join("; ")}: rounding differs from a run in one piece`
    : undefined;
}
