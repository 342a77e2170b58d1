/** A run as it goes: its steps, the lines of its metrics, its checkpoints and evaluations. */
import { existsSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import type { optim } from "../engine/index.ts";
import type { Wish } from "../model/index.ts";
import { type Checkpoint, checkpointPath, keepingGood, markBest, saveCheckpoint } from "./checkpoint.ts";
import { configText } from "./config.ts";
import { type Category, overlapOf } from "./data/coco.ts";
import type { LoaderState, Sample } from "./data/loader.ts";
import type { Display } from "./display.ts";
import { BadInput } from "./errors.ts";
import { type Evaluation, evaluateModel } from "./evaluate.ts";
import { writeWhole } from "./files.ts";
import { writeGallery } from "./gallery.ts";
import type { TrainData } from "./inputs.ts";
import { Diary, Means } from "./metrics.ts";
import { MemoryWatch } from "./plan.ts";
import type { Prepared } from "./prepare.ts";
import { writeDetails, writeReport } from "./report.ts";
import { type StepReport, type Trainer, trainStep } from "./step.ts";

export interface RunOptions {
  display: Display;
  /** Save and stop where it is aborted. */
  signal?: AbortSignal;
  /** Ends the run early, asked before each step (a budget of time). */
  enough?: (step: number) => boolean;
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

interface RunParts extends Prepared {
  data: TrainData;
  options: RunOptions;
}

export class Run {
  readonly #parts: RunParts;
  readonly #diary: Diary;
  readonly #memory: MemoryWatch;
  readonly #means: Means;
  /** Steps done. */
  #step: number;
  /** Best AP of the evaluations whose checkpoint is still there. */
  #best: number;
  #savedAt: number;
  #evaluation: Evaluation | undefined;
  #evaluatedAt = -1;
  #interrupted = false;
  #bar: ReturnType<Display["progress"]>;
  #lr = 0;
  /** Steps and their seconds since the last line: evaluations and checkpoints are no part of the speed. */
  #pace = { steps: 0, seconds: 0, waited: 0 };

  private constructor(parts: RunParts, saved: SavedState | undefined, diary: Diary, best: number) {
    const { options, trainer } = parts;
    this.#parts = parts;
    this.#diary = diary;
    this.#memory = new MemoryWatch(trainer.gpu, (line) => options.display.log(line));
    this.#means = new Means(saved?.means);
    this.#step = saved?.step ?? 0;
    this.#savedAt = saved?.step ?? -1;
    this.#best = best;
    this.#bar = idle;
  }

  /** A new one, or `previous` where it was left. */
  static async open(parts: RunParts, previous: Checkpoint | undefined): Promise<Run> {
    const { trainer, loader, notes, data, options } = parts;
    const { gpu, config, model, optimizer, scaler } = trainer;
    const { display } = options;
    const saved = previous && (previous.state as unknown as SavedState);
    if (previous) {
      previous.restore(gpu, { model, optimizer });
      loader.restore(saved!.loader);
      if (saved!.scaler) scaler?.loadStateDict(saved!.scaler);
      display.log(`${config.run}: going on at step ${saved!.step} of ${config.steps}`);
    } else for (const note of notes) display.log(note);
    await writeWhole(join(config.run, "config.yaml"), configText(config));
    display.log(summary(data, trainer));
    if (data.validation && overlapOf(data.validation) === "bbox")
      display.log(`${data.validation.file}: has no masks, so results are judged by how boxes overlap`);
    const diary = await Diary.open(config.run, saved?.step ?? 0, config.log);
    return new Run(parts, saved, diary, await bestOf(config.run, diary));
  }

  /** All steps that are left, unless it is interrupted or `enough` says so before. */
  async finish(): Promise<TrainResult> {
    const { trainer, data, options } = this.#parts;
    const { config, model } = trainer;
    // The checkpoint was saved, and then the evaluation was cut short.
    if (this.#savedAt >= 0 && this.#isDue && !this.#diary.evaluations.some(({ step }) => step === this.#step))
      await this.#evaluate();
    this.#bar = this.#stepBar();
    model.train();
    while (!this.#interrupted && this.#step < config.steps && !options.enough?.(this.#step)) {
      if (options.signal?.aborted) this.#interrupted = true;
      else await this.#takeStep();
    }
    this.#bar.end();
    if (this.#savedAt !== this.#step) {
      // An interrupted run goes on with these means, so that its lines are those of a run in one piece.
      if (!this.#interrupted && this.#pace.steps > 0) this.#writeLine();
      await this.#save();
    }
    if (!this.#interrupted && data.validation && this.#evaluatedAt !== this.#step) await this.#evaluate();
    await writeReport(config.run, { config, categories: data.categories });
    return {
      model,
      categories: data.categories,
      step: this.#step,
      interrupted: this.#interrupted,
      evaluation: this.#evaluation,
      highWaterBytes: this.#memory.mostBytes,
    };
  }

  /** One step and what is due after it. */
  async #takeStep(): Promise<void> {
    const { config } = this.#parts.trainer;
    const place = this.#parts.loader.state;
    const began = performance.now();
    const { report, waited } = await this.#train(began).catch((error) => this.#keepUntil(place, error));
    this.#step++;
    this.#lr = report.lr!;
    this.#means.add(report);
    const { steps, seconds, waited: before } = this.#pace;
    this.#pace = {
      steps: steps + 1,
      seconds: seconds + (performance.now() - began) / 1000,
      waited: before + waited,
    };
    this.#bar.update(this.#step, shownTerms(this.#means.values), config.batch * config.accumulate);
    const last = this.#step === config.steps;
    if (this.#step % config.log.every === 0 || last) this.#writeLine();
    if (this.#step % config.log.checkpoint === 0 || last || this.#isDue) await this.#save();
    if (!this.#isDue) return;
    await this.#evaluate();
    // The evaluation had a bar of its own, and there is one at a time.
    this.#bar = this.#stepBar();
  }

  /** The step itself, and the seconds that it waited for its images. */
  async #train(began: number): Promise<{ report: StepReport; waited: number }> {
    const { trainer, loader } = this.#parts;
    const { config } = trainer;
    const batches: Sample[][] = [];
    for (let i = 0; i < config.accumulate; i++) batches.push(await loader.next());
    const waited = (performance.now() - began) / 1000;
    const whole = !trainer.hasTags || this.#step >= config.cam.warmup;
    const step = (own: Trainer) => keepingGood(config.run, () => trainStep(own, batches, this.#step));
    return { report: await this.#memory.around(trainer, batches, whole, step), waited };
  }

  /** An image that turns out to be unreadable is the user's to mend; the steps before it are kept. */
  async #keepUntil(place: LoaderState, error: unknown): Promise<never> {
    const { run } = this.#parts.trainer.config;
    if (!(error instanceof BadInput) || this.#step === 0) throw error;
    this.#bar.end();
    this.#parts.loader.restore(place);
    if (this.#savedAt !== this.#step) await this.#save();
    throw new BadInput(
      `${error.message}; ${run} is saved at step ${this.#step}: mend the image and go on with --resume`,
    );
  }

  #stepBar(): ReturnType<Display["progress"]> {
    return this.#parts.options.display.progress(this.#parts.trainer.config.steps, "img");
  }

  #writeLine(): void {
    const { gpu, config } = this.#parts.trainer;
    const { steps, seconds, waited } = this.#pace;
    const { liveBytes, liveBuffers } = gpu.memory;
    this.#diary.step({
      step: this.#step,
      ...this.#means.values,
      lr: this.#lr,
      imagesPerSecond: (steps * config.batch * config.accumulate) / seconds,
      waiting: waited / seconds,
      liveBytes,
      liveBuffers,
      highWaterBytes: this.#memory.mostBytes,
    });
    this.#pace = { steps: 0, seconds: 0, waited: 0 };
    this.#means.clear();
  }

  async #save(): Promise<void> {
    const { trainer, loader, sizes, data } = this.#parts;
    const { config, model, optimizer, scaler } = trainer;
    const state: SavedState = {
      step: this.#step,
      loader: loader.state,
      means: this.#means.state,
      ...(scaler && { scaler: scaler.stateDict() }),
    };
    const savable = {
      model,
      optimizer,
      state: { ...state, sizes, categories: data.categories, kinds: kindsOf(data) },
      config,
    };
    await keepingGood(config.run, () => saveCheckpoint(config.run, this.#step, savable, { keep: config.log.keep }));
    this.#savedAt = this.#step;
  }

  get #isDue(): boolean {
    const { steps, val } = this.#parts.trainer.config;
    return (
      this.#parts.data.validation !== undefined &&
      this.#step > 0 &&
      (this.#step % val.every === 0 || this.#step === steps)
    );
  }

  async #evaluate(): Promise<void> {
    const found = await this.#assess();
    if (!found) {
      this.#interrupted = true;
      return;
    }
    this.#evaluation = found;
    this.#evaluatedAt = this.#step;
    if (found.metrics.AP <= this.#best) return;
    this.#best = found.metrics.AP;
    await markBest(this.#parts.trainer.config.run, this.#step);
  }

  /** Evaluates the model and writes down what comes out; undefined where it was cut short, which leaves no trace. */
  async #assess(): Promise<Evaluation | undefined> {
    const { trainer, data, options } = this.#parts;
    const { gpu, config, model, teacher } = trainer;
    const { categories, items } = data;
    const validation = data.validation!;
    const { display } = options;
    const signal = options.signal ? { signal: options.signal } : {};
    const bar = display.progress(config.val.limit || validation.images.length, "img");
    const evaluation = await evaluateModel(gpu, model, categories, validation, config.val.images, {
      ...config.val,
      iou: overlapOf(validation),
      pictures: { count: config.val.pictures, folder: join(config.run, "pictures") },
      onImage: (done) => bar.update(done, { evaluated: "val" }),
      ...signal,
    });
    bar.end();
    if (!evaluation.complete) return undefined;
    this.#diary.evaluation(this.#step, evaluation.metrics, this.#memory.mostBytes, () =>
      evaluation.pictures.map((path) => ({ tag: `val/${basename(path, ".png")}`, png: readFileSync(path) })),
    );
    const { AP, AP50, AP75 } = evaluation.metrics;
    display.log(`step ${this.#step}: AP ${AP.toFixed(3)}, AP50 ${AP50.toFixed(3)}, AP75 ${AP75.toFixed(3)}`);
    await writeDetails(config.run, this.#step, evaluation);
    const source = { items, truth: validation, quality: evaluation.quality };
    let drawing: ReturnType<Display["progress"]> | undefined;
    await writeGallery(config.run, { gpu, model, categories, config, teacher }, source, {
      onImage: (done, total) => (drawing ??= display.progress(total, "img")).update(done, { drawn: "stages" }),
      ...signal,
    });
    drawing?.end();
    await writeReport(config.run, { config, categories });
    return evaluation;
  }
}

/** Before the first step there is nothing to show. */
const idle: ReturnType<Display["progress"]> = { update: () => {}, end: () => {} };

const kindsOf = ({ items }: TrainData): string[] => [...new Set(items.map(({ kind }) => kind))].sort();

/** What it trains on, and how large the model is. */
function summary(data: TrainData, { model }: Trainer): string {
  const { items, categories } = data;
  const kinds = kindsOf(data).map((kind) => `${items.filter((item) => item.kind === kind).length} with ${kind}`);
  const parameters = model.parameters().reduce((n, x) => n + x.size, 0);
  return `${items.length} images (${kinds.join(", ")}), ${categories.length} classes, ${(parameters / 1e6).toFixed(2)} M parameters`;
}

/** Best AP among the evaluations whose checkpoint is still there, -1 where there is none; `best` then names that checkpoint. */
async function bestOf(run: string, diary: Diary): Promise<number> {
  const kept = diary.evaluations.filter(({ step }) => existsSync(checkpointPath(run, step)));
  const best = kept.reduce((a, b) => (a && a.evaluation.AP >= b.evaluation.AP ? a : b), kept[0]);
  if (!best) return -1;
  await markBest(run, best.step);
  return best.evaluation.AP;
}

/** For the progress bar: the loss and its terms, in this order. */
const TERMS = ["loss", "class", "prompt", "bce", "dice", "projection", "pairwise", "cam", "self"];

function shownTerms(means: StepReport): Record<string, number> {
  return Object.fromEntries(TERMS.flatMap((name) => (means[name] === undefined ? [] : [[name, means[name]]])));
}
