// What a SAM takes of the GPU's memory: one block's at a time, half with f16 weights, and nothing that the adapter cannot bind.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type Device, noGrad, scope } from "../../engine/index.ts";
import {
  bindingExcess,
  largestTensor,
  loadSam,
  mobileSam,
  prepareImage,
  Sam,
  type SamConfig,
  SamPredictor,
  samMini,
  samVitB,
  samVitH,
} from "../../model/sam/index.ts";
import { makeScene } from "../../train/data/scenes.ts";
import { readWeightBytes } from "../../train/files.ts";
import { testDevice } from "../device.ts";

const test = suite("sam memory");
const checkpoint = new Uint8Array(readFileSync(new URL("../parity/sam-vit.pt", import.meta.url)));
const photo = makeScene(5, 1, 80).image;

/** ViT of these blocks, each as wide as the others. */
const vit = (depth: number, heads = 1): SamConfig => ({
  ...samMini(),
  promptDim: 32,
  decoder: { ...samMini().decoder, mlp: 32, iouHidden: 32 },
  encoder: { kind: "vit", dim: 64, depth, heads, patch: 8, mlp: 512, window: 5, globalBlocks: [1] },
});

/** The most that encoding an image takes beyond the weights. */
async function encoding(gpu: Device, config: SamConfig): Promise<number> {
  const sam = new Sam(gpu, config).eval();
  const side = config.imageSize;
  const image = gpu.tensor(prepareImage(photo, side).data, [1, 3, side, side]);
  await gpu.sync();
  gpu.resetHighWater();
  const before = gpu.memory.liveBytes;
  scope(() => noGrad(() => sam.encodeImage(image)));
  return gpu.memory.highWaterBytes - before;
}

/** The largest buffer that `work` asks for. */
async function largestAsked(gpu: Device, work: () => Promise<unknown>): Promise<number> {
  const { pool } = gpu;
  const allocate = pool.allocate.bind(pool);
  let most = 0;
  pool.allocate = (bytes) => {
    most = Math.max(most, bytes);
    return allocate(bytes);
  };
  try {
    await work();
  } finally {
    pool.allocate = allocate;
  }
  return most;
}

test("encoding an image takes a block's memory, however many blocks there are", async () => {
  const gpu = await testDevice();
  const [two, eight] = [await encoding(gpu, vit(2)), await encoding(gpu, vit(8))];
  assert.ok(eight <= 1.05 * two, `2 blocks take ${two} bytes, 8 take ${eight}`);
});

test("half-precision weights take half the memory from the start, and answer alike", async () => {
  const gpu = await testDevice();
  const answers: number[][] = [];
  const taken: number[] = [];
  for (const dtype of ["f32", "f16"] as const) {
    await scope(async () => {
      gpu.resetHighWater();
      const before = gpu.memory.liveBytes;
      const sam = await loadSam(gpu, checkpoint, "sam-vit.pt", { dtype });
      taken.push(gpu.memory.highWaterBytes - before);
      for (const block of (
        sam.image_encoder as unknown as { blocks: { attn: { qkv: { weight: { dtype: string } } } }[] }
      ).blocks)
        assert.is(block.attn.qkv.weight.dtype, dtype);
      const predictor = new SamPredictor(sam);
      predictor.setImage(photo);
      const { lowRes } = await predictor.predict({ boxes: [8, 6, 60, 70] });
      answers.push([...lowRes]);
    });
  }
  const [full, half] = taken as [number, number];
  assert.ok(half < 0.8 * full, `f16 takes ${half} bytes, f32 ${full}`); // Position tables, norms and embeddings stay f32.
  const [a, b] = answers as [number[], number[]];
  const spread = Math.sqrt(a.reduce((sum, v) => sum + v * v, 0) / a.length);
  const gaps = a.map((v, i) => Math.abs(v - b[i]!));
  assert.ok(Math.max(...gaps) > 0, "the weights were rounded");
  assert.ok(gaps.reduce((sum, v) => sum + v, 0) / gaps.length < 0.02 * spread, "f16 answers otherwise");
});

test("a file's memory is given back while its tensors go to the GPU, and they arrive whole", async () => {
  const gpu = await testDevice();
  const file = fileURLToPath(new URL("../parity/sam-vit.pt", import.meta.url));
  const bytes = await readWeightBytes(file, "weights");
  const given = (await loadSam(gpu, bytes, file)).stateDict();
  assert.is(bytes.length, 0);
  const plain = (await loadSam(gpu, checkpoint, file)).stateDict();
  assert.is(checkpoint.length, readFileSync(file).length);
  for (const [key, x] of plain) assert.equal(await given.get(key)!.toArray(), await x.toArray(), key);
});

test("no pass makes a tensor larger than is foretold", async () => {
  const gpu = await testDevice();
  const wide: SamConfig = { ...samMini(), encoder: { ...vit(2).encoder, dim: 128, mlp: 128 } as SamConfig["encoder"] };
  // Not every adapter's attention writes its scores down, which are the largest of four heads.
  for (const [config, isExact] of [
    [vit(2), true],
    [wide, true],
    [samMini(), true],
    [vit(2, 4), false],
  ] as const) {
    const asked = await largestAsked(gpu, async () => {
      const predictor = new SamPredictor(new Sam(gpu, config).eval());
      predictor.setImage(photo);
      await predictor.predict({ boxes: [8, 6, 60, 70] });
    });
    const { what, bytes } = largestTensor(config);
    assert.ok(asked <= bytes, `${asked} bytes were asked for; foretold is ${what} of ${bytes}`);
    if (isExact) assert.ok(asked > 0.8 * bytes, `${what} of ${bytes} bytes is foretold; asked for are ${asked}`);
  }
});

test("SAM's own models fit the binding that WebGPU guarantees; what does not fit an adapter is refused with its name", async () => {
  for (const config of [samVitB(), samVitH(), mobileSam()]) assert.ok(largestTensor(config).bytes <= 128 * 2 ** 20);
  const gpu = await testDevice();
  const small = { name: gpu.name, gpu: { limits: { maxStorageBufferBindingSize: 2 ** 26 } } } as unknown as Device;
  assert.is(bindingExcess(small, largestTensor(samVitB())), undefined);
  const tiny = Object.create(gpu, { gpu: { value: { limits: { maxStorageBufferBindingSize: 2 ** 12 } } } }) as Device;
  const { liveBuffers } = gpu.memory;
  const refusal = await loadSam(tiny, checkpoint, "sam-vit.pt").catch((error: Error) => error);
  assert.match((refusal as Error).message, /^sam-vit\.pt: .* takes a tensor of \d+ bytes, more than the 4096 that/);
  assert.is(gpu.memory.liveBuffers, liveBuffers);
  assert.match(
    bindingExcess(small, largestTensor(samVitH())) ?? "",
    /^the hidden layer of an MLP takes a tensor of 83886080 bytes, more than the 67108864 that .* can bind at once; use/,
  );
});

test.run();
