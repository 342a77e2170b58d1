/** A run's diary: metrics.jsonl has a line for each logged step and evaluation, results.csv a row for each evaluation. */
import { appendFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Metrics } from "./eval/coco-ap.ts";

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

  /** @param from a run that goes on from this step forgets what was written after it */
  constructor(run: string, from: number) {
    this.#run = run;
    mkdirSync(run, { recursive: true });
    const kept = readDiary(run).filter((entry) => entry.step <= from);
    writeFileSync(join(run, "metrics.jsonl"), kept.map((entry) => `${JSON.stringify(entry)}\n`).join(""));
    const rows = kept.flatMap((entry) => (isEvaluation(entry) ? [row(entry.step, entry.evaluation)] : []));
    writeFileSync(join(run, "results.csv"), [`step,${COLUMNS.join(",")}`, ...rows, ""].join("\n"));
  }

  step(entry: LoggedStep): void {
    appendFileSync(join(this.#run, "metrics.jsonl"), `${JSON.stringify(rounded(entry))}\n`);
  }

  evaluation(step: number, evaluation: Metrics): void {
    appendFileSync(join(this.#run, "metrics.jsonl"), `${JSON.stringify({ step, evaluation })}\n`);
    appendFileSync(join(this.#run, "results.csv"), `${row(step, evaluation)}\n`);
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
