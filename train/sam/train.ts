/** Trains the SAM architecture on instance masks: the loop, its log and its checkpoints. */
import { appendFile, mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { backward, type Device, F, optim, scope, type Tensor } from "../../engine/index.ts";
import { gridSize, loadSam, Sam, type SamConfig } from "../../model/sam/index.ts";
import { latestCheckpoint, loadCheckpoint, saveCheckpoint, saveWeights } from "../checkpoint.ts";
import { BadInput } from "../errors.ts";
import { readNamed, writeWhole } from "../files.ts";
import { configText } from "../settings.ts";
import { modelOf, type SamTrainConfig } from "./config.ts";
import { drawBatch, Photographs, type SamBatch, type SamDataOptions, scene } from "./data.ts";
import { evaluateSam, type SamScores } from "./evaluate.ts";
import { samLoss, TERMS } from "./loss.ts";

/** Scenes of an evaluation between steps. */
const GLANCE = 16;

export interface SamTrainOptions {
  readonly resume?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onStep?: (step: number, terms: Record<string, number>, imagesPerSecond: number) => void;
  readonly onMessage?: (text: string) => void;
}

export interface SamTrainResult {
  readonly steps: number;
  readonly interrupted: boolean;
  /** Half-precision weights with their sizes; absent when interrupted. */
  readonly weights?: string;
  readonly scores?: Record<string, SamScores>;
}

export async function trainSam(
  gpu: Device,
  config: SamTrainConfig,
  options: SamTrainOptions = {},
): Promise<SamTrainResult> {
  const { run, steps, batch } = config;
  const last = latestCheckpoint(run);
  if (last && !options.resume)
    throw new BadInput(`${run}: holds a run already; continue it with --resume or choose another folder with run=DIR`);
  gpu.manualSeed(config.seed);
  const sam = await startingModel(gpu, config);
  sam.train();
  const groups = decayGroups(sam, config.optim.weightDecay);
  const optimizer = new optim.AdamW(groups.map((group) => ({ ...group, lr: config.optim.lr })));
  let step = 0;
  // Sums of the terms since the last line of the log.
  let sums: Record<string, number> = {};
  if (last) {
    const { state } = await loadCheckpoint(gpu, last, { model: sam, optimizer });
    step = Number(state.step);
    sums = { ...(state.sums as Record<string, number> | undefined) };
    options.onMessage?.(`continuing from step ${step}`);
  }
  await mkdir(run, { recursive: true });
  const sizes = modelSizes(sam);
  await writeWhole(join(run, "config.yaml"), configText({ ...config, model: sizes }));
  await dropLogAfter(join(run, "metrics.jsonl"), step);

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
  const checkpoint = () =>
    saveCheckpoint(
      run,
      step,
      { model: sam, optimizer, state: { step, sums }, config: { ...config, model: sizes } },
      { keep: 2 },
    );

  let next = draw(step);
  let since = performance.now();
  while (step < steps && !options.signal?.aborted) {
    const lr = learningRate(config, step);
    for (const group of optimizer.groups) group.lr = lr;
    const terms = await scope(async () => {
      const { vector, norm } = trainStep(gpu, sam, optimizer, next, config);
      // The host draws the next batch while the device works on this one.
      if (step + 1 < steps) next = draw(step + 1);
      const values = await vector.toArray();
      return {
        ...Object.fromEntries(TERMS.map((name, i) => [name, values[i]!])),
        norm: norm ? await norm.item() : 0,
      } as Record<string, number>;
    });
    for (const name of ["best", "single", "iou", "norm"]) {
      if (!Number.isFinite(terms[name])) {
        throw new Error(
          `sam-train: the ${name} ${name === "norm" ? "of the gradients" : "loss"} is ${terms[name]} at step ${step}; the last checkpoint is kept; lower optim.lr`,
        );
      }
    }
    step++;
    for (const [name, value] of Object.entries(terms)) sums[name] = (sums[name] ?? 0) + value;
    const span = step % config.log === 0 ? config.log : 0;
    if (span > 0) {
      const seconds = (performance.now() - since) / 1000;
      since = performance.now();
      const means = Object.fromEntries(Object.entries(sums).map(([name, value]) => [name, value / span]));
      sums = {};
      const rate = (span * batch) / seconds;
      const line = { step, ...means, lr, imagesPerSecond: rate, bytes: gpu.memory.liveBytes };
      await appendFile(join(run, "metrics.jsonl"), `${JSON.stringify(line)}\n`);
      options.onStep?.(step, means, rate);
    }
    if (step % config.save === 0 && step < steps) await checkpoint();
    if (config.eval.every > 0 && step % config.eval.every === 0 && step < steps) {
      // A glance: the whole evaluation comes at the end.
      const glance = { ...config, eval: { ...config.eval, annotations: "" } };
      await logScores(run, step, await evaluateOn(sam, glance, Math.min(GLANCE, config.eval.scenes)), options);
      since = performance.now();
    }
  }
  await checkpoint();
  if (step < steps) return { steps: step, interrupted: true };
  const weights = join(run, "weights.safetensors");
  await saveWeights(weights, sam, { format: "wgpu-wish sam 1", config: JSON.stringify(sizes) }, { half: true });
  const scores = await evaluateOn(sam, config, config.eval.scenes);
  await logScores(run, step, scores, options);
  return { steps: step, interrupted: false, weights, scores };
}

/** One optimizer step; the vector holds the loss's TERMS. */
function trainStep(
  gpu: Device,
  sam: Sam,
  optimizer: optim.AdamW,
  batch: SamBatch,
  config: SamTrainConfig,
): { vector: Tensor; norm: Tensor | undefined } {
  const side = sam.config.imageSize;
  const P = batch.labels.length / 2;
  const images = gpu.tensor(batch.images, [batch.images.length / (3 * side * side), 3, side, side]);
  const embedding = sam.encodeImage(images);
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
  const norm = config.optim.clip > 0 ? optim.clipGradNorm(parameters, config.optim.clip) : undefined;
  optimizer.step();
  return { vector: terms, norm };
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
  if (config.weights) return loadSam(gpu, await readNamed(config.weights, "weights of a SAM model"), config.weights);
  const last = latestCheckpoint(config.run);
  if (!last) throw new BadInput(`${config.run}: holds no checkpoint; train first or name weights=FILE`);
  const sam = new Sam(gpu, modelOf(config));
  await loadCheckpoint(gpu, last, { model: sam });
  return sam.eval();
}

async function startingModel(gpu: Device, config: SamTrainConfig): Promise<Sam> {
  if (config.weights) {
    const sam = await loadSam(gpu, await readNamed(config.weights, "weights of a SAM model"), config.weights);
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

/** A resumed run writes again what came after its checkpoint. */
async function dropLogAfter(path: string, step: number): Promise<void> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch {
    return;
  }
  const kept = text.split("\n").filter((line) => line !== "" && (JSON.parse(line) as { step: number }).step <= step);
  await writeWhole(path, kept.map((line) => `${line}\n`).join(""));
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
