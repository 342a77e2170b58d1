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

/** Of two products one after the other: what the second makes, and the gradients of all that went in. */
async function twoProducts(
  kind: "linear" | "conv2d",
  options: { activation: "relu" | "gelu" | "tanh" | undefined; residual: "none" | "f32" | "f16"; forProducts: boolean },
): Promise<{ inner: Tensor; numbers: number[][] }> {
  const { activation, forProducts } = options;
  const shapes =
    kind === "linear"
      ? [
          [5, 7],
          [6, 7],
          [5, 6],
        ]
      : [
          [2, 3, 6, 5],
          [6, 3, 3, 3],
          [2, 6, 6, 5],
        ];
  const [x, w, rest] = shapes.map((shape, seed) => gpu.randn(shape, { seed, requiresGrad: true })) as [
    Tensor,
    Tensor,
    Tensor,
  ];
  const bias = gpu.randn([6], { seed: 4, requiresGrad: true });
  const v = gpu.randn(kind === "linear" ? [3, 6] : [3, 6, 1, 1], { seed: 5, requiresGrad: true });
  const residual = options.residual === "none" ? undefined : options.residual === "f16" ? F.cast(rest, "f16") : rest;
  const finish = { activation, residual, forProducts };
  let inner!: Tensor;
  const y = autocast(() => {
    inner = kind === "linear" ? F.linear(x, w, bias, finish) : F.conv2d(x, w, { padding: 1, bias, ...finish });
    return kind === "linear" ? F.linear(inner, v) : F.conv2d(inner, v);
  });
  const numbers = [await values(F.cast(inner, "f32")), await values(y)];
  backward(y, gpu.randn(y.shape, { seed: 6 }));
  const leaves = residual ? [x, w, bias, v, rest] : [x, w, bias, v];
  for (const leaf of leaves) numbers.push(await values(leaf.grad!));
  return { inner, numbers };
}

for (const kind of ["linear", "conv2d"] as const)
  for (const activation of [undefined, "relu", "gelu", "tanh"] as const)
    for (const residual of ["none", "f32", "f16"] as const)
      test(`what only products read is rounded once: ${kind}, ${activation ?? "no activation"}, residual ${residual}`, async () => {
        await scope(async () => {
          const full = await twoProducts(kind, { activation, residual, forProducts: false });
          const { inner, numbers } = await twoProducts(kind, { activation, residual, forProducts: true });
          assert.equal([inner.dtype, full.inner.dtype], ["f16", "f32"]);
          assert.equal(
            numbers[0],
            full.numbers[0]!.map((v) => halfValue(halfBits(v))),
          );
          // The second product rounds what it reads in either case.
          assert.equal(numbers.slice(1), full.numbers.slice(1));
        });
      });

test("outside autocast forProducts changes nothing", async () => {
  const [x, w] = [gpu.randn([5, 7], { seed: 1 }), gpu.randn([3, 7], { seed: 2 })];
  const y = F.linear(x, w, undefined, { activation: "relu", forProducts: true });
  assert.is(y.dtype, "f32");
  assert.equal(await values(y), await values(F.linear(x, w, undefined, { activation: "relu" })));
});

test("of what only products read nothing but halves is kept, and the copies go with the backward pass", async () => {
  const own = await Device.open();
  const x = own.randn([512, 256], { seed: 1, requiresGrad: true });
  const [w, v] = [own.randn([256, 256], { seed: 2 }), own.randn([256, 256], { seed: 3 })];
  for (const activation of ["relu", "gelu"] as const)
    await scope(async () => {
      const before = own.memory.liveBytes;
      const made = autocast(() => {
        const inner = F.linear(x, w, undefined, { activation, forProducts: true });
        const taken = own.memory.liveBytes - before;
        // The copies of x and w and the result; GELU's gradient needs the sum, too.
        const numbers = x.size * 2 + w.size * 2 + x.size * 2 + (activation === "gelu" ? x.size * 4 : 0);
        assert.is(taken, numbers);
        return F.sum(F.linear(inner, v));
      });
      const kept = own.memory.liveBytes;
      backward(made);
      // The second product's copy of v and the first one's of x and w; the gradient of x came.
      assert.is(kept - own.memory.liveBytes, x.size * 2 + w.size * 2 + v.size * 2 - x.size * 4);
      x.grad = undefined;
    });
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
