// BoxInst's losses against their formulas written out in float64.
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, F, scope } from "../../index.ts";
import { boxLosses, colourPairs } from "../../train/boxinst.ts";
import { testDevice } from "../device.ts";

const test = suite("BoxInst");
const gpu = await testDevice();
const [M, h, w] = [2, 7, 6];
const NEIGHBOURS = [
  [0, 2],
  [2, 0],
  [2, 2],
  [2, -2],
] as const;

/** Both terms of logits on the host. */
function twin(logits: ArrayLike<number>, boxes: ArrayLike<number>, pairs: ArrayLike<number>): [number, number] {
  const p = (m: number, y: number, x: number): number => 1 / (1 + Math.exp(-logits[(m * h + y) * w + x]!));
  let projection = 0;
  let [sum, count] = [0, 0];
  for (let m = 0; m < M; m++) {
    const axis = (length: number, across: number, at: (i: number, j: number) => [number, number]): number => {
      let [overlap, extent] = [0, 1e-5];
      for (let i = 0; i < length; i++) {
        const line = Array.from({ length: across }, (_, j) => at(i, j));
        const most = Math.max(...line.map(([y, x]) => p(m, y, x)));
        const box = Math.max(...line.map(([y, x]) => boxes[(m * h + y) * w + x]!));
        overlap += most * box;
        extent += most ** 2 + box ** 2;
      }
      return 1 - (2 * overlap) / extent;
    };
    projection += axis(w, h, (i, j) => [j, i]) + axis(h, w, (i, j) => [i, j]);
    for (const [n, [dy, dx]] of NEIGHBOURS.entries())
      for (let y = 0; y < h; y++)
        for (let x = 0; x < w; x++) {
          const counted = pairs[((m * 4 + n) * h + y) * w + x]! * boxes[(m * h + y) * w + x]!;
          if (counted === 0) continue;
          const [a, b] = [p(m, y, x), p(m, y + dy, x + dx)];
          sum -= counted * Math.log(a * b + (1 - a) * (1 - b));
          count += counted;
        }
  }
  return [projection, sum / Math.max(1, count)];
}

test("both terms and their gradients are the formulas'", async () => {
  await scope(async () => {
    const logits = gpu.randn([M, 1, h, w], { seed: 1, requiresGrad: true });
    const boxes = Float32Array.from({ length: M * h * w }, (_, i) => {
      const [x, y] = [i % w, Math.floor(i / w) % h];
      return Number(x >= 1 && x < 5 && y >= 2 && y < 6);
    });
    const pairs = Float32Array.from({ length: M * 4 * h * w }, (_, i) => {
      const [x, y, n] = [i % w, Math.floor(i / w) % h, Math.floor(i / w / h) % 4];
      const [dy, dx] = NEIGHBOURS[n]!;
      return Number(y + dy < h && x + dx >= 0 && x + dx < w && (i * 7) % 5 < 3);
    });
    const found = boxLosses(logits, gpu.tensor(boxes, [M, 1, h, w]), gpu.tensor(pairs, [M, 4, h, w]));
    const values = Float64Array.from(await logits.toArray());
    const [projection, pairwise] = twin(values, boxes, pairs);
    assert.ok(Math.abs((await found.projection.item()) - projection) < 1e-5);
    assert.ok(Math.abs((await found.pairwise.item()) - pairwise) < 1e-5);
    backward(F.add(F.mul(found.projection, 0.3), found.pairwise));
    const gradient = await logits.grad!.toArray();
    const total = (): number => {
      const [a, b] = twin(values, boxes, pairs);
      return 0.3 * a + b;
    };
    for (let i = 0; i < values.length; i++) {
      const before = values[i]!;
      values[i] = before + 1e-5;
      const above = total();
      values[i] = before - 1e-5;
      const slope = (above - total()) / 2e-5;
      values[i] = before;
      assert.ok(Math.abs(gradient[i]! - slope) < 1e-4, `${i}: ${gradient[i]}, by differences ${slope}`);
    }
  });
});

test("a mask that fills its box has no projection loss; one that lies beside it has all of it", async () => {
  await scope(async () => {
    const inside = (i: number): boolean => i % 8 < 4;
    const boxes = gpu.tensor(
      Float32Array.from({ length: 64 }, (_, i) => Number(inside(i))),
      [1, 1, 8, 8],
    );
    const none = gpu.zeros([1, 4, 8, 8]);
    const of = (sign: number) =>
      boxLosses(
        gpu.tensor(
          Float32Array.from({ length: 64 }, (_, i) => (inside(i) ? 20 : -20) * sign),
          [1, 1, 8, 8],
        ),
        boxes,
        none,
      );
    assert.ok((await of(1).projection.item()) < 1e-4);
    assert.ok((await of(-1).projection.item()) > 0.9);
    assert.is(await of(1).pairwise.item(), 0);
  });
});

test("neighbours of one colour count, those across an edge and beyond the image do not", async () => {
  const rgb = Uint8Array.from(
    { length: 32 * 32 * 3 },
    (_, i) => (Math.floor(i / 3) % 32 < 16 ? [200, 30, 30] : [30, 30, 200])[i % 3]!,
  );
  const image = { rgb, width: 32, height: 32, valid: [32, 16] as const };
  const pairs = await colourPairs(gpu, [image], [8, 8]).toArray();
  const at = (n: number, y: number, x: number): number => pairs[(n * 8 + y) * 8 + x]!;
  // Two columns to the right: over the edge between columns 3 and 4, and over the border.
  assert.equal(
    Array.from({ length: 8 }, (_, x) => at(0, 0, x)),
    [1, 1, 0, 0, 1, 1, 0, 0],
  );
  // Two rows down: the image ends after four rows.
  assert.equal(
    Array.from({ length: 8 }, (_, y) => at(1, y, 1)),
    [1, 1, 0, 0, 0, 0, 0, 0],
  );
  assert.equal([at(3, 0, 1), at(3, 0, 3), at(3, 0, 5)], [0, 1, 0]);
});

test.run();
