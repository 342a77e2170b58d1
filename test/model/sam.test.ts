// SAM against what segment-anything, MobileSAM and transformers answered on random weights (test/parity/make_sam.py).
import { readFileSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type Device, F, type HostArray, noGrad, scope, type Tensor } from "../../engine/index.ts";
import { fileNumbers, parseSafetensors } from "../../engine/safetensors.ts";
import {
  loadSam,
  loadSamTensors,
  mobileSam,
  prepareImage,
  type RgbImage,
  resizeBilinear,
  Sam,
  type SamConfig,
  SamPredictor,
  samShapes,
  samVitB,
  samVitH,
} from "../../model/sam/index.ts";
import { nameTensors, readCheckpoint } from "../../model/weights/index.ts";
import { testDevice } from "../device.ts";

const test = suite("sam");
const TOLERANCE = 1e-3;
const bytesOf = (name: string) => new Uint8Array(readFileSync(new URL(`../parity/${name}`, import.meta.url)));
const recorded = parseSafetensors(bytesOf("sam.safetensors")).tensors;
const want = (key: string) => {
  const tensor = recorded.get(key);
  if (!tensor) throw new Error(`sam.safetensors has no ${key}`);
  return { values: fileNumbers(tensor, key), shape: tensor.shape };
};
const photo: RgbImage = {
  width: want("image").shape[1]!,
  height: want("image").shape[0]!,
  data: Uint8Array.from(want("image").values),
};

/** max |got - want| over want's standard deviation. */
function error(got: ArrayLike<number>, key: string): number {
  const values = Float64Array.from(want(key).values);
  assert.is(got.length, values.length, `${key}: elements`);
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  const spread = Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length);
  let worst = 0;
  for (let i = 0; i < values.length; i++) {
    const gap = Math.abs(got[i]! - values[i]!);
    worst = Math.max(worst, Number.isFinite(gap) ? gap : Number.POSITIVE_INFINITY);
  }
  return worst / spread;
}

async function near(got: Tensor, key: string): Promise<void> {
  assert.equal([...got.shape], [...want(key).shape], `${key}: shape`);
  const gap = error(await got.toArray(), key);
  assert.ok(gap <= TOLERANCE, `${key}: off by ${gap} of its spread`);
}

const TINY: SamConfig = {
  imageSize: 96,
  promptDim: 32,
  encoder: {
    kind: "tiny-vit",
    dims: [16, 24, 32, 48],
    depths: [1, 1, 2, 1],
    heads: [1, 2, 2, 4],
    windows: [1, 5, 6, 4],
    strides: [2, 2, 1],
  },
  maskChannels: 8,
  decoder: { depth: 2, heads: 8, mlp: 48, iouHidden: 24, iouDepth: 3, candidates: 3 },
};

async function loadTiny(gpu: Device): Promise<Sam> {
  const { tensors } = nameTensors(
    readCheckpoint(bytesOf("sam-tiny-vit.pth"), "sam-tiny-vit.pth").tensors,
    "sam-tiny-vit.pth",
  );
  const sam = new Sam(gpu, TINY);
  await loadSamTensors(sam, tensors, "sam-tiny-vit.pth");
  sam.eval().freeze();
  return sam;
}

/** Points and boxes of make_sam.py in the resized frame. */
function prompts(scale: readonly [number, number]) {
  const scaled = (values: number[]) => Float32Array.from(values, (v, i) => v * scale[i % 2]!);
  return {
    points: { coords: scaled([20, 31, 50, 12, 66, 40, 9, 50]), labels: Int32Array.of(1, 0, 1, 1), count: 2 },
    boxes: scaled([8, 6, 40, 44, 30, 10, 80, 52]),
  };
}

async function checkAll(sam: Sam, name: "vit" | "tiny-vit"): Promise<void> {
  const gpu = sam.prompt_encoder.no_mask_embed.weight.device;
  const S = sam.config.imageSize;
  const g = sam.config.grid;
  const { data, scale, inputSize, originalSize } = prepareImage(photo, S);
  if (name === "vit") assert.ok(error(data, "vit/input") < 1e-6, "preprocessing");
  const embedding = noGrad(() => sam.encodeImage(gpu.tensor(data, [1, 3, S, S])));
  await near(embedding, `${name}/embedding`);
  const { points, boxes } = prompts(scale);
  const n = 2 * 16 * g * g;
  const ramp = Float32Array.from({ length: n }, (_, i) => 5 * Math.sin(-4 + (8 * i) / (n - 1)));
  const masks = gpu.tensor(ramp, [2, 1, 4 * g, 4 * g]);
  for (const [kind, given] of [
    ["points", { points }],
    ["boxes", { boxes }],
    ["both", { points, boxes, masks }],
  ] as const) {
    const { sparse, dense } = sam.encodePrompts(given);
    await near(sparse, `${name}/${kind}.sparse`);
    if (kind === "both") await near(dense, `${name}/both.dense`);
    const three = noGrad(() => sam.decode(embedding, sparse, dense));
    await near(three.masks, `${name}/${kind}.masks`);
    await near(three.iou, `${name}/${kind}.iou`);
    if (kind === "boxes")
      await near(sam.postprocess(F.slice(three.masks, 0, 0, 1), inputSize, originalSize), `${name}/boxes.full`);
    if (name !== "vit") continue;
    const one = noGrad(() => sam.decode(embedding, sparse, dense, { multimask: false }));
    await near(one.masks, `vit/${kind}.masks.single`);
    await near(one.iou, `vit/${kind}.iou.single`);
  }
}

test("Pillow's bilinear resize, bit for bit", () => {
  const { values, shape } = want("resized");
  const [h, w] = shape as [number, number];
  assert.equal([...resizeBilinear(photo.data, photo.width, photo.height, 3, w, h)], [...values]);
});

test("the ViT model answers as segment-anything", async () => {
  const gpu = await testDevice();
  await checkAll(await loadSam(gpu, bytesOf("sam-vit.pt"), "sam-vit.pt"), "vit");
});

test("the TinyViT model answers as MobileSAM", async () => {
  await checkAll(await loadTiny(await testDevice()), "tiny-vit");
});

test("transformers' checkpoint answers as transformers, with the decoder's heads that its configuration tells", async () => {
  const gpu = await testDevice();
  const read = parseSafetensors(bytesOf("sam-hf.safetensors"));
  for (const [name, decoderHeads] of [
    ["hf", undefined],
    ["hf", 8],
    ["hf4", 4],
  ] as const) {
    const sam = await loadSam(gpu, { ...read, decoderHeads }, "sam-hf.safetensors");
    const { values: pixels, shape } = want("hf/input");
    const embedding = sam.encodeImage(gpu.tensor(pixels, shape));
    const { sparse, dense } = sam.encodePrompts({ boxes: want("hf/boxes").values });
    const { masks, iou } = sam.decode(embedding, sparse, dense);
    await near(masks, `${name}/masks`);
    await near(iou, `${name}/iou`);
  }
});

test("prompts of several images in one call answer as one by one", async () => {
  const gpu = await testDevice();
  const sam = await loadTiny(gpu);
  const S = sam.config.imageSize;
  const { data, scale } = prepareImage(photo, S);
  const two = new Float32Array(2 * data.length);
  two.set(
    data.map((v) => -v),
    0,
  );
  two.set(data, data.length);
  const embedding = sam.encodeImage(gpu.tensor(two, [2, 3, S, S]));
  const { boxes } = prompts(scale);
  const { sparse, dense } = sam.encodePrompts({ boxes: Float32Array.of(...boxes, ...boxes) });
  const { masks } = sam.decode(embedding, sparse, dense);
  await near(F.slice(masks, 0, 2, 4), "tiny-vit/boxes.masks");
});

test("a predictor maps prompts and masks between the image and the model's frame", async () => {
  const gpu = await testDevice();
  const predictor = new SamPredictor(await loadSam(gpu, bytesOf("sam-vit.pt"), "sam-vit.pt"));
  predictor.setImage(photo);
  const { masks, iou } = await predictor.predict({ boxes: [8, 6, 40, 44, 30, 10, 80, 52] });
  assert.ok(error(iou.flat(), "vit/boxes.iou") <= TOLERANCE);
  const { values } = want("vit/boxes.full");
  const wanted = Array.from(values as HostArray, (v) => (v > 0 ? 1 : 0));
  const got = masks[0]!.flatMap((mask) => [...mask]);
  assert.is(got.length, wanted.length);
  assert.ok(got.filter((v, i) => v !== wanted[i]).length <= wanted.length * 1e-3, "masks differ");
});

test("a predictor holds one image's embedding, in whatever scope it was set", async () => {
  const gpu = await testDevice();
  const predictor = new SamPredictor(await loadSam(gpu, bytesOf("sam-vit.pt"), "sam-vit.pt"));
  const buffers: number[] = [];
  for (let i = 0; i < 4; i++) {
    scope(() => void predictor.setImage(photo));
    await predictor.predict({ boxes: [8, 6, 40, 44] });
    buffers.push(gpu.memory.liveBuffers);
  }
  // What all images share was made with the first.
  assert.is(buffers[3], buffers[1]);
  predictor.resetImage();
  assert.is(gpu.memory.liveBuffers, buffers[3]! - 1);
});

test("the list of a model's tensors agrees with the model, and with the published sizes", async () => {
  const gpu = await testDevice();
  const shapes = (map: ReadonlyMap<string, { shape: readonly number[] }>) =>
    [...map].map(([key, { shape }]) => `${key} ${shape}`).sort();
  assert.equal(shapes(samShapes(TINY)), shapes(new Sam(gpu, TINY).stateDict()));
  const count = (config: SamConfig) => {
    const all = [...samShapes(config).values()];
    return [all.length, all.reduce((sum, { shape }) => sum + shape.reduce((product, d) => product * d, 1), 0)];
  };
  assert.equal(count(samVitB()), [314, 93735728]);
  assert.equal(count(samVitH()), [594, 641090864]);
  assert.ok(count(mobileSam())[1]! < 10140231);
});

test("weights that do not fit are refused with the keys' names", async () => {
  const gpu = await testDevice();
  const { tensors } = readCheckpoint(bytesOf("sam-vit.pt"), "x.pt");
  tensors.delete("mask_decoder.mask_tokens.weight");
  const refusal = await loadSamTensors(new Sam(gpu, TINY), tensors, "x.pt").catch((error: Error) => error.message);
  assert.match(refusal ?? "", /x\.pt: the weights do not fit the model: \d+ missing/);
});

test.run();
