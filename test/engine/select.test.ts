import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, F, Random } from "../../index.ts";
import { testDevice } from "../device.ts";

const gpu = await testDevice();
const test = suite("topk and dropout");
const random = new Random(3);

for (const [rows, n, k] of [
  [1, 1, 1],
  [3, 7, 7],
  [2, 8000, 100],
  [3, 4097, 4000],
  [1, 65536, 20000],
] as const)
  test(`topk of ${k} out of ${n}: in order, ties by index`, async () => {
    // Whole numbers, so that there are many ties, negative ones and both zeros.
    const x = Float32Array.from({ length: rows * n }, () => (random.int(4) === 0 ? -0 : random.int(200) - 150));
    const { values, indices } = F.topk(gpu.tensor(x, [rows, n]), k);
    const want = Array.from({ length: rows }, (_, r) =>
      Array.from({ length: n }, (_, i) => i)
        .sort((a, b) => x[r * n + b]! - x[r * n + a]! || a - b)
        .slice(0, k),
    );
    assert.equal([...(await indices.toArray())], want.flat());
    const top = want.flatMap((row, r) => row.map((i) => x[r * n + i]!));
    assert.equal([...(await values.toArray())], top);
  });

test("topk orders infinities and numbers of any size", async () => {
  const x = [1e-40, Number.NEGATIVE_INFINITY, 3e38, -1e-40, Number.POSITIVE_INFINITY, -3e38];
  assert.equal([...(await F.topk(gpu.tensor(x), 6).indices.toArray())], [4, 2, 0, 3, 5, 1]);
});

test("dropout omits the share it is told to, by seed, and its gradient the same elements", async () => {
  const x = gpu.tensor(new Float32Array(1e5).fill(1), [1e5], { requiresGrad: true });
  const y = F.dropout(x, 0.3, { seed: 11 });
  const values = await y.toArray();
  const share = values.filter((v) => v === 0).length / 1e5;
  assert.ok(Math.abs(share - 0.3) < 0.006, `${share}`);
  backward(F.sum(y));
  assert.equal(await x.grad!.toArray(), values);
  assert.equal(await F.dropout(x, 0.3, { seed: 11 }).toArray(), values);
  const other = await F.dropout(x, 0.3, { seed: 12 }).toArray();
  const both = values.filter((v, i) => v === 0 && other[i] === 0).length / 1e5;
  assert.ok(Math.abs(both - 0.09) < 0.004, `${both}`);
  assert.is(F.dropout(x, 0.3, { training: false }), x);
});

test("wrong arguments are refused by name", () => {
  assert.throws(() => F.topk(gpu.zeros([2, 3]), 4), /topk: k must lie in 0\.\.3/);
  assert.throws(() => F.dropout(gpu.zeros([2]), 1.5), /dropout: p must lie in 0\.\.1; got 1\.5/);
});

test.run();
