import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, type Device, F, noGrad, scope, type Tensor } from "../../engine/index.ts";
import {
  attentionLogits,
  mask2FormerNames,
  maskLogits,
  ResNet,
  Wish,
  type WishConfig,
  wishMini,
} from "../../model/index.ts";
import type { Prediction } from "../../model/mask2former/decoder.ts";
import { testDevice } from "../device.ts";
import { distance, readFixture, roll, under } from "./fixture.ts";

const test = suite("mask2former");

// The sizes that make_mask2former.py gave the reference.
const CONFIG: WishConfig = wishMini(3, {
  hiddenDim: 64,
  levels: 3,
  groups: 32,
  encoder: { layers: 2, heads: 4, points: 4, ffn: 48 },
  decoder: { layers: 3, heads: 4, ffn: 40 },
  queries: 7,
  prompt: { mode: "typed", dim: 16 },
});

/** A WISH model whose backbone is the fixture's small bottleneck ResNet, with the recorded weights. */
function referenceModel(gpu: Device, fixture: Map<string, Tensor>): Wish {
  const backbone = new ResNet(gpu, {
    blocks: [1, 2, 1, 1],
    widths: [16, 32, 48, 64],
    stem: 16,
    stemKind: "7x7",
    block: "bottleneck",
    norm: "frozenBN",
    outputStride: 32,
  });
  const model = new Wish(gpu, CONFIG, backbone);
  const state = mask2FormerNames(under(fixture, "weights."));
  state.delete("criterion.empty_weight");
  for (const [key, tensor] of under(fixture, "heads.")) state.set(headName(key), tensor);
  model.loadStateDict(state, { strict: true });
  return model;
}

const headName = (key: string) =>
  key === "cam.weight" ? "cam_head.weight" : `sem_seg_head.predictor.prompt_embed.layers.${key.slice(7)}`;

const outputs = (last: Prediction, cam: Tensor) => ({
  class: last.classLogits,
  mask: maskLogits(last),
  prompt: last.promptLatents!,
  cam,
});

test("every prediction equals PyTorch's, on an image, a black image and a shifted one", async () => {
  const gpu = await testDevice();
  const fixture = await readFixture(gpu, "mask2former");
  const model = referenceModel(gpu, fixture).eval();
  const input = fixture.get("input")!;
  const images = { image: input, black: gpu.zeros(input.shape), shifted: roll(input, 9, 14) };
  for (const [name, x] of Object.entries(images)) {
    const { predictions, cam, inputSize } = scope(() => noGrad(() => model.forward(x)));
    assert.equal(inputSize, [64, 96]);
    assert.is(predictions.length, 4);
    for (const [key, got] of Object.entries(outputs(predictions.at(-1)!, cam!))) {
      const want = fixture.get(`${name}.${key}`)!;
      const error = await distance(got, want);
      assert.ok(error < 1e-3, `${name}, ${key}: off by ${error} of the spread`);
      if (name !== "image") {
        const change = await distance(want, fixture.get(`image.${key}`)!);
        assert.ok(
          change > 0.1,
          `${name}, ${key}: the recorded output must depend on the image; it changes by ${change} of the spread`,
        );
      }
    }
    if (name !== "image") continue;
    for (let i = 0; i < 3; i++) {
      assert.ok(
        (await distance(predictions[i]!.classLogits, fixture.get(`aux${i}.class`)!)) < 1e-3,
        `auxiliary classes ${i}`,
      );
      assert.ok(
        (await distance(maskLogits(predictions[i]!), fixture.get(`aux${i}.mask`)!)) < 1e-3,
        `auxiliary masks ${i}`,
      );
    }
  }
});

test("each layer attends where PyTorch's does: by the masks before it, at its level's size, coarse to fine", async () => {
  const gpu = await testDevice();
  const fixture = await readFixture(gpu, "mask2former");
  const model = referenceModel(gpu, fixture).eval();
  const { predictions } = scope(() => noGrad(() => model.forward(fixture.get("input")!)));
  const sizes = [[2, 3], [4, 6], [8, 12], undefined] as const;
  for (const [i, size] of sizes.entries()) {
    assert.equal(predictions[i]!.attends, size);
    if (!size) continue;
    const got = attentionLogits(predictions[i]!, size);
    const want = F.interpolate(fixture.get(`aux${i}.mask`)!, {
      size: [...size],
      mode: "bilinear",
      alignCorners: false,
    });
    assert.ok((await distance(got, want)) < 1e-3, `layer ${i}`);
    assert.equal(await F.ge(got, 0).toArray(), await F.ge(want, 0).toArray(), `layer ${i}`);
  }
});

test("gradients of all parameters equal PyTorch's", async () => {
  const gpu = await testDevice();
  const fixture = await readFixture(gpu, "mask2former");
  const model = referenceModel(gpu, fixture);
  const weave = (x: Tensor, k: number) => {
    const weights = gpu.tensor(
      Float32Array.from({ length: x.size }, (_, i) => Math.sin(1.7 * i + k)),
      x.shape,
    );
    return F.mean(F.mul(x, weights));
  };
  const loss = scope(() => {
    const { predictions, cam } = model.forward(fixture.get("input")!);
    const terms = predictions.flatMap((p, i) =>
      [p.classLogits, maskLogits(p), p.promptLatents!].map((x) => weave(x, i)),
    );
    const total = [...terms, weave(cam!, 9)].reduce((a, b) => F.add(a, b));
    backward(total);
    return total;
  });
  const wanted = await fixture.get("loss")!.item();
  assert.ok(Math.abs((await loss.item()) - wanted) < 1e-4 * Math.max(1, Math.abs(wanted)), "the loss itself");

  // Recorded: every step-th element of each parameter's gradient (step = size / 24). Packed projections were apart in the reference.
  const recorded = new Map<string, Tensor>();
  for (const [key, x] of under(fixture, "headgrad.")) recorded.set(headName(key), x);
  for (const [key, x] of mask2FormerNames(under(fixture, "grad."))) recorded.set(key, x);
  const errors: string[] = [];
  let compared = 0;
  for (const [key, parameter] of model.namedParameters()) {
    const want = await recorded.get(key)?.toArray();
    if (!want) {
      errors.push(`${key}: no recorded gradient`);
      continue;
    }
    if (!parameter.grad) {
      errors.push(`${key}: no gradient`);
      continue;
    }
    const got = await parameter.grad.toArray();
    const packed = key.includes("transformer_self_attention_layers") && key.includes("in_proj") ? 3 : 1;
    const length = parameter.size / packed;
    const step = Math.max(1, Math.floor(length / 24));
    const sampled = Array.from({ length: packed }, (_, part) =>
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

test.run();
