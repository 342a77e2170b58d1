/** Trains the SAM architecture on instance masks: the loop, its log and its checkpoints. */
import { appendFile } from "node:fs/promises";
import { join } from "node:path";
import { backward, type Device, detach, F, noGrad, optim, scope, type Tensor } from "../../engine/index.ts";
import { bindingExcess, gridSize, largestTensor, Sam, type SamConfig } from "../../model/sam/index.ts";
import {
  keepingGood,
  latestCheckpoint,
  loadCheckpoint,
  newestCheckpoint,
  saveCheckpoint,
  saveWeights,
} from "../checkpoint.ts";
import { claimRun } from "../claim.ts";
import { checkImages, readInstances } from "../data/coco.ts";
import { BadInput } from "../errors.ts";
import { writeWhole } from "../files.ts";
import { NotFinite } from "../finite.ts";
import { forgetAfter } from "../metrics.ts";
import { configText, refuseChanges } from "../settings.ts";
import { openSam } from "../weights.ts";
import { modelOf, PARTS, type SamTrainConfig } from "./config.ts";
import { drawBatch, Photographs, type SamBatch, type SamDataOptions, scene } from "./data.ts";
import { evaluateSam, type SamScores } from "./evaluate.ts";
import { samLoss, TERMS } from "./loss.ts";

/** Scenes of an evaluation between steps. */
const GLANCE = 16;
/** What a run's weights, its optimizer's moments or its batches depend on. */
const FIXED = ["seed", "batch", "prompts", "boxSteps", "weights", "model", "freeze", "init", "data"];

export interface SamTrainOptions {
  readonly resume?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onStep?: (step: number, terms: Record<string, number>, imagesPerSecond: number) => void;
  readonly onMessage?: (text: string) => void;
  /** What must not be overlooked; default: onMessage. */
  readonly onWarning?: (text: string) => void;
}

export interface SamTrainResult {
  readonly steps: number;
  readonly interrupted: boolean;
  /** Weights with their sizes, in half precision as far as it can hold them; absent when interrupted. */
  readonly weights?: string;
  readonly scores?: Record<string, SamScores>;
  /** The most bytes that tensors owned at any moment. */
  readonly highWaterBytes: number;
}

export async function trainSam(
  gpu: Device,
  config: SamTrainConfig,
  options: SamTrainOptions = {},
): Promise<SamTrainResult> {
  const claim = claimRun(config.run);
  gpu.resetHighWater();
  try {
    return await trainClaimed(gpu, config, options);
  } finally {
    claim.release();
  }
}

async function trainClaimed(gpu: Device, config: SamTrainConfig, options: SamTrainOptions): Promise<SamTrainResult> {
  const { run, steps, batch } = config;
  if (latestCheckpoint(run) && !options.resume)
    throw new BadInput(`${run}: holds a run already; continue it with --resume or choose another folder with run=DIR`);
  // Hours before they are evaluated on.
  if (config.eval.annotations) await checkImages(readInstances(config.eval.annotations), config.eval.images);
  const warn = options.onWarning ?? options.onMessage ?? (() => {});
  const last = options.resume ? await newestCheckpoint(run, warn) : undefined;
  gpu.manualSeed(config.seed);
  const sam = await startingModel(gpu, config);
  sam.train();
  for (const part of config.freeze) sam[part].freeze().eval();
  const sizes = modelSizes(sam);
  checkFits(gpu, sizes, config);
  const resolved = { ...config, model: sizes };
  const groups = decayGroups(sam, config.optim.weightDecay);
  const optimizer = new optim.AdamW(groups.map((group) => ({ ...group, lr: config.optim.lr })));
  let step = 0;
  // Sums of the terms since the last line of the log.
  let sums: Record<string, number> = {};
  if (last) {
    step = Number(last.state.step);
    refuseChanges(last.config, resolved, FIXED, run);
    if (step > steps) throw new BadInput(`${run}: steps is ${steps}, but ${step} are done; ask for at least as many`);
    last.restore(gpu, { model: sam, optimizer });
    sums = { ...(last.state.sums as Record<string, number> | undefined) };
    options.onMessage?.(`continuing from step ${step}`);
  }
  await writeWhole(join(run, "config.yaml"), configText(resolved));
  await forgetAfter(run, step);

  const photographs = config.data.annotations
    ? await Photographs.read(config.data.annotations, config.data.images)
    : undefined;
  const data: SamDataOptions = {
    seed: config.seed,
    batch,
    prompts: config.prompts,
    imageSize: sizes.imageSize,
    maskSize: 4 * gridSize(sizes),
    scenes: config.data.scenes,
    sceneSeed: config.data.sceneSeed,
    boxNoise: config.data.boxNoise,
    smallestCrop: config.data.smallestCrop,
  };
  const draw = (at: number) => drawBatch(data, photographs, at, at < config.boxSteps);
  const checkpoint = () => {
    const savable = { model: sam, optimizer, state: { step, sums }, config: resolved };
    return keepingGood(run, () => saveCheckpoint(run, step, savable, { keep: 2 }));
  };

  let next = draw(step);
  let since = performance.now();
  while (step < steps && !options.signal?.aborted) {
    const lr = learningRate(config, step);
    for (const group of optimizer.groups) group.lr = lr;
    const terms = await keepingGood(run, () =>
      scope(async () => {
        const reading = trainStep(gpu, sam, optimizer, next, config).toArray();
        // The host draws the next batch while the device works on this one.
        if (step + 1 < steps) next = draw(step + 1);
        const values = await reading;
        const named: Record<string, number> = Object.fromEntries(
          [...TERMS, "norm"].map((name, i) => [name, values[i]!]),
        );
        for (const name of ["best", "single", "iou", "norm"])
          if (!Number.isFinite(named[name]))
            throw new NotFinite(
              `the ${name} ${name === "norm" ? "of the gradients" : "loss"} is ${named[name]} at step ${step}`,
            );
        optimizer.step();
        return named;
      }),
    );
    step++;
    for (const [name, value] of Object.entries(terms)) sums[name] = (sums[name] ?? 0) + value;
    const span = step % config.log === 0 ? config.log : 0;
    if (span > 0) {
      const seconds = (performance.now() - since) / 1000;
      since = performance.now();
      const means = Object.fromEntries(Object.entries(sums).map(([name, value]) => [name, value / span]));
      sums = {};
      const rate = (span * batch) / seconds;
      const { liveBytes, highWaterBytes } = gpu.memory;
      const line = { step, ...means, lr, imagesPerSecond: rate, bytes: liveBytes, highWaterBytes };
      await appendFile(join(run, "metrics.jsonl"), `${JSON.stringify(line)}\n`);
      options.onStep?.(step, means, rate);
    }
    // Before the checkpoint, so that a run which goes on from there has it in its log.
    if (config.eval.every > 0 && step % config.eval.every === 0 && step < steps) {
      // A glance: the whole evaluation comes at the end.
      const glance = { ...config, eval: { ...config.eval, annotations: "" } };
      await logScores(run, step, await evaluateOn(sam, glance, Math.min(GLANCE, config.eval.scenes)), options);
      since = performance.now();
    }
    if (step % config.save === 0 && step < steps) await checkpoint();
  }
  await checkpoint();
  if (step < steps) return { steps: step, interrupted: true, highWaterBytes: gpu.memory.highWaterBytes };
  const weights = join(run, "weights.safetensors");
  await saveWeights(weights, sam, { format: "wgpu-wish sam 1", config: JSON.stringify(sizes) }, { half: true });
  const scores = await evaluateOn(sam, config, config.eval.scenes);
  await logScores(run, step, scores, options);
  return { steps: step, interrupted: false, weights, scores, highWaterBytes: gpu.memory.highWaterBytes };
}

/** Refuses, before the first step, what would not fit a binding of the adapter's in it. */
function checkFits(gpu: Device, sizes: SamConfig, { batch, prompts, run, freeze }: SamTrainConfig): void {
  if (PARTS.every((part) => freeze.includes(part)))
    throw new BadInput(`${run}: freeze names every part of the model; leave one to learn`);
  const excess = bindingExcess(gpu, largestTensor(sizes, { images: batch, prompts: batch * prompts }));
  if (excess) throw new BadInput(`${run}: with batch=${batch} and prompts=${prompts} ${excess}`);
}

/** Loss and gradients of a batch: the loss's TERMS and the gradients' norm, (terms + 1). The weights are as they were. */
function trainStep(gpu: Device, sam: Sam, optimizer: optim.AdamW, batch: SamBatch, config: SamTrainConfig): Tensor {
  const side = sam.config.imageSize;
  const P = batch.labels.length / 2;
  const images = gpu.tensor(batch.images, [batch.images.length / (3 * side * side), 3, side, side]);
  const encode = () => sam.encodeImage(images);
  const embedding = config.freeze.includes("image_encoder") ? noGrad(encode) : encode();
  // Every prompt is two labelled tokens, point and padding or two corners, so that both kinds fit one batch.
  const { sparse, dense } = sam.encodePrompts({
    points: { coords: batch.coords, labels: batch.labels, count: P, complete: true },
  });
  const { masks, iou } = sam.decodeAll(embedding, sparse, dense);
  const { flat, targets } = flatten(gpu, masks, batch);
  const { loss, terms } = samLoss(flat, iou, targets, config.loss);
  optimizer.zeroGrad();
  backward(loss);
  const parameters = optimizer.groups.flatMap((group) => group.params);
  // Without a limit the norm is still worth knowing.
  const norm = optim.clipGradNorm(parameters, config.optim.clip > 0 ? config.optim.clip : 1e30);
  return F.cat([detach(terms), norm], 0);
}

function flatten(gpu: Device, masks: Tensor, batch: SamBatch): { flat: Tensor; targets: Tensor } {
  const [P, M, h, w] = masks.shape as [number, number, number, number];
  return { flat: F.reshape(masks, [P, M, h * w]), targets: gpu.tensor(batch.targets, [P, 1, h * w]) };
}

/** Scores on unseen scenes and, where the config names them, on photographs. */
export async function evaluateOn(sam: Sam, config: SamTrainConfig, scenes: number): Promise<Record<string, SamScores>> {
  const scores: Record<string, SamScores> = {};
  const size = sam.config.imageSize;
  if (scenes > 0) scores.scenes = await evaluateSam(sam, scenes, (i) => scene(config.eval.sceneSeed, i, size));
  if (config.eval.annotations) {
    const photographs = await Photographs.read(config.eval.annotations, config.eval.images);
    const count = config.eval.limit > 0 ? Math.min(config.eval.limit, photographs.length) : photographs.length;
    scores.photographs = await evaluateSam(sam, count, (i) => photographs.at(i));
  }
  return scores;
}

/** Weights to evaluate or ship: a file, or the last checkpoint of the run. */
export async function trainedSam(gpu: Device, config: SamTrainConfig): Promise<Sam> {
  if (config.weights) return openSam(gpu, config.weights, "weights of a SAM model");
  const last = latestCheckpoint(config.run);
  if (!last) throw new BadInput(`${config.run}: holds no checkpoint; train first or name weights=FILE`);
  const sam = new Sam(gpu, modelOf(config));
  await loadCheckpoint(gpu, last, { model: sam });
  return sam.eval();
}

async function startingModel(gpu: Device, config: SamTrainConfig): Promise<Sam> {
  if (config.weights) {
    const sam = await openSam(gpu, config.weights, "weights of a SAM model");
    sam.freeze(false);
    return sam;
  }
  const sam = new Sam(gpu, modelOf(config), { seed: config.seed });
  await initialise(sam, config.init);
  return sam;
}

/**
 * Starting values under which a small model learns where things are in a few hundred steps instead of thousands: smooth position
 * frequencies, and cross attentions whose queries and keys agree, so that a token begins by looking at its own place.
 */
async function initialise(sam: Sam, { frequency, sharpness }: SamTrainConfig["init"]): Promise<void> {
  const state = sam.stateDict();
  const changed = new Map<string, Tensor>();
  const put = async (key: string, from: string, factor: number) => {
    const x = state.get(from)!;
    changed.set(
      key,
      x.device.tensor(
        (await x.toArray()).map((v) => v * factor),
        x.shape,
      ),
    );
  };
  if (frequency !== 1) {
    const key = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix";
    await put(key, key, frequency);
  }
  if (sharpness > 0) {
    for (const key of state.keys()) {
      if (!/(cross_attn_\w+|final_attn_token_to_image)\.q_proj\.weight$/.test(key)) continue;
      await put(key.replace("q_proj", "k_proj"), key, sharpness);
      await put(key, key, sharpness);
    }
    for (const key of state.keys()) if (/point_embeddings\.\d\.weight$/.test(key)) await put(key, key, 0.5);
  }
  sam.loadStateDict(changed, { strict: false });
}

/** Matrices and kernels decay; norms, biases, tokens' embeddings and position tables do not. */
function decayGroups(sam: Sam, weightDecay: number): { params: Tensor[]; weightDecay: number; name: string }[] {
  const decayed: Tensor[] = [];
  const free: Tensor[] = [];
  for (const [name, x] of sam.namedParameters()) {
    if (!x.requiresGrad) continue;
    const exempt =
      x.shape.length < 2 || /embed|token\.|tokens\.|attention_biases|rel_pos/.test(name.replace("patch_embed", ""));
    (exempt ? free : decayed).push(x);
  }
  return [
    { params: decayed, weightDecay, name: "decay" },
    { params: free, weightDecay: 0, name: "no decay" },
  ];
}

/** Linear warm-up, then a cosine down to `floor`. */
function learningRate({ optim: { lr, warmup, floor }, steps }: SamTrainConfig, step: number): number {
  const rise = Math.min(1, (step + 1) / Math.max(1, warmup));
  return lr * rise * (floor + (1 - floor) * 0.5 * (1 + Math.cos((Math.PI * step) / steps)));
}

function modelSizes(sam: Sam): SamConfig {
  const { grid: _, ...sizes } = sam.config;
  return sizes;
}

async function logScores(
  run: string,
  step: number,
  scores: Record<string, SamScores>,
  options: SamTrainOptions,
): Promise<void> {
  await appendFile(join(run, "metrics.jsonl"), `${JSON.stringify({ step, scores })}\n`);
  for (const [name, { point, box, instances }] of Object.entries(scores)) {
    const text = `step ${step}, ${name} (${instances} instances): mIoU ${box.selected.toFixed(3)} from a box, ${point.selected.toFixed(3)} from a point`;
    options.onMessage?.(text);
  }
}
