import { suite } from "uvu";
import * as assert from "uvu/assert";
import { F, noGrad, scope, type Tensor } from "../../engine/index.ts";
import { loadMask2Former, mask2FormerConfig, maskLogits, Wish, wishResNet50 } from "../../model/index.ts";
import { testDevice } from "../device.ts";
import { distance, readFixture, under } from "./fixture.ts";

const test = suite("mask2former checkpoints");

const SIZES = wishResNet50(4, {
  backbone: { kind: "resnet", depth: 18, norm: "frozenBN", outputStride: 32, width: 8 },
  hiddenDim: 32,
  encoder: { layers: 2, points: 3, ffn: 24 },
  decoder: { layers: 3, ffn: 40 },
  queries: 6,
  prompt: { mode: "none" },
  cam: { feature: "none" },
});

test("a checkpoint's tensors tell the sizes, and the loaded model predicts the same", async () => {
  const gpu = await testDevice();
  gpu.manualSeed(2);
  const model = new Wish(gpu, SIZES).eval();
  const state = new Map<string, Tensor>([...model.stateDict(), ["criterion.empty_weight", gpu.ones([5])]]);
  assert.equal(mask2FormerConfig(state), SIZES);
  gpu.manualSeed(3);
  const loaded = loadMask2Former(gpu, state);
  const image = F.mul(gpu.rand([1, 3, 64, 64], { seed: 4 }), 255);
  const [a, b] = scope(() =>
    noGrad(() => [model, loaded].map((m) => maskLogits(m.forward(image).predictions.at(-1)!))),
  ) as [Tensor, Tensor];
  assert.is(await distance(b, a), 0);
});

test("detectron2's older names are understood", async () => {
  const gpu = await testDevice();
  const state = new Map(
    [...new Wish(gpu, SIZES).stateDict()].map(([name, x]) => [
      name
        .replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")
        .replace("predictor.query_feat", "predictor.static_query"),
      x,
    ]),
  );
  assert.equal(loadMask2Former(gpu, state).config, SIZES);
});

test("what is no ResNet Mask2Former is refused with the reason", async () => {
  const gpu = await testDevice();
  const state = new Wish(gpu, SIZES).stateDict();
  const without = (name: string) => new Map([...state].filter(([key]) => key !== name));
  assert.throws(() => loadMask2Former(gpu, without("backbone.stem.conv1.weight")), /no ResNet/);
  assert.throws(() => loadMask2Former(gpu, without("backbone.res3.1.conv1.weight")), /basic blocks 2, 1, 2, 2/);
  assert.throws(
    () => loadMask2Former(gpu, without("sem_seg_head.predictor.query_feat.weight")),
    /no sem_seg_head.predictor.query_feat.weight/,
  );
  assert.throws(
    () => loadMask2Former(gpu, without("sem_seg_head.predictor.decoder_norm.bias")),
    /missing: sem_seg_head.predictor.decoder_norm.bias/,
  );
  assert.throws(() => loadMask2Former(gpu, state, { heads: 5 }), /144 sampling offsets do not divide into 5 heads/);
  const fixture = await readFixture(gpu, "mask2former");
  assert.throws(() => loadMask2Former(gpu, under(fixture, "weights."), { heads: 4 }), /bottleneck blocks 1, 2, 1, 1/);
});

test.run();
