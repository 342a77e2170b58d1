// Exports of SAM's image encoder by both of torch's exporters (test/parity/make_sam_onnx.py) give the weights that were exported, under their
// names; what the graph does not tell for sure keeps the exporter's name.
import { readFileSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type FileTensor, fileTensor, parseSafetensors } from "../../engine/index.ts";
import { checkSamEncoder, isSamEncoder, readSam } from "../../model/sam/index.ts";
import { nameTensors, readCheckpoint } from "../../model/weights/index.ts";
import type { OnnxNode } from "../../model/weights/onnx-graph.ts";
import { recoverNames } from "../../model/weights/onnx-names.ts";
import { Budget } from "../../model/weights/tensors.ts";

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

/** As make_sam_onnx.py makes it before it exports: norms and positions as initialised, blocks 0 and 2 equal. */
function merged(tensors: Map<string, FileTensor>): Map<string, FileTensor> {
  return new Map(
    [...tensors].map(([key, tensor]) => {
      const from = tensors.get(key.replace("blocks.2", "blocks.0"))!;
      const size = tensor.data.length / 4;
      if (/norm|neck\.[13]/.test(key))
        return [key, fileTensor(new Array(size).fill(key.endsWith("weight") ? 1 : 0), tensor.shape)];
      return [key, key.includes("rel_pos") ? fileTensor(new Array(size).fill(0), tensor.shape) : from];
    }),
  );
}

for (const file of ["sam-merged-encoder.onnx", "sam-merged-encoder-dynamo.onnx"])
  test(`${file}: each of equal weights has its name again, although the export keeps one of them`, () => {
    const named = nameTensors(readCheckpoint(bytesOf(file), file).tensors, file);
    checkSamEncoder(named, file);
    assert.equal(plain(named.tensors), plain(merged(original("sam-training.safetensors"))));
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

const recover = (tensors: Record<string, FileTensor>, nodes: OnnxNode[]) =>
  recoverNames(new Map(Object.entries(tensors)), nodes, new Budget(0, "model.onnx"));

/** The names that come of these. */
const named = (tensors: Record<string, FileTensor>, ...nodes: OnnxNode[]) => [...recover(tensors, nodes).keys()];

const product = node("MatMul", "/a/b/MatMul", ["x", "onnx::MatMul_1"]);
const sum = node("Add", "/a/b/Add", ["net.a.b.bias", "/a/b/MatMul_output"]);
const bias = { "net.a.b.bias": fileTensor([1, 2, 3], [3]) };

test("a linear layer's weight gets the name of its bias, or of its module", () => {
  const tensors = { "onnx::MatMul_1": matrix, ...bias };
  const found = recover(tensors, [product, sum]);
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

test("one of several equal weights is each of them", () => {
  const tensors = { "onnx::MatMul_1": matrix, ...bias };
  const same = (to: string, from: string) => node("Identity", "Identity_9", [from], { outputs: [to] });
  const again = node("MatMul", "/a/c/MatMul", ["y", "onnx::MatMul_1"]);
  const names = ["net.a.b.weight", "net.a.c.weight", "net.a.b.bias"];
  assert.equal(named(tensors, product, sum, again), names, "shared");
  const third = node("MatMul", "/a/c/MatMul", ["y", "onnx::MatMul_2"]);
  const identity = same("onnx::MatMul_2", "onnx::MatMul_1");
  assert.equal(named(tensors, identity, product, sum, third), ["net.a.b.weight", "net.a.b.bias", "net.a.c.weight"]);
  const kept = named(tensors, product, sum, same("y", "net.a.b.bias"), same("/a/Identity_output_0", "net.a.b.bias"));
  assert.equal(kept, ["net.a.b.weight", "net.a.b.bias"], "an output and a value are no weights");
  const norms = ["a.n", "a.m"].map((module) =>
    node("LayerNormalization", module, ["x", "a.n.weight", "a.n.bias"], { scopes: `['', 'a', '${module}', 'norm']` }),
  );
  const ones = { "a.n.weight": fileTensor([1, 1], [2]), "a.n.bias": fileTensor([0, 0], [2]) };
  assert.equal(named(ones, ...norms), ["a.n.weight", "a.n.bias", "a.m.weight", "a.m.bias"]);
  // Few bytes of nodes cannot ask for much memory.
  const large = { "onnx::MatMul_1": fileTensor(new Float32Array(2 ** 22), [2 ** 11, 2 ** 11]), ...bias };
  const many = Array.from({ length: 8 }, (_, i) => same(`w${i}`, "onnx::MatMul_1"));
  const takers = many.map(({ outputs }, i) => node("MatMul", `/m${i}/MatMul`, ["x", ...outputs]));
  assert.throws(() => recover(large, [...many, ...takers]), /model\.onnx: with initialiser w4 its contents would take/);
});

test("what is ambiguous keeps the exporter's name; shapes, indices and scalars are left out", () => {
  const kept = ["onnx::MatMul_1", "net.a.b.bias"];
  const tensors = { "onnx::MatMul_1": matrix, ...bias };
  const again = node("MatMul", "/a/c/MatMul_1", ["y", "onnx::MatMul_1"]);
  assert.equal(named(tensors, product, sum, again), kept, "another product shares it, whose it is not told");
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
  const constants = {
    "onnx::Resize_4": fileTensor([1, 2], [2], "I32"),
    val_5: fileTensor([0.5], []),
    val_6: fileTensor([0.5], [1]),
    ...bias,
  };
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
