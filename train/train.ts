/** Training as a whole: data, teacher, model, the loop, checkpoints, evaluation. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { type Device, optim } from "../engine/index.ts";
import { parameterGroups, type Wish } from "../model/index.ts";
import { latestCheckpoint, loadCheckpoint, markBest, saveCheckpoint } from "./checkpoint.ts";
import { type Config, configText } from "./config.ts";
import { type Category, type Instances, readInstances } from "./data/coco.ts";
import { type Item, Loader, type LoaderState, maskItems, type Sample, weakItems } from "./data/loader.ts";
import { readWeak } from "./data/weak.ts";
import { BadInput } from "./errors.ts";
import { type Evaluation, evaluateModel } from "./evaluate.ts";
import { writeWhole } from "./files.ts";
import { Diary } from "./metrics.ts";
import { modelConfig, newModel } from "./models.ts";
import { makeProxies, type SamProxy } from "./proxies.ts";
import { writeReport } from "./report.ts";
import { NotFinite, type StepReport, type Trainer, trainStep } from "./step.ts";
import { loadTeacher, type Teacher } from "./teacher.ts";

/** What shows progress; cli/terminal.ts is one. */
export interface Display {
  log(line: string): void;
  warn(line: string): void;
  progress(
    total: number,
    unit?: string,
  ): { update(done: number, terms?: Record<string, number | string>, each?: number): void; end(): void };
}

export interface TrainOptions {
  display: Display;
  /** Save and stop where it is aborted. */
  signal?: AbortSignal;
  /** Go on from the run's last checkpoint. */
  resume?: boolean;
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
}

/** All that a run's data gives. */
export interface TrainData {
  items: Item[];
  categories: Category[];
  /** Bytes of the labels file: the key of the cache of proxies. */
  labels: Uint8Array;
  validation: Instances | undefined;
}

export function readData(config: Config): TrainData {
  const { images, labels, supercategories } = config.data;
  if (!images || !labels)
    throw new BadInput(
      `config: data.${images ? "labels" : "images"} is empty; name ${images ? "the labels file" : "the folder of the training images"}`,
    );
  for (const side of ["width", "height"] as const)
    if (config.data[side] % 32 !== 0)
      throw new BadInput(`config: data.${side} must be a multiple of 32; got ${config.data[side]}`);
  if (config.data.width % config.data.maskStride !== 0 || config.data.height % config.data.maskStride !== 0)
    throw new BadInput(`config: data.maskStride must divide the input's size; got ${config.data.maskStride}`);
  const found =
    config.mode === "wish" ? fromWeak(labels, images, supercategories) : fromMasks(labels, images, supercategories);
  const validation = config.val.annotations ? readInstances(config.val.annotations, { supercategories }) : undefined;
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

interface SavedState {
  step: number;
  loader: LoaderState;
  /** Best AP so far, -1 where none. */
  best: number;
}

/** Trains a configuration to its end, an interruption, or until `enough`. The model has been evaluated where the config names data for it. */
export async function train(gpu: Device, config: Config, options: TrainOptions): Promise<TrainResult> {
  const { display, signal } = options;
  const data = readData(config);
  const previous = latestCheckpoint(config.run);
  if (previous && !options.resume)
    throw new BadInput(`${config.run}: already holds a run; give --resume to go on, or another folder with run=DIR`);
  if (options.resume && !previous) display.log(`${config.run}: no checkpoint yet, starting from the beginning`);

  const teacher = config.mode === "wish" ? await openTeacher(gpu, config) : undefined;
  const sizes = modelConfig(config, data.categories.length, teacher?.promptDim ?? 1);
  const { model, notes } = await newModel(gpu, config, sizes);
  const groups = parameterGroups(model, {
    lr: config.optim.lr,
    weightDecay: config.optim.weightDecay,
    backboneMultiplier: config.optim.backbone,
  });
  const optimizer = new optim.AdamW(groups, { betas: config.optim.betas });
  const proxies = teacher ? await proxiesOf(teacher, data, config, display, signal) : [];
  const loader = newLoader(config, data.items, proxies);
  const kinds = [...new Set(data.items.map((item) => item.kind))].sort();
  const trainer: Trainer = {
    gpu,
    config,
    model,
    optimizer,
    rates: groups.map((group) => group.lr),
    teacher,
    items: data.items,
    proxies,
    hasTags: kinds.includes("tags"),
  };

  let state: SavedState = { step: 0, loader: loader.state, best: -1 };
  if (previous) {
    const loaded = await loadCheckpoint(gpu, previous, { model, optimizer });
    state = loaded.state as unknown as SavedState;
    loader.restore(state.loader);
    display.log(`${config.run}: going on at step ${state.step} of ${config.steps}`);
  } else {
    for (const note of notes) display.log(note);
    await writeWhole(join(config.run, "config.yaml"), configText(config));
  }
  display.log(
    `${data.items.length} images (${kinds.map((kind) => `${data.items.filter((item) => item.kind === kind).length} with ${kind}`).join(", ")}), ` +
      `${data.categories.length} classes, ${(model.parameters().reduce((n, x) => n + x.size, 0) / 1e6).toFixed(2)} M parameters`,
  );

  const diary = new Diary(config.run, state.step);
  const save = async (best = false): Promise<void> => {
    const saved = { ...state, loader: loader.state, sizes, categories: data.categories, kinds };
    await saveCheckpoint(
      config.run,
      state.step,
      { model, optimizer, state: saved, config },
      { keep: config.log.keep, best },
    );
  };
  let bar = display.progress(config.steps, "img");
  const average = new Average();
  let evaluation: Evaluation | undefined;
  let interrupted = false;
  const perStep = config.batch * config.accumulate;
  let since = performance.now();
  let logged = state.step;
  model.train();
  while (state.step < config.steps && !options.enough?.(state.step)) {
    if (signal?.aborted) {
      interrupted = true;
      break;
    }
    const batches: Sample[][] = [];
    for (let i = 0; i < config.accumulate; i++) batches.push(await loader.next());
    const report = await orExplain(config.run, () => trainStep(trainer, batches, state.step));
    state.step++;
    average.add(report);
    const means = average.means;
    bar.update(state.step, shownTerms(means), perStep);
    if (state.step % config.log.every === 0) {
      const seconds = (performance.now() - since) / 1000;
      diary.step({
        step: state.step,
        ...means,
        imagesPerSecond: ((state.step - logged) * perStep) / seconds,
        liveBytes: gpu.memory.liveBytes,
        liveBuffers: gpu.memory.liveBuffers,
      });
      since = performance.now();
      logged = state.step;
      average.clear();
    }
    const last = state.step === config.steps;
    const evaluate = data.validation !== undefined && (state.step % config.val.every === 0 || last);
    if (state.step % config.log.checkpoint === 0 || last || evaluate) await save();
    if (evaluate) {
      evaluation = await assess(trainer, data, state, diary, display, signal);
      if (evaluation.metrics.AP > state.best) {
        state.best = evaluation.metrics.AP;
        await markBest(config.run, state.step);
      }
      since = performance.now();
      logged = state.step;
      // The evaluation had a bar of its own, and there is one at a time.
      bar = display.progress(config.steps, "img");
    }
  }
  bar.end();
  if (state.step < config.steps) await save();
  if (!interrupted && !evaluation && data.validation)
    evaluation = await assess(trainer, data, state, diary, display, signal);
  loader.close();
  await writeReport(config.run, { config, categories: data.categories, evaluation });
  return { model, categories: data.categories, step: state.step, interrupted, evaluation };
}

export async function openTeacher(gpu: Device, config: Config): Promise<Teacher> {
  const { checkpoint, memory } = config.sam;
  return loadTeacher(gpu, checkpoint, { cache: cacheFolder(config), memory: memory * 2 ** 20 });
}

export function cacheFolder(config: Config): string {
  return config.sam.cache || join(config.run, "cache");
}

export async function proxiesOf(
  teacher: Teacher,
  data: TrainData,
  config: Config,
  display: Display,
  signal?: AbortSignal,
): Promise<(SamProxy[] | undefined)[]> {
  let bar: ReturnType<Display["progress"]> | undefined;
  const proxies = await makeProxies(
    teacher,
    data.items,
    { cache: cacheFolder(config), labels: data.labels, ...config.proxy },
    (done, total, fresh) => {
      if (fresh && !bar) display.log(`SAM's masks of points and boxes: computed once, kept in ${cacheFolder(config)}`);
      if (fresh) (bar ??= display.progress(total, "img")).update(done);
    },
    signal,
  );
  bar?.end();
  return proxies;
}

function newLoader(
  config: Config,
  items: readonly Item[],
  proxies: readonly (readonly SamProxy[] | undefined)[],
): Loader {
  const { width, height, flip, scale, tagScale, colour, maskStride } = config.data;
  const augment = { width, height, flip, scale, tagScale, colour };
  const options = config.mode === "wish" ? { proxies: (_: Item, index: number) => proxies[index] } : {};
  return new Loader({ items, batch: config.batch, seed: config.seed, augment, maskStride, ...options });
}

async function assess(
  trainer: Trainer,
  data: TrainData,
  state: SavedState,
  diary: Diary,
  display: Display,
  signal?: AbortSignal,
): Promise<Evaluation> {
  const { gpu, config, model } = trainer;
  const bar = display.progress(config.val.limit || data.validation!.images.length, "img");
  const evaluation = await evaluateModel(gpu, model, data.categories, data.validation!, config.val.images, {
    ...config.val,
    pictures: { count: config.val.pictures, folder: join(config.run, "pictures") },
    onImage: (done) => bar.update(done, { evaluated: "val" }),
    ...(signal ? { signal } : {}),
  });
  bar.end();
  if (!signal?.aborted) diary.evaluation(state.step, evaluation.metrics);
  const { AP, AP50, AP75 } = evaluation.metrics;
  display.log(`step ${state.step}: AP ${AP.toFixed(3)}, AP50 ${AP50.toFixed(3)}, AP75 ${AP75.toFixed(3)}`);
  await writeReport(config.run, { config, categories: data.categories, evaluation });
  return evaluation;
}

async function orExplain<T>(run: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (!(cause instanceof NotFinite)) throw cause;
    const kept = latestCheckpoint(run);
    throw new Error(
      `${run}: ${cause.message}; the last good state ${kept ? `is ${kept}` : "was not saved yet"}; try a lower optim.lr or a tighter optim.clip`,
    );
  }
}

function shownTerms(means: StepReport): Record<string, number> {
  const { loss, class: classes, prompt, bce, dice, cam, self } = means as Record<string, number | undefined>;
  const all = { loss, class: classes, prompt, bce, dice, cam, self };
  return Object.fromEntries(Object.entries(all).filter((entry): entry is [string, number] => entry[1] !== undefined));
}

/** Means of the reports since the last line; a term counts where it occurs. */
class Average {
  #sums = new Map<string, { sum: number; count: number }>();

  add(report: StepReport): void {
    for (const [name, value] of Object.entries(report)) {
      const entry = this.#sums.get(name) ?? { sum: 0, count: 0 };
      this.#sums.set(name, { sum: entry.sum + value, count: entry.count + 1 });
    }
  }

  get means(): StepReport {
    return Object.fromEntries([...this.#sums].map(([name, { sum, count }]) => [name, sum / count]));
  }

  clear(): void {
    this.#sums.clear();
  }
}
