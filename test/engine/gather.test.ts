import { suite } from "uvu";
import * as assert from "uvu/assert";
import { sortKeys } from "../../engine/ops/sort.ts";
import { backward, F, Random, scope, type Tensor } from "../../index.ts";
import { testDevice } from "../device.ts";

const gpu = await testDevice();
const test = suite("reading and adding up by index");

const COUNT = 20000;
const random = new Random(5);
const index = gpu.tensor(
  Int32Array.from({ length: COUNT }, () => random.int(97)),
  [COUNT],
);

const sums: Record<string, (x: Tensor, source: Tensor) => Tensor> = {
  gather: (x) => F.gather(x, 0, index),
  scatterAdd: (x, source) => F.scatterAdd(x, 0, index, source),
  indexSelect: (x) => F.indexSelect(x, 0, index),
  embedding: (x) => F.embedding(index, F.reshape(x, [97, 1])),
};
for (const [name, run] of Object.entries(sums))
  test(`${name}: what adds up comes out bit for bit the same every time`, async () => {
    const once = (): Promise<string> =>
      scope(async () => {
        const x = gpu.randn([97], { seed: 1, requiresGrad: true });
        const y = run(x, gpu.randn([COUNT], { seed: 2 }));
        backward(y, gpu.randn(y.shape, { seed: 3 }));
        const bits = [await y.toArray(), await x.grad!.toArray()].map((a) => Buffer.from(a.buffer).toString("base64"));
        return bits.join();
      });
    const first = await once();
    for (let i = 0; i < 3; i++) assert.is(await once(), first);
  });

test("keys are sorted by row and equal ones keep their order", async () => {
  for (const [rows, n, bits] of [
    [1, 1, 1],
    [3, 130, 3],
    [2, 5000, 17],
    [1, 70000, 32],
  ] as const) {
    const keys = Uint32Array.from({ length: rows * n }, () => random.bits() >>> (32 - bits));
    const sorted = sortKeys(gpu.tensor(keys, [rows, n], { dtype: "u32" }), rows, n, bits);
    const want = Array.from({ length: rows }, (_, r) =>
      Array.from({ length: n }, (_, i) => i).sort((a, b) => keys[r * n + a]! - keys[r * n + b]! || a - b),
    ).flat();
    assert.equal([...(await sorted.order.toArray())], want);
  }
});

test("integers are read by index too", async () => {
  const y = F.gather(gpu.tensor(Int32Array.of(5, -6, 7), [3]), 0, gpu.tensor(Int32Array.of(2, 1), [2]));
  assert.equal([...(await y.toArray())], [7, -6]);
});

test("wrong arguments are refused by name", () => {
  const x = gpu.zeros([2, 3]);
  assert.throws(() => F.gather(x, 0, gpu.zeros([2, 3])), /gather: index must be i32 or u32; got f32/);
  assert.throws(() => F.gather(x, 0, gpu.zeros([2, 4], { dtype: "i32" })), /no larger but along dim 0; got \(2, 4\)/);
  assert.throws(() => F.scatterAdd(x, 1, gpu.zeros([2, 4], { dtype: "i32" }), x), /no larger than source/);
  assert.throws(() => F.indexSelect(x, 1, gpu.zeros([1, 1], { dtype: "i32" })), /one dimension/);
});

test.run();
