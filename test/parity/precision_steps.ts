/**
 * Mixed precision beside f32 at each step of a run, from the same weights on the same images.
 *
 *     node --import tsx test/parity/precision_steps.ts CONFIG.yaml run=DIR [key=value ...]
 *
 * The run is in f32 and of one pass a step, whatever the configuration says. Not part of the tests, which look at a few steps of a small
 * model: each step takes three times as long as one of training.
 */
import { Device } from "../../index.ts";
import { readConfig } from "../../train/config.ts";
import { bothPrecisions } from "../train/precisions.ts";

const [file, ...settings] = process.argv.slice(2);
if (file === undefined) {
  console.error("usage: node --import tsx test/parity/precision_steps.ts CONFIG.yaml run=DIR [key=value ...]");
  process.exit(2);
}
const display = {
  log: console.error,
  warn: console.error,
  progress: () => ({ update: () => {}, end: () => {} }),
};
const gpu = await Device.open();
const [sum, most] = [
  { f32: 0, mixed: 0 },
  { off: 0, at: 0 },
];
const cosines: number[] = [];
for await (const { f32, mixed, cosine } of bothPrecisions(
  gpu,
  readConfig(file, [...settings, "precision=f32", "accumulate=1"]),
  display,
)) {
  sum.f32 += f32;
  sum.mixed += mixed;
  const off = Math.abs(mixed / f32 - 1);
  if (off > most.off) Object.assign(most, { off, at: cosines.length });
  cosines.push(cosine);
}
cosines.sort((a, b) => a - b);
const percent = (x: number): string => `${(100 * x).toFixed(3)} %`;
console.log(
  `${cosines.length} steps: the mean loss differs by ${percent(sum.mixed / sum.f32 - 1)}, a step's by ${percent(most.off)} at most (step ${most.at}); ` +
    `the gradients' cosine is ${cosines[cosines.length >> 1]!.toFixed(6)} in the middle, ${cosines[0]!.toFixed(4)} at least`,
);
gpu.close();
process.exit(0);
