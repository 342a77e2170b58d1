/**
 * A run in f32, and at each of its steps what mixed precision says of the same images from the same weights. Two runs, one in each, tell
 * less: which query takes an object is decided by rounding where costs are near each other, and from there on they go their own ways.
 */
import { backward, type Device, F, Random, scope } from "../../engine/index.ts";
import type { Config } from "../../train/config.ts";
import type { Sample } from "../../train/data/loader.ts";
import type { Display } from "../../train/display.ts";
import { readData } from "../../train/inputs.ts";
import { prepare } from "../../train/prepare.ts";
import { lossTerms, type Trainer, trainStep } from "../../train/step.ts";

export interface BothPrecisions {
  /** The loss. */
  f32: number;
  mixed: number;
  /** Of the angle between the two gradients. */
  cosine: number;
}

/** Gradients of mixed precision are computed at this scale, at which none is too small for f16 or too large. */
const SCALE = 1024;

/** @param config of a run in f32 without accumulation */
export async function* bothPrecisions(gpu: Device, config: Config, display: Display): AsyncGenerator<BothPrecisions> {
  const { trainer, loader } = await prepare(gpu, config, readData(config), { display });
  trainer.model.train();
  const mixed = { ...trainer, config: { ...config, precision: "mixed" as const } };
  try {
    for (let step = 0; step < config.steps; step++) {
      const samples = await loader.next();
      const [a, b] = [
        await lossAndGradient(trainer, samples, step, 1),
        await lossAndGradient(mixed, samples, step, SCALE),
      ];
      yield { f32: a.loss, mixed: b.loss, cosine: cosineOf(a.gradient, b.gradient) };
      await trainStep(trainer, [samples], step);
    }
  } finally {
    loader.close();
  }
}

function lossAndGradient(trainer: Trainer, samples: readonly Sample[], step: number, scale: number) {
  const { gpu, config, model, optimizer } = trainer;
  return scope(async () => {
    optimizer.zeroGrad();
    const random = new Random(config.seed).fork(`step ${step}.0`); // trainStep's own.
    gpu.manualSeed(random.fork("layers").bits());
    const { terms } = await lossTerms(trainer, samples, step, random);
    const loss = [...terms.values()].reduce((a, b) => F.add(a, b));
    backward(F.mul(loss, scale));
    const gradient: number[][] = [];
    for (const { grad } of model.parameters()) gradient.push(grad ? [...(await grad.toArray())] : []);
    optimizer.zeroGrad();
    return { loss: await loss.item(), gradient };
  });
}

function cosineOf(a: readonly number[][], b: readonly number[][]): number {
  let [dot, aa, bb] = [0, 0, 0];
  for (const [i, x] of a.entries())
    for (const [j, value] of x.entries()) {
      const other = b[i]![j]!;
      dot += value * other;
      aa += value * value;
      bb += other * other;
    }
  return dot / Math.sqrt(aa * bb);
}
