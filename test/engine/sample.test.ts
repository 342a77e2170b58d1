import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, F, Random, scope, type Tensor } from "../../index.ts";
import { testDevice } from "../device.ts";

const gpu = await testDevice();
const test = suite("reading images at positions");
const random = new Random(9);

/** Bits of the output and of the gradients of all inputs. */
function bits(inputs: Tensor[], run: () => Tensor): Promise<string> {
  return scope(async () => {
    for (const x of inputs) x.grad = undefined;
    const y = run();
    backward(y, gpu.randn(y.shape, { seed: 4 }));
    const out: string[] = [];
    for (const x of [y, ...inputs.map((input) => input.grad!)])
      out.push(Buffer.from((await x.toArray()).buffer).toString("base64"));
    return out.join();
  });
}

const uniform = (shape: readonly number[], low: number, high: number): Tensor =>
  gpu.tensor(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => random.uniform(low, high)),
    shape,
    { requiresGrad: true },
  );

test("gridSample gives the same bits every time", async () => {
  const inputs = [gpu.randn([3, 2, 16, 16], { seed: 1, requiresGrad: true }), uniform([3, 1, 5000, 2], -1.1, 1.1)];
  const run = (): Tensor => F.gridSample(inputs[0]!, inputs[1]!);
  const first = await bits(inputs, run);
  for (let i = 0; i < 3; i++) assert.is(await bits(inputs, run), first);
});

test("msDeformAttn gives the same bits every time", async () => {
  const shapes = [
    [4, 4],
    [8, 8],
  ];
  const inputs = [
    gpu.randn([2, 80, 4, 8], { seed: 1, requiresGrad: true }),
    uniform([2, 80, 4, 2, 4, 2], -0.1, 1.1),
    gpu.randn([2, 80, 4, 2, 4], { seed: 2, requiresGrad: true }),
  ];
  const run = (): Tensor => F.msDeformAttn(inputs[0]!, shapes, inputs[1]!, inputs[2]!);
  const first = await bits(inputs, run);
  for (let i = 0; i < 3; i++) assert.is(await bits(inputs, run), first);
});

test("coordinates of any size, infinite ones too, read 0 outside", async () => {
  const far = [1e9, -1e9, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 3.5e38, -3];
  const grid = gpu.tensor(
    far.flatMap((v) => [v, 0]),
    [1, 1, far.length, 2],
  );
  const y = await F.gridSample(gpu.ones([1, 1, 4, 4]), grid).toArray();
  assert.equal(
    [...y],
    far.map(() => 0),
  );
});

test("interpolate resizes as gridSample reads at the same positions", async () => {
  const x = gpu.randn([1, 3, 9, 14], { seed: 3 });
  const [h, w] = [25, 6];
  const grid = Float32Array.from({ length: h * w * 2 }, (_, i) => {
    const [o, size] = i % 2 === 0 ? [Math.floor(i / 2) % w, w] : [Math.floor(i / 2 / w), h];
    return (2 * (o + 0.5)) / size - 1;
  });
  const want = await F.gridSample(x, gpu.tensor(grid, [1, h, w, 2]), { paddingMode: "border" }).toArray();
  const got = await F.interpolate(x, { size: [h, w], mode: "bilinear" }).toArray();
  for (const [i, v] of got.entries())
    assert.ok(Math.abs(v - want[i]!) < 1e-5, `element ${i}: ${v} instead of ${want[i]}`);
});

test("wrong arguments are refused by name", () => {
  const x = gpu.zeros([1, 2, 4, 4]);
  assert.throws(() => F.interpolate(x, { mode: "bilinear" }), /interpolate: give either size or scaleFactor/);
  assert.throws(
    () => F.interpolate(gpu.zeros([2, 4, 4]), { size: [2, 2] }),
    /x must be \(N, C, H, W\); got \(2, 4, 4\)/,
  );
  assert.throws(() => F.gridSample(x, gpu.zeros([2, 1, 1, 2])), /grid must be \(1, Ho, Wo, 2\)/);
  const value = gpu.zeros([1, 20, 2, 4]);
  assert.throws(
    () => F.msDeformAttn(value, [[4, 4]], gpu.zeros([1, 3, 2, 1, 4, 2]), gpu.zeros([1, 3, 2, 1, 4])),
    /areas add up to S = 20/,
  );
  assert.throws(
    () => F.msDeformAttn(value, [[4, 5]], gpu.zeros([1, 3, 2, 1, 4, 2]), gpu.zeros([1, 3, 2, 2, 4])),
    /weights must be \(1, Q, 2, 1, P\)/,
  );
});

test.run();
