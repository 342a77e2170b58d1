/**
 * onnxruntime on its own WebGPU provider. It does not differentiate: the MLP's step is a graph of forward, backward and SGD written out, whose
 * weights go in and out. Inputs go up and results come down in every run.
 */
import { createRequire } from "node:module";
import { numbers } from "./common.mjs";

const ort = createRequire(import.meta.url)("onnxruntime-node");

// ---- ONNX files: protocol buffers, of which a graph needs five messages ----

const utf8 = new TextEncoder();
const join = (parts) => Uint8Array.from(parts.flatMap((part) => [...part]));
function varint(n) {
  const out = [];
  let rest = BigInt.asUintN(64, BigInt(n));
  do {
    out.push(Number(rest & 127n) | (rest > 127n ? 128 : 0));
    rest >>= 7n;
  } while (rest > 0n);
  return out;
}
const int = (field, n) => Uint8Array.from([...varint(field << 3), ...varint(n)]);
const bytes = (field, content) => {
  const data = typeof content === "string" ? utf8.encode(content) : content;
  return join([varint((field << 3) | 2), varint(data.length), data]);
};
const FLOAT = 1;
const INTS = 7;
const valueInfo = (name, shape) => {
  const dims = join(shape.map((n) => bytes(1, int(1, n))));
  return join([bytes(1, name), bytes(2, bytes(1, join([int(1, FLOAT), bytes(2, dims)])))]);
};
const constant = (name, values, shape) =>
  join([
    ...shape.map((n) => int(1, n)),
    int(2, FLOAT),
    bytes(8, name),
    bytes(9, new Uint8Array(Float32Array.from(values).buffer)),
  ]);
const INT64 = 7;
const indices = (name, values) =>
  join([
    int(1, values.length),
    int(2, INT64),
    bytes(8, name),
    bytes(9, new Uint8Array(BigInt64Array.from(values.map(BigInt)).buffer)),
  ]);
const attribute = (name, value) =>
  Array.isArray(value)
    ? join([bytes(1, name), ...value.map((n) => int(8, n)), int(20, INTS)])
    : join([bytes(1, name), int(3, value), int(20, 2)]);
const node = ([op, inputs, outputs, attributes = {}]) =>
  join([
    ...inputs.map((name) => bytes(1, name)),
    ...outputs.map((name) => bytes(2, name)),
    bytes(4, op),
    ...Object.entries(attributes).map(([name, value]) => bytes(5, attribute(name, value))),
  ]);
/** nodes [op, inputs, outputs, attributes]; inputs and outputs { name: shape }; constants { name: [values, shape] }; axes { name: values } */
function model({ nodes, inputs, outputs, constants = {}, axes = {} }) {
  const graph = join([
    ...nodes.map((n) => bytes(1, node(n))),
    bytes(2, "graph"),
    ...Object.entries(constants).map(([name, [values, shape]]) => bytes(5, constant(name, values, shape))),
    ...Object.entries(axes).map(([name, values]) => bytes(5, indices(name, values))),
    ...Object.entries(inputs).map(([name, shape]) => bytes(11, valueInfo(name, shape))),
    ...Object.entries(outputs).map(([name, shape]) => bytes(12, valueInfo(name, shape))),
  ]);
  return join([int(1, 8), bytes(8, join([bytes(1, ""), int(2, 17)])), bytes(7, graph)]);
}

// ---- the rows ----

export async function open() {
  const session = (graph) =>
    ort.InferenceSession.create(model(graph), { executionProviders: ["webgpu"], logSeverityLevel: 3 });
  const size = (shape) => shape.reduce((a, b) => a * b, 1);
  const feed = (inputs, scale = {}) =>
    Object.fromEntries(
      Object.entries(inputs).map(([name, shape], i) => [
        name,
        new ort.Tensor("float32", numbers(size(shape), i + 1, scale[name] ?? 1), shape),
      ]),
    );
  const row = (graph) => async () => {
    const run = await session(graph);
    const feeds = feed(graph.inputs);
    return async () => {
      await run.run(feeds);
    };
  };
  const matmul = (n) =>
    row({ nodes: [["MatMul", ["a", "b"], ["y"]]], inputs: { a: [n, n], b: [n, n] }, outputs: { y: [n, n] } });
  const rows = {
    "matmul-512": matmul(512),
    "matmul-1024": matmul(1024),
    attention: row({
      nodes: [
        ["Transpose", ["k"], ["kt"], { perm: [0, 2, 1] }],
        ["MatMul", ["q", "kt"], ["s"]],
        ["Mul", ["s", "scale"], ["t"]],
        ["Softmax", ["t"], ["p"], { axis: -1 }],
        ["MatMul", ["p", "v"], ["y"]],
      ],
      inputs: { q: [8, 1024, 64], k: [8, 1024, 64], v: [8, 1024, 64] },
      outputs: { y: [8, 1024, 64] },
      constants: { scale: [[1 / 8], []] },
    }),
    conv3x3: row({
      nodes: [["Conv", ["x", "w"], ["y"], { pads: [1, 1, 1, 1], kernel_shape: [3, 3] }]],
      inputs: { x: [1, 64, 128, 128], w: [64, 64, 3, 3] },
      outputs: { y: [1, 64, 128, 128] },
    }),
    layernorm: row({
      nodes: [["LayerNormalization", ["x", "w", "b"], ["y"], { axis: -1 }]],
      inputs: { x: [4096, 256], w: [256], b: [256] },
      outputs: { y: [4096, 256] },
    }),
    softmax: row({
      nodes: [["Softmax", ["x"], ["y"], { axis: -1 }]],
      inputs: { x: [4096, 1024] },
      outputs: { y: [4096, 1024] },
    }),
    pointwise: row({
      nodes: [
        ["Mul", ["x", "three_halves"], ["a"]],
        ["Add", ["a", "half"], ["b"]],
        ["Tanh", ["b"], ["c"]],
        ["Sigmoid", ["x"], ["d"]],
        ["Mul", ["c", "d"], ["e"]],
        ["Add", ["e", "x"], ["y"]],
      ],
      inputs: { x: [2 ** 20] },
      outputs: { y: [2 ** 20] },
      constants: { three_halves: [[1.5], []], half: [[0.5], []] },
    }),
    additions: row({
      nodes: Array.from({ length: 100 }, (_, i) => ["Add", [i === 0 ? "x" : `y${i - 1}`, "x"], [`y${i}`]]),
      inputs: { x: [1024] },
      outputs: { y99: [1024] },
    }),
    "mlp-step": async () => {
      const shapes = { w1: [256, 1024], b1: [1024], w2: [1024, 256], b2: [256] };
      const inputs = { x: [256, 256], t: [256, 256], ...shapes };
      const updated = Object.fromEntries(Object.entries(shapes).map(([name, shape]) => [`${name}n`, shape]));
      const update = (name, gradient) => [
        ["Mul", [gradient, "lr"], [`${name}s`]],
        ["Sub", [name, `${name}s`], [`${name}n`]],
      ];
      const run = await session({
        nodes: [
          ["MatMul", ["x", "w1"], ["xw"]],
          ["Add", ["xw", "b1"], ["pre"]],
          ["Relu", ["pre"], ["h"]],
          ["MatMul", ["h", "w2"], ["hw"]],
          ["Add", ["hw", "b2"], ["out"]],
          ["Sub", ["out", "t"], ["miss"]],
          ["Mul", ["miss", "miss"], ["square"]],
          ["ReduceMean", ["square"], ["loss"], { keepdims: 0 }],
          ["Mul", ["miss", "slope"], ["gout"]],
          ["Transpose", ["h"], ["ht"], { perm: [1, 0] }],
          ["MatMul", ["ht", "gout"], ["gw2"]],
          ["ReduceSum", ["gout", "axis"], ["gb2"], { keepdims: 0 }],
          ["Transpose", ["w2"], ["w2t"], { perm: [1, 0] }],
          ["MatMul", ["gout", "w2t"], ["gh"]],
          ["Sign", ["h"], ["active"]],
          ["Mul", ["gh", "active"], ["gpre"]],
          ["Transpose", ["x"], ["xt"], { perm: [1, 0] }],
          ["MatMul", ["xt", "gpre"], ["gw1"]],
          ["ReduceSum", ["gpre", "axis"], ["gb1"], { keepdims: 0 }],
          ...Object.keys(shapes).flatMap((name) => update(name, `g${name}`)),
        ],
        inputs,
        outputs: { loss: [], ...updated },
        constants: { lr: [[0.01], []], slope: [[2 / 65536], []] },
        axes: { axis: [0] },
      });
      let feeds = feed(inputs, { w1: 0.06, b1: 0, w2: 0.03, b2: 0 });
      return async () => {
        const out = await run.run(feeds);
        feeds = {
          x: feeds.x,
          t: feeds.t,
          ...Object.fromEntries(Object.keys(shapes).map((name) => [name, out[`${name}n`]])),
        };
      };
    },
  };
  return { adapter: "", rows };
}
