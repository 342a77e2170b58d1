import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, F, scope } from "../../index.ts";
import { testDevice } from "../device.ts";

const gpu = await testDevice();
const test = suite("attention");

test("a large problem never holds all its scores", async () => {
  const [n, scoreBytes] = [2048, 2 ** 20];
  await scope(async () => {
    const [q, k, v] = [1, 2, 3].map((seed) => gpu.randn([1, n, 4], { seed, requiresGrad: true }));
    const before = gpu.memory.liveBytes;
    gpu.resetHighWater();
    backward(F.sum(F.scaledDotProductAttention(q!, k!, v!, { scoreBytes })));
    await gpu.sync();
    const most = gpu.memory.highWaterBytes - before;
    assert.ok(most < (n * n * 4) / 2, `${most} bytes for scores of ${n * n * 4}`);
  });
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
