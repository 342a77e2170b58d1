/**
 * How much GPU memory a step will take, told before the first one: the step itself runs on a device that computes nothing and counts what
 * tensors would own.
 */
import { type Device, nn, optim, scope } from "../engine/index.ts";
import { parameterGroups, Wish, type WishConfig } from "../model/index.ts";
import type { Config } from "./config.ts";
import type { Sample } from "./data/loader.ts";
import { type Trainer, trainStep } from "./step.ts";

/** Bytes of tensors. */
export interface MemoryPlan {
  /** Weights and buffers of the model. */
  weights: number;
  gradients: number;
  /** AdamW's running means. */
  moments: number;
  /** All else at the moment when a step owns most: what the backward pass needs, and the operation at work. */
  activations: number;
  /** SAM. */
  teacher: number;
  /** Their sum. */
  peak: number;
}

/** Tells the plan before a run's first step, and what a step took as soon as one is like all that follow. */
export class MemoryWatch {
  readonly #gpu: Device;
  readonly #log: (line: string) => void;
  #plan: MemoryPlan | undefined;
  #compared = false;
  /** The most before the first step, which is counted by itself. */
  #before = 0;

  constructor(gpu: Device, log: (line: string) => void) {
    this.#gpu = gpu;
    this.#log = log;
  }

  /** The most bytes that tensors owned since the run began. */
  get mostBytes(): number {
    return Math.max(this.#before, this.#gpu.memory.highWaterBytes);
  }

  /** Runs a step; `whole`: it is no step of the warm-up, which takes far less. */
  async around<T>(
    trainer: Pick<Trainer, "config" | "model" | "optimizer" | "teacher">,
    batches: readonly (readonly Sample[])[],
    whole: boolean,
    step: () => Promise<T>,
  ): Promise<T> {
    if (this.#compared) return step();
    const gpu = this.#gpu;
    if (!this.#plan) {
      const { config, model, teacher } = trainer;
      this.#plan = await planMemory(gpu, config, model.config, batches, teacher?.bytes ?? 0);
      this.#log(planText(this.#plan));
    }
    // The first one makes the optimizer's moments.
    if (!whole || trainer.optimizer.steps === 0) return step();
    this.#before = this.mostBytes;
    gpu.resetHighWater();
    const result = await step();
    this.#log(`a whole step owned ${gib(gpu.memory.highWaterBytes)} at most, of ${gib(this.#plan.peak)} planned`);
    this.#compared = true;
    return result;
  }
}

/**
 * @param batches those of one step; how many objects they have matters little, how large they are, much
 * @param teacher bytes of SAM's weights
 */
export async function planMemory(
  gpu: Device,
  config: Config,
  sizes: WishConfig,
  batches: readonly (readonly Sample[])[],
  teacher: number,
): Promise<MemoryPlan> {
  const dry = gpu.dry();
  const model = nn.init.skip(() => new Wish(dry, sizes)).train();
  const weights = dry.memory.liveBytes;
  const groups = parameterGroups(model, { lr: 0, weightDecay: 0, backboneMultiplier: 1, camMultiplier: 1 });
  const wish = config.mode === "wish";
  const trainer = {
    gpu: dry,
    config,
    model,
    optimizer: new optim.AdamW(groups),
    scaler: config.precision === "mixed" ? new optim.GradScaler() : undefined,
    rates: groups.map(() => 0),
    teacher: wish
      ? { bytes: 0, promptEncoder: () => latents(dry, sizes.prompt.dim), promptPoints: noPoints }
      : undefined,
    items: [],
    proxies: [],
    hasTags: false,
  };
  const seen = batches.map((batch) => batch.map((sample) => withObjects(sample, config)));
  // The first step makes the optimizer's means; the second is like all that follow.
  for (let step = 0; step < 2; step++) await scope(() => trainStep(trainer, seen, step));
  const { liveBytes, highWaterBytes } = dry.memory;
  const gradients = sum(model.parameters().map((x) => x.grad?.storage.bytes ?? 0));
  const moments = Math.max(0, liveBytes - weights - gradients);
  const peak = teacher + highWaterBytes;
  return { weights, gradients, moments, activations: peak - teacher - weights - gradients - moments, teacher, peak };
}

/** The plan in a line. */
export function planText(plan: MemoryPlan): string {
  const { weights, gradients, moments, activations, teacher, peak } = plan;
  const parts = { weights, gradients, "AdamW's moments": moments, activations, "the teacher": teacher };
  const told = Object.entries(parts).map(([name, bytes]) => `${gib(bytes)} ${name}`);
  return `memory plan: a step owns ${gib(peak)} of the GPU at most: ${told.join(", ")}`;
}

function gib(bytes: number): string {
  return bytes < 2 ** 30 ? `${(bytes / 2 ** 20).toFixed(1)} MiB` : `${(bytes / 2 ** 30).toFixed(2)} GiB`;
}

const sum = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0);

/** SAM's prompt encoder, as far as the sizes go. */
function latents(dry: Device, dim: number) {
  return (kind: "point" | "box", coords: Float32Array) =>
    dry.zeros([coords.length / (kind === "point" ? 2 : 4), 2, dim]);
}

function noPoints(): never {
  throw new Error("planMemory: no pseudo points are asked for");
}

/** An image with tags is planned with one point a tag: where its peaks will be is not known. */
function withObjects(sample: Sample, { data, mode }: Config): Sample {
  if (sample.kind !== "tags" || mode !== "wish") return sample;
  const mask = new Uint8Array((sample.width / data.maskStride) * (sample.height / data.maskStride)).fill(1);
  return {
    ...sample,
    kind: "points",
    classes: sample.tags,
    source: sample.tags.map((_, i) => i),
    points: sample.tags.map(() => [0, 0]),
    proxies: sample.tags.map(() => ({ masks: [mask, mask, mask], iou: [1, 1, 1] })),
  };
}
