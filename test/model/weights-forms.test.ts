// One state dict in every form that torch, NumPy, transformers and ONNX write it: each gives the same names, types, shapes and bytes.
// test/parity/make_weights.py wrote them.
import { readdirSync, readFileSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { parseSafetensors } from "../../engine/safetensors.ts";
import { checkpointParts, type HostTensor, readCheckpoint } from "../../model/weights/index.ts";

const test = suite("forms of weights");
const folder = new URL("../parity/weights/", import.meta.url);
const bytesOf = (name: string) => new Uint8Array(readFileSync(new URL(name, folder)));

function read(name: string): ReturnType<typeof readCheckpoint> {
  const bytes = bytesOf(name);
  const besides = name.slice(0, name.lastIndexOf("/") + 1);
  const parts = checkpointParts(bytes, name).map((part) => [part, bytesOf(besides + part)] as const);
  return readCheckpoint(bytes, name, new Map(parts));
}

const plain = (tensors: ReadonlyMap<string, HostTensor>) =>
  [...tensors]
    .map(([key, { dtype, shape, data }]) => [key, dtype, [...shape], Buffer.from(data).toString("hex")])
    .sort(([a], [b]) => String(a).localeCompare(String(b)));

const truth = (name: string) => plain(parseSafetensors(bytesOf(name), name).tensors);
const TORCH = ["zip.pt", "legacy.pth", "wrapped.pt", "protocol5.bin", "protocol4.pkl"];
const SHARDS = ["shards-safetensors/model.safetensors.index.json", "shards-bin/pytorch_model.bin.index.json"];

for (const [name, format, of] of [
  ...TORCH.map((name) => [name, "torch", "truth.safetensors"] as const),
  ["dumped.pkl", "pickle", "truth.safetensors"] as const,
  [SHARDS[0]!, "safetensors", "truth.safetensors"] as const,
  [SHARDS[1]!, "torch", "truth.safetensors"] as const,
  ["unsigned.pt", "torch", "unsigned.safetensors"] as const,
  ...[0, 1, 2, 3, 4, 5].map((protocol) => [`numpy${protocol}.pkl`, "pickle", "numpy.safetensors"] as const),
  ...["raw.onnx", "typed.onnx", "external.onnx"].map((name) => [name, "onnx", "onnx.safetensors"] as const),
]) {
  test(`${name} is read as ${of}, byte for byte`, () => {
    const checkpoint = read(name);
    assert.is(checkpoint.format, format);
    assert.equal(plain(checkpoint.tensors), truth(of));
  });
}

test("lightning.ckpt keeps the prefix of DistributedDataParallel, which names.ts takes away", () => {
  const { tensors } = read("lightning.ckpt");
  const bare = new Map([...tensors].map(([key, x]) => [key.replace(/^module\./, ""), x]));
  assert.ok(tensors.has("module.a.weight"));
  assert.equal(plain(bare), truth("truth.safetensors"));
});

test("what is no plain tensor is refused by its name", () => {
  const reasons: Record<string, RegExp> = {
    "refused-fp8.pt": /tensor f8: is of type float8_e4m3fn, which is not read/,
    "refused-complex.pt": /tensor c: is of type complex64, which is not read/,
    "refused-sparse.pt": /wants to call torch\._utils\._rebuild_sparse_tensor/,
    "refused-negated.pt": /tensor n: is a negated or conjugated view/,
    "refused-module.pt": /wants to call torch\.nn\.modules\.linear\.Linear/,
    "refused-script.pt": /a TorchScript archive; save its state_dict/,
    "refused-big-endian.pkl": /tensor b: is big-endian/,
    "refused-objects.pkl": /tensor b: is of NumPy type O8, which is not read/,
  };
  const there = readdirSync(folder).filter((name) => name.startsWith("refused-"));
  assert.equal(there.sort(), Object.keys(reasons).sort());
  for (const name of there) {
    let message = "nothing was thrown";
    try {
      read(name);
    } catch (error) {
      message = (error as Error).message;
    }
    assert.match(message, reasons[name]!);
    assert.ok(message.startsWith(`${name}: `), message);
  }
});

test.run();
