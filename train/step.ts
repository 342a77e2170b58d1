/** One optimizer step: forward, pseudo points for images with tags, matching, losses, backward, update. */
import {
  autocast,
  backward,
  type Device,
  F,
  free,
  noGrad,
  optim,
  Random,
  scope,
  type Tensor,
} from "../engine/index.ts";
import { keepingBlocks, type Wish } from "../model/index.ts";
import { type Shares, sharesOf } from "./accumulation.ts";
import { camLoss, selfLoss } from "./cam.ts";
import type { Config } from "./config.ts";
import { boxSupervision, segmentationLosses } from "./criterion.ts";
import { readImage } from "./data/image.ts";
import type { Item, Sample } from "./data/loader.ts";
import { NotFinite } from "./finite.ts";
import { latentTargets } from "./latents.ts";
import { match, stackLayers } from "./matching.ts";
import type { SamProxy } from "./proxies.ts";
import { labelled, maskSizeOf, pseudoLabelled } from "./pseudo.ts";
import { rateFactor } from "./schedule.ts";
import { type ImageTargets, uploadTargets } from "./targets.ts";
import type { Teacher } from "./teacher.ts";

export { NotFinite };

export interface Trainer {
  gpu: Device;
  config: Config;
  model: Wish;
  optimizer: optim.AdamW;
  /** Of mixed precision. */
  scaler: optim.GradScaler | undefined;
  /** Each group's rate before the schedule. */
  rates: readonly number[];
  /** Undefined when training from masks. */
  teacher: Teacher | undefined;
  items: readonly Item[];
  /** SAM's masks of each item's labels. */
  proxies: readonly (readonly SamProxy[] | undefined)[];
  /** Some images have tags: then there is a warm-up on the CAM alone. */
  hasTags: boolean;
  /** What finds the objects of images with tags, where it is not the CAM. */
  pseudo?: typeof pseudoLabelled;
}

/** Weighted terms, which sum to `loss`, and what else a step tells. */
export type StepReport = Record<string, number>;

/** The scaler that a configuration's precision asks for. */
export function scalerOf({ precision }: Config): optim.GradScaler | undefined {
  return precision === "mixed" ? new optim.GradScaler() : undefined;
}

/**
 * Throws NotFinite, and the model is as it was, where a loss term or the gradient is no number.
 * @param batches one batch of samples for each forward pass (config.accumulate of them); @param step from 0
 */
export async function trainStep(
  trainer: Trainer,
  batches: readonly (readonly Sample[])[],
  step: number,
): Promise<StepReport> {
  const { config, model, optimizer, scaler } = trainer;
  const factor = rateFactor(config.optim, step, config.steps);
  for (const [i, group] of optimizer.groups.entries()) group.lr = trainer.rates[i]! * factor;
  const lr = config.optim.lr * factor;
  return scope(async () => {
    optimizer.zeroGrad();
    const report: StepReport = {};
    const names: string[] = [];
    const values: Tensor[] = [];
    const passes = await passesOf(trainer, batches, step);
    for (const [micro, { samples, targets, shares }] of passes.entries()) {
      const random = new Random(config.seed).fork(`step ${step}.${micro}`);
      // Layers that draw, as stochastic depth does, draw the same whether or not the run was interrupted before this step.
      trainer.gpu.manualSeed(random.fork("layers").bits());
      // A scope of its own: what one pass needs is gone when the next begins.
      const { weighted, counts } = await scope(async () => {
        const { terms, counts } = await lossTerms(trainer, samples, step, random, targets);
        const weighted = new Map(
          [...terms].map(([name, term]) => [name, F.mul(term, (shares?.[name] ?? 1) / passes.length)]),
        );
        if (weighted.size > 0) {
          const loss = [...weighted.values()].reduce((a, b) => F.add(a, b));
          backward(scaler ? scaler.scale(loss) : loss);
        }
        return { weighted, counts };
      });
      for (const [name, count] of Object.entries(counts)) report[name] = (report[name] ?? 0) + count;
      names.push(...weighted.keys());
      values.push(...weighted.values());
    }
    if (values.length === 0) return { loss: 0, lr, ...report };

    // The limit is given by clipping itself; without one the norm is still worth knowing.
    const limit = config.optim.clip > 0 ? config.optim.clip : 1e30;
    const norm = optim.clipGradNorm(model.parameters(), limit, { scale: scaler?.getScale() ?? 1 });
    const host = (await F.cat([...values.map((x) => F.reshape(x, [1])), norm], 0).toArray()) as Float32Array;
    const sums: StepReport = {};
    for (const [i, name] of names.entries()) sums[name] = (sums[name] ?? 0) + host[i]!;
    const gradient = host.at(-1)!;
    const problem = notFinite(sums, gradient, step);
    // In mixed precision numbers may be too large for f16: a smaller scale helps, until that cannot be the reason any more.
    if (problem !== undefined && !(scaler && scaler.getScale() >= 1)) throw new NotFinite(problem);
    const loss = Object.values(sums).reduce((a, b) => a + b, 0);
    const told = { loss, ...sums, gradient };
    if (scaler) {
      report.scale = scaler.getScale();
      if (!scaler.update(problem === undefined)) return { ...finite(told), lr, skipped: 1, ...report };
    }
    optimizer.step();
    return { ...told, lr, ...report };
  });
}

interface Pass {
  samples: readonly Sample[];
  /** Undefined where the pass finds its images' objects itself. */
  targets?: readonly ImageTargets[];
  shares?: Shares;
}

/**
 * The passes of a step. Where there are several, their objects are found first, those of tags by a pass of the CAM alone, so that each pass
 * knows how much of the step it is.
 */
async function passesOf(trainer: Trainer, batches: readonly (readonly Sample[])[], step: number): Promise<Pass[]> {
  const { config, model } = trainer;
  if (batches.length === 1 || isWarmup(trainer, step)) return batches.map((samples) => ({ samples }));
  const targets: ImageTargets[][] = [];
  for (const samples of batches) targets.push(await scope(() => objectsBefore(trainer, samples)));
  const shares = sharesOf(targets, { queries: model.config.queries, noObject: config.loss.noObject });
  return batches.map((samples, i) => ({ samples, targets: targets[i]!, shares: shares[i]! }));
}

/** The objects of a batch without its forward pass: tags find theirs by a pass of the CAM alone. */
export async function objectsBefore(trainer: Trainer, samples: readonly Sample[]): Promise<ImageTargets[]> {
  const { gpu, config, model } = trainer;
  const tagged = samples.filter(({ kind }) => kind === "tags");
  const known = samples.filter(({ kind }) => kind !== "tags");
  const objects = new Map<Sample, ImageTargets>();
  const note = (of: readonly Sample[], targets: readonly ImageTargets[]): void =>
    of.forEach((sample, i) => void objects.set(sample, targets[i]!));
  note(known, await objectsOf(trainer, known, undefined));
  if (tagged.length > 0) {
    await embed(trainer, tagged);
    const pass = () => model.forwardCam(imageTensor(gpu, tagged), { sizes: validSizes(tagged) });
    // Running statistics move in the pass itself.
    const { cam } = noGrad(() => evaluating(model, () => forward(config, pass)));
    note(tagged, await objectsOf(trainer, tagged, cam));
  }
  return samples.map((sample) => objects.get(sample)!);
}

/** SAM's encoder has the memory to itself before a forward pass takes its own. */
async function embed({ teacher, items }: Trainer, samples: readonly Sample[]): Promise<void> {
  for (const { kind, imageId, item } of samples)
    if (teacher && kind === "tags") await teacher.embed(imageId, () => readImage(items[item]!.path));
}

/** @param cam (B, K, h, w), where the model has one */
async function objectsOf(
  trainer: Trainer,
  samples: readonly Sample[],
  cam: Tensor | undefined,
): Promise<ImageTargets[]> {
  const { config, teacher, proxies, pseudo = pseudoLabelled } = trainer;
  if (samples.length === 0) return [];
  const maskSize = maskSizeOf(samples[0]!, config);
  const targets = samples.map((sample) => labelled(sample, config, maskSize, proxies[sample.item]));
  return teacher && cam ? pseudo(targets, samples, cam, { ...trainer, teacher }, maskSize) : targets;
}

const isWarmup = ({ config, hasTags }: Trainer, step: number): boolean =>
  config.mode === "wish" && hasTags && step < config.cam.warmup;

/** What keeps a step from being taken. */
function notFinite(terms: StepReport, gradient: number, step: number): string | undefined {
  for (const [name, value] of Object.entries(terms))
    if (!Number.isFinite(value)) return `the loss term "${name}" is ${value} at step ${step}`;
  if (Number.isFinite(gradient)) return undefined;
  return `the gradient's norm is ${gradient} at step ${step} while every loss term is finite`;
}

function finite(terms: StepReport): StepReport {
  return Object.fromEntries(Object.entries(terms).filter(([, value]) => Number.isFinite(value)));
}

interface Terms {
  /** Weighted, in the order of the report. */
  terms: Map<string, Tensor>;
  counts: StepReport;
}

/**
 * The loss terms of one batch.
 * @param known its images' objects; by default those of tags are found by the CAM of this pass
 */
export async function lossTerms(
  trainer: Trainer,
  samples: readonly Sample[],
  step: number,
  random: Random,
  known?: readonly ImageTargets[],
): Promise<Terms> {
  const { gpu, config, model, teacher } = trainer;
  const { loss: weights } = config;
  const first = samples[0]!;
  const sizes = validSizes(samples);
  const images = imageTensor(gpu, samples);
  const terms = new Map<string, Tensor>();
  const add = (name: string, term: Tensor | undefined, weight: number): void => {
    if (term && weight > 0) terms.set(name, F.mul(term, weight));
  };

  if (isWarmup(trainer, step)) {
    const { cam, inputSize } = forward(config, () => model.forwardCam(images, { sizes }));
    add("cam", camLoss(gpu, cam, samples, inputSize), weights.cam);
    return { terms, counts: { objects: 0 } };
  }

  if (!known) await embed(trainer, samples);
  const output = forward(config, () => model.forward(images, { sizes }));
  const targets = known ?? (await objectsOf(trainer, samples, output.cam));
  const uploaded = uploadTargets(gpu, targets, maskSizeOf(first, config));

  const stack = stackLayers(config.loss.deepSupervision ? output.predictions : output.predictions.slice(-1));
  const z = teacher
    ? latentTargets(gpu, uploaded, teacher.promptEncoder([first.width, first.height]), config.prompt)
    : undefined;
  const latents = z && { targets: z, options: config.prompt };
  const pairs = await match(gpu, stack, uploaded, latents, config.match, random.fork("match"));
  const losses = segmentationLosses(gpu, stack, uploaded, pairs, latents, config.loss, random.fork("loss"));
  add("class", losses.class, weights.class);
  add("prompt", losses.prompt, weights.prompt);
  add("bce", losses.bce, weights.bce);
  add("dice", losses.dice, weights.dice);
  if (weights.projection + weights.pairwise > 0) {
    const found = boxSupervision(gpu, stack, uploaded, pairs, samples);
    add("projection", found?.projection, weights.projection);
    add("pairwise", found?.pairwise, weights.pairwise * Math.min(1, (step + 1) / (weights.pairwiseWarmup + 1)));
  }
  // The backward pass needs the points taken from the masks, not the masks.
  if (uploaded.masks) free(uploaded.masks);
  if (output.cam) {
    add("cam", camLoss(gpu, output.cam, samples, output.inputSize), weights.cam);
    add("self", selfLoss(gpu, output.cam, stack, uploaded, pairs.at(-1)!, output.inputSize, config.cam), weights.self);
  }
  return { terms, counts: { objects: uploaded.total } };
}

/** A forward pass in the precision, and with the memory, that the configuration asks for. */
function forward<T>({ precision, memory }: Config, pass: () => T): T {
  return autocast(() => keepingBlocks(memory, pass), { enabled: precision === "mixed" });
}

/** In evaluation mode for as long as `work` takes. */
function evaluating<T>(model: Wish, work: () => T): T {
  try {
    model.eval();
    return work();
  } finally {
    model.train();
  }
}

/** [height, width] of what is image. */
function validSizes(samples: readonly Pick<Sample, "valid">[]): [number, number][] {
  return samples.map(({ valid: [w, h] }) => [h, w]);
}

/** HWC bytes -> (B, 3, H, W), 0..255. */
export function imageTensor(gpu: Device, samples: readonly Pick<Sample, "rgb" | "width" | "height">[]): Tensor {
  const { width, height } = samples[0]!;
  const area = width * height;
  const values = new Float32Array(samples.length * 3 * area);
  for (const [b, { rgb }] of samples.entries()) {
    const [red, green, blue] = [0, 1, 2].map((c) => values.subarray((3 * b + c) * area, (3 * b + c + 1) * area));
    // In one pass: each byte of a large image comes from memory once.
    for (let i = 0, at = 0; i < area; i++, at += 3) {
      red![i] = rgb[at]!;
      green![i] = rgb[at + 1]!;
      blue![i] = rgb[at + 2]!;
    }
  }
  return gpu.tensor(values, [samples.length, 3, height, width]);
}
