/** A run's diary: metrics.jsonl has a line for each logged step and evaluation, results.csv a row for each evaluation. */
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Metrics } from "./eval/coco-ap.ts";
import { writeWhole } from "./files.ts";

export interface LoggedStep {
  step: number;
  [name: string]: number;
}

export interface LoggedEvaluation {
  step: number;
  /** COCO's metrics, from 0 to 1. */
  evaluation: Metrics;
}

export type Entry = LoggedStep | LoggedEvaluation;

/** results.csv's columns after the step. */
const COLUMNS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "AP25", "AP70"] as const;

export class Diary {
  readonly #run: string;
  readonly #evaluations: LoggedEvaluation[];

  private constructor(run: string, evaluations: LoggedEvaluation[]) {
    this.#run = run;
    this.#evaluations = evaluations;
  }

  /** @param from a run that goes on from this step forgets what was written after it */
  static async open(run: string, from: number): Promise<Diary> {
    const evaluations = (await forgetAfter(run, from)).filter(isEvaluation);
    const rows = evaluations.map(({ step, evaluation }) => row(step, evaluation));
    await writeWhole(join(run, "results.csv"), [`step,${COLUMNS.join(",")}`, ...rows, ""].join("\n"));
    return new Diary(run, evaluations);
  }

  get evaluations(): readonly LoggedEvaluation[] {
    return this.#evaluations;
  }

  step(entry: LoggedStep): void {
    appendFileSync(join(this.#run, "metrics.jsonl"), `${JSON.stringify(rounded(entry))}\n`);
  }

  /** One that says again what stands there already, as at the end of a run that had ended before, is not repeated. */
  evaluation(step: number, evaluation: Metrics): void {
    const text = JSON.stringify({ step, evaluation });
    if (this.#evaluations.some((entry) => JSON.stringify(entry) === text)) return;
    this.#evaluations.push({ step, evaluation });
    appendFileSync(join(this.#run, "metrics.jsonl"), `${text}\n`);
    appendFileSync(join(this.#run, "results.csv"), `${row(step, evaluation)}\n`);
  }
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

function row(step: number, metrics: Metrics): string {
  return [step, ...COLUMNS.map((name) => metrics[name].toFixed(4))].join(",");
}

/** Seven digits: what f32 holds. */
function rounded(entry: LoggedStep): LoggedStep {
  return Object.fromEntries(
    Object.entries(entry).map(([name, value]) => [name, Number(value.toPrecision(7))]),
  ) as LoggedStep;
}
