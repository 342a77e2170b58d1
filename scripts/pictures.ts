/**
 * Draws the README's picture: scenes with tags, points and boxes, what the network and SAM make of them, what the shipped model answers.
 *
 *     node --import tsx scripts/pictures.ts docs/stages.jpg
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Device } from "../index.ts";
import { readConfig } from "../train/config.ts";
import { readInstances } from "../train/data/coco.ts";
import { type Image, jpegOf } from "../train/data/image.ts";
import { weakItems } from "../train/data/loader.ts";
import { writeScenes } from "../train/data/scenes.ts";
import { readWeak, weaken, writeWeak } from "../train/data/weak.ts";
import { writeWhole } from "../train/files.ts";
import { loadTrained } from "../train/models.ts";
import { contactSheet } from "../train/pictures.ts";
import { drawStages } from "../train/stages.ts";
import { loadTeacher } from "../train/teacher.ts";

/** Which scene is shown with which label. */
const ROWS = { tags: 3, points: 1, boxes: 0 };
const [SCENES, SIZE, SEED] = [4, 288, 5]; // not among those the shipped weights were trained on
const [out] = process.argv.slice(2);
if (out === undefined) {
  console.error("usage: node --import tsx scripts/pictures.ts OUT.jpg");
  process.exit(2);
}
const folder = await mkdtemp(join(tmpdir(), "wgpu-wish-"));
await writeScenes(folder, { images: SCENES, size: SIZE, seed: SEED });
const truth = readInstances(join(folder, "annotations/instances.json"));
const gpu = await Device.open();
const { model, categories } = await loadTrained(gpu, "assets/wish-scenes.safetensors");
model.eval();
const config = readConfig("configs/scenes.yaml");
const teacher = await loadTeacher(gpu, config.sam.checkpoint, { cache: "", memory: 0 });
const panels: Image[] = [];
for (const [kind, scene] of Object.entries(ROWS)) {
  const labels = join(folder, `${kind}.json`);
  await writeWeak(labels, weaken(truth, { [kind]: 1 }, { seed: 0, point: "center" }));
  const items = weakItems(readWeak(labels), join(folder, "images"));
  panels.push(...(await drawStages({ gpu, model, categories, config, teacher }, items[scene]!)));
}
const sheet = contactSheet(panels, {
  columns: panels.length / Object.keys(ROWS).length,
  most: Number.POSITIVE_INFINITY,
});
await writeWhole(out, await jpegOf(sheet, sheet.width));
await rm(folder, { recursive: true });
gpu.close();
process.exit(0);
