/** Functions of F against PyTorch, values and gradients, as test/parity/make_functional.py recorded them. */
import { readFileSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { tensorError } from "../../engine/gradcheck.ts";
import { backward, F, scope, type Tensor } from "../../index.ts";
import { testDevice } from "../device.ts";

interface Packed {
  shape: number[];
  dtype: "f32" | "i32" | "bool";
  data: string;
}

interface Entry {
  op: string;
  options: Record<string, unknown>;
  inputs: Packed[];
  y: Packed;
  g: Packed;
  grads: (Packed | null)[];
}

const gpu = await testDevice();
const test = suite("functions of F against PyTorch");
const url = new URL("../parity/data/functional.json", import.meta.url);
const entries = JSON.parse(readFileSync(url, "utf8")) as Entry[];

const numbers = ({ dtype, data }: Packed): Float32Array | Int32Array => {
  const bytes = Uint8Array.from(Buffer.from(data, "base64")).buffer;
  return dtype === "f32" ? new Float32Array(bytes) : new Int32Array(bytes);
};
const tensor = (x: Packed): Tensor =>
  gpu.tensor(numbers(x), x.shape, { dtype: x.dtype, requiresGrad: x.dtype === "f32" });

// biome-ignore lint/suspicious/noExplicitAny: options come from a file and go to the function that they were recorded for
const calls: Record<string, (inputs: Tensor[], options: any) => Tensor> = {
  gridSample: ([x, grid], o) => F.gridSample(x!, grid!, o),
  interpolate: ([x], o) => F.interpolate(x!, o),
  crossEntropy: ([x, t, weight], o) => F.crossEntropy(x!, t!, { weight, ...o }),
  binaryCrossEntropyWithLogits: ([x, t, weight, posWeight], o) =>
    F.binaryCrossEntropyWithLogits(x!, t!, { weight, posWeight, ...o }),
  smoothL1: ([x, t], o) => F.smoothL1(x!, t!, o),
  mseLoss: ([x, t], o) => F.mseLoss(x!, t!, o),
  klDiv: ([x, t], o) => F.klDiv(x!, t!, o),
  scaledDotProductAttention: ([q, k, v, mask], o) => F.scaledDotProductAttention(q!, k!, v!, { mask, ...o }),
  topk: ([x], o) => F.topk(x!, o.k).values,
  gather: ([x, index], o) => F.gather(x!, o.dim, index!),
  scatterAdd: ([x, index, source], o) => F.scatterAdd(x!, o.dim, index!, source!),
  indexSelect: ([x, index], o) => F.indexSelect(x!, o.dim, index!),
  embedding: ([index, weight]) => F.embedding(index!, weight!),
  softmax: ([x], o) => F.softmax(x!, o.dim),
  logSoftmax: ([x], o) => F.logSoftmax(x!, o.dim),
  logSumExp: ([x], o) => F.logSumExp(x!, o.dim),
  msDeformAttn: ([value, locations, weights], o) => F.msDeformAttn(value!, o.shapes, locations!, weights!),
};

for (const op of Object.keys(calls))
  test(op, () =>
    scope(async () => {
      const recorded = entries.filter((entry) => entry.op === op);
      assert.ok(recorded.length > 0, "nothing recorded");
      for (const entry of recorded) {
        const inputs = entry.inputs.map(tensor);
        const y = calls[op]!(inputs, entry.options);
        assert.equal([...y.shape], entry.y.shape);
        const errors = [tensorError(await y.toArray(), numbers(entry.y))];
        backward(y, gpu.tensor(numbers(entry.g), entry.g.shape));
        for (const [i, want] of entry.grads.entries())
          if (want) errors.push(tensorError(await inputs[i]!.grad!.toArray(), numbers(want)));
        assert.ok(Math.max(...errors) < 5e-6, `${JSON.stringify(entry.options)}: errors ${errors}`);
      }
    }),
  );

test.run();
