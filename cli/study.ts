/** `study`: the paper's tables, trained and measured. */
import { join } from "node:path";
import { readStudy, runStudy } from "../train/study.ts";
import { meanAndSpread } from "../train/study-table.ts";
import type { Call } from "./command.ts";
import { table } from "./terminal.ts";

interface Options {
  out: string;
  seeds: number;
  resume?: boolean;
}

const INTERRUPTED = 130;

export async function run(call: Call<Options>): Promise<number | undefined> {
  const { args, options, terminal } = call;
  const { out, seeds, resume = false } = options;
  const [path, ...settings] = args;
  const config = readStudy(path!, settings);
  const gpu = await call.open();
  const { rows, interrupted } = await runStudy(gpu, config, {
    ...{ out, seeds, resume, display: terminal, signal: call.interruptible() },
    file: path!,
  });
  if (interrupted) {
    terminal.log(`${out}: interrupted; go on with --resume`);
    return INTERRUPTED;
  }
  const lines = rows.map(({ name, runs }) => [
    name,
    ...(["AP", "AP50", "AP75"] as const).map((figure) => meanAndSpread(runs.map((each) => each[figure]))),
  ]);
  terminal.result(
    { out, rows },
    `${table(["training", "AP", "AP50", "AP75"], lines)}\n\n${join(out, "study.md")}, report.html`,
  );
  return undefined;
}
