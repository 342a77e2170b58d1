// Weights that are NaN or infinite are refused by file, tensor and element, wherever weights are read.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { encodeSafetensors, type FileTensor, fileTensor, parseSafetensors } from "../../engine/index.ts";
import { Wish, wishMini } from "../../model/index.ts";
import { readCheckpoint } from "../../model/weights/index.ts";
import { BadInput } from "../../train/errors.ts";
import { loadTrained } from "../../train/models.ts";
import { openSam } from "../../train/weights.ts";
import { testDevice } from "../device.ts";
import { message } from "./fixture.ts";

const test = suite("weights that are not finite");
const folder = mkdtempSync(join(tmpdir(), "not-finite-"));
const at = (name: string) => join(folder, name);
test.after(() => rmSync(folder, { recursive: true }));

/** More than two of the pieces that are looked at together, for every type. */
const SIZE = 70_001;
const ARRAYS = { F64: Float64Array, F32: Uint32Array, F16: Uint16Array, BF16: Uint16Array };
/** [-0.5, the largest, NaN, Infinity, -Infinity or what becomes it in f32] as their numbers or bits. */
const VALUES = {
  F64: [-0.5, 3.4028235677973362e38, Number.NaN, Number.POSITIVE_INFINITY, -1e300],
  F32: [0xbf000000, 0x7f7fffff, 0xffc00001, 0x7f800000, 0xff800000],
  F16: [0xb800, 0x7bff, 0x7e01, 0x7c00, 0xfc00],
  BF16: [0xbf00, 0x7f7f, 0x7fc1, 0x7f80, 0xff80],
} as const;

function tensorOf(dtype: keyof typeof VALUES, index: number | undefined, value: number): FileTensor {
  const numbers = new ARRAYS[dtype](SIZE).fill(VALUES[dtype][0]);
  numbers[1] = VALUES[dtype][1];
  if (index !== undefined) numbers[index] = value;
  return { dtype, shape: [SIZE], data: new Uint8Array(numbers.buffer) };
}

test("of every type, at every place, in memory that is aligned or not", () => {
  for (const dtype of ["F64", "F32", "F16", "BF16"] as const) {
    const file = (x: FileTensor, key = "w") => {
      // A byte before it leaves the tensor unaligned; a buffer that can shrink is what commands read into.
      const odd = { dtype: "U8", shape: [1], data: new Uint8Array([255]) } as const;
      const bytes = encodeSafetensors(new Map<string, FileTensor>([["odd", odd]]).set(key, x));
      const memory = new Uint8Array(new ArrayBuffer(bytes.length, { maxByteLength: bytes.length }));
      memory.set(bytes);
      return memory;
    };
    assert.is(readCheckpoint(file(tensorOf(dtype, undefined, 0)), "x.safetensors").tensors.size, 2);
    const largest = dtype === "F64" ? ["-1e\\+300", ", beyond the largest f32, 3\\.4e38"] : ["-Infinity", ""];
    for (const [value, shown, more] of [
      [VALUES[dtype][2], "NaN", ""],
      [VALUES[dtype][3], "Infinity", ""],
      [VALUES[dtype][4], ...largest],
    ] as const)
      for (const index of [0, 16_383, 16_384, 32_768, SIZE - 1])
        assert.match(
          message(() => readCheckpoint(file(tensorOf(dtype, index, value)), "x.safetensors")),
          new RegExp(`^x\\.safetensors: tensor w holds ${shown} \\(element ${index}\\)${more}; the file is damaged`),
        );
    for (const key of ["layers.0.blocks.1.attn_mask", "optimizer.w.exp_avg"])
      assert.is(readCheckpoint(file(tensorOf(dtype, 5, VALUES[dtype][4]), key), "x.safetensors").tensors.size, 2);
  }
});

test("in a shard, in which the index finds it", () => {
  const shard = encodeSafetensors(new Map([["a.w", fileTensor([1, Number.NaN], [2])]]));
  const index = new TextEncoder().encode(JSON.stringify({ weight_map: { "a.w": "one.safetensors" } }));
  assert.match(
    message(() => readCheckpoint(index, "d/i.json", new Map([["one.safetensors", shard]]))),
    /^d\/i\.json: tensor a\.w holds NaN \(element 1\)/,
  );
});

test("by what loads a SAM and by what loads a segmentation model", async () => {
  const gpu = await testDevice();
  const spoilt = (tensors: ReadonlyMap<string, FileTensor>, key: string, metadata = {}) => {
    const { shape } = tensors.get(key)!;
    const numbers = new Float32Array(shape.reduce((product, d) => product * d, 1));
    numbers[0] = Number.NEGATIVE_INFINITY;
    writeFileSync(
      at("spoilt.safetensors"),
      encodeSafetensors(new Map(tensors).set(key, fileTensor(numbers, shape)), metadata),
    );
  };
  const refused = async (load: () => Promise<unknown>, key: string) => {
    const error: unknown = await load().catch((cause: unknown) => cause);
    assert.instance(error, BadInput);
    assert.is(
      (error as Error).message,
      `${at("spoilt.safetensors")}: tensor ${key} holds -Infinity (element 0); the file is damaged, or its training diverged: take other weights`,
    );
  };
  const hub = readFileSync(fileURLToPath(new URL("../parity/sam-hf.safetensors", import.meta.url)));
  const key = "vision_encoder.neck.conv2.weight";
  spoilt(parseSafetensors(new Uint8Array(hub)).tensors, key);
  await refused(() => openSam(gpu, at("spoilt.safetensors"), "a SAM"), key);

  const wish = new Wish(gpu, wishMini(2));
  const state = new Map<string, FileTensor>();
  for (const [name, x] of wish.stateDict()) state.set(name, fileTensor(await x.toArray(), x.shape));
  const bias = "sem_seg_head.predictor.decoder_norm.bias";
  assert.ok(state.has(bias));
  spoilt(state, bias, { format: "wgpu-wish model 1" });
  await refused(() => loadTrained(gpu, at("spoilt.safetensors")), bias);
});

test.run();
