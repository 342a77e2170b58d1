import { suite } from "uvu";
import * as assert from "uvu/assert";
import { tensorError } from "../../engine/gradcheck.ts";
import { backward, F, scope } from "../../index.ts";
import { testDevice } from "../device.ts";

const gpu = await testDevice();
const test = suite("attention");

type Path = "chunked" | "onePass";

/** y and the gradients of q, k and v, and the most memory that they took. */
async function attend(n: number, options: { path: Path; scoreBytes?: number }): Promise<[Float32Array[], number]> {
  return scope(async () => {
    const [q, k, v, gy] = [1, 2, 3, 4].map((seed) => gpu.randn([1, n, 16], { seed, requiresGrad: seed < 4 }));
    const before = gpu.memory.liveBytes;
    gpu.resetHighWater();
    const y = F.scaledDotProductAttention(q!, k!, v!, options);
    backward(y, gy);
    await gpu.sync();
    const most = gpu.memory.highWaterBytes - before;
    return [(await Promise.all([y, q!.grad!, k!.grad!, v!.grad!].map((x) => x.toArray()))) as Float32Array[], most];
  });
}

test("a large problem never holds all its scores, and gives the same either way", async () => {
  const n = 2048;
  const scores = n * n * 4;
  const [want, inPieces] = await attend(n, { path: "chunked", scoreBytes: 2 ** 20 });
  assert.ok(inPieces < scores / 2, `${inPieces} bytes in pieces for scores of ${scores}`);
  const [got, inOnePass] = await attend(n, { path: "onePass" });
  assert.ok(inOnePass < scores / 8, `${inOnePass} bytes in one pass for scores of ${scores}`);
  for (const [i, x] of want.entries()) assert.ok(tensorError(got[i]!, x) < 2e-6, ["y", "gq", "gk", "gv"][i]);
});

test("one pass gives the same bits each time", async () => {
  const [first] = await attend(130, { path: "onePass" });
  const [second] = await attend(130, { path: "onePass" });
  assert.equal(first, second);
});

for (const path of ["chunked", "onePass"] as const)
  test(`what is not finite comes out as softmax lets it, ${path}`, async () => {
    const [N, I] = [Number.NaN, Number.POSITIVE_INFINITY];
    // Keys as scores of a query of 1, with the weight of the first; four of them go another way than three on some adapters.
    const rows: [number[], number][] = [
      [[1, N, 1], N],
      [[N, 1, N, 1], N],
      [[-I, 1, 1], 0],
      [[1, -I, -I, 1], 0.5],
      [[I, 1, 2], N],
      [[1, 2, 3, I], N],
      [[-I, -I, -I, -I], 0],
    ];
    for (const [row, weight] of rows) {
      const q = gpu.ones([1, 1], { requiresGrad: true });
      const v = gpu.tensor([[1, 0, 0, 0], ...row.slice(1).map(() => [0, 0, 0, 0])].flat(), [row.length, 4]);
      const y = F.scaledDotProductAttention(q, gpu.tensor(row, [row.length, 1]), v, { path });
      assert.equal((await y.toArray())[0], weight, `keys ${row}`);
      backward(F.sum(y));
      // What a row of NaN comes to is not lost on the way back.
      if (Number.isNaN(weight)) assert.ok(Number.isNaN(await q.grad!.item()), `gradient of keys ${row}`);
    }
  });

test("a value that is masked out does not hide its NaN, and a key does", async () => {
  const mask = gpu.tensor([1, 1, 1, 0], [1, 4], { dtype: "bool" });
  const bad = gpu.tensor([0, 0, 0, Number.NaN], [4, 1]);
  for (const path of ["chunked", "onePass"] as const) {
    const y = F.scaledDotProductAttention(gpu.ones([1, 1]), bad, gpu.ones([4, 4]), { mask, path });
    assert.equal([...(await y.toArray())], [1, 1, 1, 1], path);
    const z = F.scaledDotProductAttention(gpu.ones([1, 1]), gpu.zeros([4, 1]), F.expand(bad, [4, 4]), { mask, path });
    assert.ok(Number.isNaN((await z.toArray())[0]), path);
  }
});

test("one pass is refused where there is none, and left where it is not asked for", async () => {
  const wide = gpu.zeros([2, 130]);
  assert.throws(() => F.scaledDotProductAttention(wide, wide, wide, { path: "onePass" }), /heads of 1 to 128; got 130/);
  const x = gpu.ones([2, 4], { requiresGrad: true });
  const mask = gpu.zeros([2, 2], { requiresGrad: true });
  assert.throws(() => F.scaledDotProductAttention(x, x, x, { mask, path: "onePass" }), /no gradient of a mask/);
  backward(F.sum(F.scaledDotProductAttention(x, x, x, { mask })));
  assert.equal([...(await mask.grad!.toArray())], [0, 0, 0, 0]);
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
