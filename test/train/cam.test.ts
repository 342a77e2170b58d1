import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, F, scope } from "../../engine/index.ts";
import { camLoss, findPeaks, type PeakOptions, selfLoss, validCells } from "../../train/cam.ts";
import type { LayerStack } from "../../train/matching.ts";
import { distinct } from "../../train/pseudo.ts";
import { uploadTargets } from "../../train/targets.ts";
import { testDevice } from "../device.ts";

const test = suite("cam");
const gpu = await testDevice();

const options: PeakOptions = { tau: 0.5, radius: 0.1, maxPeaks: 32, upsample: 4 };

/** A map of w x h with bumps of the given heights at the given cells. */
function bumps(w: number, h: number, at: [x: number, y: number, height: number][]): Float32Array {
  const map = new Float32Array(w * h).fill(-1);
  for (const [x, y, height] of at) map[y * w + x] = height;
  return map;
}

test("peaks lie at the cells' centres, strongest first, in the network's pixels", () => {
  const map = bumps(8, 8, [
    [1, 2, 2],
    [6, 5, 3],
  ]);
  const peaks = findPeaks(map, [1, 8, 8], [0], [128, 128], [128, 128], options);
  assert.equal(
    peaks.map((p) => [Math.round(p.x / 16 - 0.5), Math.round(p.y / 16 - 0.5)]),
    [
      [6, 5],
      [1, 2],
    ],
  );
  for (const p of peaks) assert.ok(Math.abs(p.x / 16 - 0.5 - Math.round(p.x / 16 - 0.5)) < 0.2, "near the centre");
  assert.ok(peaks[0]!.value > 0.99 && Math.abs(peaks[1]!.value - 2 / 3) < 0.02);
});

test("weak peaks, near peaks and peaks beyond the limit go; the strongest always stays", () => {
  const map = bumps(8, 8, [
    [1, 1, 4],
    [6, 6, 1],
    [3, 1, 3.5],
  ]);
  const count = (change: Partial<PeakOptions>) =>
    findPeaks(map, [1, 8, 8], [0], [128, 128], [128, 128], { ...options, ...change }).length;
  assert.is(count({}), 2);
  assert.is(count({ tau: 0.2 }), 3);
  assert.is(count({ radius: 0.4 }), 1);
  assert.is(count({ maxPeaks: 1 }), 1);
  assert.is(count({ tau: 1 }), 1);
});

test("only tagged classes count, and a map without activation has no peak", () => {
  const maps = new Float32Array(2 * 64).fill(-0.5);
  maps[64 + 9] = 1;
  assert.equal(findPeaks(maps, [2, 8, 8], [0], [64, 64], [64, 64], options), []);
  assert.is(findPeaks(maps, [2, 8, 8], [1], [64, 64], [64, 64], options)[0]!.classIndex, 1);
});

test("padding is not looked at", () => {
  const map = bumps(8, 8, [
    [7, 7, 9],
    [1, 1, 1],
  ]);
  const [peak] = findPeaks(map, [1, 8, 8], [0], [64, 64], [128, 128], options);
  assert.ok(peak!.x < 64 && peak!.y < 64);
  assert.is(peak!.value > 0.99, true);
  assert.equal(validCells([65, 128], [128, 128], 8, 8), [5, 8]);
  assert.equal(validCells([1, 128], [128, 128], 8, 8), [1, 8]);
});

test("L_cam takes the mean over the valid cells alone, and its gradient stays there", async () => {
  await scope(async () => {
    const cam = gpu.tensor(
      Float32Array.from({ length: 2 * 16 }, (_, i) => (i % 4 < 2 && i % 16 < 8 ? 1 : 99)),
      [1, 2, 4, 4],
      { requiresGrad: true },
    );
    const loss = camLoss(gpu, cam, [{ tags: [0], valid: [32, 32] }], [64, 64]);
    // Both classes' logit is 1: -log sigmoid(1) for the one that is there, -log sigmoid(-1) for the other.
    const want = (Math.log(1 + Math.exp(-1)) + Math.log(1 + Math.exp(1))) / 2;
    assert.ok(Math.abs((await loss.item()) - want) < 1e-5);
    backward(loss);
    const gradient = await cam.grad!.toArray();
    for (const [i, g] of gradient.entries()) assert.is(g !== 0, i % 4 < 2 && i % 16 < 8, `cell ${i}`);
  });
});

test("L_self falls as the map comes to resemble the masks, and teaches the map alone", async () => {
  await scope(async () => {
    const size = [32, 32] as const;
    const mask = Uint8Array.from({ length: 32 * 32 }, (_, i) => (i % 32 < 16 ? 1 : 0));
    const targets = uploadTargets(
      gpu,
      [{ targets: [{ classIndex: 1, candidates: [mask], iou: [1] }], supervised: true, tags: [1], valid: size }],
      size,
    );
    const logits = gpu.tensor(
      Float32Array.from({ length: 64 }, (_, i) => (i % 8 < 4 ? 6 : -6)),
      [1, 1, 8, 8],
      { requiresGrad: true },
    );
    const stack: LayerStack = {
      layers: 1,
      queries: 1,
      classLogits: gpu.zeros([1, 1, 3]),
      maskEmbedding: gpu.ones([1, 1, 1]),
      maskFeatures: logits,
      latents: undefined,
    };
    const pair = { image: 0, query: 0, target: 0, candidate: 0 };
    const options = { raw: false, clamp: 1e-4 };
    const of = (left: number, right: number, divergence = false) => {
      const cam = gpu.tensor(
        Float32Array.from({ length: 2 * 16 }, (_, i) => (i % 4 < 2 ? left : right)),
        [1, 2, 4, 4],
        { requiresGrad: true },
      );
      return { cam, loss: selfLoss(gpu, cam, stack, targets, [pair], [32, 32], { ...options, divergence })! };
    };
    const [good, even, bad] = [of(1, 0.05), of(1, 1), of(0.05, 1)];
    const [g, e, b] = [await good.loss.item(), await even.loss.item(), await bad.loss.item()];
    assert.ok(g < e && e < b, `${g} ${e} ${b}`);
    backward(even.loss);
    const gradient = await even.cam.grad!.toArray();
    // Less the entropy of masks that are 0.9975 and 0.0025 sure: the same distance between any two maps, and the same gradient.
    const [nearest, apart] = [of(1, 0.05, true), of(1, 1, true)];
    const entropy = g - (await nearest.loss.item());
    assert.ok(Math.abs(e - (await apart.loss.item()) - entropy) < 1e-5);
    const [s, t] = [1 / (1 + Math.exp(-6)), 1 / (1 + Math.exp(6))];
    assert.ok(Math.abs(entropy + s * Math.log(s) + t * Math.log(t)) < 1e-2, `${entropy}`);
    backward(apart.loss);
    assert.equal([...(await apart.cam.grad!.toArray())], [...gradient]);
    assert.ok(
      gradient.subarray(0, 16).every((v) => v === 0),
      "the other class's map",
    );
    assert.is(logits.grad, undefined);
    assert.is(selfLoss(gpu, even.cam, stack, targets, [], [32, 32], { ...options, divergence: false }), undefined);
  });
});

test("of two peaks with one mask the better rated stays; other classes do not compete", () => {
  const map = (on: number) => Float32Array.from({ length: 16 }, (_, i) => (Math.floor(i / 8) === on ? 1 : -1));
  const masks = { logits: [[map(0)], [map(0)], [map(1)], [map(0)]], iou: [[0.6], [0.9], [0.5], [0.1]], side: 4 };
  assert.equal(distinct([0, 0, 0, 1], masks, 0.5), [1, 2, 3]);
  assert.equal(distinct([0, 0, 0, 0], masks, 1), [0, 1, 2, 3]);
});

test("the loss of a batch without objects still reaches the CAM", async () => {
  await scope(async () => {
    const cam = gpu.tensor(new Float32Array(32).fill(0.2), [1, 2, 4, 4], { requiresGrad: true });
    backward(F.mul(camLoss(gpu, cam, [{ tags: [], valid: [64, 64] }], [64, 64]), 2));
    assert.ok((await cam.grad!.toArray()).every((v) => v > 0));
  });
});

test.run();
