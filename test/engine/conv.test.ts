import { suite } from "uvu";
import * as assert from "uvu/assert";
import { convCases } from "../../engine/cases/conv.ts";
import { checkCase, TOLERANCE } from "../../engine/gradcheck.ts";
import { backward, F, scope } from "../../engine/index.ts";
import type { Conv2dOptions } from "../../engine/ops/conv.ts";
import { variantsFor } from "../../engine/ops/conv-variants.ts";
import { free } from "../../engine/scope.ts";
import { testDevice } from "../device.ts";

const test = suite("convolution and pooling");
const gpu = await testDevice();
const says = (message: string) => (error: Error) => error.message === message;

/** `work` as on another kind of adapter. */
async function posing<T>(as: { subgroupSize?: number; isSoftware?: boolean }, work: () => Promise<T>): Promise<T> {
  for (const [name, value] of Object.entries(as)) Object.defineProperty(gpu, name, { value, configurable: true });
  try {
    return await work();
  } finally {
    for (const name of Object.keys(as)) Reflect.deleteProperty(gpu, name);
  }
}

test.after.each(() => {
  gpu.tuner.prefer = undefined;
});

async function checkCases(): Promise<void> {
  for (const op of ["conv2d", "convTranspose2d"])
    for (const [i, c] of convCases[op]!.entries()) {
      if (c.name?.startsWith("real")) continue;
      for (const [what, error] of Object.entries(await checkCase(gpu, c, i)))
        assert.ok(error <= TOLERANCE, `${op} ${c.name}: ${what} is off by ${error}`);
    }
}

test("without subgroups, the kernel for every adapter gives the same", () => posing({ subgroupSize: 0 }, checkCases));

test("the kernel for GPUs gives the same, whatever the sizes", async () => {
  gpu.tuner.prefer = "tiled";
  await checkCases();
});

test("GPUs take the kernel with workgroup memory where half of its tile is filled, software adapters never", () => {
  const first = (subgroupSize: number, isSoftware: boolean, pixels: number, channels: number) =>
    variantsFor({ subgroupSize, isSoftware }, pixels, channels)[0];
  for (const lanes of [0, 16, 32, 64]) {
    assert.is(first(lanes, false, 32, 16), "tiled");
    assert.is(first(lanes, false, 31, 16), "plain");
    assert.is(first(lanes, false, 1000, 15), "plain");
    assert.is(first(lanes, true, 1000, 64), "plain");
  }
  for (const lanes of [4, 8])
    for (const isSoftware of [true, false]) {
      assert.is(first(lanes, isSoftware, 1000, 64), "subgroup");
      assert.is(first(lanes, isSoftware, 1000, 7), "plain");
    }
});

/** Around the edges of the tiles: channels near 16, 32, 64 and 96, k near 64, pixels of several splits. [x, w, options] */
const SIZES: [number[], number[], Conv2dOptions][] = [
  [[1, 1, 1, 1], [1, 1, 1, 1], {}],
  [[2, 7, 9, 8], [17, 7, 3, 3], { padding: 1, stride: 2 }],
  [[1, 30, 13, 11], [66, 15, 2, 3], { groups: 2 }],
  [[2, 8, 34, 33], [32, 8, 3, 3], { padding: 1, dilation: 2 }],
  [[3, 65, 5, 5], [66, 65, 1, 1], {}],
  [[1, 13, 20, 7], [130, 13, 5, 1], { stride: [3, 1] }],
  [[1, 16, 40, 40], [64, 16, 3, 3], {}],
];

/** y and the gradients of x and w. */
const results = ([shape, kernel, options]: (typeof SIZES)[number]) =>
  scope(async () => {
    const x = gpu.randn(shape, { seed: 3, requiresGrad: true });
    const w = gpu.randn(kernel, { seed: 4, requiresGrad: true });
    const y = F.conv2d(x, w, { ...options, bias: gpu.randn([kernel[0]!], { seed: 6 }) });
    backward(y, gpu.randn(y.shape, { seed: 5 }));
    return [await y.toArray(), await x.grad!.toArray(), await w.grad!.toArray()];
  });

test("all kernels give the same bits, and in every run, gradients included", async () => {
  for (const sizes of SIZES) {
    gpu.tuner.prefer = undefined;
    const want = await results(sizes);
    for (const variant of ["plain", "subgroup", "tiled", "tiled"]) {
      gpu.tuner.prefer = variant;
      for (const [n, got] of (await results(sizes)).entries()) {
        const differs = got.findIndex((v, i) => !Object.is(v, want[n]![i]));
        assert.is(differs, -1, `${variant} of (${sizes[0]}) * (${sizes[1]}): ${["y", "gx", "gw"][n]}`);
      }
    }
  }
});

test("as a GPU would cut the sum for the weights' gradient, all kernels give the same bits, too", () =>
  posing({ subgroupSize: 0, isSoftware: false }, async () => {
    for (const sizes of SIZES) {
      gpu.tuner.prefer = undefined;
      const want = await results(sizes);
      gpu.tuner.prefer = "plain";
      assert.equal(await results(sizes), want, `(${sizes[0]}) * (${sizes[1]})`);
    }
  }));

test("padding takes one number, (y, x) or [left, right, top, bottom]", async () => {
  await scope(async () => {
    const [x, w] = [gpu.randn([1, 2, 6, 5], { seed: 1 }), gpu.randn([3, 2, 3, 3], { seed: 2 })];
    const one = await F.conv2d(x, w, { padding: 1 }).toArray();
    assert.equal(await F.conv2d(x, w, { padding: [1, 1] }).toArray(), one);
    assert.equal(await F.conv2d(x, w, { padding: [1, 1, 1, 1] }).toArray(), one);
    assert.equal(F.conv2d(x, w, { padding: [2, 0] }).shape, [1, 3, 8, 3], "y first");
    // TensorFlow's SAME at stride 2 pads only to the right of and below an even image.
    const same = F.conv2d(x, w, { stride: 2, padding: [1, 1, 0, 1] });
    assert.equal(same.shape, [1, 3, 3, 3]);
    const padded = F.conv2d(F.pad(x, [1, 1, 0, 1]), w, { stride: 2 });
    assert.equal(await same.toArray(), await padded.toArray());
  });
});

test("the same call twice gives the same bits, gradients included", async () => {
  const once = () =>
    scope(async () => {
      const x = gpu.randn([2, 20, 33, 31], { seed: 3, requiresGrad: true });
      const w = gpu.randn([40, 20, 3, 3], { seed: 4, requiresGrad: true });
      backward(F.sum(F.mul(F.conv2d(x, w, { padding: 1 }), gpu.randn([2, 40, 33, 31], { seed: 5 }))));
      return [await x.grad!.toArray(), await w.grad!.toArray()];
    });
  assert.equal(await once(), await once());
});

test("equal maxima: the gradient goes to the first", async () => {
  await scope(async () => {
    const x = gpu.tensor([1, 5, 5, 5], [1, 1, 2, 2], { requiresGrad: true });
    backward(F.sum(F.maxPool2d(x, 2)));
    assert.equal([...(await x.grad!.toArray())], [0, 1, 0, 0]);
  });
  // Rows of whole fours have a kernel of their own; the last NaN wins.
  await scope(async () => {
    const rows = [
      [1, 5, 2, 2, NaN, 3, 9, 8],
      [5, 5, 1, 0, NaN, 2, 8, 9],
    ];
    const x = gpu.tensor(rows.flat(), [1, 1, 2, 8], { requiresGrad: true });
    const y = F.maxPool2d(x, 2);
    assert.equal([...(await y.toArray())], [5, 2, NaN, 9]);
    backward(y, gpu.tensor([1, 2, 3, 4], [1, 1, 1, 4]));
    assert.equal([...(await x.grad!.toArray())], [0, 1, 2, 0, 0, 0, 4, 0, 0, 0, 0, 0, 3, 0, 0, 0]);
  });
});

test("a maximum below zero wins over the padding", async () => {
  await scope(async () => {
    const y = F.maxPool2d(gpu.full([1, 1, 3, 3], -2), 3, { stride: 2, padding: 1 });
    assert.equal([...(await y.toArray())], [-2, -2, -2, -2]);
  });
});

test("memory does not grow over convolutions", async () => {
  const x = gpu.randn([1, 5, 17, 17], { seed: 6, requiresGrad: true });
  const w = gpu.randn([36, 5, 3, 3], { seed: 7, requiresGrad: true });
  const live: number[] = [];
  for (let i = 0; i < 4; i++) {
    scope(() => {
      backward(F.sum(F.conv2d(x, w, { padding: 1, stride: 2 })));
      for (const t of [x, w]) {
        free(t.grad!);
        t.grad = undefined;
      }
    });
    live.push(gpu.memory.liveBuffers);
  }
  assert.equal(live[3], live[1]);
});

test("no images give no output, and gradients of zero", async () => {
  await scope(async () => {
    const x = gpu.zeros([0, 4, 5, 5], { requiresGrad: true });
    const w = gpu.ones([4, 4, 3, 3], { requiresGrad: true });
    const each = gpu.ones([4, 1, 3, 3], { requiresGrad: true });
    assert.equal(F.conv2d(x, w).shape, [0, 4, 3, 3]);
    assert.equal(F.maxPool2d(x, 2).shape, [0, 4, 2, 2]);
    const sums = [F.conv2d(x, w), F.convTranspose2d(x, w), F.conv2d(x, each, { groups: 4 }), F.avgPool2d(x, 2)].map(
      (y) => F.sum(y),
    );
    backward(sums.reduce((a, b) => F.add(a, b)));
    for (const t of [w, each]) assert.ok((await t.grad!.toArray()).every((v) => v === 0));
  });
});

test("errors name the operation, the argument, what was expected and what came", () => {
  const x = gpu.zeros([2, 4, 8, 8]);
  const w = gpu.zeros([6, 4, 3, 3]);
  assert.throws(() => F.conv2d(gpu.zeros([4, 8, 8]), w), says("conv2d: x must be (B, C, H, W); got (4, 8, 8)"));
  assert.throws(
    () => F.conv2d(x, gpu.zeros([6, 3, 3, 3])),
    /conv2d: x is \(2, 4, 8, 8\) in 1 groups, so weight must be .*4, kh, kw\); got \(6, 3, 3, 3\)/,
  );
  assert.throws(() => F.conv2d(x, w, { groups: 4 }), /conv2d: x is \(2, 4, 8, 8\) in 4 groups/);
  assert.throws(() => F.conv2d(x, w, { bias: gpu.zeros([5]) }), says("conv2d: bias must be (6); got (5)"));
  assert.throws(
    () => F.conv2d(x, w, { stride: 0 }),
    says("conv2d: stride takes one or two whole numbers from 1 up; got (0)"),
  );
  assert.throws(() => F.conv2d(x, w, { padding: -1 }), /conv2d: padding takes .* from 0 up; got \(-1\)/);
  assert.throws(
    () => F.conv2d(x, w, { dilation: 4 }),
    /conv2d: a window that reaches over 9 does not fit into 8 and 0 of padding/,
  );
  assert.throws(() => F.conv2d(gpu.zeros([2, 4, 8, 8], { dtype: "i32" }), w), /conv2d: x must be f32; got i32/);
  assert.throws(
    () => F.convTranspose2d(x, w),
    says("convTranspose2d: x is (2, 4, 8, 8), so weight must be (4, out, kh, kw); got (6, 4, 3, 3)"),
  );
  assert.throws(
    () => F.maxPool2d(x, 2, { padding: 2 }),
    says("maxPool2d: padding may be at most half the window 2 x 2; got 2, 2"),
  );
  assert.throws(() => F.avgPool2d(x, 9), /avgPool2d: a window that reaches over 9 does not fit into 8/);
});

test.run();
