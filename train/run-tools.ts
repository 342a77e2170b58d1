/** What can be asked of a finished or running run: its metrics on any data, its CAMs, SAM proxies and predictions as pictures. */
import { existsSync } from "node:fs";
import { basename, dirname, extname, join } from "node:path";
import type { Device } from "../engine/index.ts";
import { bestRated } from "../model/sam/index.ts";
import { augmentedPicture } from "./augmented.ts";
import { checkSeen } from "./binding.ts";
import type { Config } from "./config.ts";
import { pointToOriginal, warpMask } from "./data/augment.ts";
import { type Instances, imagePath, overlapOf, readInstances } from "./data/coco.ts";
import { type Image, readImage, writePng } from "./data/image.ts";
import { makeFolder } from "./data/json.ts";
import type { Item, Sample } from "./data/loader.ts";
import { maskOfRuns, runsOfMask } from "./data/mask.ts";
import type { Display } from "./display.ts";
import { BadInput } from "./errors.ts";
import type { Curve, Metrics, Result } from "./eval/coco-ap.ts";
import type { Confusion } from "./eval/confusion.ts";
import { evaluateVoc, type VocMetrics } from "./eval/voc.ts";
import { evaluateModel, predictionOverlay, segment } from "./evaluate.ts";
import { FileNames, keepApart } from "./folders.ts";
import { readData } from "./inputs.ts";
import { classText } from "./lettering.ts";
import { loadRun, type Trained } from "./models.ts";
import { contactSheet, drawOverlay, type Overlay } from "./pictures.ts";
import { openTeacher, proxiesOf } from "./prepare.ts";
import type { SamProxy } from "./proxies.ts";
import { camOf } from "./stages.ts";

/** Pictures on the sheet that shows many at once. */
const ON_SHEET = 24;
/** Images that are drawn where nobody asks for another number. */
export const SHOWN = 64;

export interface EvaluateRunOptions {
  run: string;
  /** Instances JSON; default: the run's own. */
  data?: string;
  /** Folder of its images; default: looked for beside it, then where the config says. */
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
  await checkSeen(gpu, trained.model.config, truth.images, config.val, valSize(options.run, config));
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
  /** At most so many images (default SHOWN). */
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
  const drawings = {
    augmented: augmentedDrawings,
    cam: camDrawings,
    proxies: proxyDrawings,
    predictions: predictionDrawings,
  }[what];
  const all = await drawings(gpu, trained, config, options);
  keepApart(
    options.out,
    all.map(({ path }) => path),
  );
  await makeFolder(options.out);
  const wanted = all.slice(0, options.limit ?? SHOWN);
  const names = new FileNames(["sheet"]).ofImages(wanted.map(({ path }) => path));
  const files: string[] = [];
  const panels: Image[] = [];
  const bar = options.display.progress(wanted.length, "img");
  for (const [i, { draw }] of wanted.entries()) {
    const picture = await draw();
    files.push(join(options.out, `${names[i]}.png`));
    await writePng(files.at(-1)!, picture);
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

/** A picture still to be drawn, and the image that it is of. */
interface Drawing {
  path: string;
  draw(): Promise<Image>;
}

/** Training images as the network sees them, with SAM's masks of their labels or, where these are tags, of the CAM's peaks. */
async function augmentedDrawings(
  gpu: Device,
  { model, categories }: Trained,
  config: Config,
  { display }: ShowRunOptions,
): Promise<Drawing[]> {
  const data = readData(config);
  const teacher = config.mode === "wish" ? await openTeacher(gpu, config) : undefined;
  const all = teacher ? await proxiesOf(teacher, data, config, display) : [];
  const pseudo = async (image: Image, sample: Sample, item: Item): Promise<Overlay> => {
    if (!teacher || model.config.cam.feature === "none") return {};
    const frame = { width: sample.width, height: sample.height, data: sample.rgb };
    const { peaks } = await camOf(gpu, model, frame, item.tags, config);
    const named = peaks.map((peak) => ({ ...peak, label: classText(categories[peak.classIndex]!) }));
    const onImage = peaks.map(({ x, y }) => pointToOriginal(sample.affine, x, y));
    const [answers = []] = await teacher.prompt([image], "point", [onImage]);
    const masks = answers.map(({ masks: three, iou }, i) => {
      const runs = runsOfMask(three[bestRated(iou)]!, image.width, image.height);
      return { mask: warpMask(runs, sample.affine, sample.width, sample.height), classIndex: named[i]!.classIndex };
    });
    return { points: named, masks };
  };
  const options = { categories, config, proxies: (_: Item, at: number) => all[at], pseudo };
  return data.items.map((item, i) => ({ path: item.path, draw: () => augmentedPicture(item, i, options) }));
}

async function predictionDrawings(
  gpu: Device,
  trained: Trained,
  config: Config,
  { run }: ShowRunOptions,
): Promise<Drawing[]> {
  if (!config.val.annotations) throw new BadInput(`${run}: its config names no evaluation images (val.annotations)`);
  const truth = readInstances(config.val.annotations, { supercategories: config.data.supercategories });
  await checkSeen(gpu, trained.model.config, truth.images, config.val, valSize(run, config));
  return truth.images.map((entry) => {
    const path = imagePath(config.val.images, entry);
    const draw = async (): Promise<Image> => {
      const image = await readImage(path);
      const found = await segment(gpu, trained.model, image, config.val);
      return drawOverlay(image, { ...predictionOverlay(found, trained.categories), caption: entry.fileName });
    };
    return { path, draw };
  });
}

/** The CAM of each tagged class over the image, with its peaks. */
async function camDrawings(gpu: Device, trained: Trained, config: Config, { run }: ShowRunOptions): Promise<Drawing[]> {
  if (trained.model.config.cam.feature === "none")
    throw new BadInput(`${run}: its model has no CAM branch (cam.feature is none)`);
  const { items } = readData(config);
  const tagged = items
    .filter((item) => item.tags.length > 0)
    .sort((a, b) => Number(b.kind === "tags") - Number(a.kind === "tags"));
  const images = tagged.map(({ path, width, height }) => ({ fileName: path, width, height }));
  await checkSeen(gpu, trained.model.config, images, config.val, valSize(run, config));
  const draw = async (item: Item): Promise<Image> => {
    const image = await readImage(item.path);
    const { maps, peaks } = await camOf(gpu, trained.model, image, item.tags, config);
    const panels = maps.map(({ classIndex, picture, active }) => {
      const points = peaks
        .filter((peak) => peak.classIndex === classIndex)
        .map((peak) => ({ ...peak, label: peak.value.toFixed(2) }));
      const name = classText(trained.categories[classIndex]!);
      return drawOverlay(picture, { points, caption: active ? name : `${name}: no activation` });
    });
    return contactSheet(await Promise.all(panels));
  };
  return tagged.map((item) => ({ path: item.path, draw: () => draw(item) }));
}

/** The label, and SAM's three masks for it with their ratings. */
async function proxyDrawings(
  gpu: Device,
  trained: Trained,
  config: Config,
  { run, display }: ShowRunOptions,
): Promise<Drawing[]> {
  if (config.mode !== "wish") throw new BadInput(`${run}: was trained from masks; there are no SAM proxies`);
  const data = readData(config);
  const teacher = await openTeacher(gpu, config);
  const all = await proxiesOf(teacher, data, config, display);
  const draw = async (item: Item, proxies: readonly SamProxy[]): Promise<Image> => {
    const image = await readImage(item.path);
    const label = (i: number): { classIndex: number; label: string } => ({
      classIndex: item.classes[i]!,
      label: classText(trained.categories[item.classes[i]!]!),
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
    return contactSheet(await Promise.all(panels), { columns: 3 });
  };
  return data.items.flatMap((item, i) =>
    item.kind === "points" || item.kind === "boxes" ? [{ path: item.path, draw: () => draw(item, all[i]!) }] : [],
  );
}

/** For errors. */
function valSize(run: string, { val }: Config): string {
  return `${join(run, "config.yaml")}: val.short=${val.short} and val.long=${val.long}`;
}

function configOf({ config, file }: Trained, run: string): Config {
  if (!config)
    throw new BadInput(
      `${run}: config.yaml is missing beside ${file}; give the folder of a run that wgpu-wish train has written`,
    );
  return config;
}

/**
 * COCO's layouts: val2017/ beside annotations/instances_val2017.json, or images/; or the config's folder. The one where the file's name for
 * its first image leads somewhere.
 */
function imagesBeside(annotations: string, truth: Instances, config: Config): string {
  const folder = dirname(annotations);
  const set = basename(annotations, extname(annotations)).split("_").at(-1)!;
  const names = [set, join("images", set), "images"];
  const guesses = [...[folder, dirname(folder)].flatMap((root) => names.map((name) => join(root, name))), folder];
  if (config.val.images) guesses.push(config.val.images);
  const found = guesses.find((guess) => truth.images.length === 0 || existsSync(imagePath(guess, truth.images[0]!)));
  if (!found)
    throw new BadInput(
      `${annotations}: its image ${truth.images[0]!.fileName} was not found in ${guesses.join(", ")}; name the folder with --images`,
    );
  return found;
}
