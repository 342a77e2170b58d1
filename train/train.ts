/** Training as a whole: data, teacher, model, the loop, checkpoints, evaluation. */
import { existsSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import type { Device, optim } from "../engine/index.ts";
import type { Wish } from "../model/index.ts";
import {
  type Checkpoint,
  checkpointPath,
  keepingGood,
  latestCheckpoint,
  markBest,
  newestCheckpoint,
  saveCheckpoint,
} from "./checkpoint.ts";
import { type Claim, claimRun, makeWritable } from "./claim.ts";
import { type Config, configText } from "./config.ts";
import { type Category, overlapOf } from "./data/coco.ts";
import type { LoaderState, Sample } from "./data/loader.ts";
import type { Display } from "./display.ts";
import { BadInput } from "./errors.ts";
import { type Evaluation, evaluateModel } from "./evaluate.ts";
import { writeWhole } from "./files.ts";
import { writeGallery } from "./gallery.ts";
import { checkImages, checkResumed, readData, type TrainData } from "./inputs.ts";
import { Diary, Means } from "./metrics.ts";
import { MemoryWatch } from "./plan.ts";
import { type Prepared, prepare } from "./prepare.ts";
import { writeDetails, writeReport } from "./report.ts";
import { type StepReport, type Trainer, trainStep } from "./step.ts";

export interface TrainOptions {
  display: Display;
  /** Save and stop where it is aborted. */
  signal?: AbortSignal;
  /** Go on from the run's last checkpoint. */
  resume?: boolean;
  /** Ends the run early, asked before each step (a budget of time). */
  enough?: (step: number) => boolean;
  /** The configuration's file, for the errors. */
  file?: string;
  /** The run's folder, where the caller holds it already. */
  claim?: Claim;
}

export interface TrainResult {
  model: Wish;
  categories: Category[];
  /** Steps done in all. */
  step: number;
  interrupted: boolean;
  evaluation: Evaluation | undefined;
  /** The most bytes that tensors owned at any moment. */
  highWaterBytes: number;
}

interface SavedState {
  step: number;
  loader: LoaderState;
  /** What steps reported since the last line of metrics.jsonl. */
  means: Means["state"];
  /** Of mixed precision. */
  scaler?: optim.ScalerState;
}

/** Trains a configuration to its end, an interruption, or until `enough`. The model has been evaluated where the config names data for it. */
export async function train(gpu: Device, config: Config, options: TrainOptions): Promise<TrainResult> {
  const data = readData(config, options.file);
  await lookAt(data, config, options.display);
  const claim = options.claim ?? claimRun(config.run);
  try {
    if (config.sam.cache) makeWritable(config.sam.cache, "sam.cache=DIR");
    return await trainClaimed(gpu, config, data, options);
  } finally {
    if (!options.claim) claim.release();
  }
}

/** Looking at fewer images takes no time worth a bar. */
const MANY = 2000;

async function lookAt(data: TrainData, config: Config, display: Display): Promise<void> {
  let bar: ReturnType<Display["progress"]> | undefined;
  await checkImages(data, config, (done, total) => {
    if (total >= MANY) (bar ??= display.progress(total, "img")).update(done, { read: "headers" });
  });
  bar?.end();
}

async function trainClaimed(gpu: Device, config: Config, data: TrainData, options: TrainOptions): Promise<TrainResult> {
  gpu.resetHighWater();
  const previous = await previousState(config, options);
  const prepared = await prepare(gpu, config, data, options);
  try {
    return await trainPrepared(gpu, config, data, options, previous, prepared);
  } finally {
    prepared.loader.close();
  }
}

async function trainPrepared(
  gpu: Device,
  config: Config,
  data: TrainData,
  options: TrainOptions,
  previous: Checkpoint | undefined,
  { trainer, loader, sizes, notes }: Prepared,
): Promise<TrainResult> {
  const { display, signal } = options;
  const { run } = config;
  const { model, optimizer } = trainer;
  const saved = previous && (previous.state as unknown as SavedState);
  let step = saved?.step ?? 0;
  const means = new Means(saved?.means);
  if (previous) {
    previous.restore(gpu, { model, optimizer });
    loader.restore(saved!.loader);
    if (saved!.scaler) trainer.scaler?.loadStateDict(saved!.scaler);
    display.log(`${run}: going on at step ${step} of ${config.steps}`);
  } else for (const note of notes) display.log(note);
  await writeWhole(join(run, "config.yaml"), configText(config));
  const kinds = [...new Set(data.items.map((item) => item.kind))].sort();
  display.log(
    `${data.items.length} images (${kinds.map((kind) => `${data.items.filter((item) => item.kind === kind).length} with ${kind}`).join(", ")}), ` +
      `${data.categories.length} classes, ${(model.parameters().reduce((n, x) => n + x.size, 0) / 1e6).toFixed(2)} M parameters`,
  );

  if (data.validation && overlapOf(data.validation) === "bbox")
    display.log(`${data.validation.file}: has no masks, so results are judged by how boxes overlap`);

  const diary = await Diary.open(run, step, config.log);
  let best = await bestOf(run, diary);
  let interrupted = false;
  let evaluation: Evaluation | undefined;
  let evaluatedAt = -1;
  const evaluate = async (): Promise<void> => {
    const found = await assess(trainer, data, step, { diary, display, memory, ...(signal ? { signal } : {}) });
    if (!found) {
      interrupted = true;
      return;
    }
    evaluation = found;
    evaluatedAt = step;
    if (found.metrics.AP <= best) return;
    best = found.metrics.AP;
    await markBest(run, step);
  };
  const isDue = (): boolean =>
    data.validation !== undefined && step > 0 && (step % config.val.every === 0 || step === config.steps);
  let savedAt = previous ? step : -1;
  const save = async (): Promise<void> => {
    const scaled = trainer.scaler && { scaler: trainer.scaler.stateDict() };
    const state: SavedState = { step, loader: loader.state, means: means.state, ...scaled };
    const savable = { model, optimizer, state: { ...state, sizes, categories: data.categories, kinds }, config };
    await keepingGood(run, () => saveCheckpoint(run, step, savable, { keep: config.log.keep }));
    savedAt = step;
  };
  /** An image that turns out to be unreadable is the user's to mend; the steps before it are kept. */
  const keepUntil = async (place: LoaderState, error: unknown): Promise<never> => {
    if (!(error instanceof BadInput) || step === 0) throw error;
    bar.end();
    loader.restore(place);
    if (savedAt !== step) await save();
    throw new BadInput(`${error.message}; ${run} is saved at step ${step}: mend the image and go on with --resume`);
  };

  const memory = new MemoryWatch(gpu, (line) => display.log(line));
  const perStep = config.batch * config.accumulate;
  // Steps and their seconds since the last line: evaluations and checkpoints are no part of the speed.
  let pace = { steps: 0, seconds: 0, waited: 0 };
  let lr = 0;
  const writeLine = (): void => {
    const { liveBytes, liveBuffers } = gpu.memory;
    const highWaterBytes = memory.mostBytes;
    const imagesPerSecond = (pace.steps * perStep) / pace.seconds;
    const waiting = pace.waited / pace.seconds;
    diary.step({ step, ...means.values, lr, imagesPerSecond, waiting, liveBytes, liveBuffers, highWaterBytes });
    pace = { steps: 0, seconds: 0, waited: 0 };
    means.clear();
  };

  // The checkpoint was saved, and then the evaluation was cut short.
  if (previous && isDue() && !diary.evaluations.some((entry) => entry.step === step)) await evaluate();
  let bar = display.progress(config.steps, "img");
  model.train();
  while (!interrupted && step < config.steps && !options.enough?.(step)) {
    if (signal?.aborted) {
      interrupted = true;
      break;
    }
    const began = performance.now();
    const place = loader.state;
    let waited = 0;
    const work = async (): Promise<StepReport> => {
      const batches: Sample[][] = [];
      for (let i = 0; i < config.accumulate; i++) batches.push(await loader.next());
      waited = (performance.now() - began) / 1000;
      const whole = !trainer.hasTags || step >= config.cam.warmup;
      const taken = (own: Trainer) => keepingGood(run, () => trainStep(own, batches, step));
      return memory.around(trainer, batches, whole, taken);
    };
    const report = await work().catch((error) => keepUntil(place, error));
    step++;
    lr = report.lr!;
    means.add(report);
    const seconds = (performance.now() - began) / 1000;
    pace = { steps: pace.steps + 1, seconds: pace.seconds + seconds, waited: pace.waited + waited };
    bar.update(step, shownTerms(means.values), perStep);
    const last = step === config.steps;
    if (step % config.log.every === 0 || last) writeLine();
    if (step % config.log.checkpoint === 0 || last || isDue()) await save();
    if (!isDue()) continue;
    await evaluate();
    // The evaluation had a bar of its own, and there is one at a time.
    bar = display.progress(config.steps, "img");
  }
  bar.end();
  if (savedAt !== step) {
    // An interrupted run goes on with these means, so that its lines are those of a run in one piece.
    if (!interrupted && pace.steps > 0) writeLine();
    await save();
  }
  if (!interrupted && data.validation && evaluatedAt !== step) await evaluate();
  await writeReport(run, { config, categories: data.categories });
  const highWaterBytes = memory.mostBytes;
  return { model, categories: data.categories, step, interrupted, evaluation, highWaterBytes };
}

/** The checkpoint to go on from, where the user asks for that; else the folder must hold none. Throws BadInput. */
async function previousState(config: Config, { display, resume, file }: TrainOptions): Promise<Checkpoint | undefined> {
  const { run } = config;
  if (!resume) {
    if (latestCheckpoint(run))
      throw new BadInput(`${run}: already holds a run; give --resume to go on, or another folder with run=DIR`);
    return undefined;
  }
  const previous = await newestCheckpoint(run, (line) => display.warn(line));
  if (previous) {
    const told = checkResumed(previous.config, Number(previous.state.step), config, file ?? "config");
    if (told) display.log(told);
  } else display.log(`${run}: no checkpoint yet, starting from the beginning`);
  return previous;
}

/** Best AP among the evaluations whose checkpoint is still there, -1 where there is none; `best` then names that checkpoint. */
async function bestOf(run: string, diary: Diary): Promise<number> {
  const kept = diary.evaluations.filter(({ step }) => existsSync(checkpointPath(run, step)));
  const best = kept.reduce((a, b) => (a && a.evaluation.AP >= b.evaluation.AP ? a : b), kept[0]);
  if (!best) return -1;
  await markBest(run, best.step);
  return best.evaluation.AP;
}

interface AssessParts {
  diary: Diary;
  display: Display;
  memory: MemoryWatch;
  signal?: AbortSignal;
}

/** Evaluates the model and writes down what comes out; undefined where it was cut short, which leaves no trace. */
async function assess(
  trainer: Trainer,
  data: TrainData,
  step: number,
  { diary, display, memory, signal }: AssessParts,
): Promise<Evaluation | undefined> {
  const { gpu, config, model, teacher } = trainer;
  const bar = display.progress(config.val.limit || data.validation!.images.length, "img");
  const evaluation = await evaluateModel(gpu, model, data.categories, data.validation!, config.val.images, {
    ...config.val,
    iou: overlapOf(data.validation!),
    pictures: { count: config.val.pictures, folder: join(config.run, "pictures") },
    onImage: (done) => bar.update(done, { evaluated: "val" }),
    ...(signal ? { signal } : {}),
  });
  bar.end();
  if (!evaluation.complete) return undefined;
  diary.evaluation(step, evaluation.metrics, memory.mostBytes, () =>
    evaluation.pictures.map((path) => ({ tag: `val/${basename(path, ".png")}`, png: readFileSync(path) })),
  );
  const { AP, AP50, AP75 } = evaluation.metrics;
  display.log(`step ${step}: AP ${AP.toFixed(3)}, AP50 ${AP50.toFixed(3)}, AP75 ${AP75.toFixed(3)}`);
  await writeDetails(config.run, step, evaluation);
  const { categories, items, validation } = data;
  const source = { items, truth: validation!, quality: evaluation.quality };
  let drawing: ReturnType<Display["progress"]> | undefined;
  await writeGallery(config.run, { gpu, model, categories, config, teacher }, source, {
    onImage: (done, total) => (drawing ??= display.progress(total, "img")).update(done, { drawn: "stages" }),
    ...(signal ? { signal } : {}),
  });
  drawing?.end();
  await writeReport(config.run, { config, categories });
  return evaluation;
}

/** For the progress bar: the loss and its terms, in this order. */
const TERMS = ["loss", "class", "prompt", "bce", "dice", "projection", "pairwise", "cam", "self"];

function shownTerms(means: StepReport): Record<string, number> {
  return Object.fromEntries(TERMS.flatMap((name) => (means[name] === undefined ? [] : [[name, means[name]]])));
}
