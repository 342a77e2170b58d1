/**
 * How much GPU memory a step will take, told before the first one: the step itself runs on a device that computes nothing and counts what
 * tensors would own.
 */
import { type Device, nn, optim, scope } from "../engine/index.ts";
import { parameterGroups, Wish } from "../model/index.ts";
import type { Config } from "./config.ts";
import type { Sample } from "./data/loader.ts";
import { maskSizeOf, pseudoLabelled } from "./pseudo.ts";
import { objectsBefore, scalerOf, type Trainer, trainStep } from "./step.ts";
import type { ImageTargets, Target } from "./targets.ts";

/** Bytes of tensors. */
export interface MemoryPlan {
  /** Of how many objects in all the step is planned. */
  objects: number;
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
  #planned = false;
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
    trainer: Trainer,
    batches: readonly (readonly Sample[])[],
    whole: boolean,
    step: (trainer: Trainer) => Promise<T>,
  ): Promise<T> {
    if (this.#compared) return step(trainer);
    const gpu = this.#gpu;
    if (!this.#planned) await this.#tellPlan(trainer, batches);
    this.#planned = true;
    // The first one makes the optimizer's moments.
    if (!whole || trainer.optimizer.steps === 0) return step(trainer);
    this.#before = this.mostBytes;
    gpu.resetHighWater();
    const found: FoundObjects = new Map();
    const result = await step({ ...trainer, pseudo: listening(found) });
    const most = gib(gpu.memory.highWaterBytes);
    // How many objects tags have changes from step to step, and the plan with it.
    const { objects, peak } = await planMemory(trainer, batches, found);
    this.#log(`a whole step of ${objects} objects owned ${most} at most, of ${gib(peak)} planned for as many`);
    this.#compared = true;
    return result;
  }

  async #tellPlan(trainer: Trainer, batches: readonly (readonly Sample[])[]): Promise<void> {
    const found = await objectsOfTags(trainer, batches);
    const plan = await planMemory(trainer, batches, found);
    this.#log(planText(plan));
    if (!trainer.hasTags || trainer.model.config.cam.feature === "none") return;
    // The first images may happen to have no tags.
    const tagged = found.size > 0 ? batches : batches.map((batch) => batch.map(withTags));
    const crowd = crowded(found.size > 0 ? found : oneEach(tagged.flat(), trainer.config), trainer);
    const { objects, peak } = await planMemory(trainer, tagged, crowd);
    if (peak > plan.peak)
      this.#log(`tags show more or fewer objects from step to step; ${objects} would take ${gib(peak)}`);
  }
}

/**
 * @param batches those of one step; how large they are matters more than what is in them
 * @param known the objects of those images that have tags
 */
export async function planMemory(
  trainer: Trainer,
  batches: readonly (readonly Sample[])[],
  known: FoundObjects,
): Promise<MemoryPlan> {
  // The first step makes the optimizer's means; the second is like all that follow.
  const { dry, model, weights, sam } = await rehearse(trainer, batches, known, 2);
  const { highWaterBytes: peak } = dry.memory;
  const gradients = sum(model.parameters().map((x) => x.grad?.storage.bytes ?? 0));
  const moments = 2 * gradients;
  const activations = peak - sam - weights - gradients - moments;
  const objects = sum(batches.flat().map((x) => known.get(x)?.answer.targets.length ?? x.classes.length));
  return { objects, weights, gradients, moments, activations, teacher: sam, peak };
}

interface Rehearsal {
  dry: Device;
  model: Wish;
  /** Bytes of the model and of SAM. */
  weights: number;
  sam: number;
}

/** Takes steps on a device that computes nothing. Throws TooLarge where the real one could not bind a tensor. */
export async function rehearse(
  trainer: Trainer,
  batches: readonly (readonly Sample[])[],
  known: FoundObjects,
  steps: number,
): Promise<Rehearsal> {
  const { gpu, config } = trainer;
  const dry = gpu.dry();
  const model = nn.init.skip(() => new Wish(dry, trainer.model.config)).train();
  const weights = dry.memory.liveBytes;
  const teacher = trainer.teacher?.dry(dry);
  const sam = dry.memory.liveBytes - weights;
  const groups = parameterGroups(model, { lr: 0, weightDecay: 0, backboneMultiplier: 1, camMultiplier: 1 });
  const rehearsed: Trainer = {
    ...trainer,
    gpu: dry,
    model,
    optimizer: new optim.AdamW(groups),
    scaler: scalerOf(config),
    rates: groups.map(() => 0),
    teacher,
    hasTags: false,
    pseudo: async (targets, samples) => {
      for (const sample of samples) {
        const { prompts } = known.get(sample) ?? { prompts: [] };
        if (prompts.length > 0) await teacher?.promptPoints(sample.imageId, [1, 1], noImage, prompts);
      }
      return samples.map((sample, b) => known.get(sample)?.answer ?? targets[b]!);
    },
  };
  for (let step = 0; step < steps; step++) await scope(() => trainStep(rehearsed, batches, step));
  return { dry, model, weights, sam };
}

/** The plan in a line. */
export function planText(plan: MemoryPlan): string {
  const { objects, weights, gradients, moments, activations, teacher, peak } = plan;
  const parts = { weights, gradients, "AdamW's moments": moments, activations, "the teacher": teacher };
  const told = Object.entries(parts).flatMap(([name, bytes]) => (bytes > 0 ? [`${gib(bytes)} ${name}`] : []));
  return `memory plan: a step of ${objects} objects owns ${gib(peak)} of the GPU at most: ${told.join(", ")}`;
}

function gib(bytes: number): string {
  return bytes < 2 ** 30 ? `${(bytes / 2 ** 20).toFixed(1)} MiB` : `${(bytes / 2 ** 30).toFixed(2)} GiB`;
}

const sum = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0);

/** What the CAM and SAM find in images with tags. */
type FoundObjects = Map<Sample, { prompts: readonly (readonly [number, number])[]; answer: ImageTargets }>;

/** pseudoLabelled, which notes what it finds. */
function listening(found: FoundObjects): typeof pseudoLabelled {
  return async (targets, samples, cam, context, maskSize) => {
    // By image; of one that is in the batch twice first come, first served.
    const asked = new Map<number, (readonly (readonly [number, number])[])[]>();
    const teacher: typeof context.teacher = {
      promptPoints: (imageId, size, read, points) => {
        asked.set(imageId, [...(asked.get(imageId) ?? []), points]);
        return context.teacher.promptPoints(imageId, size, read, points);
      },
    };
    const answers = await pseudoLabelled(targets, samples, cam, { ...context, teacher }, maskSize);
    for (const [b, sample] of samples.entries())
      if (sample.kind === "tags")
        found.set(sample, { prompts: asked.get(sample.imageId)?.shift() ?? [], answer: answers[b]! });
    return answers;
  };
}

/** At least one for each tag: a CAM that shows nothing yet will show something later. */
async function objectsOfTags(trainer: Trainer, batches: readonly (readonly Sample[])[]): Promise<FoundObjects> {
  const { config, model, teacher } = trainer;
  const found: FoundObjects = new Map();
  if (!teacher || model.config.cam.feature === "none") return found;
  for (const batch of batches) {
    const samples = batch.filter(({ kind }) => kind === "tags");
    await scope(() => objectsBefore({ ...trainer, pseudo: listening(found) }, samples));
    for (const sample of samples) {
      const { prompts, answer } = found.get(sample)!;
      const least = sample.tags.map((): [number, number] => [0, 0]);
      found.set(sample, {
        prompts: prompts.length < least.length ? least : prompts,
        answer: withObjects(answer, sample, config),
      });
    }
  }
  return found;
}

/** Tags that have no object get one. */
function withObjects(answer: ImageTargets, sample: Sample, config: Config): ImageTargets {
  const lacking = sample.tags.filter((tag) => !answer.targets.some(({ classIndex }) => classIndex === tag));
  const added = lacking.map((tag) => anyObject(tag, sample, config));
  return { ...answer, supervised: true, targets: [...answer.targets, ...added] };
}

const withTags = (sample: Sample): Sample => ({ ...sample, kind: "tags", classes: [], points: [], boxes: [] });

/** An object for each tag, without looking. */
function oneEach(samples: readonly Sample[], config: Config): FoundObjects {
  return new Map(
    samples.map((sample) => {
      const { tags, valid } = sample;
      const none: ImageTargets = { targets: [], supervised: true, tags, valid };
      return [sample, { prompts: [], answer: withObjects(none, sample, config) }];
    }),
  );
}

/** As many objects as there are queries in each image, if its tags can have as many. */
function crowded(found: FoundObjects, { config, model }: Trainer): FoundObjects {
  const more = new Map(found);
  for (const [sample, { prompts, answer }] of found) {
    const { targets } = answer;
    const most = Math.min(model.config.queries, sample.tags.length * config.cam.maxPeaks);
    const lacking = Math.max(0, most - targets.length);
    const added = Array.from({ length: lacking }, (_, i) => targets[i % targets.length]!);
    const asked = Array.from({ length: Math.max(most, prompts.length) }, (): [number, number] => [0, 0]);
    more.set(sample, { prompts: asked, answer: { ...answer, targets: [...targets, ...added] } });
  }
  return more;
}

function anyObject(classIndex: number, sample: Sample, config: Config): Target {
  const [w, h] = maskSizeOf(sample, config);
  const mask = new Uint8Array(w * h).fill(1);
  const target = { classIndex, candidates: [mask, mask, mask], iou: [1, 1, 1] };
  return config.prompt.mode === "none" ? target : { ...target, prompt: { kind: "point", coords: [0, 0] } };
}

function noImage(): never {
  throw new Error("planMemory: an embedding is asked for that the step did not make");
}
