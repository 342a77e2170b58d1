/** Chains of pointwise operations in one kernel: the same numbers as one by one, with fewer kernels, whatever happens to what they read. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { withoutFusion } from "../../engine/fusion.ts";
import { run } from "../../engine/kernel.ts";
import { free } from "../../engine/scope.ts";
import { backward, type Device, F, nn, optim, scope, type Tensor } from "../../index.ts";
import { testDevice } from "../device.ts";

const test = suite("fusion");

/** Dispatches that `fn` takes until its result's numbers are there. */
async function kernels(gpu: Device, fn: () => Tensor): Promise<number> {
  const before = gpu.dispatches;
  await scope(fn).toArray();
  return gpu.dispatches - before;
}

test("a chain is one kernel, with its gradient another", async () => {
  const gpu = await testDevice();
  const x = gpu.randn([5, 7], { seed: 1 });
  const chain = (v: Tensor): Tensor => F.add(F.mul(F.tanh(F.add(F.mul(v, 1.5), 0.5)), F.sigmoid(v)), v);
  assert.is(await kernels(gpu, () => chain(x)), 1);
  assert.is(await kernels(gpu, () => withoutFusion(() => chain(x))), 6);
  const leaf = nn.parameter(x);
  const before = gpu.dispatches;
  backward(F.sum(chain(leaf)));
  await leaf.grad!.toArray();
  assert.ok(gpu.dispatches - before <= 8, `${gpu.dispatches - before} kernels for value, sum and gradient`);
});

test("fused and unfused agree, values and gradients, through broadcasts, types and reshapes", async () => {
  const gpu = await testDevice();
  const cases: Record<string, (a: Tensor, b: Tensor, c: Tensor) => Tensor> = {
    broadcasts: (a, b, c) => F.mul(F.add(F.exp(F.mul(a, 0.3)), b), F.sub(c, F.tanh(b))),
    comparisons: (a, b, c) => F.where(F.logicalAnd(F.gt(a, b), F.lt(a, 1)), F.mul(a, c), F.neg(F.add(a, b))),
    counts: (a, b) => F.mul(a, F.add(F.cast(F.gt(a, b), "f32"), F.cast(F.cast(F.mul(b, 3), "i32"), "f32"))),
    reshaped: (a, b) => F.mul(F.reshape(F.sigmoid(F.mul(a, 2)), [6, 4, 5]), F.reshape(F.abs(b), [1, 4, 1])),
    shared: (a, b, c) => {
      const h = F.gelu(F.add(a, b));
      return F.add(F.mul(h, c), F.mul(h, h));
    },
    reduced: (a, b, c) => F.mul(F.softmax(F.add(a, b), -1), F.sum(F.mul(a, c), [0], { keepdim: true })),
  };
  const shapes = [
    [2, 3, 4, 5],
    [4, 1],
    [3, 1, 5],
  ];
  for (const [name, fn] of Object.entries(cases)) {
    const run = async (): Promise<number[][]> => {
      const leaves = shapes.map((shape, i) => nn.parameter(gpu.randn(shape, { seed: 10 + i })));
      const y = fn(leaves[0]!, leaves[1]!, leaves[2]!);
      backward(y, gpu.randn(y.shape, { seed: 20 }));
      const tensors = [y, ...leaves.map((leaf) => leaf.grad)].filter((x) => x !== undefined);
      return Promise.all(tensors.map(async (x) => [...(await x.toArray())]));
    };
    const fused = await run();
    // Reading is asynchronous, so the switch must hold for the making alone.
    const leaves = shapes.map((shape, i) => nn.parameter(gpu.randn(shape, { seed: 10 + i })));
    const y = withoutFusion(() => {
      const made = fn(leaves[0]!, leaves[1]!, leaves[2]!);
      backward(made, gpu.randn(made.shape, { seed: 20 }));
      return made;
    });
    const plain = [y, ...leaves.map((leaf) => leaf.grad)].filter((x) => x !== undefined);
    for (const [i, x] of plain.entries())
      for (const [k, v] of [...(await x.toArray())].entries())
        assert.ok(Math.abs(v - fused[i]![k]!) <= 1e-6 * Math.max(1, Math.abs(v)), `${name} ${i}[${k}]: ${v}`);
  }
});

test("a reduction takes in the chain before it and the chain after it, along rows and along columns", async () => {
  const gpu = await testDevice();
  const x = gpu.randn([12, 20], { seed: 3 });
  const row = gpu.randn([20], { seed: 4 });
  const host = [...(await x.toArray())];
  const weight = [...(await row.toArray())];
  const value = (i: number): number => host[i]! * weight[i % 20]! + 1;
  for (const dim of [0, 1]) {
    const n = dim === 0 ? 20 : 12;
    const factor = gpu.randn([n], { seed: 5 });
    const before = (): Tensor => F.add(F.mul(x, row), 1);
    const after = (v: Tensor): Tensor => F.mul(F.sqrt(F.add(F.mul(v, v), 2)), factor);
    assert.is(await kernels(gpu, () => F.sum(before(), [dim])), 1);
    assert.is(await kernels(gpu, () => after(F.mean(before(), [dim]))), 1);
    assert.is(await kernels(gpu, () => F.neg(F.max(before(), [dim]))), 1);

    const sums = Array.from({ length: n }, (_, k) =>
      Array.from({ length: 240 / n }, (_, j) => value(dim === 0 ? j * 20 + k : k * 20 + j)).reduce((a, b) => a + b),
    );
    // The sum itself is asked for after the chain that followed it, and is not summed again.
    const s = F.sum(before(), [dim]);
    const y = after(s);
    const [factors, ys] = [await factor.toArray(), await y.toArray()];
    const done = gpu.dispatches;
    const kept = await s.toArray();
    assert.is(gpu.dispatches, done);
    for (let k = 0; k < n; k++) {
      assert.ok(Math.abs(kept[k]! - sums[k]!) < 1e-4, `sum ${k}`);
      assert.ok(Math.abs(ys[k]! - Math.sqrt(sums[k]! ** 2 + 2) * factors[k]!) < 1e-4, `after ${k}`);
    }
    // Two reductions in one chain, and one that is spread out again.
    assert.is(await kernels(gpu, () => F.add(F.sum(before(), [dim]), F.max(before(), [dim]))), 2);
    assert.is(await kernels(gpu, () => F.sub(x, F.mean(x, [dim], { keepdim: true }))), 2);
  }
});

test("a reduction that waits is computed before its source is overwritten, freed or too much for a kernel", async () => {
  const gpu = await testDevice();
  const x = gpu.tensor([1, 2, 3, 4]);
  const [sum, later] = [F.sum(x), F.sum(F.mul(x, 2))];
  gpu.upload(x, new Float32Array([7, 7, 7, 7]));
  assert.is(await sum.item(), 10);
  assert.is(await F.add(later, 1).item(), 21);
  const outside = scope(() => F.mul(F.sum(scope(() => F.add(gpu.tensor([1, 2, 3, 4]), 1))), 3));
  assert.is(await outside.item(), 42);
  const many = Array.from({ length: 7 }, (_, i) => gpu.tensor([i, i, i, i]));
  const wide = F.sum(many.reduce((a, b) => F.add(a, b)));
  assert.is(await F.mul(wide, gpu.tensor([2])).item(), 168);
  // More reductions than one kernel finishes, over more buffers than it reads.
  const sums = many.map((x, i) => F.sum(F.mul(x, many[6 - i]!)));
  assert.is(await sums.reduce((a, b) => F.add(a, b)).item(), 4 * (0 + 5 + 8 + 9 + 8 + 5 + 0));
});

test("what a chain reads may be freed or overwritten before it is computed", async () => {
  const gpu = await testDevice();
  const y = scope(() => {
    const x = gpu.tensor([1, 2, 3]);
    const inner = scope(() => F.mul(F.add(x, gpu.tensor([1, 1, 1])), 2));
    return F.add(inner, 1);
  });
  assert.equal([...(await y.toArray())], [5, 7, 9]);

  const weight = nn.parameter(gpu.tensor([1, 2, 3]));
  const before = F.mul(weight, 10);
  weight.grad = gpu.tensor([1, 1, 1]);
  new optim.SGD([{ params: [weight], lr: 1 }]).step();
  assert.equal([...(await before.toArray())], [10, 20, 30], "computed before the step changed what it reads");
  assert.equal([...(await weight.toArray())], [0, 1, 2]);

  const kept = scope(() => {
    const x = F.add(gpu.tensor([1]), 1);
    const y = F.mul(x, 3);
    free(x);
    return y;
  });
  assert.equal([...(await kept.toArray())], [6]);
});

test("every way to write a buffer waits for what still reads it", async () => {
  const gpu = await testDevice();
  const writes: Record<string, (x: Tensor) => void> = {
    upload: (x) => gpu.upload(x, new Float32Array([7, 7, 7])),
    clear: (x) => gpu.clear(x),
    copy: (x) => gpu.copy(gpu.tensor([7, 7, 7]), 0, x, 0, 3),
    kernel: (x) =>
      run(gpu, "accumulate", "in_place", { bind: { y: x, b: gpu.tensor([5, 5, 5]) }, params: { n: 1 }, groups: [1] }),
  };
  for (const [name, write] of Object.entries(writes)) {
    const x = gpu.tensor([1, 2, 3]);
    await x.toArray();
    const y = F.add(x, 1);
    write(x);
    assert.equal([...(await y.toArray())], [2, 3, 4], name);
    assert.not.equal([...(await x.toArray())], [1, 2, 3], name);
  }
});

test("a chain whose parts had to be stored before it is cut to what a kernel can bind", async () => {
  const gpu = await testDevice();
  const x = gpu.tensor([1, 2]);
  const parts = Array.from({ length: 8 }, (_, i) => F.mul(x, i));
  const sum = parts.reduce((a, b) => F.add(a, b));
  gpu.upload(x, new Float32Array([7, 7]));
  const before = gpu.dispatches;
  assert.equal([...(await sum.toArray())], [28, 56]);
  assert.ok(gpu.dispatches - before >= 2, "eight buffers are more than one kernel reads");
});

test("an expression that broadcasts is computed before it gets another shape", async () => {
  const gpu = await testDevice();
  const sum = F.add(gpu.zeros([2, 3]), gpu.tensor([1, 2], [2, 1]));
  assert.equal([...(await F.add(F.reshape(sum, [6]), 0).toArray())], [1, 1, 1, 2, 2, 2]);
  const flat = F.add(gpu.zeros([2, 3]), 1);
  assert.is(await kernels(gpu, () => F.mul(F.reshape(flat, [6]), 2)), 1);
});

test("sharing costs no more than the chain is long, and results of inner scopes hold little", async () => {
  const gpu = await testDevice();
  let x = gpu.tensor([1, 1, 1, 1, 1, 1], [2, 3]);
  for (let i = 0; i < 60; i++) x = F.mul(F.add(x, x), 0.5);
  assert.equal([...(await F.add(F.reshape(x, [6]), 1).toArray())], [2, 2, 2, 2, 2, 2]);
  const before = gpu.memory.liveBytes;
  await scope(async () => {
    const sums = Array.from({ length: 8 }, () =>
      scope(() => Array.from({ length: 7 }, (_, k) => gpu.full([65_536], k)).reduce((a, b) => F.add(a, b))),
    );
    assert.ok(gpu.memory.liveBytes - before <= 9 * 65_536 * 4, `${gpu.memory.liveBytes - before} bytes`);
    assert.is((await sums[7]!.toArray())[0], 21);
  });
});

test("more than 8 dimensions are refused when they are asked for", async () => {
  const gpu = await testDevice();
  const [odd, even] = [0, 1].map((at) => Array.from({ length: 10 }, (_, d) => (d % 2 === at ? 2 : 1)));
  assert.throws(
    () => F.add(gpu.zeros(odd!), gpu.zeros(even!)),
    /add: broadcasting over more than 8 separate dimensions/,
  );
});

test("long chains are cut, wide ones too, and nothing is left behind", async () => {
  const gpu = await testDevice();
  const x = gpu.tensor([1, 2]);
  const live = gpu.memory.liveBuffers;
  await scope(async () => {
    let y = x;
    for (let i = 0; i < 100; i++) y = F.add(y, x);
    assert.equal([...(await y.toArray())], [101, 202]);
    const many = Array.from({ length: 20 }, (_, i) => gpu.tensor([i, -i]));
    const sum = many.reduce((a, b) => F.add(a, b));
    assert.equal([...(await sum.toArray())], [190, -190]);
    // Never asked for, and so never computed.
    F.exp(F.mul(x, 2));
  });
  // Less is possible: the garbage collector takes what tests before this one left.
  assert.ok(gpu.memory.liveBuffers <= live);
});

test.run();
