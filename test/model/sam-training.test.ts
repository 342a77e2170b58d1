// Gradients of SAM, its image encoder included, against PyTorch's in f64 (test/parity/make_sam_training.py).
import { readFileSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  backward,
  encodeSafetensors,
  F,
  type FileTensor,
  fileNumbers,
  parseSafetensors,
  scope,
  type Tensor,
} from "../../engine/index.ts";
import { loadSam } from "../../model/sam/index.ts";
import { relativePositions } from "../../model/sam/relative-position.ts";
import { testDevice } from "../device.ts";

const test = suite("sam training");
const TOLERANCE = 3e-4;
const file = new URL("../parity/sam-training.safetensors", import.meta.url);
const recorded = parseSafetensors(new Uint8Array(readFileSync(file))).tensors;
const gpu = await testDevice();

function under(prefix: string): Map<string, FileTensor> {
  const found = [...recorded].filter(([key]) => key.startsWith(prefix));
  return new Map(found.map(([key, x]) => [key.slice(prefix.length), x]));
}

function values(key: string): Float32Array {
  return Float32Array.from(fileNumbers(recorded.get(key)!, key));
}

function tensor(key: string): Tensor {
  return gpu.tensor(values(key), recorded.get(key)!.shape);
}

/** max |got - want| over the largest |want|. */
async function gap(got: Tensor | undefined, key: string): Promise<number> {
  assert.ok(got, `${key}: no gradient came`);
  const [a, b] = [await got.toArray(), values(key)];
  assert.equal([...got.shape], [...recorded.get(key)!.shape], key);
  const most = b.reduce((size, v) => Math.max(size, Math.abs(v)), 0);
  return b.reduce((worst, v, i) => Math.max(worst, Math.abs(a[i]! - v)), 0) / most;
}

test("every parameter of the model gets PyTorch's gradient, the encoder's position tables among them", async () => {
  const sam = await loadSam(gpu, encodeSafetensors(under("weight/")), "sam-training.safetensors");
  sam.freeze(false);
  await scope(async () => {
    const embedding = sam.encodeImage(tensor("input"));
    const points = { coords: values("points"), labels: values("labels"), count: 2 };
    let loss = gpu.zeros([]);
    for (const more of [{}, { boxes: values("boxes"), masks: tensor("masks") }]) {
      const { sparse, dense } = sam.encodePrompts({ points, ...more });
      const { masks, iou } = sam.decodeAll(embedding, sparse, dense);
      const [ofMasks, ofIou] = [F.mul(masks, tensor("of_masks")), F.mul(iou, tensor("of_iou"))];
      loss = F.add(loss, F.add(F.mean(ofMasks), F.mean(ofIou)));
    }
    backward(loss);
    assert.ok((await gap(F.reshape(loss, [1]), "loss")) <= TOLERANCE);
  });
  const named = [...sam.namedParameters()];
  assert.is(named.length, under("gradient/").size);
  const largest = Math.max(
    ...[...under("gradient/").keys()].map((key) => Math.max(...values(`gradient/${key}`).map(Math.abs))),
  );
  for (const [name, x] of named) {
    const key = `gradient/${name}`;
    // Softmax does not notice the keys' biases: what is recorded is the rounding of f64.
    const most = Math.max(...values(key).map(Math.abs));
    if (most < 1e-9 * largest) continue;
    const error = await gap(x.grad, key);
    assert.ok(error <= TOLERANCE, `${name}: off by ${error} of its largest`);
  }
});

test("relative positions resample a table of another length, and so do their gradients", async () => {
  const leaf = (key: string) => {
    const x = tensor(`resampled/${key}`);
    x.requiresGrad = true;
    return x;
  };
  const [q, tableH, tableW] = [leaf("q"), leaf("table_h"), leaf("table_w")] as [Tensor, Tensor, Tensor];
  const [H, W] = [4, 6];
  const N = H * W;
  const { relH, relW } = relativePositions(F.reshape(q, [2, 1, N, 4]), tableH, tableW, H, W);
  const rows = F.expand(F.reshape(relH, [2, N, H, 1]), [2, N, H, W]);
  const columns = F.expand(F.reshape(relW, [2, N, 1, W]), [2, N, H, W]);
  const bias = F.reshape(F.add(rows, columns), [2, N, N]);
  assert.ok((await gap(bias, "resampled/bias")) <= TOLERANCE);
  backward(F.sum(F.mul(bias, tensor("resampled/weight"))));
  for (const [key, x] of Object.entries({ q, table_h: tableH, table_w: tableW }))
    assert.ok((await gap(x.grad, `resampled/gradient.${key}`)) <= TOLERANCE, key);
});

test.run();
