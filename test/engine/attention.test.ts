import { suite } from "uvu";
import * as assert from "uvu/assert";
import { tensorError } from "../../engine/gradcheck.ts";
import { SCORE_BYTES } from "../../engine/ops/attention.ts";
import { backward, F, scope, type Tensor } from "../../index.ts";
import { testDevice } from "../device.ts";

const gpu = await testDevice();
const test = suite("attention");

/** Output and gradients of some way to attend, for inputs from fixed seeds. */
async function results(
  shapes: readonly (readonly number[])[],
  attend: (x: Tensor[]) => Tensor,
): Promise<ArrayLike<number>[]> {
  return scope(async () => {
    const inputs = shapes.map((shape, seed) => gpu.randn(shape, { seed: seed + 1, requiresGrad: true }));
    const y = attend(inputs);
    backward(y, gpu.randn(y.shape, { seed: 99 }));
    const out: ArrayLike<number>[] = [];
    for (const x of [y, ...inputs.map((input) => input.grad!)]) out.push(await x.toArray());
    return out;
  });
}

for (const [name, batch, n, m] of [
  ["entry by entry", 3, 2000, 1500],
  ["a few rows at a time", 1, 5000, 1700],
] as const)
  test(`scores too large to keep are made ${name}, to the same result`, async () => {
    assert.ok(batch * n * m * 4 > SCORE_BYTES);
    const shapes = [
      [batch, n, 4],
      [batch, m, 4],
      [batch, m, 4],
      [1, m],
      [batch, n, 50],
      [batch, n, m / 50],
    ];
    const piecewise = await results(shapes, ([q, k, v, mask, relH, relW]) =>
      F.scaledDotProductAttention(q!, k!, v!, { mask, relH, relW }),
    );
    const composed = await results(shapes, ([q, k, v, mask, relH, relW]) => {
      const rel = F.add(F.reshape(relH!, [batch, n, 50, 1]), F.reshape(relW!, [batch, n, 1, m / 50]));
      const scores = F.mul(F.matmul(q!, F.transpose(k!, 1, 2)), 0.5);
      return F.matmul(F.softmax(F.add(F.add(scores, F.reshape(rel, [batch, n, m])), mask!), -1), v!);
    });
    // Two f32 results, each within 1e-5 of the truth.
    assert.equal(
      piecewise.map((got, i) => tensorError(got, composed[i]!)).filter((error) => error > 2e-5),
      [],
    );
  });

test("wrong arguments are refused by name", () => {
  const x = gpu.zeros([2, 3, 4]);
  assert.throws(() => F.scaledDotProductAttention(x, gpu.zeros([2, 5, 3]), x), /q is \(2, 3, 4\), so k must be/);
  assert.throws(
    () => F.scaledDotProductAttention(x, x, x, { mask: gpu.zeros([3, 3], { dtype: "i32" }) }),
    /mask must be bool or f32/,
  );
  assert.throws(() => F.scaledDotProductAttention(x, x, x, { relH: gpu.zeros([2, 3, 3]) }), /come together/);
});

test.run();
