/** NaN and infinities: they come out where PyTorch lets them come out, and are never swallowed. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, F, type Tensor } from "../../index.ts";
import { testDevice } from "../device.ts";

const gpu = await testDevice();
const test = suite("NaN and infinities");

const N = Number.NaN;
const I = Number.POSITIVE_INFINITY;
const X = [N, I, -I, -1, 0, 1];
const x = gpu.tensor(X);
/** The other NaN: the sign bit set, as x86 makes it. */
const minusNaN = gpu.tensor(new Float32Array(Uint32Array.of(0xffc00000, 0x3f800000, 0x7f800001).buffer));

async function gives(y: Tensor, want: readonly number[], what = ""): Promise<void> {
  const got = [...(await y.toArray())];
  const near = want.every((w, i) => Object.is(got[i]! + 0, w + 0) || Math.abs(got[i]! - w) < 1e-6);
  assert.ok(near && got.length === want.length, `${what}: got ${got}, want ${want}`);
}

// By torch's rules on X.
const unary: Record<string, [(x: Tensor) => Tensor, number[]]> = {
  exp: [F.exp, [N, I, 0, Math.exp(-1), 1, Math.E]],
  log: [F.log, [N, I, N, N, -I, 0]],
  sqrt: [F.sqrt, [N, I, N, N, 0, 1]],
  abs: [F.abs, [N, I, I, 1, 0, 1]],
  sigmoid: [F.sigmoid, [N, 1, 0, 1 / (1 + Math.E), 0.5, 1 / (1 + Math.exp(-1))]],
  tanh: [F.tanh, [N, 1, -1, -Math.tanh(1), 0, Math.tanh(1)]],
  relu: [F.relu, [N, I, 0, 0, 0, 1]],
  silu: [F.silu, [N, I, N, -1 / (1 + Math.E), 0, 1 / (1 + Math.exp(-1))]],
  sin: [F.sin, [N, N, N, -Math.sin(1), 0, Math.sin(1)]],
  erf: [F.erf, [N, 1, -1, -0.8427008, 0, 0.8427008]],
  gelu: [F.gelu, [N, I, N, -0.15865526, 0, 0.8413447]],
  "gelu, tanh": [(v) => F.gelu(v, { approximate: "tanh" }), [N, I, N, -0.15880801, 0, 0.841192]],
  "clamp to both": [(v) => F.clamp(v, { min: -0.5, max: 0.5 }), [N, 0.5, -0.5, -0.5, 0, 0.5]],
  "clamp from below": [(v) => F.clamp(v, { min: -0.5 }), [N, I, -0.5, -0.5, 0, 1]],
  "clamp from above": [(v) => F.clamp(v, { max: 0.5 }), [N, 0.5, -I, -1, 0, 0.5]],
  "maximum on the left": [(v) => F.maximum(v, 0), [N, I, 0, 0, 0, 1]],
  "maximum on the right": [(v) => F.maximum(0, v), [N, I, 0, 0, 0, 1]],
  "minimum on the left": [(v) => F.minimum(v, 0), [N, 0, -I, -1, 0, 0]],
  "minimum on the right": [(v) => F.minimum(0, v), [N, 0, -I, -1, 0, 0]],
  "cast to bool": [(v) => F.cast(v, "bool"), [1, 1, 1, 1, 0, 1]],
  logicalNot: [F.logicalNot, [0, 0, 0, 0, 1, 0]],
  "x² ": [(v) => F.pow(v, 2), [N, I, I, 1, 0, 1]],
  "x to 1.7": [(v) => F.pow(v, 1.7), [N, I, I, N, 0, 1]],
  "x to -1": [(v) => F.pow(v, -1), [N, 0, 0, -1, I, 1]],
  "x to 0": [(v) => F.pow(v, 0), [1, 1, 1, 1, 1, 1]],
  "1 to x": [(v) => F.pow(1, v), [1, 1, 1, 1, 1, 1]],
  "2 to x": [(v) => F.pow(2, v), [N, I, 0, 0.5, 1, 2]],
  "-2 to x": [(v) => F.pow(-2, v), [N, I, 0, -0.5, 1, -2]],
};
for (const [name, [op, want]] of Object.entries(unary)) test(name, () => gives(op(x), want));

// Where exponentials leave f32 there is an edge somewhere: every number near it, forward and gradient.
const sweep = Float32Array.from({ length: 20001 }, (_, i) => (i - 10000) / 100);
const swept: Record<string, [op: (x: Tensor) => Tensor, twin: (v: number) => number, slope: (v: number) => number]> = {
  sigmoid: [
    F.sigmoid,
    (v) => 1 / (1 + Math.exp(-v)),
    (v) => Math.exp(-Math.abs(v)) / (1 + Math.exp(-Math.abs(v))) ** 2,
  ],
  silu: [F.silu, (v) => v / (1 + Math.exp(-v)), (v) => (1 + v / (1 + Math.exp(v))) / (1 + Math.exp(-v))],
  tanh: [F.tanh, Math.tanh, (v) => 1 - Math.tanh(v) ** 2],
  "exp of what is below 0": [
    (v) => F.exp(F.minimum(v, 0)),
    (v) => Math.exp(Math.min(v, 0)),
    (v) => (v < 0 ? Math.exp(v) : v === 0 ? 0.5 : 0),
  ],
};
for (const [name, [op, twin, slope]] of Object.entries(swept))
  test(`${name} from -100 to 100`, async () => {
    const v = gpu.tensor(sweep, undefined, { requiresGrad: true });
    const y = op(v);
    backward(y, gpu.ones(y.shape));
    const [values, gradients] = [await y.toArray(), await v.grad!.toArray()];
    for (const [i, at] of sweep.entries()) {
      const off = Math.abs(values[i]! - twin(at)) / Math.max(1, Math.abs(twin(at)));
      assert.ok(off < 1e-6, `${name}(${at}): ${values[i]}, want ${twin(at)}`);
      assert.ok(Math.abs(gradients[i]! - slope(at)) < 2e-6, `its slope at ${at}: ${gradients[i]}, want ${slope(at)}`);
    }
  });

test("NaN of either sign is one", async () => {
  await gives(F.relu(minusNaN), [N, 1, N]);
  await gives(F.exp(minusNaN), [N, 1 * Math.E, N]);
  await gives(F.max(minusNaN), [N]);
  await gives(F.topk(minusNaN, 3).indices, [0, 2, 1]);
});

/** Rows with what the reductions over them come to: max, min, argmax, largest first, softmax, logSumExp. */
const rows: [number[], number, number, number, number[], number[], number][] = [
  [[1, N, 3], N, N, 1, [N, 3, 1], [N, N, N], N],
  [[N, 1, N], N, N, 0, [N, N, 1], [N, N, N], N],
  [[-I, 1, 1], 1, -I, 1, [1, 1, -I], [0, 0.5, 0.5], 1 + Math.log(2)],
  [[1, -I, 1], 1, -I, 0, [1, 1, -I], [0.5, 0, 0.5], 1 + Math.log(2)],
  [[I, 1, 2], I, 1, 0, [I, 2, 1], [N, N, N], I],
  [[-I, -I, -I], -I, -I, 0, [-I, -I, -I], [N, N, N], -I],
];
for (const [row, max, min, index, sorted, softmax, logSumExp] of rows)
  test(`reductions of ${row}`, async () => {
    const one = gpu.tensor(row);
    await gives(F.max(one), [max], "max");
    await gives(F.min(one), [min], "min");
    await gives(F.argmax(one, 0), [index], "argmax");
    await gives(F.topk(one, 3).values, sorted, "topk");
    await gives(F.maxPool2d(gpu.tensor(row, [1, 1, 3]), [1, 3]), [max], "maxPool2d");
    // The ways that softmax has: rows of any length, in fours, a workgroup each, and along another dimension.
    for (const copies of [1, 4, 200]) {
      const y = F.softmax(F.cat(new Array<Tensor>(copies).fill(one), 0), 0);
      await gives(F.slice(F.mul(y, copies), 0, 0, 3), softmax, `softmax of ${copies}`);
    }
    await gives(F.softmax(gpu.tensor(row, [3, 1]), 0), softmax, "softmax along columns");
    await gives(F.logSoftmax(one, 0), softmax.map(Math.log), "logSoftmax");
    await gives(F.logSumExp(one, 0), [logSumExp], "logSumExp");
    const loss = F.crossEntropy(gpu.tensor(row, [1, 3]), gpu.tensor(Int32Array.of(2)), { reduction: "none" });
    await gives(loss, [-Math.log(softmax[2]!)], "crossEntropy");
    // Keys that score as the row does; no key at all is the engine's own case.
    if (row.every((v) => v === -I)) return;
    const values = gpu.tensor([1, 0, 0], [3, 1]);
    const y = F.scaledDotProductAttention(gpu.ones([1, 1]), gpu.tensor(row, [3, 1]), values);
    await gives(y, [softmax[0]!], "attention");
  });

test("losses let NaN through", async () => {
  const t = gpu.tensor([1, 0.5, 0]);
  const bad = gpu.tensor([1, N, 0]);
  await gives(F.binaryCrossEntropyWithLogits(bad, t), [N]);
  await gives(F.dice(bad, t), [N]);
  await gives(F.mseLoss(bad, t), [N]);
  await gives(F.smoothL1(bad, t), [N]);
  await gives(F.klDiv(t, bad), [N]);
  await gives(F.klDiv(bad, t), [N]);
});

test("gradients too", async () => {
  const grad = async (op: (v: Tensor) => Tensor): Promise<number[]> => {
    const v = gpu.tensor([N, 1, 2, 3], [4], { requiresGrad: true });
    const { backward } = await import("../../index.ts");
    backward(F.sum(op(v)));
    return [...(await v.grad!.toArray())];
  };
  assert.equal(await grad((v) => F.softmax(v, 0)), [N, N, N, N]);
  assert.equal(await grad((v) => F.logSoftmax(v, 0)), [N, N, N, N]);
  assert.equal(await grad((v) => F.logSumExp(v, 0)), [N, N, N, N]);
  assert.ok(Number.isNaN((await grad((v) => F.sigmoid(v)))[0]));
  assert.ok(Number.isNaN((await grad((v) => F.binaryCrossEntropyWithLogits(v, gpu.ones([4]))))[0]));
  // torch lets a gradient of 1 pass where the operand is NaN.
  assert.equal(await grad((v) => F.relu(v)), [1, 1, 1, 1]);
  assert.equal(await grad((v) => F.maximum(v, 2)), [1, 0, 0.5, 1]);
});

test("powers of 0 pass the gradients that torch has", async () => {
  const { backward } = await import("../../index.ts");
  const a = gpu.tensor([0, 0, 0, 2, -2], [5], { requiresGrad: true });
  const b = gpu.tensor([0, 2, 1, 0, 2], [5], { requiresGrad: true });
  backward(F.sum(F.pow(a, b)));
  await gives(a.grad!, [0, 0, 1, 0, -4], "base");
  await gives(b.grad!, [0, 0, 0, Math.log(2), N], "exponent");
});

test.run();
