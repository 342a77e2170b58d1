/** `sam-train`: trains or fine-tunes the SAM architecture on instance masks, or measures a trained model. */
import { CheckpointError } from "../model/weights/index.ts";
import { BadInput } from "../train/errors.ts";
import { readSamTrainConfig } from "../train/sam/config.ts";
import type { SamScores } from "../train/sam/evaluate.ts";
import { evaluateOn, trainedSam, trainSam } from "../train/sam/train.ts";
import type { Call } from "./command.ts";
import { bytes, short, table } from "./terminal.ts";

interface Options {
  resume?: boolean;
  eval?: boolean;
}

const INTERRUPTED = 130;

export async function run(call: Call<Options>): Promise<number | undefined> {
  const { args, options, terminal } = call;
  const [path, ...settings] = args;
  const config = readSamTrainConfig(path!, settings);
  const gpu = await call.open();
  try {
    if (options.eval) {
      const scores = await evaluateOn(await trainedSam(gpu, config), config, config.eval.scenes);
      terminal.result(scores, scoreTable(scores));
      return undefined;
    }
    const signal = call.interruptible();
    const bar = terminal.progress(config.steps, "step");
    const result = await trainSam(gpu, config, {
      resume: options.resume,
      signal,
      onStep: (step, terms, rate) =>
        bar.update(step, {
          loss: short(terms.loss!),
          best: short(terms.best!),
          miou: short(terms.miou!),
          "img/s": short(rate),
        }),
      onMessage: (text) => terminal.log(text),
      onWarning: (text) => terminal.warn(text),
    });
    bar.end();
    if (result.interrupted) {
      terminal.log(`${config.run}: interrupted and saved at step ${result.steps}; go on with --resume`);
      return INTERRUPTED;
    }
    terminal.result(
      { run: config.run, ...result },
      [
        result.weights,
        `GPU memory: at most ${bytes(result.highWaterBytes)} of tensors`,
        scoreTable(result.scores ?? {}),
      ].join("\n"),
    );
  } catch (error) {
    if (error instanceof CheckpointError) throw new BadInput(error.message);
    throw error;
  }
  return undefined;
}

function scoreTable(scores: Record<string, SamScores>): string {
  const rows = Object.entries(scores).flatMap(([name, { point, box, instances }]) =>
    [["box", box] as const, ["1 point", point] as const].map(([kind, s]) => [
      name,
      instances,
      kind,
      s.selected.toFixed(3),
      s.single.toFixed(3),
      s.oracle.toFixed(3),
    ]),
  );
  return table(["data", "instances", "prompt", "mIoU", "single mask", "best of 3"], rows);
}
