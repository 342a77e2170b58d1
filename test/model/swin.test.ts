import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, F, nn, noGrad, scope, type Tensor } from "../../engine/index.ts";
import {
  loadBackbone,
  loadMask2Former,
  mask2FormerNames,
  maskLogits,
  type SwinSizes,
  SwinTransformer,
  wishSwinL,
} from "../../model/index.ts";
import { inPieces } from "../../model/pieces.ts";
import { testDevice } from "../device.ts";
import { distance, readFixture, roll, under } from "./fixture.ts";

const test = suite("swin");

const LEVELS = ["res2", "res3", "res4", "res5"] as const;
/** The sizes that make_swin.py gave the classifiers. */
const SMALL = { embedDim: 4, depths: [1, 2, 1, 2], heads: [1, 2, 2, 4], window: 2 } as const;

for (const library of ["timm", "torchvision"])
  test(`a Swin with ${library}'s names gives its features, on an image, a black image and a shifted one`, async () => {
    const gpu = await testDevice();
    const fixture = await readFixture(gpu, "swin");
    const recorded = under(fixture, `${library}.`);
    const backbone = new SwinTransformer(gpu, SMALL).eval();
    loadBackbone(backbone, under(recorded, "weights."));
    const input = fixture.get("input")!;
    // 72 x 104 pixels are padded to 96 x 128: the recording is of the size itself.
    const exact = (images: Tensor) => scope(() => noGrad(() => backbone.features(standardised(backbone, images))));
    const found = exact(input);
    for (const level of LEVELS)
      assert.ok((await distance(found[level], recorded.get(`image.${level}`)!)) < 1e-3, `image, ${level}`);
    for (const [name, images] of Object.entries({ black: gpu.zeros(input.shape), shifted: roll(input, 9, 14) })) {
      const want = recorded.get(`${name}.res5`)!;
      assert.ok((await distance(want, recorded.get("image.res5")!)) > 0.1, `${name}: the recording must differ`);
      assert.ok((await distance(exact(images).res5, want)) < 1e-3, `${name}, res5`);
    }
  });

/** Normalised, without the padding to multiples of 32. */
function standardised(backbone: SwinTransformer, images: Tensor): Tensor {
  const [, , H, W] = images.shape as [number, number, number, number];
  return F.slice(F.slice(backbone.normalise(images), 2, 0, H), 3, 0, W);
}

test("Mask2Former on Swin, sizes from its tensors, predicts what transformers predicts", async () => {
  const gpu = await testDevice();
  const fixture = await readFixture(gpu, "mask2former-swin");
  const model = loadMask2Former(gpu, under(fixture, "weights."));
  assert.equal(model.config.backbone, {
    kind: "swin",
    embedDim: 8,
    depths: [2, 1, 2, 1],
    heads: [1, 2, 2, 4],
    window: 5,
    dropPath: 0.3,
  });
  assert.is(model.config.queries, 6);
  const input = fixture.get("input")!;
  const images = { image: input, black: gpu.zeros(input.shape), shifted: roll(input, 9, 14) };
  for (const [name, x] of Object.entries(images)) {
    const last = scope(() => noGrad(() => model.forward(x).predictions.at(-1)!));
    for (const [key, got] of Object.entries({ class: last.classLogits, mask: maskLogits(last) })) {
      const want = fixture.get(`${name}.${key}`)!;
      if (name !== "image")
        assert.ok((await distance(want, fixture.get(`image.${key}`)!)) > 0.1, `${name}, ${key}: must differ`);
      const error = await distance(got, want);
      assert.ok(error < 1e-3, `${name}, ${key}: off by ${error} of the spread`);
    }
  }
});

test("grids that are no multiples of the window, odd ones to be halved among them, give transformers' features", async () => {
  const gpu = await testDevice();
  const fixture = await readFixture(gpu, "mask2former-swin");
  const backbone = loadMask2Former(gpu, under(fixture, "weights.")).backbone as SwinTransformer;
  const odd = F.slice(F.slice(F.slice(fixture.get("input")!, 0, 0, 1), 2, 0, 51), 3, 0, 83);
  const found = scope(() => noGrad(() => backbone.features(standardised(backbone, odd))));
  assert.equal(found.res3.shape, [1, 16, 7, 11]);
  for (const level of LEVELS) {
    const error = await distance(found[level], fixture.get(`odd.${level}`)!);
    assert.ok(error < 1e-3, `${level}: off by ${error} of the spread`);
  }
});

test("gradients of all parameters of a Swin equal PyTorch's", async () => {
  const gpu = await testDevice();
  const fixture = await readFixture(gpu, "mask2former-swin");
  const model = loadMask2Former(gpu, under(fixture, "weights."));
  const weave = (x: Tensor, k: number) => {
    const weights = gpu.tensor(
      Float32Array.from({ length: x.size }, (_, i) => Math.sin(1.7 * i + k)),
      x.shape,
    );
    return F.mean(F.mul(x, weights));
  };
  const loss = scope(() => {
    const { predictions } = model.forward(fixture.get("input")!);
    const terms = predictions.flatMap((p, i) => [weave(p.classLogits, i), weave(maskLogits(p), i)]);
    const total = terms.reduce((a, b) => F.add(a, b));
    backward(total);
    return total;
  });
  const wanted = await fixture.get("loss")!.item();
  assert.ok(Math.abs((await loss.item()) - wanted) < 1e-4 * Math.max(1, Math.abs(wanted)), "the loss itself");

  // Recorded: every step-th element of each gradient (step = size / 24). What qkv packs was apart in the reference.
  const recorded = mask2FormerNames(under(fixture, "grad."));
  const errors: string[] = [];
  let compared = 0;
  for (const [key, parameter] of model.backbone.namedParameters("backbone.")) {
    const want = await recorded.get(key)?.toArray();
    const got = await parameter.grad?.toArray();
    if (!want || !got) {
      errors.push(`${key}: ${want ? "no gradient" : "no recorded gradient"}`);
      continue;
    }
    const parts = key.includes(".qkv.") ? 3 : 1;
    const length = parameter.size / parts;
    const step = Math.max(1, Math.floor(length / 24));
    const sampled = Array.from({ length: parts }, (_, part) =>
      [...got.slice(part * length, (part + 1) * length)].filter((_, i) => i % step === 0),
    ).flat();
    assert.is(sampled.length, want.length, key);
    const scale = Math.max(...want.map(Math.abs), 1e-4);
    const error = Math.max(...sampled.map((g, i) => Math.abs(g - want[i]!))) / scale;
    compared += want.length;
    if (!(error < 1e-3)) errors.push(`${key}: off by ${error} of the largest`);
  }
  assert.equal(errors, []);
  assert.ok(compared > 1500, `compared ${compared} numbers`);
});

test("transformers' and Microsoft's names mean the same backbone; classifiers, indices and masks are left out", async () => {
  const gpu = await testDevice();
  const fixture = await readFixture(gpu, "mask2former-swin");
  const onDisk = under(fixture, "weights.model.pixel_level_module.encoder.");
  const sizes = { embedDim: 8, depths: [2, 1, 2, 1], heads: [1, 2, 2, 4], window: 5 } as const;
  const reference = new SwinTransformer(gpu, sizes);
  loadBackbone(reference, onDisk);
  const own = reference.stateDict();
  const isOutputNorm = (key: string) => /^(hidden_states_norms|norm\d)\./.test(key);
  const files = {
    // As SwinForImageClassification and SwinModel are saved: one norm, no output norms.
    transformers: [...onDisk].flatMap(([key, x]) =>
      isOutputNorm(key) ? [] : [[key.replace(/^(swin\.)?/, "swin."), x] as const],
    ),
    microsoft: [...own].flatMap(([key, x]) => (isOutputNorm(key) ? [] : [[key, x] as const])),
    detectron2: [...own].map(([key, x]) => [`backbone.${key}`, x] as const),
  };
  for (const [name, entries] of Object.entries(files)) {
    gpu.manualSeed(5);
    const backbone = new SwinTransformer(gpu, sizes);
    const extra = [
      "head.weight",
      "norm.bias",
      "layers.0.blocks.1.attn_mask",
      "layers.0.blocks.0.attn.relative_position_index",
    ];
    const unused = name === "microsoft" ? extra.map((key) => [key, gpu.ones([2])] as const) : [];
    loadBackbone(backbone, new Map([...entries, ...unused]));
    for (const [key, x] of backbone.stateDict()) {
      const kept = name !== "detectron2" && isOutputNorm(key);
      const want = kept ? gpu.full(x.shape, key.endsWith("weight") ? 1 : 0) : own.get(key)!;
      assert.equal(await x.toArray(), await want.toArray(), `${name}: ${key}`);
    }
  }
  const key = "encoder.layers.0.blocks.1.attention.self.key.bias";
  assert.throws(
    () => loadBackbone(reference, new Map([...onDisk].filter(([k]) => k !== key))),
    /1 missing \(encoder\.layers\.0\.blocks\.1\.attention\.self\.key\.bias\)$/,
  );
});

test("while training, images skip blocks by the seed, each by itself; in evaluation none does", async () => {
  const gpu = await testDevice();
  gpu.manualSeed(7);
  const backbone = new SwinTransformer(gpu, { ...SMALL, dropPath: 0.9 });
  const images = F.expand(gpu.rand([1, 3, 32, 32], { seed: 8 }), [6, 3, 32, 32]);
  const rows = async (seed: number) => {
    gpu.manualSeed(seed);
    const values = await scope(() => noGrad(() => backbone.features(images).res5)).toArray();
    return Array.from({ length: 6 }, (_, b) =>
      values.slice((b * values.length) / 6, ((b + 1) * values.length) / 6).join(),
    );
  };
  const [first, again, other] = [await rows(1), await rows(1), await rows(2)];
  assert.equal(again, first);
  assert.is.not(other.join(), first.join());
  assert.ok(new Set(first).size > 1, "images of one batch differ");
  backbone.eval();
  assert.is(new Set([...(await rows(1)), ...(await rows(2))]).size, 1);
});

test("an image that a block keeps gets its branches over the chance to be kept", async () => {
  const gpu = await testDevice();
  gpu.manualSeed(9);
  const sizes = { ...SMALL, depths: [1, 1, 1, 1], dropPath: 0.9 } as const;
  const backbone = new SwinTransformer(gpu, sizes); // the second block is left out with a chance of 0.9 / 3
  const kept = new SwinTransformer(gpu, sizes).eval();
  const ends = /^layers\.1\.blocks\.0\.(attn\.proj|mlp\.fc2)\./;
  const scaled = [...backbone.stateDict()].map(([key, x]) => [key, ends.test(key) ? F.div(x, 1 - 0.3) : x] as const);
  kept.loadStateDict(new Map(scaled));
  const images = F.expand(gpu.rand([1, 3, 32, 32], { seed: 8 }), [8, 3, 32, 32]);
  const res3 = (of: SwinTransformer) => scope(() => noGrad(() => of.features(images).res3));
  const [got, want] = [res3(backbone), res3(kept)];
  const errors = await Promise.all(
    Array.from({ length: 8 }, (_, b) => distance(F.slice(got, 0, b, b + 1), F.slice(want, 0, b, b + 1))),
  );
  const whole = errors.filter((error) => error < 1e-4).length;
  assert.ok(whole > 0 && whole < 8, `${whole} of 8 images kept both branches; errors ${errors}`);
});

test("work in pieces gives the same values and gradients", async () => {
  const gpu = await testDevice();
  const x = gpu.randn([7, 3, 5], { seed: 1, requiresGrad: true });
  const weight = gpu.randn([4, 5], { seed: 2, requiresGrad: true });
  const run = async (limit: number) => {
    x.grad = weight.grad = undefined;
    const firsts: number[] = [];
    const layer = (piece: Tensor, first: number): Tensor => {
      firsts.push(first);
      return F.tanh(F.linear(piece, weight));
    };
    const y = inPieces(x, 60, layer, limit);
    backward(F.sum(F.mul(y, gpu.randn(y.shape, { seed: 3 }))));
    return { firsts, numbers: [await y.toArray(), await x.grad!.toArray(), await weight.grad!.toArray()] };
  };
  const [whole, pieces] = [await run(1e6), await run(150)];
  assert.equal([whole.firsts, pieces.firsts], [[0], [0, 2, 4, 6]]);
  for (const [i, want] of whole.numbers.entries())
    for (const [j, v] of want.entries()) assert.ok(Math.abs(pieces.numbers[i]![j]! - v) < 1e-5, `${i}, ${j}`);
});

test("a Swin-L takes 1,024 pixels with what the adapter can bind", async () => {
  const dry = (await testDevice()).dry();
  const { backbone } = wishSwinL(80);
  const model = nn.init.skip(() => new SwinTransformer(dry, backbone as SwinSizes));
  const { res2 } = scope(() => noGrad(() => model.features(dry.zeros([1, 3, 1024, 1024]))));
  assert.equal(res2.shape, [1, 192, 256, 256]);
});

test.run();
