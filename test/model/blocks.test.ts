// Activation checkpointing of the models' blocks: the same gradients for less memory.
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { autocast, backward, Device, F, noGrad, scope } from "../../index.ts";
import { block } from "../../model/blocks.ts";
import { type BackboneConfig, type BlockMemory, keepingBlocks, maskLogits, Wish, wishMini } from "../../model/index.ts";

const test = suite("blocks");
const gpu = await Device.open(); // Nothing else is collected there meanwhile.

const BACKBONES: BackboneConfig[] = [
  { kind: "mini", widths: [16, 16, 32, 32], blocks: [2, 2, 1, 1], outputStride: 16 },
  { kind: "mobilenetV2", width: 0.25, norm: "folded", outputStride: 32 },
  { kind: "swin", embedDim: 16, depths: [2, 2, 2, 2], heads: [1, 2, 2, 4], window: 4, dropPath: 0.5 },
];

for (const backbone of BACKBONES)
  test(`${backbone.kind}: computed again, blocks give the same gradients and take less memory`, async () => {
    await scope(async () => {
      gpu.manualSeed(3);
      const model = new Wish(gpu, wishMini(3, { backbone, encoder: { layers: 2 }, prompt: { dim: 16 } })).train();
      const images = F.mul(gpu.rand([2, 3, 64, 96], { seed: 1 }), 255);
      const run = async (memory: BlockMemory, mixed = false) => {
        for (const x of model.parameters()) x.grad = undefined;
        gpu.manualSeed(4); // stochastic depth
        await gpu.sync();
        gpu.resetHighWater();
        const before = gpu.memory.liveBytes;
        scope(() => {
          const { predictions, cam } = autocast(() => keepingBlocks(memory, () => model.forward(images)), {
            enabled: mixed,
          });
          const weave = (x: ReturnType<typeof maskLogits>, k: number) =>
            F.mean(F.mul(x, gpu.randn(x.shape, { seed: k })));
          const terms = predictions.flatMap((p, i) => [
            weave(p.classLogits, i),
            weave(maskLogits(p), i + 10),
            weave(p.promptLatents!, i + 20),
          ]);
          backward([...terms, weave(cam!, 30)].reduce((a, b) => F.add(a, b)));
        });
        const bytes = gpu.memory.highWaterBytes - before;
        const gradients: Float32Array[] = [];
        for (const [name, x] of model.namedParameters()) {
          assert.ok(x.grad, `${name} has a gradient`);
          gradients.push(Float32Array.from(await x.grad!.toArray()));
        }
        return { bytes, gradients };
      };
      /** Length of the difference of all gradients, as a share of their length. */
      const difference = (a: Float32Array[], b: Float32Array[]): number => {
        let [apart, length] = [0, 0];
        for (const [i, x] of a.entries())
          for (const [j, v] of x.entries()) {
            apart += (v - b[i]![j]!) ** 2;
            length += v ** 2;
          }
        return Math.sqrt(apart / length);
      };
      const all = await run({ checkpoint: false, activations: "f32" });
      const again = await run({ checkpoint: true, activations: "f32" });
      const halves = await run({ checkpoint: true, activations: "f16" });
      assert.ok(difference(all.gradients, again.gradients) < 1e-5, `${difference(all.gradients, again.gradients)}`);
      const rounded = difference(all.gradients, halves.gradients);
      // A mask that crosses one half opens or closes a place to attention: more than what rounding does by itself.
      assert.ok(rounded > 1e-5 && rounded < 0.25, `f16: ${rounded}`);
      assert.ok(again.bytes < 0.8 * all.bytes, `${again.bytes} of ${all.bytes} bytes`);
      // Numbers that differ in their last bit in f32 may be rounded apart in f16.
      const mixed = await run({ checkpoint: true, activations: "f32" }, true);
      const mixedAll = await run({ checkpoint: false, activations: "f32" }, true);
      assert.ok(difference(mixedAll.gradients, mixed.gradients) < 5e-3, "in mixed precision");
    });
  });

test("without a gradient, what a block made inside is given back at once", async () => {
  await scope(async () => {
    const x = gpu.randn([1, 16, 64, 64], { seed: 1 });
    const weight = gpu.randn([16, 16, 1, 1], { seed: 2 });
    const row = (h: typeof x): typeof x =>
      Array.from({ length: 8 }).reduce((y: typeof x) => block((input) => F.tanh(F.conv2d(input, weight)), y), h);
    const kept = (run: () => typeof x): number =>
      scope(() => {
        const before = gpu.memory.liveBytes;
        run();
        return gpu.memory.liveBytes - before;
      });
    kept(() => noGrad(() => row(x))); // The convolution's table is made once and stays.
    assert.is(
      kept(() => noGrad(() => row(x))),
      8 * x.size * 4,
      "one tensor a block",
    );
  });
});

test("a row of blocks keeps half as much where its inputs are stored in half precision", async () => {
  await scope(async () => {
    const x = gpu.randn([1, 16, 64, 64], { seed: 1, requiresGrad: true });
    const weight = gpu.randn([16, 16, 1, 1], { seed: 2 });
    const kept = (activations: "f32" | "f16"): number =>
      scope(() => {
        const before = gpu.memory.liveBytes;
        const row = (h: typeof x): typeof x =>
          Array.from({ length: 8 }).reduce((y: typeof x) => block((input) => F.tanh(F.conv2d(input, weight)), y), h);
        const y = keepingBlocks({ checkpoint: true, activations }, () => row(x));
        assert.is(y.dtype, activations);
        return gpu.memory.liveBytes - before;
      });
    kept("f32"); // The convolution's table is made once and stays.
    assert.is(kept("f32"), 8 * x.size * 4);
    assert.is(kept("f16"), 8 * x.size * 2);
  });
});

test.after(() => gpu.close());
test.run();
