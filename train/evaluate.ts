/** A model's results on a data set with masks: predictions image by image, COCO's metrics over them, pictures of the first ones. */
import { join } from "node:path";
import { type Device, noGrad, scope } from "../engine/index.ts";
import { instancesOf, type Instance as Predicted, predictWithSam, type Wish, type WishOutput } from "../model/index.ts";
import { prepareImage } from "../model/sam/index.ts";
import {
  type Category,
  classIndex,
  type ImageEntry,
  type Instances,
  imagePath,
  instanceRuns,
  instancesByImage,
} from "./data/coco.ts";
import { checkSize, type Image, readImage, writePng } from "./data/image.ts";
import { makeFolder } from "./data/json.ts";
import { evalSample } from "./data/loader.ts";
import { encodeMask, maskOfRuns } from "./data/mask.ts";
import { BadInput } from "./errors.ts";
import { type Curve, evaluateDetailed, type Metrics, type Result } from "./eval/coco-ap.ts";
import { type Judgement, judge } from "./eval/confusion.ts";
import { classText } from "./lettering.ts";
import { contactSheet, drawOverlay, type Overlay } from "./pictures.ts";
import { imageTensor } from "./step.ts";
import type { Teacher } from "./teacher.ts";

export interface InferenceOptions {
  /** Test-time size of an image: its short side, and the limit of its long one. */
  short: number;
  long: number;
  topk: number;
  /** Instances below this are left out. */
  score?: number;
  /** Given: masks are drawn by SAM's decoder from the predicted latents (variant b). `recentre`: see SamPredictOptions. */
  sam?: { teacher: Teacher; kind: "point" | "box"; recentre: boolean };
  /** Given what the model says of an image, before it becomes instances; not where SAM draws them. */
  onOutput?: (output: WishOutput) => Promise<void>;
}

/**
 * Which latents SAM's decoder is given: those of a point where the model has learned any, since a centre that is off costs less than corners
 * that are (measured on scenes).
 */
export function latentKind(kinds: readonly string[]): "point" | "box" {
  return kinds.some((kind) => kind !== "boxes") ? "point" : "box";
}

/** Instances of one image, in its own pixels, by falling score. */
export async function segment(gpu: Device, model: Wish, image: Image, options: InferenceOptions): Promise<Predicted[]> {
  const sample = await evalSample(image, { short: options.short, long: options.long });
  const original = [image.height, image.width] as const;
  const { topk, score = 0 } = options;
  return scope(async () => {
    const input = imageTensor(gpu, [sample]);
    if (!options.sam) {
      const output = noGrad(() => model.forward(input));
      await options.onOutput?.(output);
      return instancesOf(output, input, { original, topk, score });
    }
    const { teacher, kind, recentre } = options.sam;
    const side = teacher.sam.config.imageSize;
    const prepared = prepareImage(image, side);
    const embedding = noGrad(() => teacher.sam.encodeImage(gpu.tensor(prepared.data, [1, 3, side, side])));
    return predictWithSam(model, teacher.sam, input, {
      original,
      topk,
      score,
      embedding,
      samSize: prepared.inputSize,
      kind,
      recentre,
    });
  });
}

export interface EvaluationOptions extends InferenceOptions {
  /** Evaluate the first so many images only; 0: all. */
  limit?: number;
  /** Overlays written to `folder`, of the first images. */
  pictures?: { count: number; folder: string };
  iou?: "segm" | "bbox";
  onImage?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

export interface Evaluation extends Judgement {
  /** What overlaps: masks or boxes. */
  iou: "segm" | "bbox";
  metrics: Metrics;
  curves: Curve[];
  results: Result[];
  pictures: string[];
  /** False where the signal cut it short: the figures then stand for nothing. */
  complete: boolean;
}

/** @param categories the model's classes in order; each must be one of the data set's, by id and name */
export async function evaluateModel(
  gpu: Device,
  model: Wish,
  categories: readonly Category[],
  truth: Instances,
  imagesDir: string,
  options: EvaluationOptions,
): Promise<Evaluation> {
  checkCategories(categories, truth);
  const images = options.limit ? truth.images.slice(0, options.limit) : truth.images;
  const byImage = instancesByImage(truth);
  const results: Result[] = [];
  const pictures: { path: string; panels: Image[] }[] = [];
  let complete = true;
  model.eval();
  // The next image is decoded while the GPU works on this one.
  let ahead = readEntry(images[0], imagesDir);
  for (const [i, entry] of images.entries()) {
    if (options.signal?.aborted) {
      complete = false;
      break;
    }
    const image = (await ahead)!;
    ahead = readEntry(images[i + 1], imagesDir);
    const found = await segment(gpu, model, image, options);
    results.push(...resultsOf(found, entry.id, categories));
    if (options.pictures && i < options.pictures.count) {
      const truthPanel = await drawOverlay(image, truthOverlay(truth, byImage.get(entry.id) ?? [], entry), {
        scale: pictureScale(image),
      });
      const predictedPanel = await drawOverlay(image, predictionOverlay(found, categories), {
        scale: pictureScale(image),
      });
      const path = join(options.pictures.folder, `${String(entry.id).padStart(6, "0")}.png`);
      pictures.push({ path, panels: [truthPanel, predictedPanel] });
    }
    options.onImage?.(i + 1, images.length);
  }
  model.train();
  if (complete && options.pictures) await writePictures(options.pictures.folder, pictures);
  const counted = { iou: options.iou ?? "segm", imageIds: images.map((image) => image.id) };
  const { metrics, curves } = evaluateDetailed(truth, results, counted);
  return {
    iou: counted.iou,
    metrics,
    curves,
    ...judge(truth, results, counted),
    results,
    pictures: pictures.map(({ path }) => path),
    complete,
  };
}

/** An image of the data set. What is wrong with it is told when it is waited for. */
function readEntry(entry: ImageEntry | undefined, imagesDir: string): Promise<Image | undefined> {
  const read = async (): Promise<Image | undefined> => {
    if (entry === undefined) return undefined;
    const file = imagePath(imagesDir, entry);
    const image = await readImage(file);
    checkSize(file, image, entry);
    return image;
  };
  const image = read();
  image.catch(() => {});
  return image;
}

/** Each image's panels in a file, and all of them on a sheet. */
async function writePictures(
  folder: string,
  pictures: readonly { path: string; panels: readonly Image[] }[],
): Promise<void> {
  await makeFolder(folder);
  for (const { path, panels } of pictures) await writePng(path, contactSheet(panels, { columns: 2 }));
  const all = pictures.flatMap(({ panels }) => panels);
  if (all.length > 0) await writePng(join(folder, "sheet.png"), contactSheet(all, { columns: 4 }));
}

/** COCO results of one image. */
export function resultsOf(found: readonly Predicted[], imageId: number, categories: readonly Category[]): Result[] {
  return found.map(({ label, score, mask, size, box }) => ({
    imageId,
    categoryId: categories[label]!.id,
    score,
    segmentation: encodeMask(mask, size[1], size[0]),
    box,
  }));
}

/** Instances that a picture shows: the surer ones, one for each query. */
export function shown(found: readonly Predicted[], least = 0.3): Predicted[] {
  const seen = new Set<number>();
  return found.filter(({ query, score }) => score >= least && !seen.has(query) && seen.add(query));
}

export function predictionOverlay(found: readonly Predicted[], categories: readonly Category[], least = 0.3): Overlay {
  return {
    masks: shown(found, least).map(({ mask, label, score }) => ({
      mask,
      classIndex: label,
      label: classText(categories[label]!),
      score,
    })),
    caption: "predicted",
  };
}

export function truthOverlay(
  truth: Instances,
  instances: readonly Instances["instances"][number][],
  entry: ImageEntry,
): Overlay {
  const index = classIndex(truth.categories);
  const named = instances
    .filter((instance) => !instance.crowd)
    .map((instance) => {
      const classIndex = index.get(instance.categoryId)!;
      return { instance, classIndex, label: classText(truth.categories[classIndex]!) };
    });
  return { ...shapesOf(named, entry), caption: "truth" };
}

/** Masks of the instances that have one, boxes of the others. */
export function shapesOf(
  named: readonly { instance: Instances["instances"][number]; classIndex: number; label: string }[],
  entry: ImageEntry,
): Pick<Overlay, "masks" | "boxes"> {
  return {
    masks: named
      .filter(({ instance }) => instance.segmentation !== undefined)
      .map(({ instance, ...rest }) => ({ ...rest, mask: maskOfRuns(instanceRuns(instance, entry)) })),
    boxes: named
      .filter(({ instance }) => instance.segmentation === undefined)
      .map(({ instance, ...rest }) => ({ ...rest, box: instance.box })),
  };
}

/** Small images are enlarged so that captions can be read. */
export function pictureScale({ width, height }: { width: number; height: number }): number {
  return Math.max(1, Math.round(256 / Math.max(width, height)));
}

/** Throws BadInput where the data set does not have the model's classes. */
export function checkCategories(categories: readonly Category[], truth: Instances): void {
  for (const { id, name } of categories) {
    const other = truth.categories.find((category) => category.id === id);
    if (other?.name !== name)
      throw new BadInput(
        `${truth.file}: class ${id} is ${other ? `"${other.name}"` : "not there"}, the model was trained with "${name}"; evaluate on a file with the same categories`,
      );
    if (truth.categories.some((category) => category.name === name && category.id !== id))
      throw new BadInput(`${truth.file}: two categories are called "${name}"; give each a name of its own`);
  }
}
