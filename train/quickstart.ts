/**
 * The main job on the embedded default, from nothing to a report: makes scenes, derives mixed weak labels, lets the shipped teacher draw
 * their masks, trains WISH, evaluates on scenes that no weights have seen. Fits a budget of time on two cores without a GPU.
 */
import { existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join, relative, sep } from "node:path";
import { parse as parseYaml } from "yaml";
import { type Device, scope } from "../engine/index.ts";
import { packageRoot } from "../platform/root.ts";
import { type Claim, claimRun, LOCK } from "./claim.ts";
import { type Config, resolveConfig } from "./config.ts";
import { type Instances, readInstances } from "./data/coco.ts";
import { writeScenes } from "./data/scenes.ts";
import { weaken, writeWeak } from "./data/weak.ts";
import type { Display } from "./display.ts";
import { BadInput } from "./errors.ts";
import type { Metrics } from "./eval/coco-ap.ts";
import { evaluateModel } from "./evaluate.ts";
import { writeWhole } from "./files.ts";
import { modelConfig, newModel } from "./models.ts";
import { openTeacher } from "./prepare.ts";
import { writeReport } from "./report.ts";
import { findAsset } from "./teacher.ts";
import { train } from "./train.ts";

/** Trained on scenes of seed 101 and judged on those of 999; the ones made here have other seeds. */
const START = "assets/wish-scenes.safetensors";
const TRAIN_SEED = 31_415;
const VAL_SEED = 27_182;
/** Where an image takes longer than SLOW seconds, fewer scenes do: the teacher has to look at each of them. */
const TRAIN_IMAGES = { quick: 240, slow: 48 };
const VAL_IMAGES = 80;
const SLOW = 0.4;
const MIX = { tags: 0.2, points: 0.3, boxes: 0.5 };
/** `npm start` has 15 minutes, of which a first set-up takes up to four. */
const SECONDS = 600;
/** From shipped weights few steps at a low rate suffice. */
const STEPS = { gpu: 2000, software: 240, least: 5 };
/** A step of four images takes about this many times what the evaluation of one takes, measured on lavapipe. */
const STEP_COST = 9;
/** Tells from its first moment on that a folder is a quickstart's; holds the outcome at the end. */
const MARK = "quickstart.json";
const MAKER = "wgpu-wish quickstart";
/** All that a quickstart writes, besides its mark. */
const MADE = [
  /^data\/(train|val)\/(images\/\d{6}\.png|annotations\/instances\.json)$/,
  /^data\/weak\.json$/,
  /^cache\/[^/]+\/[\w-]+\.(json|safetensors)$/,
  /^checkpoints\/step-\d+\.safetensors(\.damaged)?$/,
  /^pictures\/(\d{6}|sheet)\.png$/,
  /^pictures\/stages\/((best|worst|training)-\d+\.jpg|stages\.json)$/,
  /^(config\.yaml|metrics\.jsonl|results\.csv|last|best|details\.json|report\.html)$/,
];

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
  /** Undefined where it was interrupted before. */
  before: Metrics | undefined;
  after: Metrics | undefined;
  /** The most bytes that tensors owned at any moment of the training. */
  highWaterBytes: number;
  seconds: number;
}

export async function quickstart(gpu: Device, options: QuickstartOptions): Promise<QuickstartResult> {
  refuseOthers(options.out);
  const claim = claimRun(options.out, "--out");
  try {
    clear(options.out);
    return await quickstartClaimed(gpu, options, claim);
  } finally {
    claim.release();
  }
}

async function quickstartClaimed(
  gpu: Device,
  { out, display, steps, signal }: QuickstartOptions,
  claim: Claim,
): Promise<QuickstartResult> {
  const began = performance.now();
  const seconds = (): number => (performance.now() - began) / 1000;
  const start = existsSync(findAsset(START)) ? START : undefined;
  const preset = parseYaml(readFileSync(join(packageRoot, "configs", "scenes.yaml"), "utf8")) as Preset;

  display.log(`making ${VAL_IMAGES} scenes to judge by`);
  const val = await writeScenes(join(out, "data", "val"), {
    images: VAL_IMAGES,
    size: preset.data.width,
    seed: VAL_SEED,
  });
  const judged = settingsOf(preset, out, start, val);
  const truth = readInstances(val.annotations);
  display.log(
    start
      ? `starting from the shipped weights ${start}, which were trained on other scenes`
      : "there are no shipped weights here: starting from random ones, so do not expect much of a few minutes",
  );
  // In a scope of its own, or the model that was judged would take memory beside the one that is trained until it is collected.
  const { before, each } = await scope(() => judge(gpu, judged, truth, display, signal));
  const known = { run: out, adapter: gpu.name, startedFrom: start, before };
  if (!before)
    return {
      ...known,
      steps: 0,
      interrupted: true,
      after: undefined,
      highWaterBytes: 0,
      seconds: Math.round(seconds()),
    };

  const images = each > SLOW ? TRAIN_IMAGES.slow : TRAIN_IMAGES.quick;
  display.log(`making ${images} scenes to train on, with ${shares()}`);
  const made = await writeScenes(join(out, "data", "train"), { images, size: preset.data.width, seed: TRAIN_SEED });
  const labels = join(out, "data", "weak.json");
  await writeWeak(labels, weaken(readInstances(made.annotations), MIX, { seed: TRAIN_SEED }));

  // What is left when the teacher has drawn its masks and the scenes have been judged again.
  const reserve = each * (VAL_IMAGES * 1.3 + images) + 20;
  const most = gpu.isSoftware ? STEPS.software : STEPS.gpu;
  const fitting = Math.floor((SECONDS - seconds() - reserve) / (STEP_COST * each));
  const planned = steps ?? Math.max(STEPS.least, Math.min(most, fitting));
  if (planned < most && steps === undefined)
    display.log(`${gpu.name} is slow: ${planned} steps instead of ${most}, to stay within the time`);
  const config = resolveConfig({
    ...judged,
    steps: planned,
    data: { ...judged.data, images: made.imagesDir, labels },
    val: { ...judged.val, every: planned },
  });
  const limit = SECONDS - each * VAL_IMAGES * 1.3 - 20;
  const result = await train(gpu, config, {
    display,
    claim,
    ...(signal ? { signal } : {}),
    // A number of steps that was asked for is done however long it takes.
    enough: (step) => steps === undefined && step >= STEPS.least && seconds() > limit,
  });
  if (!result.interrupted && result.step < planned)
    display.log(`stopped after ${result.step} of ${planned} steps to stay within the time`);
  const after = result.evaluation?.metrics;
  const summary: QuickstartResult = {
    ...known,
    steps: result.step,
    interrupted: result.interrupted,
    after,
    highWaterBytes: result.highWaterBytes,
    seconds: Math.round(seconds()),
  };
  const notes = [
    `${images} procedural scenes with ${shares()}, on ${gpu.name}.`,
    `Started from ${start ? `the shipped weights ${start}` : "random weights"}; AP50 ${before.AP50.toFixed(3)} before${after ? `, ${after.AP50.toFixed(3)} after` : ""} ${result.step} steps, on ${VAL_IMAGES} scenes that no weights have seen.`,
  ];
  await writeReport(out, { config, categories: result.categories, notes });
  await writeWhole(join(out, MARK), JSON.stringify({ maker: MAKER, ...summary }, null, 2));
  return summary;
}

/** Metrics of the model that the run will start from, undefined where that was interrupted, and the seconds that one image takes. */
async function judge(
  gpu: Device,
  config: Config,
  truth: Instances,
  display: Display,
  signal: AbortSignal | undefined,
): Promise<{ before: Metrics | undefined; each: number }> {
  const teacher = await openTeacher(gpu, config);
  const { model } = await newModel(gpu, config, modelConfig(config, truth.categories.length, teacher.promptDim));
  const times: number[] = [];
  let last = performance.now();
  const bar = display.progress(truth.images.length, "img");
  const { metrics, complete } = await evaluateModel(gpu, model, truth.categories, truth, config.val.images, {
    ...inference(config),
    ...(signal ? { signal } : {}),
    onImage: (done) => {
      times.push((performance.now() - last) / 1000);
      last = performance.now();
      bar.update(done);
    },
  });
  bar.end();
  if (!complete) return { before: undefined, each: 1 };
  display.log(
    `before training: AP ${metrics.AP.toFixed(3)}, AP50 ${metrics.AP50.toFixed(3)} on ${truth.images.length} unseen scenes`,
  );
  // The first images compile the kernels.
  const sorted = times.slice(Math.min(3, times.length - 1)).sort((a, b) => a - b);
  return { before: metrics, each: sorted[Math.floor(sorted.length / 2)] ?? 1 };
}

function shares(): string {
  return Object.entries(MIX)
    .map(([kind, share]) => `${share * 100} % ${kind}`)
    .join(", ");
}

function inference({ val }: Config): { short: number; long: number; topk: number } {
  return { short: val.short, long: val.long, topk: val.topk };
}

type Preset = { data: { width: number } } & Record<string, object>;

/** configs/scenes.yaml for this run. From shipped weights the rate is low: they are to be refined, not replaced. */
function settingsOf(
  preset: Preset,
  out: string,
  start: string | undefined,
  val: { imagesDir: string; annotations: string },
): Config {
  return resolveConfig({
    ...preset,
    run: out,
    seed: 1,
    val: { ...preset.val, images: val.imagesDir, annotations: val.annotations, pictures: 12 },
    model: { ...preset.model, weights: start ?? "" },
    optim: { ...preset.optim, ...(start ? { lr: 5e-5, warmup: 10 } : {}) },
    log: { ...preset.log, every: 10, checkpoint: 100 },
  });
}

/** A quickstart takes the place of an earlier one, and of nothing else. */
function refuseOthers(out: string): void {
  if (!existsSync(out)) return;
  if (!statSync(out).isDirectory()) throw new BadInput(`${out}: is a file; name a folder with --out`);
  if (readdirSync(out).every((name) => name === LOCK) || isMarked(out)) return;
  throw new BadInput(`${out}: is not empty and holds no quickstart; name another folder with --out`);
}

/** Removes what an earlier one has made and leaves its mark, so that an interrupted one is known, too. */
function clear(out: string): void {
  for (const entry of readdirSync(out, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath ?? entry.path, entry.name);
    const name = relative(out, path).replaceAll(sep, "/");
    if (entry.isFile() && MADE.some((made) => made.test(name))) rmSync(path);
  }
  writeFileSync(join(out, MARK), JSON.stringify({ maker: MAKER }));
}

function isMarked(out: string): boolean {
  try {
    const mark = JSON.parse(readFileSync(join(out, MARK), "utf8")) as Record<string, unknown>;
    // Finished ones of earlier versions tell by what they hold.
    return mark.maker === MAKER || ["adapter", "before", "steps"].every((key) => key in mark);
  } catch {
    return false;
  }
}
