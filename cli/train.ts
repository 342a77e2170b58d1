/** `train`: trains WISH on weak labels, or Mask2Former on masks. */
import { readConfig } from "../train/config.ts";
import { train } from "../train/train.ts";
import type { Call } from "./command.ts";
import { bytes, table } from "./terminal.ts";

interface Options {
  resume?: boolean;
}

const INTERRUPTED = 130;

export async function run(call: Call<Options>): Promise<number | undefined> {
  const { args, options, terminal } = call;
  const [path, ...settings] = args;
  const config = readConfig(path!, settings);
  const gpu = await call.open();
  const { step, interrupted, evaluation, highWaterBytes } = await train(gpu, config, {
    display: terminal,
    signal: call.interruptible(),
    resume: options.resume ?? false,
    file: path!,
  });
  if (interrupted) {
    terminal.log(`${config.run}: saved at step ${step}; go on with --resume`);
    return INTERRUPTED;
  }
  const { perClass, ...figures } = evaluation?.metrics ?? { perClass: {} };
  terminal.result(
    { run: config.run, steps: step, metrics: evaluation?.metrics ?? null, highWaterBytes },
    [
      `${config.run}: ${step} steps; report.html, metrics.jsonl and checkpoints/ are in it`,
      `GPU memory: at most ${bytes(highWaterBytes)} of tensors`,
      ...(evaluation
        ? [
            table(
              ["metric", "value"],
              [
                ...Object.entries(figures),
                ...Object.entries(perClass).map(([name, ap]) => [`AP ${name}`, ap] as const),
              ].map(([name, value]) => [name, Number(value)]),
            ),
          ]
        : []),
    ].join("\n"),
  );
  return undefined;
}
