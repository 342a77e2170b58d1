// sam-train: the loss against plain arithmetic, batches that depend on the step alone, and a run that resumes bit for bit.
import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { fileNumbers, parseSafetensors } from "../../engine/safetensors.ts";
import { loadSam, Sam } from "../../model/sam/index.ts";
import { saveWeights } from "../../train/checkpoint.ts";
import { claimRun } from "../../train/claim.ts";
import { BadInput } from "../../train/errors.ts";
import { modelOf, readSamTrainConfig, type SamTrainConfig } from "../../train/sam/config.ts";
import { drawBatch, type SamDataOptions } from "../../train/sam/data.ts";
import { interiorPoint } from "../../train/sam/evaluate.ts";
import { samLoss } from "../../train/sam/loss.ts";
import { trainSam } from "../../train/sam/train.ts";
import { testDevice } from "../device.ts";

const test = suite("sam-train");
const folder = mkdtempSync(join(tmpdir(), "sam-train-"));
test.after(() => rmSync(folder, { recursive: true }));

const YAML = `
seed: 3
steps: 4
batch: 2
prompts: 2
model:
  imageSize: 32
  promptDim: 16
  maskChannels: 8
  encoder: { kind: tiny-vit, dims: [8, 16], depths: [1, 1], heads: [1, 2], windows: [4, 4], strides: [2] }
  decoder: { depth: 1, heads: 2, mlp: 16, iouHidden: 8 }
init: { frequency: 0.5, sharpness: 2 }
eval: { scenes: 2 }
log: 3
save: 2
`;

function configAt(run: string, ...settings: string[]): SamTrainConfig {
  const path = join(folder, "config.yaml");
  writeFileSync(path, YAML);
  return readSamTrainConfig(path, [`run=${join(folder, run)}`, ...settings]);
}

test("the loss is focal, cross entropy and dice of the best candidate and of the single mask, and the error of the IoU", async () => {
  const gpu = await testDevice();
  const [P, M, N] = [2, 4, 12];
  const logits = Float32Array.from({ length: P * M * N }, (_, i) => 3 * Math.sin(i * 1.7));
  const targets = Float32Array.from({ length: P * N }, (_, i) => [0, 0.25, 1, 1][(i * 7) % 4]!);
  const predicted = Float32Array.from({ length: P * M }, (_, i) => Math.cos(i));
  const weights = { focal: 2, bce: 3, dice: 0.5, iou: 1.5 };
  const { terms } = samLoss(
    gpu.tensor(logits, [P, M, N]),
    gpu.tensor(predicted, [P, M]),
    gpu.tensor(targets, [P, 1, N]),
    weights,
  );
  let [best, single, iou, miou] = [0, 0, 0, 0];
  for (let p = 0; p < P; p++) {
    const each: number[] = [];
    for (let m = 0; m < M; m++) {
      let [bce, focal, overlap, sum, both, either] = [0, 0, 0, 0, 0, 0];
      for (let n = 0; n < N; n++) {
        const x = logits[(p * M + m) * N + n]!;
        const t = targets[p * N + n]!;
        const q = 1 / (1 + Math.exp(-x));
        const entropy = -(t * Math.log(q) + (1 - t) * Math.log(1 - q));
        bce += entropy / N;
        focal += (entropy * (q - t) ** 2) / N;
        overlap += q * t;
        sum += q + t;
        both += x > 0 && t > 0.5 ? 1 : 0;
        either += x > 0 || t > 0.5 ? 1 : 0;
      }
      each.push(weights.bce * bce + weights.focal * focal + weights.dice * (1 - (2 * overlap + 1) / (sum + 1)));
      iou += (predicted[p * M + m]! - both / either) ** 2 / (P * M);
      if (m === 0) miou += both / either / P;
    }
    single += each[0]! / P;
    best += Math.min(...each.slice(1)) / P;
  }
  const got = await terms.toArray();
  [best + single + weights.iou * iou, best, single, iou, miou].forEach((want, i) => {
    assert.ok(Math.abs(got[i]! - want) < 1e-5, `term ${i}: ${got[i]} instead of ${want}`);
  });
});

const DATA: SamDataOptions = {
  seed: 5,
  batch: 2,
  prompts: 6,
  imageSize: 64,
  maskSize: 16,
  scenes: 1,
  sceneSeed: 9,
  boxNoise: 0.05,
  smallestCrop: 0.5,
};

test("a batch depends on the step alone; points lie on their object, boxes near it", () => {
  const batch = drawBatch(DATA, undefined, 3, false);
  assert.equal(drawBatch(DATA, undefined, 3, false), batch);
  assert.not.equal([...drawBatch(DATA, undefined, 4, false).coords], [...batch.coords]);
  assert.ok(drawBatch(DATA, undefined, 3, true).labels.every((label) => label >= 2));
  const cells = DATA.maskSize ** 2;
  for (let i = 0; i < DATA.batch * DATA.prompts; i++) {
    const target = batch.targets.subarray(i * cells, (i + 1) * cells);
    assert.ok(target.some((v) => v > 0) && target.every((v) => v >= 0 && v <= 1 + 1e-6));
    const [x0, y0, x1, y1] = batch.coords.subarray(i * 4, i * 4 + 4) as unknown as [number, number, number, number];
    if (batch.labels[i * 2] === 1) assert.ok(target[Math.floor(y0 / 4) * DATA.maskSize + Math.floor(x0 / 4)]! > 0);
    else assert.ok(x1 > x0 && y1 > y0);
  }
});

test("the point of an object lies as deep inside as it can", () => {
  const mask = Uint8Array.from({ length: 12 * 9 }, (_, i) => (i % 12 >= 2 && i % 12 <= 8 && i >= 12 && i < 96 ? 1 : 0));
  const [x, y] = interiorPoint(mask, 12, 9);
  assert.is(x, 5);
  assert.ok(y >= 3 && y <= 5);
});

test("a run that was interrupted ends with the same weights bit for bit, and its weights load as a SAM model", async () => {
  const gpu = await testDevice();
  const whole = await trainSam(gpu, configAt("whole"));
  const stop = new AbortController();
  const first = await trainSam(gpu, configAt("parts", "log=1"), {
    signal: stop.signal,
    onStep: (step) => step === 2 && stop.abort(),
  });
  assert.ok(first.interrupted);
  assert.is(first.steps, 2);
  let refused = "";
  try {
    await trainSam(gpu, configAt("parts"));
  } catch (error) {
    assert.instance(error, BadInput);
    refused = (error as Error).message;
  }
  assert.match(refused, /holds a run already; continue it with --resume/);
  const second = await trainSam(gpu, configAt("parts"), { resume: true });
  const weights = (path: string) => parseSafetensors(new Uint8Array(readFileSync(path))).tensors;
  const wanted = weights(whole.weights!);
  for (const [key, tensor] of weights(second.weights!)) assert.equal(tensor.data, wanted.get(key)!.data, key);
  const sam = await loadSam(gpu, new Uint8Array(readFileSync(second.weights!)), second.weights!);
  assert.is(sam.config.imageSize, 32);
  assert.is(sam.config.decoder.heads, 2);
  assert.is(second.scores!.scenes!.images, 2);
});

test("weights that half precision cannot hold are written in full, so that what was trained can be used", async () => {
  const gpu = await testDevice();
  const model = modelOf(configAt("large"));
  const [weights, start] = [join(folder, "large.safetensors"), join(folder, "start.safetensors")];
  const sam = new Sam(gpu, model);
  const [key, edge] = ["prompt_encoder.mask_downscaling.0.bias", "prompt_encoder.mask_downscaling.1.bias"];
  const own = sam.stateDict();
  gpu.upload(own.get(key)!, new Float32Array(own.get(key)!.size).fill(-1e5));
  gpu.upload(own.get(edge)!, new Float32Array(own.get(edge)!.size).fill(65519));
  const metadata = { format: "wgpu-wish sam 1", config: JSON.stringify(model) };
  await saveWeights(start, sam, metadata);
  const trained = await trainSam(gpu, configAt("large", "steps=1", "eval.scenes=1", `weights=${start}`));
  await saveWeights(weights, sam, metadata, { half: true });
  for (const file of [weights, trained.weights!]) {
    const { tensors } = parseSafetensors(new Uint8Array(readFileSync(file)));
    const types = new Map<string, string>([...tensors].map(([name, { dtype }]) => [name, dtype]));
    assert.equal(
      [...types].filter(([, dtype]) => dtype !== "F16").map(([name]) => name),
      [key],
    );
    assert.ok(fileNumbers(tensors.get(key)!).every((v) => Math.abs(v + 1e5) < 1));
    await loadSam(gpu, new Uint8Array(readFileSync(file)), file);
  }
});

test("a frozen part stays as it is while the others learn", async () => {
  const gpu = await testDevice();
  const after = async (run: string, ...settings: string[]) => {
    const { weights } = await trainSam(gpu, configAt(run, "eval.scenes=1", "eval.every=1", ...settings));
    return parseSafetensors(new Uint8Array(readFileSync(weights!))).tensors;
  };
  const started = await after("frozen-1", "steps=1", "freeze=[image_encoder]");
  const frozen = await after("frozen-3", "steps=3", "freeze=[image_encoder]");
  const free = await after("free-3", "steps=3");
  const same = (a: typeof started, part: string) =>
    [...started]
      .filter(([key]) => key.startsWith(part))
      .every(([key, x]) => a.get(key)!.data.every((v, i) => v === x.data[i]));
  assert.ok(same(frozen, "image_encoder.")); // Batch norm's statistics among them.
  assert.not.ok(same(frozen, "mask_decoder."));
  assert.not.ok(same(free, "image_encoder."));
  const refusal = (...settings: string[]) =>
    trainSam(gpu, configAt("refused", ...settings)).catch((error: Error) => `${error.name}: ${error.message}`);
  assert.match(
    String(await refusal("freeze=[image_encoder,prompt_encoder,mask_decoder]")),
    /^BadInput: .*leave one to learn/,
  );
  assert.match(
    String(await refusal("batch=1000000")),
    /^BadInput: .*with batch=1000000 and prompts=2 .* takes a tensor of \d+ bytes, more than the \d+ that .* can bind/,
  );
  // Said before anything is trained, not when it is needed.
  const missing = join(folder, "missing.json");
  assert.match(String(await refusal(`eval.annotations=${missing}`)), /^BadInput: .*missing\.json: /);
});

test("a run goes on after a torn line, and refuses what it cannot go on with", async () => {
  const gpu = await testDevice();
  const at = (...settings: string[]) => configAt("torn", "log=1", "save=1", "eval.scenes=1", ...settings);
  await trainSam(gpu, at("steps=2"));
  const run = join(folder, "torn");
  const log = join(run, "metrics.jsonl");
  appendFileSync(log, '{"step":3,"bes');
  const refusal = (...settings: string[]) =>
    trainSam(gpu, at(...settings), { resume: true }).then(
      () => "went on",
      (error: Error) => `${error.name}: ${error.message}`,
    );
  assert.match(
    await refusal("batch=3"),
    /^BadInput: .*batch cannot change when a run goes on: it was started with 2, now/,
  );
  assert.match(await refusal("model.promptDim=32"), /^BadInput: .*model\.promptDim cannot change/);
  assert.match(await refusal("steps=1"), /^BadInput: .*steps is 1, but 2 are done/);
  // Weights beyond f32 are not saved: the checkpoint of step 2 is what is left.
  const wild = await refusal("optim.lr=1e30");
  assert.match(wild, /^NotFinite: .*holds \S+ after step 3; the last good state is .*step-00000002.*lower optim\.lr/);
  assert.match(readFileSync(join(run, "last"), "utf8"), /step-00000002/);

  await trainSam(gpu, at("steps=3"), { resume: true });
  const lines = readFileSync(log, "utf8").trim().split("\n");
  const steps = lines.map((line) => (JSON.parse(line) as { step: number }).step);
  assert.equal(steps, [1, 2, 2, 3, 3], "a line a step, one an evaluation");
  assert.match(readFileSync(join(run, "config.yaml"), "utf8"), /steps: 3/);
});

test("a gradient that is not finite leaves the weights as they were", async () => {
  const gpu = await testDevice();
  const failing = configAt("infinite", "loss.iou=1e38", "loss.bce=1e38", "optim.clip=0", "save=1");
  const error = await trainSam(gpu, failing).catch((cause: Error) => cause);
  assert.match(
    (error as Error).message,
    /infinite: the \w+ (of the gradients|loss) is \S+ at step 0; the last good state was not saved yet/,
  );
  assert.not.ok(existsSync(join(folder, "infinite", "checkpoints")));
});

test("a folder in which another process works is refused", async () => {
  const gpu = await testDevice();
  const claim = claimRun(join(folder, "claimed"));
  const error = await trainSam(gpu, configAt("claimed")).catch((cause: Error) => cause);
  claim.release();
  assert.instance(error, BadInput);
  assert.match((error as Error).message, /claimed: process \d+ on .* is working in this folder/);
});

test("settings that do not exist are refused by name", () => {
  assert.throws(() => configAt("x", "optim.rate=1"), /no setting "optim.rate"/);
  assert.throws(() => configAt("x", "steps=0"), /^steps=0: steps: .*got 0/);
});

test.run();
