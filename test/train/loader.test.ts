import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { readInstances } from "../../train/data/coco.ts";
import {
  evalSample,
  type Item,
  Loader,
  type LoaderOptions,
  maskItems,
  type Sample,
  shortestEdge,
  weakItems,
} from "../../train/data/loader.ts";
import { runsOfMask } from "../../train/data/mask.ts";
import { SamplePool } from "../../train/data/sample-pool.ts";
import { writeScenes } from "../../train/data/scenes.ts";
import { readWeak, weaken, writeWeak } from "../../train/data/weak.ts";
import { BadInput } from "../../train/errors.ts";

const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-loader-"));
const { annotations, imagesDir } = await writeScenes(folder, { images: 11, size: 32, seed: 1 });
const data = readInstances(annotations);
const weakPath = join(folder, "weak.json");
writeWeak(weakPath, weaken(data, { tags: 0.3, points: 0.3, boxes: 0.4 }, { seed: 2 }));
const items = weakItems(readWeak(weakPath), imagesDir);
const augment = { width: 40, height: 40, flip: true, scale: [0.5, 1.5] as const };
const base: LoaderOptions = { items, batch: 3, seed: 7, augment };

async function refusal(work: () => unknown): Promise<string> {
  try {
    await work();
  } catch (error) {
    assert.instance(error, BadInput);
    return (error as Error).message;
  }
  throw new Error("was not refused");
}

const test = suite("loader");
test.after(() => rmSync(folder, { recursive: true }));

test("each epoch shows every image once, in an order of its own", async () => {
  const loader = new Loader({ ...base, batch: 11 });
  const epochs = [await loader.next(), await loader.next()].map((batch) => batch.map(({ item }) => item));
  for (const order of epochs)
    assert.equal(
      [...order].sort((a, b) => a - b),
      items.map((_, i) => i),
    );
  assert.not.equal(epochs[0], epochs[1]);
  assert.is(loader.stepsPerEpoch, 1);
});

test("balance repeats the images of rarer kinds within an epoch", async () => {
  // 1 with boxes, 2 with points, 8 with tags.
  const kinds = items.map((item, i) => ({
    ...items.find(({ kind }) => kind === (i < 1 ? "boxes" : i < 3 ? "points" : "tags"))!,
    imageId: item.imageId,
  }));
  for (const [balance, times] of [
    [0, [1, 1, 1]],
    [0.5, [3, 2, 1]], // roots of 8, 4 and 1
    [1, [8, 4, 1]],
  ] as const) {
    const length = times[0] + 2 * times[1] + 8 * times[2];
    const loader = new Loader({ ...base, items: kinds, balance, batch: length });
    const seen = (await loader.next()).map(({ item }) => item);
    assert.equal(
      kinds.map((_, i) => seen.filter((item) => item === i).length),
      kinds.map((_, i) => times[i < 1 ? 0 : i < 3 ? 1 : 2]),
    );
    assert.is(loader.stepsPerEpoch, 1);
    assert.is(loader.state.epoch, 1);
    loader.close();
  }
});

test("batches are full, and a loader restored in the middle goes on as the first one did", async () => {
  const first = new Loader(base);
  for (let i = 0; i < 5; i++) assert.is((await first.next()).length, 3);
  const state = JSON.parse(JSON.stringify(first.state));
  assert.equal(state, { seed: 7, items: 11, epoch: 1, position: 4 });
  const second = new Loader({ ...base, prefetch: 0 });
  await second.next();
  second.restore(state);
  for (let i = 0; i < 4; i++) assert.equal(await second.next(), await first.next());
  assert.match(await refusal(() => new Loader({ ...base, seed: 8 }).restore(state)), /seed 7 on 11 images/);
  first.close();
});

test("each kind brings its own targets and no other's", async () => {
  const loader = new Loader(base);
  const kinds = new Set<string>();
  for (let i = 0; i < 20; i++) {
    for (const sample of await loader.next()) {
      kinds.add(sample.kind);
      const { kind, classes, source, points, boxes, masks, tags } = sample;
      assert.is(sample.rgb.length, 40 * 40 * 3);
      assert.is(masks.length, 0);
      assert.is(source.length, classes.length);
      assert.is(points.length, kind === "points" ? classes.length : 0);
      assert.is(boxes.length, kind === "boxes" ? classes.length : 0);
      const item = items[sample.item]!;
      assert.equal(
        classes,
        source.map((n) => item.classes[n]),
      );
      assert.equal(tags, kind === "tags" ? item.tags : [...new Set(classes)].sort((a, b) => a - b));
      for (const label of tags) assert.ok(label >= 0 && label < 6);
    }
  }
  assert.equal([...kinds].sort(), ["boxes", "points", "tags"]);
});

test("full supervision brings masks and the boxes around them", async () => {
  const loader = new Loader({ ...base, items: maskItems(data, imagesDir), batch: 4, maskStride: 2 });
  for (let i = 0; i < 4; i++) {
    for (const { masks, boxes, classes } of await loader.next()) {
      assert.is(masks.length, classes.length);
      masks.forEach((mask, n) => {
        assert.is(mask.length, 20 * 20);
        const [x0, y0, x1, y1] = boxes[n]!;
        mask.forEach((value, at) => {
          const [x, y] = [2 * (at % 20), 2 * Math.floor(at / 20)];
          assert.ok(value === 0 || (x >= x0 && x < x1 && y >= y0 && y < y1));
        });
      });
    }
  }
});

test("SAM's candidates are warped with their targets", async () => {
  const full = runsOfMask(new Uint8Array(32 * 32).fill(1), 32, 32);
  const none = runsOfMask(new Uint8Array(32 * 32), 32, 32);
  const proxies = (item: Item) =>
    item.kind === "tags"
      ? undefined
      : item.classes.map((label) => ({ candidates: [full, none, full], iou: [label, 0, 1] }));
  const loader = new Loader({ ...base, proxies });
  const samples: Sample[] = [];
  for (let i = 0; i < 6; i++) samples.push(...(await loader.next()));
  for (const { kind, proxies: warped, classes, valid } of samples) {
    assert.is(warped === undefined, kind === "tags");
    warped?.forEach(({ masks, iou }, n) => {
      assert.is(iou[0], classes[n]);
      const sums = masks.map((mask) => mask.reduce((sum, value) => sum + value, 0));
      assert.equal(sums, [valid[0] * valid[1], 0, valid[0] * valid[1]]);
    });
  }
  assert.match(
    await new Loader({ ...base, items: items.filter(({ kind }) => kind === "boxes"), proxies: () => [] })
      .next()
      .then(String, String),
    /proxies for 0/,
  );
});

test("an image that is missing, broken or of another size is named when its batch is asked for", async () => {
  const broken = join(folder, "broken.png");
  writeFileSync(broken, "");
  const item = items[0]!;
  const load = (change: Partial<Item>) => new Loader({ ...base, items: [{ ...item, ...change }] }).next();
  assert.match(await refusal(() => load({ path: join(folder, "none.png") })), /none.png: the image does not exist/);
  assert.match(await refusal(() => load({ path: broken })), /broken.png: the image file is empty/);
  assert.match(await refusal(() => load({ width: 31 })), /is 32x32, but the labels are for 31x32/);
  assert.match(await refusal(() => new Loader({ ...base, items: [] })), /no labelled images/);
});

test("threads give the samples that the caller's own thread gives, in the same order", async () => {
  const full = runsOfMask(new Uint8Array(32 * 32).fill(1), 32, 32);
  const proxies = (item: Item) => item.classes.map(() => ({ candidates: [full, full, full], iou: [1, 0.5, 0] }));
  for (const given of [
    { ...base, proxies },
    { ...base, items: maskItems(data, imagesDir), batch: 4, maskStride: 2 },
  ]) {
    const [alone, threaded] = [new Loader({ ...given, threads: 0 }), new Loader({ ...given, threads: 2 })];
    for (let i = 0; i < 6; i++) assert.equal(await threaded.next(), await alone.next());
    threaded.close();
  }
});

test("what fails on a thread is told as it is without", async () => {
  const [item] = items;
  const load = (change: Partial<Item>) => new Loader({ ...base, threads: 1, items: [{ ...item!, ...change }] }).next();
  assert.match(await refusal(() => load({ path: join(folder, "none.png") })), /none.png: the image does not exist/);
  assert.match(await refusal(() => load({ width: 31 })), /is 32x32, but the labels are for 31x32/);
  const pool = new SamplePool(1);
  const job = {
    item: item!,
    index: 0,
    proxies: [],
    augment,
    maskStride: 1,
    random: { key: [1, 2], counter: 0 },
  } as const;
  const wrong = await pool.run({ ...job, random: { key: [1, 2], counter: 0 } }).then(String, (error: Error) => error);
  if (item!.classes.length > 0) assert.match(String(wrong), /^Error: .*but proxies for 0/);
  pool.close();
  assert.match(await pool.run({ ...job, random: { key: [1, 2], counter: 0 } }).then(String, String), /is closed/);
});

test("a process ends by itself while its threads read ahead, closed or not", async () => {
  const script = join(folder, "ends.ts");
  const source = (name: string) => JSON.stringify(new URL(`../../train/data/${name}.ts`, import.meta.url).href);
  const options = JSON.stringify({ ...base, threads: 2, prefetch: 8 });
  writeFileSync(
    script,
    `import(${source("loader")}).then(async ({ Loader }) => {
      const loader = new Loader(${options});
      await loader.next();
      if (process.argv[2] === "close") loader.close();
      console.log("read");
    });`,
  );
  for (const how of ["close", "leave"]) {
    const { status, stdout, stderr } = spawnSync(process.execPath, ["--import", "tsx", script, how], {
      encoding: "utf8",
      timeout: 60_000,
    });
    assert.equal([status, stdout], [0, "read\n"], stderr);
  }
});

test("evaluation shows the whole image: by its sides, or in a frame", async () => {
  assert.equal(shortestEdge({ width: 640, height: 480 }, { short: 800, long: 1333 }), [1067, 800]);
  assert.equal(shortestEdge({ width: 1000, height: 200 }, { short: 800, long: 1333 }), [1333, 267]);
  const path = items[0]!.path;
  const sides = await evalSample(path, { short: 48, long: 100 });
  assert.equal([sides.width, sides.height, sides.valid, sides.rgb.length], [48, 48, [48, 48], 48 * 48 * 3]);
  const frame = await evalSample({ width: 20, height: 10, data: new Uint8Array(600) }, { width: 32, height: 32 });
  assert.equal([frame.valid, frame.rgb[0], frame.rgb[frame.rgb.length - 1]], [[32, 16], 0, 128]);
});

test.run();
