// Exports of SAM's image encoder by both of torch's exporters (test/parity/make_sam_onnx.py) give the weights that were exported, under their
// names; what the graph does not tell for sure keeps the exporter's name.
import { readFileSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type FileTensor, fileTensor, parseSafetensors } from "../../engine/index.ts";
import { checkSamEncoder, isSamEncoder, readSam } from "../../model/sam/index.ts";
import { nameTensors, readCheckpoint } from "../../model/weights/index.ts";
import { type OnnxNode, recoverNames } from "../../model/weights/onnx-names.ts";

const test = suite("names of ONNX weights");
const bytesOf = (name: string) => new Uint8Array(readFileSync(new URL(`../parity/${name}`, import.meta.url)));

/** The image encoder of the model that was exported. */
function original(name: string): Map<string, FileTensor> {
  const { tensors } = parseSafetensors(bytesOf(name));
  const weights = [...tensors].flatMap(([key, x]) => {
    const bare = key.replace(/^weight\//, "");
    return name === "sam-training.safetensors" && bare === key ? [] : [[bare, x] as const];
  });
  const named = nameTensors(new Map(weights), name).tensors;
  return new Map([...named].filter(([key]) => key.startsWith("image_encoder.")));
}

const plain = (tensors: ReadonlyMap<string, FileTensor>) =>
  [...tensors]
    .map(([key, { dtype, shape, data }]) => [key, dtype, [...shape], Buffer.from(data).toString("hex")])
    .sort(([a], [b]) => String(a).localeCompare(String(b)));

for (const [file, weights, positions] of [
  ["sam-encoder.onnx", "sam-training.safetensors", false],
  ["sam-encoder-dynamo.onnx", "sam-training.safetensors", false],
  ["sam-hf-encoder.onnx", "sam-hf.safetensors", true],
] as const)
  test(`${file} is the encoder of ${weights}, name by name and byte by byte`, () => {
    const { tensors } = readCheckpoint(bytesOf(file), file);
    const named = nameTensors(tensors, file);
    assert.is(named.kind, "SAM (ViT)");
    assert.ok(isSamEncoder(named));
    checkSamEncoder(named, file);
    const found = new Map([...named.tensors].filter(([key]) => key.startsWith("image_encoder.")));
    assert.equal(plain(found), plain(original(weights)));
    assert.is(named.tensors.size - found.size, positions ? 1 : 0);
    assert.throws(() => readSam({ tensors, metadata: {} }, file), /holds a SAM's image encoder alone; masks need/);
    // Its own key is named where something is wrong.
    const key = [...tensors.keys()].find((name) => /attn\.qkv\.weight$/.test(name))!;
    const flat = nameTensors(new Map(tensors).set(key, fileTensor([1], [1])), file);
    assert.throws(() => checkSamEncoder(flat, file), new RegExp(`1 misshaped \\(${key.replaceAll(".", "\\.")} is`));
  });

const matrix = fileTensor([1, 2, 3, 4, 5, 6], [2, 3]);
const node = (op: string, name: string, inputs: string[], more: Partial<OnnxNode> = {}): OnnxNode => ({
  op,
  name,
  inputs,
  outputs: [`${name}_output`],
  scopes: undefined,
  equation: undefined,
  ...more,
});

/** The names that come of these. */
function named(tensors: Record<string, FileTensor>, ...nodes: OnnxNode[]): string[] {
  return [...recoverNames(new Map(Object.entries(tensors)), nodes).keys()];
}

const product = node("MatMul", "/a/b/MatMul", ["x", "onnx::MatMul_1"]);
const sum = node("Add", "/a/b/Add", ["net.a.b.bias", "/a/b/MatMul_output"]);
const bias = { "net.a.b.bias": fileTensor([1, 2, 3], [3]) };

test("a linear layer's weight gets the name of its bias, or of its module", () => {
  const tensors = { "onnx::MatMul_1": matrix, ...bias };
  const found = recoverNames(new Map(Object.entries(tensors)), [product, sum]);
  assert.equal(
    plain(new Map([["w", found.get("net.a.b.weight")!]])),
    plain(new Map([["w", fileTensor([1, 4, 2, 5, 3, 6], [3, 2])]])),
  );
  const bare = node("MatMul", "/a/list/list.0/MatMul", ["x", "onnx::MatMul_2"]);
  assert.equal(named({ ...tensors, "onnx::MatMul_2": matrix }, product, sum, bare), [
    "net.a.b.weight",
    "net.a.b.bias",
    "net.a.list.0.weight",
  ]);
  const scopes = "['', 'a', 'a.b', 'linear']";
  const dynamo = node("MatMul", "node_MatMul_1", ["x", "val_1"], { scopes });
  const after = node("Add", "node_linear", ["node_MatMul_1_output", "net.a.b.bias"], { scopes });
  assert.equal(named({ val_1: matrix, ...bias }, dynamo, after), ["net.a.b.weight", "net.a.b.bias"]);
});

test("what is ambiguous keeps the exporter's name; shapes, indices and scalars are left out", () => {
  const kept = ["onnx::MatMul_1", "net.a.b.bias"];
  const tensors = { "onnx::MatMul_1": matrix, ...bias };
  const again = node("MatMul", "/a/c/MatMul", ["y", "onnx::MatMul_1"]);
  assert.equal(named(tensors, product, sum, again), kept, "two products share it");
  const elsewhere = node("MatMul", "/c/MatMul", ["x", "onnx::MatMul_1"], { outputs: sum.inputs.slice(1) });
  assert.equal(named(tensors, elsewhere, sum), kept, "the bias is another module's");
  const second = node("MatMul", "/a/c/MatMul_1", ["x", "onnx::MatMul_1"]);
  assert.equal(named(tensors, second, sum), kept, "not its module's only product");
  const other = node("Add", "/d/Add", ["other.d.bias", "y"]);
  const prefixes = { ...tensors, "other.d.bias": bias["net.a.b.bias"] };
  const bare = node("MatMul", "/a/c/MatMul", ["x", "onnx::MatMul_1"]);
  assert.equal(named(prefixes, bare, sum, other), [...kept, "other.d.bias"], "two prefixes");
  const taken = { ...tensors, "net.a.b.weight": matrix };
  assert.equal(named(taken, product, sum), [...kept, "net.a.b.weight"], "the name is taken");
  const folded = { "onnx::Conv_3": fileTensor([1, 2], [2, 1, 1, 1]), ...bias };
  assert.equal(named(folded, node("Conv", "/conv/Conv", ["x", "onnx::Conv_3"]), sum), ["onnx::Conv_3", "net.a.b.bias"]);
  const constants = { "onnx::Resize_4": fileTensor([1, 2], [2], "I32"), val_5: fileTensor([0.5], []), ...bias };
  assert.equal(named(constants, sum), ["net.a.b.bias"]);
  const einsum = node("Einsum", "node_einsum", ["x", "index"], {
    equation: "bhwc,hkc->bhwk",
    scopes: "['', 'a', 'a.b', 'einsum']",
  });
  const table = (...numbers: number[]) => ({ index: fileTensor(numbers, [2, 2, 1]), ...bias });
  assert.equal(named(table(2, 1, 3, 2), einsum, sum), ["net.a.b.rel_pos_h", "net.a.b.bias"]);
  assert.equal(named(table(2, 1, 3, 7), einsum, sum), ["index", "net.a.b.bias"], "no table of distances");
});

test.run();
