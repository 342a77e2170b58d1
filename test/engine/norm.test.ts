import { suite } from "uvu";
import * as assert from "uvu/assert";
import { normCases } from "../../engine/cases/norm.ts";
import { checkCase, TOLERANCE } from "../../engine/gradcheck.ts";
import { backward, checkpoint, F, scope } from "../../engine/index.ts";
import { testDevice } from "../device.ts";

const test = suite("normalisation");
const gpu = await testDevice();
const says = (message: string) => (error: Error) => error.message === message;

const close = (got: ArrayLike<number>, want: readonly number[]): void => {
  assert.is(got.length, want.length);
  want.forEach((v, i) => {
    assert.ok(Math.abs(got[i]! - v) <= 1e-6 * Math.max(1, Math.abs(v)), `element ${i}: got ${got[i]}, want ${v}`);
  });
};

test("training moves the running statistics in place, with the unbiased variance", async () => {
  await scope(async () => {
    // Channel 0 holds 1, 2, 3, 6 (mean 3, unbiased variance 14/3), channel 1 holds 0, 0, 4, 4 (mean 2, unbiased variance 16/3).
    const x = gpu.tensor([1, 2, 0, 0, 3, 6, 4, 4], [2, 2, 1, 2]);
    const [mean, variance] = [gpu.tensor([10, 20], [2]), gpu.tensor([1, 3], [2])];
    F.batchNorm(x, { mean, variance, training: true });
    close(await mean.toArray(), [0.9 * 10 + 0.1 * 3, 0.9 * 20 + 0.1 * 2]);
    close(await variance.toArray(), [0.9 + (0.1 * 14) / 3, 0.9 * 3 + (0.1 * 16) / 3]);
    F.batchNorm(x, { mean, variance, training: true, momentum: 1 });
    close(await mean.toArray(), [3, 2]);
    close(await variance.toArray(), [14 / 3, 16 / 3]);
  });
});

test("under checkpoint the running statistics move once, and are not moved by the second run", async () => {
  await scope(async () => {
    const x = gpu.tensor([1, 2, 0, 0, 3, 6, 4, 4], [2, 2, 1, 2]);
    x.requiresGrad = true;
    const [mean, variance] = [gpu.tensor([10, 20], [2]), gpu.tensor([1, 3], [2])];
    const y = checkpoint((z) => F.batchNorm(z, { mean, variance, training: true }), x);
    backward(F.sum(F.mul(y, y)));
    assert.ok(x.grad);
    close(await mean.toArray(), [0.9 * 10 + 0.1 * 3, 0.9 * 20 + 0.1 * 2]);
    close(await variance.toArray(), [0.9 + (0.1 * 14) / 3, 0.9 * 3 + (0.1 * 16) / 3]);
  });
});

test("outside training the running statistics stay", async () => {
  await scope(async () => {
    const [mean, variance] = [gpu.tensor([1, 2], [2]), gpu.tensor([4, 9], [2])];
    const y = F.batchNorm(gpu.tensor([3, 5, 1, -1], [2, 2]), { mean, variance, eps: 0 });
    close(await y.toArray(), [1, 1, 0, -1]);
    close(await mean.toArray(), [1, 2]);
    close(await variance.toArray(), [4, 9]);
  });
});

test("training needs no running statistics", async () => {
  await scope(async () => {
    const y = F.batchNorm(gpu.tensor([1, 3], [2, 1]), { training: true, eps: 0 });
    close(await y.toArray(), [-1, 1]);
  });
});

test("a large mean costs no digits of the variance", async () => {
  await scope(async () => {
    const n = 3000;
    const x = gpu.tensor(
      Float32Array.from({ length: n }, (_, i) => 4096 + (i % 2)),
      [1, 1, n],
    );
    for (const y of [F.groupNorm(x, 1, { eps: 0 }), F.layerNorm(x, undefined, undefined, { eps: 0 })]) {
      const got = await y.toArray();
      assert.ok(
        Math.abs(got[0]! + 1) < 1e-3 && Math.abs(got[1]! - 1) < 1e-3,
        `got ${got[0]} and ${got[1]}, want -1 and 1`,
      );
    }
  });
});

test("a workgroup for each row, as on GPUs, gives the same", async () => {
  Object.defineProperty(gpu, "isSoftware", { value: false, configurable: true });
  try {
    for (const [i, c] of normCases.layerNorm!.entries())
      for (const [what, error] of Object.entries(await checkCase(gpu, c, i)))
        assert.ok(error <= TOLERANCE, `layerNorm ${c.name}: ${what} is off by ${error}`);
  } finally {
    Reflect.deleteProperty(gpu, "isSoftware");
  }
});

test("no rows give no sum, and gradients of zero", async () => {
  await scope(async () => {
    const [w, b] = [gpu.ones([4], { requiresGrad: true }), gpu.ones([4], { requiresGrad: true })];
    const x = gpu.zeros([0, 4], { requiresGrad: true });
    const images = gpu.zeros([0, 4, 3, 3], { requiresGrad: true });
    const layers = [F.layerNorm(x, w, b), F.layerNorm2d(images, w, b)];
    for (const y of [...layers, F.groupNorm(images, 2, { weight: w, bias: b })]) {
      w.grad = undefined;
      backward(F.sum(y));
      assert.equal([...(await w.grad!.toArray())], [0, 0, 0, 0]);
    }
  });
});

test("errors name the operation, the argument, what was expected and what came", () => {
  const x = gpu.zeros([2, 6, 5]);
  assert.throws(
    () => F.layerNorm(x, gpu.zeros([4])),
    says("layerNorm: x is (2, 6, 5), so weight must be (5); got (4)"),
  );
  assert.throws(
    () => F.layerNorm(x, gpu.zeros([5]), gpu.zeros([6])),
    says("layerNorm: x is (2, 6, 5), so bias must be (5); got (6)"),
  );
  assert.throws(() => F.groupNorm(x, 4), says("groupNorm: groups must divide the 6 channels of x (2, 6, 5); got 4"));
  assert.throws(
    () => F.groupNorm(x, 2, { weight: gpu.zeros([5]) }),
    says("groupNorm: x is (2, 6, 5), so weight must be (6); got (5)"),
  );
  assert.throws(() => F.batchNorm(x), says("batchNorm: outside training, mean and variance must be given"));
  assert.throws(
    () => F.batchNorm(x, { mean: gpu.zeros([6]), training: true }),
    says("batchNorm: mean and variance go together; got only mean"),
  );
  assert.throws(
    () => F.batchNorm(gpu.zeros([1, 6]), { training: true }),
    /batchNorm: in training each channel needs more than one number/,
  );
  assert.throws(() => F.layerNorm(gpu.zeros([2, 3], { dtype: "i32" })), /layerNorm: x must be f32; got i32/);
});

test.run();
