import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, type Device, F, noGrad, scope, type Tensor } from "../../engine/index.ts";
import { maskLogits, parameterGroups, promptTarget, Wish, type WishOverrides, wishMini } from "../../model/index.ts";
import { sinePositions } from "../../model/layers.ts";
import { testDevice } from "../device.ts";
import { distance } from "./fixture.ts";

const test = suite("wish");

const SMALL: WishOverrides = {
  backbone: { kind: "mini", widths: [8, 8, 16, 16], blocks: [1, 1, 1, 1], outputStride: 16 },
  hiddenDim: 16,
  groups: 4,
  encoder: { heads: 2, points: 2, ffn: 16 },
  decoder: { layers: 2, heads: 2, ffn: 16 },
  queries: 5,
  prompt: { dim: 12 },
};

function small(gpu: Device, overrides: WishOverrides = {}): Wish {
  gpu.manualSeed(3);
  return new Wish(gpu, wishMini(2, { ...SMALL, ...overrides }));
}

test("a forward pass gives all predictions in their shapes", async () => {
  const gpu = await testDevice();
  const images = gpu.rand([2, 3, 50, 64], { seed: 2 });
  for (const [mode, T] of [
    ["typed", 3],
    ["sparse", 2],
    ["mean", 1],
    ["none", 0],
  ] as const) {
    const out = scope(() => noGrad(() => small(gpu, { prompt: { mode, dim: 12 } }).forward(images)));
    assert.is(out.predictions.length, 3);
    assert.equal(out.inputSize, [64, 64]);
    assert.equal(out.cam?.shape, [2, 2, 4, 4]);
    for (const p of out.predictions) {
      const { classLogits, promptLatents } = p;
      assert.equal(classLogits.shape, [2, 5, 3]);
      assert.equal(maskLogits(p).shape, [2, 5, 16, 16]);
      assert.equal(promptLatents?.shape, T > 0 ? [2, 5, T, 12] : undefined);
    }
  }
});

test("an image gives the same alone, in a batch, and where its padding is made by the loader", async () => {
  const gpu = await testDevice();
  const model = small(gpu).eval();
  const images = F.mul(gpu.rand([2, 3, 50, 64], { seed: 2 }), 255);
  const run = (x: Tensor, sizes?: [number, number][]) =>
    scope(() => noGrad(() => model.forward(x, sizes ? { sizes } : {}).predictions.at(-1)!));
  const both = run(images);
  const second = run(F.slice(images, 0, 1, 2));
  assert.ok((await distance(F.slice(maskLogits(both), 0, 1, 2), maskLogits(second))) < 1e-4);
  const padded = run(F.add(F.pad(images, [0, 0, 0, 14]), 9), [
    [50, 64],
    [50, 64],
  ]);
  const brighter = run(F.add(images, 9));
  assert.ok((await distance(padded.classLogits, brighter.classLogits)) < 1e-4);
});

test("where the config says so, the prompt head is told where each query's mask lies", async () => {
  const gpu = await testDevice();
  const model = small(gpu, { prompt: { dim: 12, place: "mask" } }).eval();
  const head = model.sem_seg_head.predictor.prompt_embed!;
  const [hidden, inputs] = head.layers[0]!.weight.shape as [number, number];
  assert.equal([hidden, inputs], [16, 32]);
  // Deaf to the queries, the head's answer hangs on places alone.
  const weight = F.cat([gpu.zeros([16, 16]), F.slice(head.layers[0]!.weight, 1, 16, 32)], 1);
  head.loadStateDict(new Map([["layers.0.weight", weight]]), { strict: false });
  const images = F.mul(gpu.rand([2, 3, 32, 64], { seed: 4 }), 255);
  const last = scope(() => noGrad(() => model.forward(images))).predictions.at(-1)!;
  const { promptLatents } = last;
  const logits = await noGrad(() => maskLogits(last)).toArray(); // (2, 5, 8, 16)
  const sine = sinePositions(8, 16, 16);
  const places = new Float32Array(10 * 16);
  for (let query = 0; query < 10; query++) {
    const shares = Array.from(logits.subarray(query * 128, (query + 1) * 128), (x) => 1 / (1 + Math.exp(-x)));
    const total = shares.reduce((a, b) => a + b, 0);
    for (let c = 0; c < 16; c++)
      places[query * 16 + c] = shares.reduce((sum, share, i) => sum + (share / total) * sine[i * 16 + c]!, 0);
  }
  const told = F.cat([gpu.zeros([2, 5, 16]), gpu.tensor(places, [2, 5, 16])], 2);
  const wanted = noGrad(() => F.reshape(head.forward(told), [2, 5, 3, 12]));
  assert.ok((await distance(promptLatents!, wanted)) < 1e-4);
});

test("the CAM alone equals the CAM of a whole pass, on the feature the config names", async () => {
  const gpu = await testDevice();
  const images = F.mul(gpu.rand([1, 3, 64, 64], { seed: 2 }), 255);
  for (const [feature, side] of [
    ["res3", 8],
    ["res4", 4],
    ["res5", 4],
  ] as const) {
    const model = small(gpu, { cam: { feature } });
    const [whole, alone] = scope(() => noGrad(() => [model.forward(images).cam!, model.forwardCam(images).cam]));
    assert.equal(alone.shape, [1, 2, side, side]);
    assert.ok((await distance(alone, whole)) < 1e-6);
  }
  const none = small(gpu, { cam: { feature: "none" } });
  assert.throws(() => none.forwardCam(images), /no CAM branch/);
});

test("every parameter gets a gradient, and ten steps leave no memory behind", async () => {
  const gpu = await testDevice();
  const model = small(gpu);
  const images = F.mul(gpu.rand([1, 3, 64, 64], { seed: 2 }), 255);
  const step = () =>
    scope(() => {
      const { predictions, cam } = model.forward(images);
      const outputs = predictions.flatMap((p) => [p.classLogits, maskLogits(p), p.promptLatents!]);
      const loss = [...outputs, cam!].map((x) => F.mean(F.mul(x, x))).reduce((a, b) => F.add(a, b));
      backward(loss);
    });
  step();
  const without = [...model.namedParameters()].filter(([, p]) => !p.grad).map(([name]) => name);
  assert.equal(without, []);
  const before = gpu.memory.liveBytes;
  for (let i = 0; i < 10; i++) step();
  await gpu.sync();
  assert.ok(gpu.memory.liveBytes <= before, `live bytes go from ${before} to ${gpu.memory.liveBytes}`);
});

test("the same seed makes the same model", async () => {
  const gpu = await testDevice();
  const [a, b] = [small(gpu).stateDict(), small(gpu).stateDict()];
  for (const key of ["backbone.res3.0.conv1.weight", "sem_seg_head.predictor.query_feat.weight"])
    assert.equal([...(await a.get(key)!.toArray())], [...(await b.get(key)!.toArray())]);
});

test("parameter groups slow the backbone down and spare norms and embeddings from decay", async () => {
  const gpu = await testDevice();
  const model = small(gpu);
  const groups = parameterGroups(model, { lr: 1e-4, weightDecay: 0.05 });
  const of = (name: string) => {
    const group = groups.find((g) => g.names.includes(name));
    assert.ok(group, `${name} is in no group`);
    return [Number(group.lr.toPrecision(6)), group.weightDecay];
  };
  assert.equal(of("backbone.res3.0.conv1.weight"), [1e-5, 0.05]);
  assert.equal(of("backbone.res3.0.conv1.norm.weight"), [1e-5, 0]);
  assert.equal(of("sem_seg_head.predictor.query_feat.weight"), [1e-4, 0]);
  assert.equal(of("sem_seg_head.predictor.level_embed.weight"), [1e-4, 0]);
  assert.equal(
    of("sem_seg_head.pixel_decoder.transformer.level_embed"),
    [1e-4, 0.05],
    "a plain parameter in the reference too",
  );
  assert.equal(of("sem_seg_head.pixel_decoder.input_proj.0.1.weight"), [1e-4, 0]);
  assert.equal(of("sem_seg_head.pixel_decoder.input_proj.0.0.bias"), [1e-4, 0.05]);
  assert.equal(of("sem_seg_head.predictor.decoder_norm.bias"), [1e-4, 0]);
  assert.equal(of("cam_head.weight"), [1e-4, 0.05]);
  const swin = {
    kind: "swin",
    embedDim: 8,
    depths: [1, 1, 1, 1],
    heads: [1, 1, 1, 1],
    window: 2,
    dropPath: 0,
  } as const;
  const onSwin = parameterGroups(small(gpu, { backbone: swin }), { lr: 1e-4, weightDecay: 0.05 });
  const table = "backbone.layers.0.blocks.0.attn.relative_position_bias_table";
  assert.is(onSwin.find(({ names }) => names.includes(table))?.weightDecay, 0);
  const other = parameterGroups(model, { lr: 1, weightDecay: 0, backboneMultiplier: 1, camMultiplier: 10 });
  assert.equal(
    other.map(({ names }) => names),
    groups.map(({ names }) => names),
    "rates do not move parameters to other groups",
  );
  assert.equal(
    other.filter(({ part }) => part === "cam").map(({ lr }) => lr),
    [10],
  );
  assert.is(
    groups.reduce((n, g) => n + g.params.length, 0),
    [...model.parameters()].length,
    "each parameter is in one group",
  );
});

test("prompt targets fit the tokens that a label supervises", async () => {
  const gpu = await testDevice();
  const sparse = gpu.tensor([1, 2, 3, 4, 5, 6, 7, 8], [2, 2, 2]);
  for (const mode of ["typed", "sparse", "mean"] as const) {
    const model = small(gpu, { prompt: { mode, dim: 2 } });
    for (const kind of ["point", "box"] as const)
      assert.is(promptTarget(sparse, kind, mode).shape[1], model.promptSlots(kind).length, `${mode}, ${kind}`);
  }
  assert.equal([...(await promptTarget(sparse, "box", "mean").toArray())], [2, 3, 6, 7]);
  assert.equal([...(await promptTarget(sparse, "point", "typed").toArray())], [1, 2, 5, 6]);
  assert.throws(() => promptTarget(gpu.zeros([2, 3, 2]), "box", "typed"), /\(k, 2, D\)/);
});

test("sizes that do not fit are refused with the reason", async () => {
  const gpu = await testDevice();
  assert.throws(() => small(gpu, { hiddenDim: 18 }), /18 channels do not divide/);
  assert.throws(() => small(gpu, { levels: 5 }), /levels must be 1 to 4/);
  assert.throws(() => wishMini(2, { qeries: 5 } as never), /unknown setting "qeries"/);
  assert.throws(() => small(gpu).forward(gpu.zeros([1, 1, 32, 32])), /\(B, 3, H, W\)/);
});

test.run();
