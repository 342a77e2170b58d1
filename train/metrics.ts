/** A run's diary: metrics.jsonl has a line for each logged step and evaluation, results.csv a row for each evaluation. */
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { FIGURES, type Metrics } from "./eval/coco-ap.ts";
import { writeWhole } from "./files.ts";
import { EventFile, type Picture } from "./tensorboard.ts";

/**
 * Means of the loss and its terms since the line before, the learning rate, images a second, and the GPU's memory: bytes and buffers that
 * tensors own between steps, and `highWaterBytes`, the most they owned at any moment since this process took up the run (as
 * torch.cuda.max_memory_allocated counts), SAM's masks and evaluations included.
 */
export interface LoggedStep {
  step: number;
  [name: string]: number;
}

export interface LoggedEvaluation {
  step: number;
  /** COCO's metrics, from 0 to 1. */
  evaluation: Metrics;
  /** See LoggedStep. */
  highWaterBytes?: number;
}

export type Entry = LoggedStep | LoggedEvaluation;

export class Diary {
  readonly #run: string;
  readonly #evaluations: LoggedEvaluation[];
  readonly #events: EventFile | undefined;

  private constructor(run: string, evaluations: LoggedEvaluation[], events: EventFile | undefined) {
    this.#run = run;
    this.#evaluations = evaluations;
    this.#events = events;
  }

  /**
   * @param from a run that goes on from this step forgets what was written after it
   * @param tensorboard TensorBoard's event files are written besides; a run that had none gets its past there, too
   */
  static async open(run: string, from: number, { tensorboard = false } = {}): Promise<Diary> {
    const entries = await forgetAfter(run, from);
    const evaluations = entries.filter(isEvaluation);
    const isNew = !EventFile.in(run);
    const events = tensorboard ? await EventFile.open(run, from) : undefined;
    if (isNew) for (const entry of entries) events?.scalars(entry.step, scalarsOf(entry));
    const head = `step,${FIGURES.join(",")},highWaterBytes`;
    await writeWhole(join(run, "results.csv"), [head, ...evaluations.map(row), ""].join("\n"));
    return new Diary(run, evaluations, events);
  }

  get evaluations(): readonly LoggedEvaluation[] {
    return this.#evaluations;
  }

  step(entry: LoggedStep): void {
    appendFileSync(join(this.#run, "metrics.jsonl"), `${JSON.stringify(rounded(entry))}\n`);
    this.#events?.scalars(entry.step, scalarsOf(entry));
  }

  /** One that says again what stands there already, as at the end of a run that had ended before, is not repeated. */
  evaluation(step: number, evaluation: Metrics, highWaterBytes: number, pictures: () => Picture[] = () => []): void {
    const result = ({ step, evaluation }: LoggedEvaluation): string => JSON.stringify({ step, evaluation });
    const entry = { step, evaluation, highWaterBytes };
    if (this.#evaluations.some((known) => result(known) === result(entry))) return;
    this.#evaluations.push(entry);
    appendFileSync(join(this.#run, "metrics.jsonl"), `${JSON.stringify(entry)}\n`);
    appendFileSync(join(this.#run, "results.csv"), `${row(entry)}\n`);
    this.#events?.scalars(step, scalarsOf(entry));
    this.#events?.pictures(step, pictures());
  }
}

/** TensorBoard's tags of what a step tells; the rest are terms of the loss. */
const TAGS: Readonly<Record<string, string>> = {
  loss: "loss/total",
  objects: "data/objects",
  lr: "optim/lr",
  gradient: "optim/gradient",
  scale: "optim/scale",
  imagesPerSecond: "speed/imagesPerSecond",
  waiting: "speed/waiting",
  liveBytes: "memory/liveBytes",
  liveBuffers: "memory/liveBuffers",
  highWaterBytes: "memory/highWaterBytes",
};

/** An entry's numbers by TensorBoard's tags. What an evaluation could not measure (-1) is left out. */
function scalarsOf(entry: Entry): Record<string, number> {
  if (!isEvaluation(entry)) {
    const { step: _, ...values } = entry;
    return Object.fromEntries(Object.entries(values).map(([name, value]) => [TAGS[name] ?? `loss/${name}`, value]));
  }
  const { perClass, ...figures } = entry.evaluation;
  const tagged = (group: string, values: Record<string, number>): [string, number][] =>
    Object.entries(values).flatMap(([name, value]) => (value < 0 ? [] : [[`${group}/${name}`, value]]));
  return Object.fromEntries([...tagged("eval", figures), ...tagged("eval AP of classes", perClass)]);
}

/** Drops the lines of metrics.jsonl after a step and one that a kill has torn; returns the rest. */
export async function forgetAfter(run: string, step: number): Promise<Entry[]> {
  const kept = readDiary(run).filter((entry) => entry.step <= step);
  await writeWhole(join(run, "metrics.jsonl"), kept.map((entry) => `${JSON.stringify(entry)}\n`).join(""));
  return kept;
}

type Sums = Record<string, { sum: number; count: number }>;

/** Means of what steps report since the last line; a term counts where it occurs. */
export class Means {
  #sums: Sums;

  /** @param saved the state of another one, to go on with */
  constructor(saved: Sums = {}) {
    this.#sums = structuredClone(saved);
  }

  add(report: Record<string, number>): void {
    for (const [name, value] of Object.entries(report)) {
      const { sum, count } = this.#sums[name] ?? { sum: 0, count: 0 };
      this.#sums[name] = { sum: sum + value, count: count + 1 };
    }
  }

  get values(): Record<string, number> {
    return Object.fromEntries(Object.entries(this.#sums).map(([name, { sum, count }]) => [name, sum / count]));
  }

  /** Plain JSON. */
  get state(): Sums {
    return this.#sums;
  }

  clear(): void {
    this.#sums = {};
  }
}

export function isEvaluation(entry: Entry): entry is LoggedEvaluation {
  return typeof (entry as LoggedEvaluation).evaluation === "object";
}

/** All whole lines of a run's metrics.jsonl: a kill may have torn the last one. */
export function readDiary(run: string): Entry[] {
  const path = join(run, "metrics.jsonl");
  if (!existsSync(path)) return [];
  return readFileSync(path, "utf8")
    .split("\n")
    .flatMap((line): Entry[] => {
      try {
        return line === "" ? [] : [JSON.parse(line) as Entry];
      } catch {
        return [];
      }
    });
}

function row({ step, evaluation, highWaterBytes }: LoggedEvaluation): string {
  return [step, ...FIGURES.map((name) => evaluation[name].toFixed(4)), highWaterBytes ?? ""].join(",");
}

/** Seven digits: what f32 holds. Bytes and steps are counted exactly. */
function rounded(entry: LoggedStep): LoggedStep {
  return Object.fromEntries(
    Object.entries(entry).map(([name, value]) => [
      name,
      Number.isInteger(value) ? value : Number(value.toPrecision(7)),
    ]),
  ) as LoggedStep;
}
