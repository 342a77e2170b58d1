/** Mixed precision: what products round, what they keep, and the scale that saves small gradients. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  autocast,
  backward,
  checkpoint,
  Device,
  F,
  halfBits,
  halfValue,
  optim,
  scope,
  type Tensor,
} from "../../index.ts";
import { testDevice } from "../device.ts";

const test = suite("mixed precision");
const gpu = await testDevice();
const round = (x: Tensor): Tensor => F.cast(F.cast(x, "f16"), "f32");
const values = async (x: Tensor): Promise<number[]> => [...(await x.toArray())];

/** One operation of two operands, with its gradient's products spelled out by the operation itself on rounded operands. */
const OPERATIONS: Record<string, [number[], number[], (x: Tensor, w: Tensor) => Tensor]> = {
  linear: [[5, 7], [3, 7], (x, w) => F.linear(x, w)],
  matmul: [[2, 5, 7], [2, 7, 4], (x, w) => F.matmul(x, w)],
  "matmul, broadcast": [[3, 5, 7], [7, 4], (x, w) => F.matmul(x, w)],
  conv2d: [[2, 3, 7, 6], [4, 3, 3, 3], (x, w) => F.conv2d(x, w, { padding: 1, stride: 2 })],
  "conv2d, 1 x 1": [[2, 8, 4, 4], [5, 8, 1, 1], (x, w) => F.conv2d(x, w)],
  "conv2d, each channel": [[1, 4, 5, 5], [4, 1, 3, 3], (x, w) => F.conv2d(x, w, { padding: 1, groups: 4 })],
  convTranspose2d: [[2, 3, 4, 3], [3, 5, 2, 2], (x, w) => F.convTranspose2d(x, w, { stride: 2 })],
};

for (const [name, [xs, ws, op]] of Object.entries(OPERATIONS))
  test(`${name} multiplies operands and gradients as f16 holds them`, async () => {
    await scope(async () => {
      const leaf = (shape: number[], seed: number): [Tensor, Tensor] => {
        const x = gpu.randn(shape, { seed, requiresGrad: true });
        const rounded = round(x);
        const same = gpu.tensor(new Float32Array(x.size), shape, { requiresGrad: true });
        gpu.copy(rounded, 0, same, 0, x.size);
        return [x, same];
      };
      const [x, xRounded] = leaf(xs, 1);
      const [w, wRounded] = leaf(ws, 2);
      const y = autocast(() => op(x, w));
      const want = op(xRounded, wRounded);
      assert.is(y.dtype, "f32");
      assert.equal(await values(y), await values(want));
      assert.not.equal(await values(y), await values(op(x, w)), "rounded at all");
      const gy = gpu.randn(y.shape, { seed: 3 });
      backward(y, gy);
      backward(want, round(gy));
      assert.equal(await values(x.grad!), await values(xRounded.grad!), "x");
      assert.equal(await values(w.grad!), await values(wRounded.grad!), "w");
    });
  });

test("every kernel of convolution gives the same bits, also the one whose workgroup memory holds f16", async () => {
  const own = await Device.open();
  const bits = async (variant: string): Promise<number[][]> => {
    own.tuner.prefer = variant;
    const x = own.randn([1, 24, 9, 8], { seed: 1, requiresGrad: true });
    const w = own.randn([40, 24, 3, 3], { seed: 2, requiresGrad: true });
    const y = autocast(() => F.conv2d(x, w, { padding: 1 }));
    backward(y, own.randn(y.shape, { seed: 3 }));
    return [await values(y), await values(x.grad!), await values(w.grad!)];
  };
  assert.equal(await bits("tiled"), await bits("plain"));
  const tiled = [...own.cache.pipelines.keys()].filter((name) => /^conv2d in f16\/tiled/.test(name));
  assert.is(tiled.length > 1, own.hasHalves);
  await own.close();
});

test("a bias and its gradient stay f32", async () => {
  await scope(async () => {
    const x = gpu.randn([6, 4], { seed: 1 });
    const w = gpu.randn([3, 4], { seed: 2 });
    const bias = gpu.randn([3], { seed: 3, requiresGrad: true });
    const gy = gpu.randn([6, 3], { seed: 4 });
    backward(
      autocast(() => F.linear(x, w, bias)),
      gy,
    );
    assert.equal(await values(bias.grad!), await values(F.sum(gy, [0])));
  });
});

test("what is computed again is computed in the precision of the first time", async () => {
  await scope(async () => {
    const x = gpu.randn([6, 4], { seed: 1, requiresGrad: true });
    const w = gpu.randn([4, 4], { seed: 2, requiresGrad: true });
    const net = (a: Tensor): Tensor => F.linear(F.relu(F.linear(a, w)), w);
    const gradients = async (run: () => Tensor): Promise<number[][]> => {
      x.grad = w.grad = undefined;
      backward(F.sum(run()));
      return [await values(x.grad!), await values(w.grad!)];
    };
    const plain = await gradients(() => autocast(() => net(x)));
    assert.equal(await gradients(() => autocast(() => checkpoint(net, x))), plain);
    assert.not.equal(await gradients(() => net(x)), plain);
    // And off where it is off within.
    assert.equal(
      await gradients(() => autocast(() => autocast(() => net(x), { enabled: false }))),
      await gradients(() => net(x)),
    );
  });
});

test("numbers that f16 cannot hold become infinite, and NaN stays", async () => {
  const given = [65504, 65519.99, 65520, -65520, 1e30, Infinity, -Infinity, Number.NaN, 6e-8, 1e-9, -0.1];
  const got = await values(round(gpu.tensor(given)));
  const want = given.map((v) => halfValue(halfBits(Math.fround(v))));
  // Some adapters flush what is below the normal numbers.
  for (const [i, v] of got.entries())
    assert.ok(Object.is(v, want[i]) || (Math.abs(want[i]!) < 6.2e-5 && v === 0), `${given[i]}: ${v}`);
});

test("the scale saves gradients that f16 would lose, and finds its size", async () => {
  await scope(async () => {
    const w = gpu.tensor([1, 1], [1, 2], { requiresGrad: true });
    const x = gpu.tensor([1, 1], [1, 2]);
    const scaler = new optim.GradScaler({ initScale: 2 ** 40, growthInterval: 3 });
    const sgd = new optim.SGD([{ params: [w], lr: 1 }]);
    const steps: boolean[] = [];
    for (let i = 0; i < 40; i++) {
      sgd.zeroGrad();
      backward(scaler.scale(F.mul(F.sum(autocast(() => F.linear(x, w))), 1e-10)));
      const norm = optim.clipGradNorm([w], 1e30, { scale: scaler.getScale() });
      const taken = scaler.update(Number.isFinite(await norm.item()));
      if (taken) sgd.step();
      if (taken)
        assert.ok(Math.abs((await norm.item()) - Math.SQRT2 * 1e-10) < 1e-13, `step ${i}: ${await norm.item()}`);
      steps.push(taken);
    }
    // 2^40 * 1e-10 = 110 is held; three steps on, it would grow, but not beyond the most.
    assert.ok(steps.every(Boolean));
    assert.is(scaler.getScale(), 2 ** 40);
    // A gradient of 1 is too large for that scale.
    const large = new optim.GradScaler({ initScale: 2 ** 20 });
    const tried: number[] = [];
    for (let i = 0; i < 8; i++) {
      sgd.zeroGrad();
      backward(large.scale(F.sum(autocast(() => F.linear(x, w)))));
      const norm = optim.clipGradNorm([w], 1e30, { scale: large.getScale() });
      tried.push(large.getScale());
      if (large.update(Number.isFinite(await norm.item()))) break;
    }
    assert.is(tried.at(-1), 2 ** 15, "the largest that f16 holds");
    const saved = large.stateDict();
    const again = new optim.GradScaler();
    again.loadStateDict(saved);
    assert.equal(again.stateDict(), saved);
    // Without a scale the gradient is lost.
    sgd.zeroGrad();
    backward(F.mul(F.sum(autocast(() => F.linear(x, w))), 1e-10));
    assert.equal(await values(w.grad!), [0, 0]);
  });
});

test("options that cannot be right are refused", () => {
  assert.throws(
    () => new optim.GradScaler({ backoffFactor: 1 }),
    /GradScaler: backoffFactor must lie between 0 and 1; got 1/,
  );
  for (const initScale of [0, Number.POSITIVE_INFINITY])
    assert.throws(() => new optim.GradScaler({ initScale }), /GradScaler: initScale must be above 0/);
  for (const what of [undefined, Promise.resolve(true), 1])
    assert.throws(() => new optim.GradScaler().update(what as never), /update wants to know whether/);
  assert.throws(() => new optim.GradScaler().loadStateDict({} as never), /the state's scale must be above 0/);
  assert.throws(() => gpu.record(() => new optim.GradScaler().scale(gpu.ones([1]))), /outside of Device\.record/);
  assert.throws(() => autocast(3 as never), /autocast: a function is wanted; got number 3/);
  assert.throws(() => autocast(() => 1, { dtype: "f16" } as never), /autocast: .*dtype/);
  assert.throws(() => checkpoint(() => gpu.ones([1])), /checkpoint: .*at least one tensor/);
  assert.throws(() => new optim.GradScaler({ scale: 2 } as never), /GradScaler: .*scale/);
});

test.run();
