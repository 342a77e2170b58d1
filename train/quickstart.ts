/**
 * The main job on the embedded default, from nothing to a report: makes scenes, derives mixed weak labels, lets the shipped teacher draw
 * their masks, trains WISH, evaluates on scenes that no weights have seen. Fits a budget of time on two cores without a GPU.
 */
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { parse as parseYaml } from "yaml";
import type { Device } from "../engine/index.ts";
import { packageRoot } from "../platform/root.ts";
import { type Config, resolveConfig } from "./config.ts";
import { readInstances } from "./data/coco.ts";
import { writeScenes } from "./data/scenes.ts";
import { weaken, writeWeak } from "./data/weak.ts";
import { BadInput } from "./errors.ts";
import type { Metrics } from "./eval/coco-ap.ts";
import { evaluateModel } from "./evaluate.ts";
import { writeWhole } from "./files.ts";
import { modelConfig, newModel } from "./models.ts";
import { writeReport } from "./report.ts";
import { findAsset } from "./teacher.ts";
import { type Display, openTeacher, train } from "./train.ts";

/** Trained on scenes of seed 101 and judged on those of 999; the ones made here have other seeds. */
const START = "assets/wish-scenes.safetensors";
const TRAIN_SEED = 31_415;
const VAL_SEED = 27_182;
const TRAIN_IMAGES = 240;
const VAL_IMAGES = 80;
const MIX = { tags: 0.2, points: 0.3, boxes: 0.5 };
/** `npm start` has 15 minutes, of which a first set-up takes up to four. */
const SECONDS = 600;
/** From shipped weights few steps at a low rate suffice. */
const STEPS = { gpu: 2000, software: 240 };
const MARK = "quickstart.json";

export interface QuickstartOptions {
  out: string;
  display: Display;
  /** Default: what fits the adapter. */
  steps?: number;
  signal?: AbortSignal;
}

export interface QuickstartResult {
  run: string;
  adapter: string;
  /** The shipped weights that the run started from; undefined: from random ones. */
  startedFrom: string | undefined;
  steps: number;
  interrupted: boolean;
  before: Metrics | undefined;
  after: Metrics | undefined;
  seconds: number;
}

export async function quickstart(
  gpu: Device,
  { out, display, steps, signal }: QuickstartOptions,
): Promise<QuickstartResult> {
  const began = performance.now();
  const seconds = (): number => (performance.now() - began) / 1000;
  clear(out);
  const start = existsSync(findAsset(START)) ? START : undefined;
  const config = await prepare(out, display, start, steps ?? (gpu.isSoftware ? STEPS.software : STEPS.gpu));

  const truth = readInstances(config.val.annotations);
  let before: Metrics | undefined;
  let evaluationSeconds = 0;
  if (start) {
    display.log(`starting from the shipped weights ${start}, trained on other scenes`);
    const teacher = await openTeacher(gpu, config);
    const { model } = await newModel(gpu, config, modelConfig(config, truth.categories.length, teacher.promptDim));
    const from = seconds();
    ({ metrics: before } = await evaluateModel(gpu, model, truth.categories, truth, config.val.images, {
      ...inference(config),
      ...(signal ? { signal } : {}),
    }));
    evaluationSeconds = seconds() - from;
    display.log(
      `before training: AP ${before.AP.toFixed(3)}, AP50 ${before.AP50.toFixed(3)} on ${truth.images.length} unseen scenes`,
    );
  } else display.log("no shipped weights here: starting from random ones, so do not expect much of a few minutes");

  const limit = SECONDS - 1.3 * evaluationSeconds - 20;
  let inTime = true;
  const result = await train(gpu, config, {
    display,
    ...(signal ? { signal } : {}),
    enough: () => {
      // A number of steps that was asked for is done however long it takes.
      inTime = steps !== undefined || seconds() < limit;
      return !inTime;
    },
  });
  if (!inTime)
    display.log(
      `stopped after ${result.step} of ${config.steps} steps to stay within the time; this adapter (${gpu.name}) is slow`,
    );
  const after = result.evaluation?.metrics;
  const summary: QuickstartResult = {
    run: out,
    adapter: gpu.name,
    startedFrom: start,
    steps: result.step,
    interrupted: result.interrupted,
    before,
    after,
    seconds: Math.round(seconds()),
  };
  const notes = [
    `Procedural scenes on ${gpu.name}; labels: ${Object.entries(MIX)
      .map(([kind, share]) => `${share * 100} % ${kind}`)
      .join(", ")}.`,
    start && before
      ? `Started from the shipped weights ${start} (AP50 ${before.AP50.toFixed(3)} before); ${result.step} steps on ${TRAIN_IMAGES} new scenes${after ? `, AP50 ${after.AP50.toFixed(3)} after` : ""}, on ${VAL_IMAGES} scenes unseen by both.`
      : `Started from random weights; ${result.step} steps on ${TRAIN_IMAGES} scenes.`,
  ];
  await writeReport(out, { config, categories: result.categories, evaluation: result.evaluation, notes });
  await writeWhole(join(out, MARK), JSON.stringify(summary, null, 2));
  return summary;
}

function inference({ val }: Config): { short: number; long: number; topk: number } {
  return { short: val.short, long: val.long, topk: val.topk };
}

/** Data and settings. */
async function prepare(out: string, display: Display, start: string | undefined, steps: number): Promise<Config> {
  const preset = parseYaml(readFileSync(join(packageRoot, "configs", "scenes.yaml"), "utf8")) as {
    data: { width: number };
  } & Record<string, object>;
  const size = preset.data.width;
  const [trainDir, valDir] = [join(out, "data", "train"), join(out, "data", "val")];
  display.log(`making ${TRAIN_IMAGES} scenes to train on and ${VAL_IMAGES} to judge by`);
  const made = await writeScenes(trainDir, { images: TRAIN_IMAGES, size, seed: TRAIN_SEED });
  const val = await writeScenes(valDir, { images: VAL_IMAGES, size, seed: VAL_SEED });
  const labels = join(out, "data", "weak.json");
  await writeWeak(labels, weaken(readInstances(made.annotations), MIX, { seed: TRAIN_SEED }));
  return resolveConfig({
    ...preset,
    run: out,
    seed: 1,
    steps,
    data: { ...preset.data, images: made.imagesDir, labels },
    val: { ...preset.val, images: val.imagesDir, annotations: val.annotations, every: steps, pictures: 12 },
    model: { ...preset.model, weights: start ?? "" },
    optim: { ...preset.optim, ...(start ? { lr: 2e-4, warmup: 10 } : {}) },
    log: { ...preset.log, every: 10, checkpoint: 100 },
  });
}

/** Takes the place of an earlier quickstart, and of nothing else. */
function clear(out: string): void {
  if (!existsSync(out) || readdirSync(out).length === 0) return;
  const ours =
    existsSync(join(out, MARK)) || (existsSync(join(out, "data", "weak.json")) && existsSync(join(out, "data", "val")));
  if (!ours) throw new BadInput(`${out}: is not empty and holds no quickstart; name another folder with --out`);
  rmSync(out, { recursive: true });
}
