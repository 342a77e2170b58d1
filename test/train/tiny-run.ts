/** What tests of whole runs share: six small scenes with mixed labels, a teacher of random weights and a model that trains in a moment. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as assert from "uvu/assert";
import { encode } from "../../engine/index.ts";
import { Sam, samMini } from "../../model/index.ts";
import { type Config, resolveConfig } from "../../train/config.ts";
import { readInstances } from "../../train/data/coco.ts";
import { writeScenes } from "../../train/data/scenes.ts";
import { weaken, writeWeak } from "../../train/data/weak.ts";
import type { Display } from "../../train/display.ts";
import { BadInput } from "../../train/errors.ts";
import { testDevice } from "../device.ts";

export const gpu = await testDevice();
export const folder = mkdtempSync(join(tmpdir(), "wish-train-"));
export const silent: Display = { log: () => {}, warn: () => {}, progress: () => ({ update: () => {}, end: () => {} }) };

export const scenes = await writeScenes(join(folder, "data"), { images: 6, size: 64, seed: 3 });
export const labels = join(folder, "weak.json");
const third = 1 / 3;
await writeWeak(
  labels,
  weaken(readInstances(scenes.annotations), { tags: third, points: third, boxes: third }, { seed: 1 }),
);
export const sam = join(folder, "sam.safetensors");
gpu.manualSeed(5);
const sizes = { ...samMini(), imageSize: 64 };
writeFileSync(sam, await encode(new Sam(gpu, sizes).stateDict(), { config: JSON.stringify(sizes) }));

export function config(run: string, settings: string[] = []): Config {
  return resolveConfig(
    {
      run: join(folder, run),
      steps: 4,
      batch: 3,
      data: { images: scenes.imagesDir, labels, width: 64, height: 64, scale: [0.8, 1.25], tagScale: [0.8, 1] },
      val: {
        images: scenes.imagesDir,
        annotations: scenes.annotations,
        every: 100,
        limit: 2,
        short: 64,
        long: 64,
        pictures: 1,
      },
      model: {
        preset: "mini",
        backbone: { kind: "mini", widths: [8, 16, 16, 16], blocks: [1, 1, 1, 1], outputStride: 16 },
        hiddenDim: 32,
        groups: 4,
        encoder: { layers: 0 },
        decoder: { layers: 1, heads: 2, ffn: 32 },
        queries: 5,
      },
      sam: { checkpoint: sam, cache: join(folder, "cache") },
      match: { points: 32 },
      loss: { points: 32 },
      cam: { warmup: 1 },
      optim: { lr: 1e-3, schedule: "cosine", clip: 1 },
      log: { every: 1, checkpoint: 2, keep: 2 },
    },
    settings,
  );
}

export async function refused(work: () => Promise<unknown>, pattern: RegExp): Promise<void> {
  let error: Error | undefined;
  await work().catch((e: Error) => {
    error = e;
  });
  assert.ok(error instanceof BadInput, String(error?.stack));
  assert.match(error.message, pattern);
}

export function removeFolder(): void {
  rmSync(folder, { recursive: true, force: true });
}
