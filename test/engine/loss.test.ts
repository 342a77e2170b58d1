import { suite } from "uvu";
import * as assert from "uvu/assert";
import { F } from "../../index.ts";
import { testDevice } from "../device.ts";

const gpu = await testDevice();
const test = suite("losses");

test("crossEntropy: nothing to count gives NaN, and so does a class that is none", async () => {
  const x = gpu.zeros([2, 3]);
  assert.ok(Number.isNaN(await F.crossEntropy(x, gpu.tensor(Int32Array.of(-100, -100))).item()));
  assert.ok(Number.isNaN(await F.crossEntropy(x, gpu.tensor(Int32Array.of(0, 3))).item()));
  assert.is(await F.crossEntropy(x, gpu.tensor(Int32Array.of(-100, -100)), { reduction: "sum" }).item(), 0);
});

test("binaryCrossEntropyWithLogits stays exact for logits near and far from 0", async () => {
  const x = [-300, -20, -1e-4, 0, 20, 300];
  const y = await F.binaryCrossEntropyWithLogits(gpu.tensor(x), gpu.ones([6]), { reduction: "none" }).toArray();
  x.forEach((v, i) => {
    const want = Math.max(-v, 0) + Math.log1p(Math.exp(-Math.abs(v)));
    assert.ok(Math.abs(y[i]! - want) <= 1e-6 * want + 1e-30, `${v}: ${y[i]} instead of ${want}`);
  });
});

test("dice of a perfect prediction is 0 and of nothing at all too", async () => {
  const target = gpu.tensor([1, 1, 0, 0, 0, 0], [2, 3]);
  const y = await F.dice(gpu.tensor([99, 99, -99, -99, -99, -99], [2, 3]), target, { reduction: "none" }).toArray();
  assert.ok(y.every((v) => Math.abs(v) < 1e-6));
});

test("wrong arguments are refused by name", () => {
  const x = gpu.zeros([2, 3]);
  assert.throws(
    () => F.crossEntropy(x, gpu.zeros([2])),
    /crossEntropy: x is \(2, 3\), so target must be i32 \(2\); got f32/,
  );
  assert.throws(
    () => F.crossEntropy(x, gpu.zeros([2], { dtype: "i32" }), { weight: gpu.zeros([2]) }),
    /weight must be f32 \(3\)/,
  );
  assert.throws(() => F.dice(x, gpu.zeros([3, 2])), /dice: both tensors must have one shape/);
  assert.throws(() => F.klDiv(x, gpu.zeros([4])), /klDiv: shapes/);
  assert.throws(() => F.mseLoss(x, x, { reduction: "avg" as never }), /mseLoss: reduction must be/);
});

test.run();
