/** Images without objects give tensors without elements: they pass through forward and backward like any other. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, F, scope, type Tensor } from "../../index.ts";
import { testDevice } from "../device.ts";

const gpu = await testDevice();
const test = suite("tensors without elements");

const x = (...shape: number[]): Tensor => gpu.zeros(shape, { requiresGrad: true });
const index = (...shape: number[]): Tensor => gpu.zeros(shape, { dtype: "i32" });

/** The function, its inputs, and the sum that it comes to. */
const calls: Record<string, [inputs: Tensor[], run: (...inputs: Tensor[]) => Tensor]> = {
  softmax: [[x(0, 5)], (a) => F.softmax(a, 1)],
  "gridSample, no image": [[x(0, 1, 4, 4), x(0, 1, 7, 2)], (a, grid) => F.gridSample(a, grid)],
  "gridSample, no point": [[x(2, 1, 4, 4), x(2, 0, 7, 2)], (a, grid) => F.gridSample(a, grid)],
  crossEntropy: [[x(0, 4)], (a) => F.crossEntropy(a, index(0), { reduction: "sum" })],
  binaryCrossEntropyWithLogits: [
    [x(0, 4), x(0, 4)],
    (a, t) => F.binaryCrossEntropyWithLogits(a, t, { reduction: "sum" }),
  ],
  dice: [[x(0, 300), x(0, 300)], (a, t) => F.dice(a, t, { reduction: "sum" })],
  klDiv: [[x(0, 1, 4), x(1, 3, 4)], (a, t) => F.klDiv(a, t, { reduction: "sum" })],
  indexSelect: [[x(5, 4)], (a) => F.indexSelect(a, 0, index(0))],
  gather: [[x(5, 4)], (a) => F.gather(a, 0, index(0, 4))],
  scatterAdd: [[x(5, 4)], (a) => F.scatterAdd(a, 0, index(0, 4), gpu.zeros([0, 4]))],
  "scaledDotProductAttention, no entry": [[x(0, 5, 4)], (a) => F.scaledDotProductAttention(a, a, a)],
  "scaledDotProductAttention, no query": [[x(2, 0, 4), x(2, 3, 4)], (q, k) => F.scaledDotProductAttention(q, k, k)],
  msDeformAttn: [
    [x(1, 4, 2, 4), x(1, 0, 2, 1, 3, 2), x(1, 0, 2, 1, 3)],
    (value, locations, weights) => F.msDeformAttn(value, [[2, 2]], locations, weights),
  ],
  interpolate: [[x(0, 3, 4, 4)], (a) => F.interpolate(a, { size: [2, 2], mode: "bilinear" })],
  "topk, no row": [[x(0, 8)], (a) => F.topk(a, 3).values],
  "topk of none": [[x(3, 8)], (a) => F.topk(a, 0).values],
  dropout: [[x(0)], (a) => F.dropout(a, 0.3, { seed: 1 })],
};

for (const [name, [inputs, run]] of Object.entries(calls))
  test(name, () =>
    scope(async () => {
      const y = run(...inputs);
      assert.ok((await y.toArray()).every((v) => v === 0));
      backward(y, gpu.ones(y.shape));
      for (const input of inputs) assert.equal([...input.grad!.shape], [...input.shape]);
      const first = await inputs[0]!.grad!.toArray();
      // What no source reaches passes its gradient on.
      assert.ok(first.every((v) => v === (name === "scatterAdd" ? 1 : 0)));
    }),
  );

test.run();
