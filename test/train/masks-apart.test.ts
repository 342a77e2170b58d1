/** Masks never reach training from weak labels: neither as a file that is opened, nor in the labels, nor by way of evaluations. */
import fs, { cpSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { join, resolve } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { Loader } from "../../train/data/loader.ts";
import { readData } from "../../train/inputs.ts";
import { train } from "../../train/train.ts";
import { config, folder, gpu, labels, removeFolder, scenes, silent } from "./tiny-run.ts";

const test = suite("masks stay apart");
test.after(() => {
  gpu.close();
  removeFolder();
});

const kept = join(folder, "kept.json");
cpSync(scenes.annotations, kept);
test.after.each(() => cpSync(kept, scenes.annotations));

/** Every path that Node opens while `work` runs. */
async function opened(work: () => Promise<unknown>): Promise<Set<string>> {
  const paths = new Set<string>();
  const watched = [fs, fs.promises].flatMap((module) =>
    ["readFile", "readFileSync", "open", "openSync", "createReadStream"].flatMap((name) => {
      const table = module as unknown as Record<string, (...args: unknown[]) => unknown>;
      const original = table[name];
      if (original === undefined) return [];
      table[name] = (...args) => {
        if (typeof args[0] === "string") paths.add(resolve(args[0]));
        return original.apply(module, args);
      };
      return [() => void (table[name] = original)];
    }),
  );
  syncBuiltinESMExports();
  try {
    await work();
  } finally {
    for (const restore of watched) restore();
    syncBuiltinESMExports();
  }
  return paths;
}

/** The weights after two steps, the warm-up on the CAM and a whole one; nothing is kept between runs, neither masks nor embeddings. */
async function weightsAfter(run: string, settings: string[]): Promise<Map<string, Float32Array>> {
  const own = ["steps=2", `sam.cache=${join(folder, `${run}-cache`)}`, ...settings];
  const { model } = await train(gpu, config(run, own), { display: silent });
  const weights = new Map<string, Float32Array>();
  for (const [name, x] of model.namedTensors()) weights.set(name, Float32Array.from(await x.toArray()));
  return weights;
}

const unseen = ["val.annotations=", "val.images="];
let want: Map<string, Float32Array>;

test("training opens the weak labels and the images, never the file with the masks", async () => {
  const paths = await opened(async () => {
    want = await weightsAfter("watched", unseen);
  });
  assert.ok(paths.has(resolve(labels)));
  assert.ok([...paths].some((path) => path.startsWith(resolve(scenes.imagesDir))));
  assert.not.ok(paths.has(resolve(scenes.annotations)));
});

test("without the masks' file, or with other masks in it, the same weights come out, bit for bit", async () => {
  rmSync(scenes.annotations);
  assert.equal(await weightsAfter("removed", unseen), want);
  const document = JSON.parse(readFileSync(kept, "utf8"));
  for (const annotation of document.annotations) {
    const [height, width] = annotation.segmentation.size;
    annotation.segmentation.counts = [0, height * width];
    annotation.bbox = [0, 0, width, height];
  }
  writeFileSync(scenes.annotations, JSON.stringify(document));
  assert.equal(await weightsAfter("poisoned", unseen), want);
});

test("evaluating on masks between the steps, and drawing them, does not change the weights", async () => {
  assert.equal(await weightsAfter("evaluated", ["val.every=1", "val.stages=2"]), want);
});

test("the weak labels hold points, boxes and names of classes, and no masks", () => {
  const keys = new Set<string>();
  const numbers: number[] = [];
  const walk = (value: unknown): void => {
    if (Array.isArray(value)) numbers.push(value.length);
    if (typeof value !== "object" || value === null) return;
    for (const [key, inner] of Object.entries(value)) {
      if (!Array.isArray(value)) keys.add(key);
      walk(inner);
    }
  };
  walk(JSON.parse(readFileSync(labels, "utf8")).weak);
  assert.equal([...keys].sort(), [
    "bbox",
    "boxes",
    "category_id",
    "category_ids",
    "image_id",
    "kind",
    "points",
    "x",
    "y",
  ]);
  // No list is longer than the images or than what is in one: nowhere could pixels or runs hide.
  assert.ok(Math.max(...numbers) <= 16, String(Math.max(...numbers)));
});

test("samples of weak labels have no masks but those that SAM was asked for", async () => {
  const { items } = readData(config("samples", unseen));
  assert.ok(items.length > 0 && items.every(({ kind, runs }) => kind !== "masks" && runs.length === 0));
  const augment = { width: 64, height: 64, flip: true, scale: [0.8, 1.25] as const };
  const loader = new Loader({ items, batch: items.length, seed: 1, augment });
  for (const sample of await loader.next()) assert.equal([sample.masks.length, sample.proxies], [0, undefined]);
  loader.close();
});

test.run();
