/** `quickstart`: the main job on the embedded default; what `npm start` runs. */
import { join } from "node:path";
import { quickstart } from "../train/quickstart.ts";
import type { Call } from "./command.ts";
import { bytes, duration, table } from "./terminal.ts";

interface Options {
  out: string;
  steps?: number;
}

const INTERRUPTED = 130;

export async function run({ options, terminal, open, interruptible }: Call<Options>): Promise<number | undefined> {
  const gpu = await open();
  terminal.log(`adapter: ${gpu.name}`);
  const result = await quickstart(gpu, {
    out: options.out,
    display: terminal,
    signal: interruptible(),
    ...(options.steps === undefined ? {} : { steps: options.steps }),
  });
  if (result.interrupted) return INTERRUPTED;
  const { before, after } = result;
  const rows = (["AP", "AP50", "AP75", "AR100"] as const).map((name) => [
    name,
    before ? before[name].toFixed(3) : "–",
    after ? after[name].toFixed(3) : "–",
  ]);
  terminal.result(
    result,
    [
      table(["on unseen scenes", "before", "after"], rows),
      `${result.steps} steps in ${duration(result.seconds)}${result.startedFrom ? `, from the shipped weights ${result.startedFrom}` : ", from random weights"}`,
      `GPU memory: at most ${bytes(result.highWaterBytes)} of tensors`,
      `open ${join(result.run, "report.html")}; pictures are in ${join(result.run, "pictures")}`,
    ].join("\n"),
  );
  return undefined;
}
