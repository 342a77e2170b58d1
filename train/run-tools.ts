/** What can be asked of a finished or running run: its metrics on any data, its CAMs, SAM proxies and predictions as pictures. */
import { existsSync } from "node:fs";
import { basename, dirname, extname, join } from "node:path";
import { type Device, noGrad, scope } from "../engine/index.ts";
import type { Wish } from "../model/index.ts";
import { findPeaks } from "./cam.ts";
import type { Config } from "./config.ts";
import { type Instances, imagePath, overlapOf, readInstances } from "./data/coco.ts";
import { type Image, readImage, writePng } from "./data/image.ts";
import { makeFolder } from "./data/json.ts";
import { evalSample } from "./data/loader.ts";
import { maskOfRuns } from "./data/mask.ts";
import { BadInput } from "./errors.ts";
import type { Metrics, Result } from "./eval/coco-ap.ts";
import { evaluateVoc, type VocMetrics } from "./eval/voc.ts";
import { evaluateModel, predictionOverlay, segment } from "./evaluate.ts";
import { keepApart } from "./folders.ts";
import { loadRun, type Trained } from "./models.ts";
import { contactSheet, drawOverlay, heatmap } from "./pictures.ts";
import { imageTensor } from "./step.ts";
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
  return { metrics: evaluation.metrics, voc, truth, results: evaluation.results, file: trained.file };
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
  what: "cam" | "proxies" | "predictions",
  options: ShowRunOptions,
): Promise<string[]> {
  const trained = await loadRun(gpu, options.run);
  const config = configOf(trained, options.run);
  const { data, val } = config;
  for (const folder of [data.images, val.images]) if (folder) keepApart(options.out, [join(folder, "image")]);
  await makeFolder(options.out);
  const pictures = { cam: camPictures, proxies: proxyPictures, predictions: predictionPictures }[what];
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
    const sample = await evalSample(image, config.val);
    const { values, shape } = await camOf(gpu, trained.model, sample);
    const [K, h, w] = shape;
    const frame = [
      sample.width + ((32 - (sample.width % 32)) % 32),
      sample.height + ((32 - (sample.height % 32)) % 32),
    ] as const;
    const peaks = findPeaks(values, [K, h, w], item.tags, sample.valid, frame, config.cam);
    const panels = item.tags.map((tag) => {
      const map = normalised(values.subarray(tag * h * w, (tag + 1) * h * w));
      const points = peaks
        .filter((peak) => peak.classIndex === tag)
        .map(({ x, y, value }) => ({
          x: x / sample.affine.scaleX - 0.5,
          y: y / sample.affine.scaleY - 0.5,
          classIndex: tag,
          label: value.toFixed(2),
        }));
      const { name } = trained.categories[tag]!;
      const caption = map.some((v) => v > 0) ? name : `${name}: no activation`;
      return drawOverlay(heatmap(image, map, w, h), { points, caption });
    });
    yield { name: item.path, picture: contactSheet(panels) };
  }
}

async function camOf(
  gpu: Device,
  model: Wish,
  sample: Parameters<typeof imageTensor>[1][number],
): Promise<{ values: Float32Array; shape: [number, number, number] }> {
  return scope(async () => {
    const { cam } = noGrad(() => model.forwardCam(imageTensor(gpu, [sample])));
    return { values: (await cam.toArray()) as Float32Array, shape: cam.shape.slice(1) as [number, number, number] };
  });
}

function normalised(map: Float32Array): Float32Array {
  const most = Math.max(1e-5, ...map);
  return map.map((v) => Math.max(0, v) / most);
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
