/**
 * The kernels of a WISH training step (configs/scenes.yaml, four images of 96 x 96) at the shapes that it gives them: `DEBUG=3 wgpu-wish bench
 * wish-step` shows those. Each operation has a row for its forward pass and one for its gradients alone.
 */
import { type Device, F, optim, type Tensor } from "../index.ts";
import { type Bench, gradients } from "./bench-work.ts";

/** A shape is of normal numbers, a function makes what these would not do for. */
type Input = readonly number[] | ((gpu: Device) => Tensor);
type Operation = (...x: Tensor[]) => Tensor;
/** Gradients by the end of the row's name: the places of the inputs they are of. */
type Gradients = Readonly<Record<string, readonly number[]>>;

const made = (gpu: Device, inputs: readonly Input[]): Tensor[] =>
  inputs.map((input, i) => (typeof input === "function" ? input(gpu) : gpu.randn(input, { seed: i + 1 })));

/** @param also inputs that have no gradient, after the others */
function rows(
  name: string,
  note: string,
  inputs: readonly Input[],
  operation: Operation,
  { also = [], of = { grad: [...inputs.keys()] } }: { also?: readonly Input[]; of?: Gradients } = {},
): Bench[] {
  const all = [...inputs, ...also];
  const forward: Bench = {
    name: `wish-${name}`,
    note,
    prepare: (gpu) => {
      const x = made(gpu, all);
      return { run: () => operation(...x) };
    },
  };
  const backward = Object.entries(of).map(([end, places]) => ({
    name: `wish-${name}/${end}`,
    note: `its gradient${end === "grad" ? "s" : ` of ${end}`}`,
    prepare: (gpu: Device) => gradients(gpu, made(gpu, all), operation, { of: places }),
  }));
  return [forward, ...backward];
}

type ConvOptions = { stride?: number; padding?: number; dilation?: number };

const conv = (name: string, ci: number, co: number, size: number, kernel: number, options: ConvOptions = {}): Bench[] =>
  rows(
    `conv-${name}`,
    `${kernel} x ${kernel}, 4 x ${ci} -> ${co} at ${size} x ${size}${Object.entries(options)
      .filter(([, v]) => v !== 1)
      .map(([key, v]) => `, ${key} ${v}`)
      .join("")}`,
    [
      [4, ci, size, size],
      [co, ci, kernel, kernel],
    ],
    (x, w) => F.conv2d(x!, w!, options),
    { of: { x: [0], weight: [1] } },
  );

/** Whole numbers below `below`. */
const indices =
  (n: number, below: number): Input =>
  (gpu) =>
    gpu.tensor(Int32Array.from({ length: n }, (_, i) => (i * 7919) % below));
/** About every second one is true. */
const mask =
  (shape: readonly number[]): Input =>
  (gpu) =>
    gpu.tensor(
      Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => Math.sin(i * 12.9898) > 0),
      shape,
      { dtype: "bool" },
    );
/** Points of F.gridSample all over the image. */
const points =
  (shape: readonly number[]): Input =>
  (gpu) =>
    gpu.tensor(
      Float32Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => Math.sin(i * 12.9898)),
      shape,
    );
const zeroOrOne =
  (shape: readonly number[]): Input =>
  (gpu) =>
    gpu.tensor(
      Float32Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => (Math.sin(i * 78.233) > 0 ? 1 : 0)),
      shape,
    );

/** Three levels of 4, 8 and 16 pixels a side: the pixel decoder's at 128 px, for the scenes' own model goes without its layers. */
const LEVELS = [
  [4, 4],
  [8, 8],
  [16, 16],
];

export const wishKernels: readonly Bench[] = [
  ...conv("stem", 3, 32, 96, 3, { stride: 2, padding: 1 }),
  ...conv("32", 32, 32, 24, 3, { padding: 1 }),
  ...conv("down", 32, 32, 48, 3, { stride: 2, padding: 1 }),
  ...conv("64", 64, 64, 24, 3, { padding: 1 }),
  ...conv("64-12", 64, 64, 12, 3, { padding: 1 }),
  ...conv("128-6", 128, 128, 6, 3, { padding: 2, dilation: 2 }),
  ...conv("1x1", 64, 64, 24, 1),
  ...rows("linear", "4 x 10 x 64 by 64 x 64", [[4, 10, 64], [64, 64], [64]], (x, w, b) => F.linear(x!, w!, b), {
    of: { x: [0], weight: [1, 2] },
  }),
  ...rows(
    "masks",
    "queries by pixels: 4 x 10 x 64 by 64 x 576",
    [
      [4, 10, 64],
      [4, 64, 576],
    ],
    (q, x) => F.matmul(q!, x!),
  ),
  ...rows(
    "cross-attention",
    "4 heads, 10 queries, 36 pixels, masked",
    [
      [4, 4, 10, 16],
      [4, 4, 36, 16],
      [4, 4, 36, 16],
    ],
    (q, k, v, hidden) => F.scaledDotProductAttention(q!, k!, v!, { mask: hidden }),
    { also: [mask([4, 1, 10, 36])] },
  ),
  ...rows(
    "self-attention",
    "4 heads, 10 queries",
    [
      [4, 4, 10, 16],
      [4, 4, 10, 16],
      [4, 4, 10, 16],
    ],
    (q, k, v) => F.scaledDotProductAttention(q!, k!, v!),
  ),
  ...rows(
    "deform",
    "msDeformAttn: 8 images of 4, 8 and 16 pixels a side, 4 heads",
    [
      [8, 336, 4, 16],
      [8, 336, 4, 3, 4, 2],
      [8, 336, 4, 3, 4],
    ],
    (value, at, weights) => F.msDeformAttn(value!, LEVELS, at!, weights!),
  ),
  ...rows(
    "points",
    "gridSample: 42 masks of 24 x 24 at 512 points",
    [[42, 1, 24, 24]],
    (x, at) => F.gridSample(x!, at!),
    {
      also: [points([42, 1, 512, 2])],
    },
  ),
  ...rows(
    "points-targets",
    "gridSample: 42 masks of 96 x 96 at 512 points",
    [[42, 1, 96, 96]],
    (x, at) => F.gridSample(x!, at!),
    {
      also: [points([42, 1, 512, 2])],
      of: {},
    },
  ),
  ...rows("layernorm", "40 x 64", [[4, 10, 64], [64], [64]], (x, w, b) => F.layerNorm(x!, w, b)),
  ...rows("groupnorm", "4 x 64 at 24 x 24, 8 groups", [[4, 64, 24, 24], [64], [64]], (x, weight, bias) =>
    F.groupNorm(x!, 8, { weight: weight!, bias: bias! }),
  ),
  ...rows("resize", "4 x 64 from 12 x 12 to 24 x 24", [[4, 64, 12, 12]], (x) => F.interpolate(x!, { size: [24, 24] })),
  ...rows("relu", "4 x 64 at 24 x 24", [[4, 64, 24, 24]], (x) => F.relu(x!)),
  ...rows("softmax", "42 x 3 x 64", [[42, 3, 64]], (x) => F.softmax(x!, -1)),
  ...rows("cross-entropy", "120 queries, 7 classes", [[120, 7]], (x, classes) => F.crossEntropy(x!, classes!), {
    also: [indices(120, 7)],
  }),
  ...rows("bce", "42 masks at 512 points", [[42, 512]], (x, t) => F.binaryCrossEntropyWithLogits(x!, t!), {
    also: [zeroOrOne([42, 512])],
  }),
  ...rows("dice", "42 masks at 512 points", [[42, 512]], (x, t) => F.dice(x!, t!), { also: [zeroOrOne([42, 512])] }),
  ...rows("select", "42 of 120 rows of 576", [[120, 576]], (x, at) => F.indexSelect(x!, 0, at!), {
    also: [indices(42, 120)],
  }),
  ...rows("turn", "strided read: 4 x 64 x 576 to 4 x 576 x 64", [[4, 64, 576]], (x) => F.permute(x!, [0, 2, 1])),
  ...rows("sum-rows", "40 x 64 to 64", [[40, 64]], (x) => F.sum(x!, 0)),
  ...rows("sum-columns", "40 x 576 to 40", [[40, 576]], (x) => F.sum(x!, -1)),
  ...rows("topk", "384 of 1,536, 42 times", [[42, 1536]], (x) => F.topk(x!, 384).values, { of: {} }),
  {
    name: "wish-adamw",
    note: "a step on 128 x 128 x 3 x 3 weights and 30 small tensors",
    prepare: (gpu) => {
      const shapes = [[128, 128, 3, 3], ...Array.from({ length: 30 }, () => [64, 64])];
      const params = shapes.map((shape, i) => {
        const x = gpu.randn(shape, { seed: i, requiresGrad: true });
        x.grad = gpu.randn(shape, { seed: 100 + i });
        return x;
      });
      const adam = new optim.AdamW([{ params, lr: 1e-4 }]);
      return { run: () => adam.step() };
    },
  },
];
