// Exports whose batch norms are folded into the convolutions before them: MobileSAM's encoder by both of torch's exporters
// (test/parity/make_sam_onnx.py) and what the norms of other models are called.
import { readFileSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type FileTensor, fileTensor } from "../../engine/index.ts";
import { fileNumbers } from "../../engine/safetensors.ts";
import { checkSamEncoder, isSamEncoder } from "../../model/sam/index.ts";
import { nameTensors, readCheckpoint } from "../../model/weights/index.ts";
import type { OnnxNode } from "../../model/weights/onnx-graph.ts";
import { recoverNames } from "../../model/weights/onnx-names.ts";
import { Budget } from "../../model/weights/tensors.ts";

const test = suite("folded norms of ONNX weights");
const bytesOf = (name: string) => new Uint8Array(readFileSync(new URL(`../parity/${name}`, import.meta.url)));

const weights = nameTensors(readCheckpoint(bytesOf("sam-tiny-vit.pth"), "sam-tiny-vit.pth").tensors, "x").tensors;
const original = new Map([...weights].filter(([key]) => key.startsWith("image_encoder.")));

/** What a norm with PyTorch's epsilon multiplies by and adds, by channel. */
function affine(norm: string): { factor: number[]; summand: number[] } {
  const of = (part: string) => [...fileNumbers(original.get(`${norm}.${part}`)!)];
  const [gain, bias, mean, variance] = ["weight", "bias", "running_mean", "running_var"].map(of) as number[][];
  const factor = gain!.map((g, i) => g / Math.sqrt(variance![i]! + 1e-5));
  return { factor, summand: bias!.map((b, i) => b - mean![i]! * factor[i]!) };
}

/** What the export is to give of a tensor of the original. */
function expected(key: string): number[] {
  const numbers = [...fileNumbers(original.get(key)!)];
  const [, module, part] = /^(.*\.)(c\.weight|bn\.\w+)$/.exec(key) ?? [];
  if (module === undefined) return numbers;
  const { factor, summand } = affine(`${module}bn`);
  if (part === "c.weight") {
    const each = numbers.length / factor.length;
    return numbers.map((w, i) => w * factor[Math.floor(i / each)]!);
  }
  const parts: Record<string, (i: number) => number> = {
    "bn.weight": () => 1,
    "bn.bias": (i) => summand[i]!,
    "bn.running_mean": () => 0,
    "bn.running_var": () => 1 - 1e-5,
  };
  return numbers.map((_, i) => parts[part!]!(i));
}

for (const file of ["sam-tiny-encoder.onnx", "sam-tiny-encoder-dynamo.onnx"])
  test(`${file} is the encoder of sam-tiny-vit.pth, each norm as one that adds what was folded`, () => {
    const named = nameTensors(readCheckpoint(bytesOf(file), file).tensors, file);
    assert.is(named.kind, "SAM (TinyViT)");
    assert.ok(isSamEncoder(named));
    checkSamEncoder(named, file);
    assert.equal([...named.tensors.keys()].sort(), [...original.keys()].sort());
    for (const [key, tensor] of named.tensors) {
      assert.equal(tensor.shape, original.get(key)!.shape, key);
      const [got, want] = [fileNumbers(tensor), expected(key)];
      const isSame = /\.(c|bn)\.\w+$/.test(key) ? 2e-6 * Math.max(1e-3, ...want.map(Math.abs)) : 0;
      for (const [i, value] of want.entries())
        assert.ok(Math.abs(got[i]! - value) <= isSame, `${key}[${i}]: ${got[i]}, to be ${value}`);
    }
  });

const weight = fileTensor([1, 2, 3, 4], [2, 2, 1, 1]);
const bias = fileTensor([5, 6], [2]);
const conv = (name: string, inputs: string[], scopes?: string): OnnxNode => ({
  op: "Conv",
  name,
  inputs,
  outputs: [`${name}_output`],
  scopes,
  equation: undefined,
});
const recover = (tensors: Record<string, FileTensor>, ...nodes: OnnxNode[]) =>
  recoverNames(new Map(Object.entries(tensors)), nodes, new Budget(0, "model.onnx"));

/** The names that come of convolutions with their norms, one after the other. */
function normsAfter(...modules: string[]): string[] {
  const tensors: Record<string, FileTensor> = {};
  const nodes = modules.map((module, i) => {
    const inputs = [`onnx::Conv_${2 * i}`, `onnx::Conv_${2 * i + 1}`] as const;
    [tensors[inputs[0]], tensors[inputs[1]]] = [weight, bias];
    return conv(`/${module.replaceAll(".", "/")}/Conv`, ["x", ...inputs]);
  });
  const found = [...recover(tensors, ...nodes).keys()];
  for (const module of modules) assert.ok(found.includes(`${module}.weight`), `${module}: ${found}`);
  return found.flatMap((key) => /^(.*)\.running_var$/.exec(key)?.[1] ?? []);
}

test("a convolution's norm has the name that its model gives it", () => {
  for (const [modules, norms] of [
    [["conv1"], ["bn1"]],
    [["layer1.0.conv2"], ["layer1.0.bn2"]],
    [["layer2.0.downsample.0"], ["layer2.0.downsample.1"]],
    [["backbone.res2.0.conv3"], ["backbone.res2.0.conv3.norm"]],
    [["res3.0.shortcut"], ["res3.0.shortcut.norm"]],
    [["encoder.layer.0.convolution"], ["encoder.layer.0.normalization"]],
    [["features.18.0"], ["features.18.1"]],
    [
      ["conv_stem", "blocks.0.conv_dw", "blocks.0.conv_pw", "conv_head"],
      ["bn1", "blocks.0.bn1", "blocks.0.bn2", "bn2"],
    ],
  ])
    assert.equal(normsAfter(...modules!), norms!);
  const found = recover({ a: weight, b: bias }, conv("/layer/0/conv_3x3/convolution/Conv", ["x", "a", "b"]));
  assert.equal([...found.keys()], ["a", "b"], "not folded: the names are the model's");
  const hub = recover(
    { "onnx::Conv_1": weight, "onnx::Conv_2": bias },
    conv("/layer.0/conv_3x3/convolution/Conv", ["x", "onnx::Conv_1", "onnx::Conv_2"]),
  );
  assert.equal(
    [...fileNumbers(hub.get("layer.0.conv_3x3.normalization.running_var")!)],
    [Math.fround(0.999), Math.fround(0.999)],
  );
});

test("dynamo's exporter leaves out a bias of 0, and its scope tells the norm", () => {
  const scopes = "['', 'layer1', 'layer1.0.bn1', 'norm']";
  const names = (scope: string) => [
    ...recover(
      { "net.layer1.0.conv1.weight": weight },
      conv("node_Conv_1", ["x", "net.layer1.0.conv1.weight"], scope),
    ).keys(),
  ];
  assert.equal(names(scopes).length, 5);
  assert.ok(names(scopes).includes("net.layer1.0.bn1.bias"));
  assert.equal(
    names("['', 'layer1', 'layer1.0.conv1', 'conv']"),
    ["net.layer1.0.conv1.weight"],
    "its own scope: no norm",
  );
});

test("a convolution whose norm's name is not known, or taken, keeps the exporter's names", () => {
  const tensors = { "onnx::Conv_1": weight, "onnx::Conv_2": bias };
  const other = conv("/head/mix/Conv", ["x", "onnx::Conv_1", "onnx::Conv_2"]);
  assert.equal([...recover(tensors, other).keys()], Object.keys(tensors));
  const known = conv("/conv1/Conv", ["x", "onnx::Conv_1", "onnx::Conv_2"]);
  const taken = { ...tensors, "bn1.weight": bias };
  assert.equal([...recover(taken, known).keys()], Object.keys(taken));
});

test("TinyViT's matrix of all pairs of tokens gives its table back, where it holds one number for each distance", () => {
  const [near, side, above, far] = [1, 2, 3, 4];
  const pairs = [near, side, above, far, side, near, far, above, above, far, near, side, far, above, side, near];
  const of = (numbers: number[]) =>
    recover(
      { "net.a.attn.norm.weight": bias, "/a/attn/Constant_output_0": fileTensor(numbers, [1, 4, 4]) },
      { ...conv("/a/attn/norm/LayerNormalization", ["x", "net.a.attn.norm.weight"]), op: "LayerNormalization" },
      { ...conv("/a/attn/Add", ["y", "/a/attn/Constant_output_0"]), op: "Add" },
    );
  assert.equal([...fileNumbers(of(pairs).get("net.a.attn.attention_biases")!)], [near, side, above, far]);
  assert.equal([...of(pairs.with(6, 5)).keys()], ["net.a.attn.norm.weight"]);
});

test.run();
