import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { checkImages, instanceRuns, readInstances } from "../../train/data/coco.ts";
import { readImage } from "../../train/data/image.ts";
import { areaOfRuns, boxOfRuns, maskOfRuns } from "../../train/data/mask.ts";
import { makeScene, sceneCategories, writeScenes } from "../../train/data/scenes.ts";

const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-scenes-"));
const test = suite("scenes");
test.after(() => rmSync(folder, { recursive: true }));

test("a scene is the same for the same seed and index, and another for others", () => {
  const scene = makeScene(3, 14, 64);
  assert.equal(makeScene(3, 14, 64), scene);
  assert.not.equal(makeScene(3, 15, 64).image.data, scene.image.data);
  assert.not.equal(makeScene(4, 14, 64).image.data, scene.image.data);
});

test("masks do not overlap, boxes fit them, every class appears, no scene is empty", () => {
  const seen = new Set<number>();
  for (let i = 0; i < 60; i++) {
    const { instances } = makeScene(1, i, 64);
    assert.ok(instances.length >= 1 && instances.length <= 5, `scene ${i} has ${instances.length} objects`);
    const taken = new Uint8Array(64 * 64);
    for (const { category, mask, bbox } of instances) {
      seen.add(category);
      let pixels = 0;
      mask.forEach((value, at) => {
        if (value === 0) return;
        pixels++;
        assert.is(taken[at], 0);
        taken[at] = 1;
        const [x, y] = [at % 64, Math.floor(at / 64)];
        assert.ok(x >= bbox[0] && x < bbox[0] + bbox[2] && y >= bbox[1] && y < bbox[1] + bbox[3]);
      });
      assert.ok(pixels > 0);
    }
  }
  assert.is(seen.size, sceneCategories.length);
});

test("objects stand out from what is around them", () => {
  let clear = 0;
  let all = 0;
  for (let i = 0; i < 40; i++) {
    const { image, instances } = makeScene(2, i, 64);
    for (const { mask } of instances) {
      const mean = (value: number) => {
        const sums = [0, 0, 0, 0];
        mask.forEach((m, at) => {
          if (m !== value) return;
          for (let c = 0; c < 3; c++) sums[c]! += image.data[at * 3 + c]!;
          sums[3]!++;
        });
        return sums.slice(0, 3).map((sum) => sum / sums[3]!);
      };
      const [inside, outside] = [mean(1), mean(0)];
      all++;
      if (Math.hypot(...inside.map((v, c) => v - outside[c]!)) > 25) clear++;
    }
  }
  assert.ok(clear / all > 0.9, `${clear} of ${all}`);
});

test("a data set is COCO's layout, reads back, and is the same byte for byte", async () => {
  const [a, b] = [join(folder, "a"), join(folder, "b")];
  const { annotations, imagesDir } = await writeScenes(a, { images: 5, size: 48, seed: 9 });
  await writeScenes(b, { images: 5, size: 48, seed: 9 });
  assert.equal(readFileSync(annotations), readFileSync(join(b, "annotations", "instances.json")));
  assert.equal(readdirSync(imagesDir), ["000001.png", "000002.png", "000003.png", "000004.png", "000005.png"]);
  for (const name of readdirSync(imagesDir))
    assert.equal(readFileSync(join(imagesDir, name)), readFileSync(join(b, "images", name)));

  const data = readInstances(annotations);
  await checkImages(data, imagesDir);
  assert.equal((await readImage(join(imagesDir, "000003.png"))).data, makeScene(9, 2, 48).image.data);
  const scene = makeScene(9, 2, 48);
  const read = data.instances.filter(({ imageId }) => imageId === 3);
  assert.equal(
    read.map((instance) => [
      instance.categoryId,
      instance.box,
      maskOfRuns(instanceRuns(instance, { width: 48, height: 48 })),
    ]),
    scene.instances.map(({ category, bbox, mask }) => [category, bbox, mask]),
  );
  for (const instance of data.instances) {
    const runs = instanceRuns(instance, { width: 48, height: 48 });
    assert.is(instance.area, areaOfRuns(runs));
    assert.equal(instance.box, boxOfRuns(runs));
  }
});

test.run();
