/** What can be asked of a finished or running run: its metrics on any data, its CAMs, SAM proxies and predictions as pictures. */
import { existsSync } from "node:fs";
import { basename, dirname, extname, join } from "node:path";
import type { Device } from "../engine/index.ts";
import { augmentedPicture } from "./augmented.ts";
import type { Config } from "./config.ts";
import { pointToOriginal, warpMask } from "./data/augment.ts";
import { type Instances, imagePath, overlapOf, readInstances } from "./data/coco.ts";
import { type Image, readImage, writePng } from "./data/image.ts";
import { makeFolder } from "./data/json.ts";
import type { Item, Sample } from "./data/loader.ts";
import { maskOfRuns, runsOfMask } from "./data/mask.ts";
import { BadInput } from "./errors.ts";
import type { Curve, Metrics, Result } from "./eval/coco-ap.ts";
import type { Confusion } from "./eval/confusion.ts";
import { evaluateVoc, type VocMetrics } from "./eval/voc.ts";
import { evaluateModel, predictionOverlay, segment } from "./evaluate.ts";
import { keepApart } from "./folders.ts";
import { loadRun, type Trained } from "./models.ts";
import { contactSheet, drawOverlay, type Overlay } from "./pictures.ts";
import { camOf } from "./stages.ts";
import { type Display, openTeacher, proxiesOf, readData } from "./train.ts";

/** Pictures on the sheet that shows many at once. */
const ON_SHEET = 24;

export interface EvaluateRunOptions {
  run: string;
  /** Instances JSON; default: the run's own. Its images lie beside it, or where the config says. */
  data?: string;
  images?: string;
  checkpoint?: "best" | "last";
  iou?: "segm" | "bbox";
  protocol?: "coco" | "voc";
  onImage?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

export interface RunEvaluation {
  metrics: Metrics;
  curves: Curve[];
  confusion: Confusion;
  voc: VocMetrics | undefined;
  truth: Instances;
  results: Result[];
  file: string;
}

export async function evaluateRun(gpu: Device, options: EvaluateRunOptions): Promise<RunEvaluation> {
  const trained = await loadRun(gpu, options.run, options.checkpoint);
  const config = configOf(trained, options.run);
  const annotations = options.data ?? config.val.annotations;
  if (!annotations)
    throw new BadInput(
      `${options.run}: its config names no evaluation data (val.annotations); give --data INSTANCES.json`,
    );
  const truth = readInstances(annotations, { supercategories: config.data.supercategories });
  const folder = options.images ?? (options.data ? imagesBeside(options.data, truth, config) : config.val.images);
  const { iou = overlapOf(truth), protocol, onImage, signal } = options;
  const { short, long, topk } = config.val;
  const evaluation = await evaluateModel(gpu, trained.model, trained.categories, truth, folder, {
    short,
    long,
    topk,
    iou,
    ...(onImage ? { onImage } : {}),
    ...(signal ? { signal } : {}),
  });
  const voc = protocol === "voc" ? evaluateVoc(truth, evaluation.results, { iou }) : undefined;
  const { metrics, curves, confusion, results } = evaluation;
  return { metrics, curves, confusion, voc, truth, results, file: trained.file };
}

export interface ShowRunOptions {
  run: string;
  out: string;
  limit?: number;
  display: Display;
}

/** Writes pictures to `out` and returns their paths; the last one is a sheet of the first ones. */
export async function showRun(
  gpu: Device,
  what: "augmented" | "cam" | "proxies" | "predictions",
  options: ShowRunOptions,
): Promise<string[]> {
  const trained = await loadRun(gpu, options.run);
  const config = configOf(trained, options.run);
  const { data, val } = config;
  for (const folder of [data.images, val.images]) if (folder) keepApart(options.out, [join(folder, "image")]);
  await makeFolder(options.out);
  const pictures = {
    augmented: augmentedPictures,
    cam: camPictures,
    proxies: proxyPictures,
    predictions: predictionPictures,
  }[what];
  const files: string[] = [];
  const panels: Image[] = [];
  const bar = options.display.progress(options.limit ?? 64, "img");
  for await (const { name, picture } of pictures(gpu, trained, config, options)) {
    const path = join(options.out, `${basename(name, extname(name))}.png`);
    await writePng(path, picture);
    files.push(path);
    if (panels.length < ON_SHEET) panels.push(picture);
    bar.update(files.length);
  }
  bar.end();
  if (panels.length > 0) {
    files.push(join(options.out, "sheet.png"));
    await writePng(files.at(-1)!, contactSheet(panels, { columns: 4 }));
  }
  return files;
}

interface Named {
  name: string;
  picture: Image;
}

/** Training images as the network sees them, with SAM's masks of their labels or, where these are tags, of the CAM's peaks. */
async function* augmentedPictures(
  gpu: Device,
  { model, categories }: Trained,
  config: Config,
  { limit = 64, display }: ShowRunOptions,
): AsyncGenerator<Named> {
  const data = readData(config);
  const items = data.items.slice(0, limit);
  const teacher = config.mode === "wish" ? await openTeacher(gpu, config) : undefined;
  const all = teacher ? await proxiesOf(teacher, data, config, display) : [];
  const pseudo = async (image: Image, sample: Sample, item: Item): Promise<Overlay> => {
    if (!teacher || model.config.cam.feature === "none") return {};
    const frame = { width: sample.width, height: sample.height, data: sample.rgb };
    const { peaks } = await camOf(gpu, model, frame, item.tags, config);
    const named = peaks.map((peak) => ({ ...peak, label: categories[peak.classIndex]!.name }));
    const onImage = peaks.map(({ x, y }) => pointToOriginal(sample.affine, x, y));
    const [answers = []] = await teacher.prompt([image], "point", [onImage]);
    const masks = answers.map(({ masks: three, iou }, i) => {
      const runs = runsOfMask(three[iou.indexOf(Math.max(...iou))]!, image.width, image.height);
      return { mask: warpMask(runs, sample.affine, sample.width, sample.height), classIndex: named[i]!.classIndex };
    });
    return { points: named, masks };
  };
  for (const [i, item] of items.entries()) {
    const picture = await augmentedPicture(item, i, { categories, config, proxies: (_, at) => all[at], pseudo });
    yield { name: item.path, picture };
  }
}

async function* predictionPictures(
  gpu: Device,
  trained: Trained,
  config: Config,
  { limit = 64, run }: ShowRunOptions,
): AsyncGenerator<Named> {
  if (!config.val.annotations) throw new BadInput(`${run}: its config names no evaluation images (val.annotations)`);
  const truth = readInstances(config.val.annotations, { supercategories: config.data.supercategories });
  for (const entry of truth.images.slice(0, limit)) {
    const image = await readImage(imagePath(config.val.images, entry));
    const found = await segment(gpu, trained.model, image, config.val);
    yield {
      name: entry.fileName,
      picture: drawOverlay(image, { ...predictionOverlay(found, trained.categories), caption: entry.fileName }),
    };
  }
}

/** The CAM of each tagged class over the image, with its peaks. */
async function* camPictures(
  gpu: Device,
  trained: Trained,
  config: Config,
  { limit = 64, run }: ShowRunOptions,
): AsyncGenerator<Named> {
  if (trained.model.config.cam.feature === "none")
    throw new BadInput(`${run}: its model has no CAM branch (cam.feature is none)`);
  const { items } = readData(config);
  const tagged = items
    .filter((item) => item.tags.length > 0)
    .sort((a, b) => Number(b.kind === "tags") - Number(a.kind === "tags"));
  for (const item of tagged.slice(0, limit)) {
    const image = await readImage(item.path);
    const { maps, peaks } = await camOf(gpu, trained.model, image, item.tags, config);
    const panels = maps.map(({ classIndex, picture, active }) => {
      const points = peaks
        .filter((peak) => peak.classIndex === classIndex)
        .map((peak) => ({ ...peak, label: peak.value.toFixed(2) }));
      const { name } = trained.categories[classIndex]!;
      return drawOverlay(picture, { points, caption: active ? name : `${name}: no activation` });
    });
    yield { name: item.path, picture: contactSheet(panels) };
  }
}

/** The label, and SAM's three masks for it with their ratings. */
async function* proxyPictures(
  gpu: Device,
  trained: Trained,
  config: Config,
  { limit = 64, run, display }: ShowRunOptions,
): AsyncGenerator<Named> {
  if (config.mode !== "wish") throw new BadInput(`${run}: was trained from masks; there are no SAM proxies`);
  const data = readData(config);
  const labelled = data.items.filter((item) => item.kind === "points" || item.kind === "boxes").slice(0, limit);
  const teacher = await openTeacher(gpu, config);
  const all = await proxiesOf(teacher, data, config, display);
  for (const item of labelled) {
    const image = await readImage(item.path);
    const proxies = all[data.items.indexOf(item)]!;
    const label = (i: number): { classIndex: number; label: string } => ({
      classIndex: item.classes[i]!,
      label: trained.categories[item.classes[i]!]!.name,
    });
    const panels = [0, 1, 2].map((c) =>
      drawOverlay(image, {
        masks: proxies.map((proxy, i) => ({
          mask: maskOfRuns(proxy.candidates[c]!),
          score: proxy.iou[c]!,
          ...label(i),
        })),
        points: item.points.map(([x, y], i) => ({ x, y, ...label(i) })),
        boxes: item.boxes.map((box, i) => ({ box, ...label(i) })),
        caption: `candidate ${c + 1}`,
      }),
    );
    yield { name: item.path, picture: contactSheet(panels, { columns: 3 }) };
  }
}

function configOf({ config, file }: Trained, run: string): Config {
  if (!config)
    throw new BadInput(
      `${run}: config.yaml is missing beside ${file}; give the folder of a run that wgpu-wish train has written`,
    );
  return config;
}

/** COCO's layouts: images/ beside annotations/, or the config's folder where its name for the first image leads somewhere. */
function imagesBeside(annotations: string, truth: Instances, config: Config): string {
  const folder = dirname(annotations);
  const guesses = [join(folder, "images"), join(dirname(folder), "images"), folder, config.val.images];
  const found = guesses.find((guess) => truth.images.length === 0 || existsSync(imagePath(guess, truth.images[0]!)));
  if (!found)
    throw new BadInput(
      `${annotations}: its images were not found in ${guesses.filter(Boolean).join(", ")}; put them into images/ beside the file`,
    );
  return found;
}
