import { suite } from "uvu";
import * as assert from "uvu/assert";
import { F } from "../../index.ts";
import { testDevice } from "../device.ts";

const gpu = await testDevice();
const test = suite("softmax");

test("softmax of rows far from 0 is finite and sums to 1", async () => {
  const y = await F.softmax(gpu.tensor([1e30, 1e30, -1e30, 0], [1, 4]), -1).toArray();
  assert.equal([...y], [0.5, 0.5, 0, 0]);
});

test("a wrong dimension or type is refused by name", () => {
  assert.throws(() => F.softmax(gpu.zeros([2, 3]), 2), /softmax: dim must lie in -2\.\.1/);
  assert.throws(() => F.logSumExp(gpu.zeros([2], { dtype: "i32" }), 0), /logSumExp: x must be f32; got i32/);
});

test.run();
