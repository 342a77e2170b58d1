// The teacher on a SAM of random weights: the host's postprocessing, prompts of several images at once, the caches.
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { encode, scope } from "../../engine/index.ts";
import { longestSide, maskOfLogits, Sam, SamPredictor, samMini } from "../../model/index.ts";
import { writePng } from "../../train/data/image.ts";
import type { Item } from "../../train/data/loader.ts";
import { makeScene } from "../../train/data/scenes.ts";
import { BadInput } from "../../train/errors.ts";
import { makeProxies } from "../../train/proxies.ts";
import { loadTeacher, type Prompted, type Teacher } from "../../train/teacher.ts";
import { testDevice } from "../device.ts";

const test = suite("teacher");
const gpu = await testDevice();
const folder = mkdtempSync(join(tmpdir(), "wish-teacher-"));
const file = join(folder, "sam.safetensors");
gpu.manualSeed(11);
const sizes = { ...samMini(), imageSize: 64 };
writeFileSync(file, await encode(new Sam(gpu, sizes).stateDict(), { config: JSON.stringify(sizes) }));
const scene = (i: number) => makeScene(1, i, 48).image;
const images = new Map<number, string>();
for (const id of [2, 7, 100, 101]) {
  images.set(id, join(folder, `image-${id}.png`));
  await writePng(images.get(id)!, scene(id));
}
const open = (memory = 1e6, options: object = { images }): Promise<Teacher> =>
  loadTeacher(gpu, file, { cache: join(folder, "embeddings"), memory, ...options });

test("masks of logits are those of SAM's postprocessing", async () => {
  const { sam } = await open();
  const side = sam.config.grid * 4;
  await scope(async () => {
    for (const [h0, w0] of [
      [48, 48],
      [37, 90],
      [101, 40],
    ] as const) {
      const inputSize = longestSide(h0, w0, 64);
      const low = gpu.randn([1, 1, side, side], { seed: h0 });
      const want = await sam.postprocess(low, inputSize, [h0, w0]).toArray();
      const got = maskOfLogits((await low.toArray()) as Float32Array, side, 64, inputSize, [h0, w0]);
      // Logits within rounding of the threshold may fall on either side.
      for (const [i, v] of want.entries())
        if (Math.abs(v) > 1e-4) assert.is(got[i], v > 0 ? 1 : 0, `${h0} x ${w0}: pixel ${i}`);
    }
  });
});

test("several images with different numbers of prompts get what each gets alone", async () => {
  const teacher = await open();
  const images = [scene(0), scene(1)];
  const boxes = [
    [[2, 3, 30, 40]],
    [
      [5, 5, 20, 20],
      [10, 0, 47, 30],
      [1, 1, 9, 9],
    ],
  ];
  const together = await teacher.prompt(images, "box", boxes);
  assert.equal(
    together.map((list) => list.length),
    [1, 3],
  );
  const predictor = new SamPredictor(teacher.sam);
  for (const [b, image] of images.entries()) {
    predictor.setImage(image);
    const { iou, lowRes } = await predictor.predict({ boxes: boxes[b]!.flat() });
    for (const [i, { iou: ratings, logits }] of together[b]!.entries()) {
      for (const [c, rating] of ratings.entries()) assert.ok(Math.abs(rating - iou[i]![c]!) < 1e-4);
      const area = logits[0]!.length;
      for (const [c, map] of logits.entries())
        for (let p = 0; p < area; p += 37) assert.ok(Math.abs(map[p]! - lowRes[(i * 3 + c) * area + p]!) < 1e-3);
    }
  }
  assert.equal(await teacher.prompt(images, "point", [[], []]), [[], []]);
});

test("points on a kept embedding answer alike from the encoder, memory and disk", async () => {
  let reads = 0;
  const read = async () => {
    reads++;
    return scene(7);
  };
  const points = [
    [20, 20],
    [40, 10],
  ] as const;
  const first = await open();
  const fresh = await first.promptPoints(7, [48, 48], read, points);
  const held = await first.promptPoints(7, [48, 48], read, points);
  const stored = await (await open()).promptPoints(7, [48, 48], read, points);
  assert.is(reads, 1);
  assert.equal(held, fresh);
  assert.equal(stored, fresh);
  assert.is(fresh.logits.length, 2);
  assert.is(fresh.iou[1]!.length, 3);
});

test("memory holds no more embeddings than it may", async () => {
  const teacher = await open(1); // one byte: only the image at hand
  let reads = 0;
  const read = async (id: number) => {
    reads++;
    return scene(id);
  };
  const ask = (id: number) => teacher.promptPoints(id, [48, 48], () => read(id), [[5, 5]]);
  for (const id of [100, 101, 100]) await ask(id);
  assert.is(reads, 2, "the third comes from disk");
});

test("an embedding belongs to an image, whatever its id: two data sets may share a cache", async () => {
  const ask = async (id: number, image: number, options: object) =>
    (await open(1e6, options)).promptPoints(id, [48, 48], async () => scene(image), [[20, 20]]);
  const as = (image: number) => ({ images: new Map([[1, images.get(image)!]]) });
  const [one, other] = [await ask(1, 100, as(100)), await ask(1, 101, as(101))];
  assert.not.equal(other, one);
  assert.equal(other, await ask(101, 101, { images }));
  // Without files the pixels stand for the image.
  assert.equal(await ask(1, 101, {}), other);
  assert.equal(await ask(1, 100, {}), one);
});

test("an embedding that half precision cannot hold is refused with the weights' name, and not kept", async () => {
  const large = join(folder, "large.safetensors");
  const state = new Sam(gpu, sizes).stateDict();
  state.set("image_encoder.neck.3.weight", gpu.full([sizes.promptDim], 1e6));
  writeFileSync(large, await encode(state, { config: JSON.stringify(sizes) }));
  const cache = join(folder, "large");
  const teacher = await loadTeacher(gpu, large, { cache, memory: 1e6 });
  const error = await teacher.embed(1, async () => scene(0)).catch((cause: Error) => cause);
  assert.instance(error, BadInput);
  assert.match(
    (error as Error).message,
    /large\.safetensors: its embedding of an image holds -?\d[\d.]+, which half precision, .*take other weights$/,
  );
  assert.not.ok(existsSync(cache));
});

test("more prompts than fit one pass are answered as fewer are", async () => {
  const teacher = await open();
  const decode = teacher.sam.decode.bind(teacher.sam);
  const passes: number[] = [];
  teacher.sam.decode = (embedding, sparse, dense, options) => {
    passes.push(sparse.shape[0]!);
    return decode(embedding, sparse, dense, options);
  };
  const boxes = Array.from({ length: 70 }, (_, i) => [i % 20, i % 11, 24 + (i % 20), 30 + (i % 13)]);
  const [many] = await teacher.prompt([scene(2)], "box", [boxes]);
  const points = boxes.map(([x, y]): [number, number] => [x!, y!]);
  const kept = await teacher.promptPoints(2, [48, 48], async () => scene(2), points);
  assert.equal(passes, [32, 32, 6, 32, 32, 6]);
  const [[last]] = (await teacher.prompt([scene(2)], "box", [[boxes[69]!]])) as [[Prompted]];
  assert.is(many!.length, 70);
  for (const [c, rating] of last.iou.entries()) assert.ok(Math.abs(rating - many![69]!.iou[c]!) < 1e-4);
  const alone = await teacher.promptPoints(2, [48, 48], async () => scene(2), [points[69]!]);
  for (const [c, rating] of alone.iou[0]!.entries()) assert.ok(Math.abs(rating - kept.iou[69]![c]!) < 1e-4);
  assert.is(kept.logits.length, 70);
});

test("proxies are computed once, clipped to their boxes, and made again where a file is damaged", async () => {
  const path = join(folder, "scene.png");
  await writePng(path, scene(3));
  const item = (kind: "boxes" | "points" | "tags"): Item => ({
    imageId: 5,
    path,
    width: 48,
    height: 48,
    kind,
    classes: kind === "tags" ? [] : [0],
    points: kind === "points" ? [[20, 22]] : [],
    boxes: kind === "boxes" ? [[10, 12, 20, 16]] : [],
    runs: [],
    tags: [0],
  });
  const items = [item("tags"), item("boxes"), item("points")];
  const options = { cache: join(folder, "proxies"), labels: new Uint8Array([1]), soft: true, clipToBox: true };
  let asked = 0;
  const make = (change: object = {}) => makeProxies(teacher, items, { ...options, ...change }, () => asked++);
  const teacher = await open();
  const [none, boxes, points] = await make();
  assert.is(none, undefined);
  assert.is(points![0]!.candidates.length, 3);
  assert.is(points![0]!.soft!.maps.length, 3);
  const { boxOfRuns } = await import("../../train/data/mask.ts");
  for (const runs of boxes![0]!.candidates) {
    const [x, y, w, h] = boxOfRuns(runs);
    assert.ok(w === 0 || (x >= 10 && y >= 12 && x + w <= 30 && y + h <= 28));
  }
  const before = asked;
  assert.equal(await make(), [none, boxes, points]);
  assert.is(asked, before, "nothing is asked again");
  const stored = join(options.cache, readdirSync(options.cache)[0]!, "00000.json");
  writeFileSync(stored, readFileSync(stored).subarray(0, 50));
  assert.equal(await make(), [none, boxes, points]);
  assert.ok(asked > before);
  await make({ labels: new Uint8Array([2]) });
  assert.is(readdirSync(options.cache).length, 2, "other labels have a cache of their own");

  await writePng(path, scene(4));
  const [, others] = await make();
  assert.not.equal(others, boxes, "another image under the same name has masks of its own");
  assert.equal((await make())[1], others);
});

test("progress counts the images that have to be computed, from before the first", async () => {
  const calls: [number, number][] = [];
  const items: Item[] = [2, 7, 100].map((imageId) => ({
    imageId,
    path: images.get(imageId)!,
    width: 48,
    height: 48,
    kind: "points",
    classes: [0],
    points: [[20, 22]],
    boxes: [],
    runs: [],
    tags: [0],
  }));
  const options = { cache: join(folder, "counted"), labels: new Uint8Array([1]), soft: false, clipToBox: true };
  const teacher = await open();
  await makeProxies(teacher, items, options, (done, total) => calls.push([done, total]));
  assert.equal(calls, [
    [0, 3],
    [3, 3],
  ]);
  await makeProxies(teacher, items, options, () => assert.unreachable("all are there"));
});

test("an image of another size than its labels say is refused by name before SAM sees it", async () => {
  const path = images.get(2)!;
  const item: Item = {
    imageId: 2,
    path,
    width: 96,
    height: 48,
    kind: "boxes",
    classes: [0],
    points: [],
    boxes: [[10, 12, 20, 16]],
    runs: [],
    tags: [0],
  };
  const options = { cache: join(folder, "sizes"), labels: new Uint8Array([1]), soft: false, clipToBox: true };
  const error = await makeProxies(await open(), [item], options).catch((cause: Error) => cause);
  assert.instance(error, BadInput);
  assert.match((error as Error).message, /image-2\.png: is 48x48, but the labels are for 96x48.*; give the image/);
});

test.after(() => rmSync(folder, { recursive: true, force: true }));
test.run();
