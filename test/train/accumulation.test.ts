// A step of several passes is that of one batch of all their images.
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { sharesOf } from "../../train/accumulation.ts";
import { readInstances } from "../../train/data/coco.ts";
import type { Sample } from "../../train/data/loader.ts";
import { weaken, writeWeak } from "../../train/data/weak.ts";
import { readData } from "../../train/inputs.ts";
import { prepare } from "../../train/prepare.ts";
import { trainStep } from "../../train/step.ts";
import type { ImageTargets, Target } from "../../train/targets.ts";
import { config, folder, gpu, removeFolder, scenes, silent } from "./tiny-run.ts";

const test = suite("accumulation");

/** Images whose objects are of these classes. */
const images = (...classes: number[][]): ImageTargets[] =>
  classes.map((list) => ({
    targets: list.map((classIndex): Target => ({ classIndex, candidates: [], iou: [] })),
    supervised: true,
    tags: [],
    valid: [10, 10],
  }));

test("a pass weighs as much as it has of what its losses are means of", () => {
  const [first, second] = sharesOf([images([0, 0, 1]), images([2])], { queries: 4, noObject: 0.5 });
  assert.equal([first!.dice, second!.dice], [1.5, 0.5], "objects");
  assert.equal([first!.self, second!.self], [4 / 3, 2 / 3], "classes of images");
  // 3 + 0.5 and 1 + 3 * 0.5
  assert.equal([first!.class, second!.class], [3.5 / 3, 2.5 / 3], "queries");
  const none = sharesOf([images([]), images([])], { queries: 4, noObject: 0.5 });
  assert.equal(none[0], { class: 1, self: 1, prompt: 1, bce: 1, dice: 1, projection: 1 });
});

/** What a step on these batches reports. */
async function stepOf(name: string, mix: Parameters<typeof weaken>[1], settings: string[]) {
  const labels = join(folder, `${name}.json`);
  await writeWeak(labels, weaken(readInstances(scenes.annotations), mix, { seed: 2 }));
  const own = config(name, [
    `data.labels=${labels}`,
    "val.annotations=",
    "cam.warmup=0",
    "sam.cache=",
    "batch=6",
    // By what does not depend on random points.
    "match.bce=0",
    "match.dice=0",
    "loss.points=4000",
    // Its gradient jumps at its clamp.
    "loss.self=0",
    ...settings,
  ]);
  const { trainer, loader } = await prepare(gpu, own, readData(own), { display: silent });
  const samples = (await loader.next()) as Sample[];
  loader.close();
  trainer.model.train();
  const before = await Promise.all(trainer.model.parameters().map((x) => x.toArray()));
  const step = async (batches: Sample[][]) => {
    for (const [i, x] of trainer.model.parameters().entries()) gpu.upload(x, before[i]!);
    return trainStep(trainer, batches, 0);
  };
  return { step, samples };
}

for (const [name, mix] of [
  ["boxes", { boxes: 1 }],
  ["tags", { tags: 1 }],
  ["mixed", { tags: 0.34, points: 0.33, boxes: 0.33 }],
] as const)
  test(`six passes of an image are one batch of six: ${name}`, async () => {
    const { step, samples } = await stepOf(name, mix, []);
    const whole = await step([samples]);
    const objects: number[] = [];
    for (const sample of samples) objects.push((await step([[sample]])).objects!);
    assert.ok(new Set(objects).size > 1, `images of different numbers of objects: ${objects}`);
    for (const size of [1, 2]) {
      const batches: Sample[][] = [];
      for (let i = 0; i < samples.length; i += size) batches.push(samples.slice(i, i + size));
      const passes = await step(batches);
      assert.is(passes.objects, whole.objects);
      for (const term of ["class", "prompt", "cam"])
        assert.ok(
          Math.abs(passes[term]! / whole[term]! - 1) < 2e-3,
          `${term}: ${passes[term]}, of one batch ${whole[term]}`,
        );
      // At other random points.
      for (const term of ["bce", "dice", "loss", "gradient"])
        assert.ok(
          Math.abs(passes[term]! / whole[term]! - 1) < 0.02,
          `${term}: ${passes[term]}, of one batch ${whole[term]}`,
        );
    }
  });

test.after(removeFolder);
test.run();
