/**
 * Writes the weights of a run's best checkpoint alone, in half precision, with what is needed to use them:
 *
 *     node --import tsx scripts/export-wish.ts runs/scenes assets/wish-scenes.safetensors
 */
import { Device } from "../index.ts";
import { exportWeights, loadRun } from "../train/models.ts";

const [run, out] = process.argv.slice(2);
if (run === undefined || out === undefined) {
  console.error("usage: node --import tsx scripts/export-wish.ts RUN OUT.safetensors");
  process.exit(2);
}
const gpu = await Device.open();
const { model, categories, kinds, inference, file, step } = await loadRun(gpu, run);
await exportWeights(out, model, categories, kinds, { half: true, ...(inference ? { inference } : {}) });
console.log(`${out}: step ${step} of ${file}`);
gpu.close();
process.exit(0);
