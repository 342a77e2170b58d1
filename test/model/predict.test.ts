import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type Device, F, keep, noGrad, type Tensor } from "../../engine/index.ts";
import {
  type Instance,
  instancesOf,
  type LatentDecoder,
  predict,
  predictWithSam,
  Wish,
  type WishOutput,
  wishMini,
} from "../../model/index.ts";
import { prepareImage, Sam, samMini } from "../../model/sam/index.ts";
import { testDevice } from "../device.ts";

const test = suite("predict");

/** A prediction of four queries for an image of 24 x 30 in a frame of 32 x 32; masks at stride 4, logits by `mask(query, y, x)`. */
function output(gpu: Device, classes: number[][], mask: (query: number, y: number, x: number) => number): WishOutput {
  const N = classes.length;
  const logits = Float32Array.from({ length: N * 64 }, (_, i) =>
    mask(Math.floor(i / 64), Math.floor((i % 64) / 8), i % 8),
  );
  const prediction = {
    classLogits: gpu.tensor(classes.flat(), [1, N, classes[0]!.length]),
    // Each query picks the channel with its own mask.
    maskEmbedding: gpu.tensor(
      Float32Array.from({ length: N * N }, (_, i) => Number(i % N === Math.floor(i / N))),
      [1, N, N],
    ),
    maskFeatures: gpu.tensor(logits, [1, N, 8, 8]),
    promptLatents: undefined,
  };
  return { predictions: [prediction], cam: undefined, inputSize: [32, 32] };
}

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

test("scores are class probability times mean probability inside the mask; masks have the original size", async () => {
  const gpu = await testDevice();
  const image = gpu.zeros([1, 3, 24, 30]);
  const classes = [
    [3, 0, 0],
    [0, 2, 0],
    [0, 0, 9],
    [1, 1, 0],
  ];
  // Query 0: everywhere; 1: left half; 2: everywhere, but "no object"; 3: only in the padding below the image.
  const out = output(gpu, classes, (q, y, x) => (q === 1 ? (x < 4 ? 5 : -5) : q === 3 ? (y >= 7 ? 5 : -5) : 4));
  const instances = await instancesOf(out, image, { original: [48, 60], topk: 6 });
  const first = instances[0]!;
  const softmax = Math.exp(3) / (Math.exp(3) + 2);
  assert.equal([first.query, first.label, first.area, first.mask.length], [0, 0, 48 * 60, 48 * 60]);
  assert.equal(first.box, [0, 0, 60, 48]);
  assert.ok(Math.abs(first.classScore - softmax) < 1e-5);
  assert.ok(Math.abs(first.maskScore - sigmoid(4)) < 1e-5);
  assert.ok(Math.abs(first.score - softmax * sigmoid(4)) < 1e-5);
  const half = instances.find((i) => i.query === 1)!;
  assert.equal([half.label, half.box], [1, [0, 0, 32, 48]], "16 of 32 columns are 32 of 60 in the original");
  assert.is(half.area, 32 * 48);
  assert.ok(!instances.some((i) => i.query === 3), "a mask that lies outside the image is left out");
  assert.equal(
    instances.map((i) => i.score),
    instances.map((i) => i.score).sort((a, b) => b - a),
  );
});

test("topk counts pairs of query and label, and a score threshold drops the weak ones", async () => {
  const gpu = await testDevice();
  const image = gpu.zeros([1, 3, 24, 30]);
  const classes = [
    [3, 2.9, 0],
    [2, 0, 2],
    [0, 0, 4],
  ];
  const out = output(gpu, classes, () => 4);
  const pairs = (instances: Instance[]) => instances.map((i) => `${i.query}:${i.label}`).join(" ");
  assert.is(pairs(await instancesOf(out, image, { original: [24, 30], topk: 3 })), "0:0 1:0 0:1");
  assert.is(pairs(await instancesOf(out, image, { original: [24, 30], score: 0.45 })), "0:0 1:0 0:1");
  assert.is(pairs(await instancesOf(out, image, { original: [24, 30], score: 0.48 })), "0:0");
  assert.is((await instancesOf(out, image, { original: [24, 30] })).length, 6);
});

test("a model's predictions do not grow memory", async () => {
  const gpu = await testDevice();
  gpu.manualSeed(1);
  const model = new Wish(
    gpu,
    wishMini(2, { hiddenDim: 16, groups: 4, queries: 4, encoder: { heads: 2 }, decoder: { heads: 2, layers: 1 } }),
  );
  const image = F.mul(gpu.rand([1, 3, 40, 60], { seed: 5 }), 255);
  await predict(model, image, { original: [80, 120] });
  const before = gpu.memory.liveBytes;
  for (let i = 0; i < 3; i++) await predict(model, image, { original: [80, 120] });
  // Less is possible: what earlier tests left outside scopes goes when the garbage collector comes by.
  assert.ok(gpu.memory.liveBytes <= before, `live bytes go from ${before} to ${gpu.memory.liveBytes}`);
});

test("SAM's decoder gets the tokens of the model's prompt mode, and its best rated candidate is kept", async () => {
  const gpu = await testDevice();
  gpu.manualSeed(1);
  const image = F.mul(gpu.rand([1, 3, 32, 32], { seed: 5 }), 255);
  const seen: Tensor[] = [];
  const levels: Tensor[] = [];
  // Candidate 1 is rated best and covers all; the others are empty.
  const sam: LatentDecoder = {
    decode(_embedding, sparse) {
      const n = sparse.shape[0]!;
      seen.push(sparse);
      levels.push(keep(F.mean(sparse, [0, 2])));
      const masks = F.cat([gpu.full([n, 1, 8, 8], -3), gpu.full([n, 1, 8, 8], 3), gpu.full([n, 1, 8, 8], -3)], 1);
      return { masks, iou: F.cat([gpu.full([n, 1], 0.2), gpu.full([n, 1], 0.9), gpu.full([n, 1], 0.5)], 1) };
    },
    noMaskEmbedding: () => gpu.zeros([1, 12, 2, 2]),
    notAPointEmbedding: () => gpu.ones([1, 12]),
    tokenMeans: (kind) => gpu.tensor(kind === "box" ? [0.25, -0.5] : [2, 3], [1, 2, 1]),
    postprocess: (masks, _size, original) =>
      F.interpolate(masks, { size: original, mode: "bilinear", alignCorners: false }),
  };
  const options = {
    original: [20, 30] as const,
    embedding: gpu.zeros([1, 12, 2, 2]),
    samSize: [8, 8] as const,
    topk: 5,
  };
  const small = { hiddenDim: 16, groups: 4, queries: 4, encoder: { heads: 2 }, decoder: { heads: 2, layers: 1 } };
  const typed = new Wish(gpu, wishMini(2, { ...small, prompt: { mode: "typed", dim: 12 } }));
  for (const kind of ["box", "point"] as const) {
    const instances = await predictWithSam(typed, sam, image, { ...options, kind });
    assert.is(instances.length, 5);
    assert.is(instances[0]!.area, 20 * 30);
    assert.ok(Math.abs(instances[0]!.maskScore - sigmoid(3)) < 1e-5);
    assert.equal(seen.at(-1)!.shape.slice(1), [2, 12]);
    // What KL leaves open, the mean of each token, is SAM's.
    const means = await levels.at(-1)!.toArray();
    const wanted = kind === "box" ? [0.25, -0.5] : [2, 1];
    assert.ok(
      means.every((v, i) => Math.abs(v - wanted[i]!) < 1e-5),
      `${kind}: ${means.join()}`,
    );
  }
  await predictWithSam(typed, sam, image, { ...options, kind: "box", recentre: false });
  const [level] = await levels.at(-1)!.toArray();
  assert.ok(Math.abs(level! - 0.25) > 1e-3, "the latents are as predicted");
  const mean = new Wish(gpu, wishMini(2, { ...small, prompt: { mode: "mean", dim: 12 } }));
  await rejects(() => predictWithSam(mean, sam, image, options), /"mean" gives no SAM prompt/);
  const other = new Wish(gpu, wishMini(2, { ...small, prompt: { mode: "typed", dim: 16 } }));
  await rejects(() => predictWithSam(other, sam, image, options), /16 channels, the SAM at hand has 12/);
});

test("SAM's decoder gets no more queries at once than it can unfold within a binding", async () => {
  const gpu = (await testDevice()).dry();
  const small = { hiddenDim: 16, groups: 4, encoder: { heads: 2 }, decoder: { heads: 2, layers: 1 } };
  const model = new Wish(gpu, wishMini(2, { ...small, queries: 40, prompt: { mode: "typed", dim: 256 } }));
  const passes: number[] = [];
  const sam: LatentDecoder = {
    decode(_embedding, sparse) {
      const n = sparse.shape[0]!;
      passes.push(n);
      return { masks: gpu.zeros([n, 3, 8, 8]), iou: gpu.zeros([n, 3]) };
    },
    noMaskEmbedding: () => gpu.zeros([1, 256, 64, 64]),
    notAPointEmbedding: () => gpu.zeros([1, 256]),
    tokenMeans: () => gpu.zeros([1, 2, 1]),
    postprocess: (masks) => masks,
  };
  const embedding = gpu.zeros([1, 256, 64, 64]);
  const options = { original: [8, 8] as const, embedding, samSize: [8, 8] as const };
  await predictWithSam(model, sam, gpu.zeros([1, 3, 32, 32]), options);
  assert.is(
    passes.reduce((a, b) => a + b),
    40,
  );
  const each = 4 * 32 * 256 ** 2;
  assert.ok(Math.max(...passes) * each <= gpu.gpu.limits.maxStorageBufferBindingSize, passes.join());
});

test("latents go through a whole SAM, and a multi-candidate mask ends at the original size", async () => {
  const gpu = await testDevice();
  gpu.manualSeed(4);
  const sam = new Sam(gpu, samMini()).eval();
  const small = { hiddenDim: 16, groups: 4, queries: 4, encoder: { heads: 2 }, decoder: { heads: 2, layers: 1 } };
  const model = new Wish(gpu, wishMini(2, { ...small, prompt: { mode: "typed", dim: 64 } }));
  const rgb = { width: 60, height: 40, data: Uint8Array.from({ length: 7200 }, (_, i) => (i * 37) % 256) };
  const prepared = prepareImage(rgb, 128);
  const embedding = noGrad(() => sam.encodeImage(gpu.tensor(prepared.data, [1, 3, 128, 128])));
  const image = F.mul(gpu.rand([1, 3, 40, 60], { seed: 5 }), 255);
  const options = { original: [40, 60] as const, embedding, samSize: prepared.inputSize };
  const before = gpu.memory.liveBytes;
  const instances = await predictWithSam(model, sam, image, options);
  assert.ok(instances.length > 0);
  for (const { mask, score } of instances) assert.ok(mask.length === 2400 && score >= 0 && score <= 1);
  await predictWithSam(model, sam, image, { ...options, kind: "point", multimask: false });
  assert.ok(gpu.memory.liveBytes - before < 1e6, "only constants such as positions stay");
});

async function rejects(run: () => Promise<unknown>, message: RegExp): Promise<void> {
  const error = await run().then(
    () => undefined,
    (reason: Error) => reason,
  );
  assert.match(error?.message ?? "it did not reject", message);
}

test.run();
