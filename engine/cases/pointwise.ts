import * as F from "../functional.ts";
import { broadcastShapes, broadcastStrides, type Shape, sizeOf, stridesOf } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { away, between, type Case, type Cases, type Input } from "./case.ts";

/** Error function in float64: Taylor series near 0, continued fraction (Lentz) further out. */
function erf(x: number): number {
  const z = Math.abs(x);
  if (z < 2.5) {
    let term = z;
    let sum = z;
    for (let n = 1; Math.abs(term) > 1e-18; n++) {
      term *= (-z * z) / n;
      sum += term / (2 * n + 1);
    }
    return (Math.sign(x) * 2 * sum) / Math.sqrt(Math.PI);
  }
  let f = 0;
  for (let n = 60; n > 0; n--) f = n / 2 / (z + f);
  return Math.sign(x) * (1 - Math.exp(-z * z) / (Math.sqrt(Math.PI) * (z + f)));
}

/** Applies a function of numbers to broadcast operands. */
export function elementwise(
  shapes: readonly Shape[],
  fn: (...v: number[]) => number,
): (...inputs: Float64Array[]) => Float64Array {
  const shape = broadcastShapes("twin", ...shapes);
  const strides = shapes.map((s) => broadcastStrides(s, shape));
  const own = stridesOf(shape);
  const places = strides.map((s) =>
    Uint32Array.from({ length: sizeOf(shape) }, (_, i) =>
      own.reduce((at, o, d) => at + (Math.floor(i / o) % shape[d]!) * s[d]!, 0),
    ),
  );
  return (...inputs) => {
    const y = new Float64Array(sizeOf(shape));
    const v = inputs.map(() => 0);
    for (let i = 0; i < y.length; i++) {
      for (let j = 0; j < v.length; j++) v[j] = inputs[j]![places[j]![i]!]!;
      y[i] = fn(...v);
    }
    return y;
  };
}

type Values = NonNullable<Exclude<Input, Shape>["values"]>;
const UNARY: readonly Shape[] = [[1], [7], [3, 43], [2, 5, 13]];
const BINARY: readonly (readonly [Shape, Shape])[] = [
  [[5], [5]],
  [[2, 3], []],
  [
    [3, 1, 5],
    [4, 1],
  ],
  [
    [2, 1, 3, 1],
    [1, 4, 1, 5],
  ],
  [[4, 8], [8]],
  [
    [2, 3, 4],
    [3, 1],
  ],
];
const REAL: Shape = [2, 64, 33, 8];

function unary(op: (x: Tensor) => Tensor, fn: (v: number) => number, values?: Values): Case[] {
  return [...UNARY, REAL].map((shape) => ({
    ...(shape === REAL ? { name: "real" } : {}),
    inputs: [values ? { shape, values } : shape],
    run: ([x]) => op(x!),
    reference: (x) => x.map(fn),
  }));
}

function binary(
  op: (a: Tensor, b: Tensor) => Tensor,
  fn: (a: number, b: number) => number,
  values?: Values,
  second?: Values,
): Case[] {
  const input = (shape: Shape, v?: Values): Input => (v ? { shape, values: v } : shape);
  return [...BINARY, [REAL, [64, 1, 1]] as const].map(([a, b]) => ({
    ...(a === REAL ? { name: "real" } : {}),
    inputs: [input(a, values), input(b, second ?? values)],
    run: ([x, y]) => op(x!, y!),
    reference: elementwise([a, b], fn),
  }));
}

/** Numbers that f32 cannot hold, of both integer types and signs; what comes out of range wraps around. */
function integers(
  shapes: readonly Shape[],
  op: (x: Tensor, y: Tensor) => Tensor,
  fn: (a: number, b: number) => number,
): Case[] {
  return (["i32", "u32"] as const).map((dtype) => ({
    name: `exact ${dtype}`,
    inputs: shapes.map((shape) => ({
      shape,
      dtype,
      values: (r) => (dtype === "u32" ? 2 ** 31 + r.int(2 ** 24) : r.int(2) ? r.int(2 ** 31) : -r.int(2 ** 31)),
    })),
    run: ([x, y]) => op(x!, y!),
    reference: elementwise(shapes, (a, b) => (dtype === "i32" ? fn(a!, b!) | 0 : fn(a!, b!) >>> 0)),
  }));
}
const INTEGERS: readonly Shape[] = [
  [3, 1, 5],
  [4, 1],
];

/** A second operand that stays clear of the first's values, where max and min have their kink. */
const halves: Values = (random) => Math.round(random.normal() * 4) / 4;
const offHalves: Values = (random) => Math.round(random.normal() * 4) / 4 + 0.125;

const numbers: Case[] = [
  {
    name: "number on the right",
    inputs: [[3, 5]],
    run: ([x]) => F.sub(x!, 2.5),
    reference: (x) => x.map((v) => v - 2.5),
  },
  {
    name: "number on the left",
    inputs: [[3, 5]],
    run: ([x]) => F.sub(2.5, x!),
    reference: (x) => x.map((v) => 2.5 - v),
  },
];
const twice: Case[] = [
  {
    name: "the same tensor twice",
    inputs: [[4, 3]],
    run: ([x]) => F.mul(x!, x!),
    reference: (x) => x.map((v) => v * v),
  },
  {
    name: "transposed broadcast",
    inputs: [
      [3, 1],
      [1, 5],
    ],
    run: ([x, y]) => F.mul(x!, y!),
    reference: elementwise(
      [
        [3, 1],
        [1, 5],
      ],
      (a, b) => a * b,
    ),
  },
];

const sigmoid = (v: number): number => 1 / (1 + Math.exp(-v));
const positive = between(0.1, 4);
const wide = (random: { uniform(a: number, b: number): number }): number => random.uniform(-12, 12);
/** Further from 0 and 6 than the steps of the differences. */
const offKinks: typeof wide = (random) => {
  const v = wide(random);
  return [0, 6].some((kink) => Math.abs(v - kink) < 0.05) ? v + 0.1 : v;
};

export const pointwiseCases: Cases = {
  add: [
    ...binary(F.add, (a, b) => a + b),
    ...integers(INTEGERS, F.add, (a, b) => a + b),
    { name: "x + x", inputs: [[5]], run: ([x]) => F.add(x!, x!), reference: (x) => x.map((v) => v + v) },
  ],
  sub: [...binary(F.sub, (a, b) => a - b), ...integers(INTEGERS, F.sub, (a, b) => a - b), ...numbers],
  mul: [...binary(F.mul, (a, b) => a * b), ...integers(INTEGERS, F.mul, Math.imul), ...twice],
  div: binary(F.div, (a, b) => a / b, undefined, positive),
  maximum: [...binary(F.maximum, Math.max, halves, offHalves), ...integers(INTEGERS, F.maximum, Math.max)],
  minimum: [...binary(F.minimum, Math.min, halves, offHalves), ...integers(INTEGERS, F.minimum, Math.min)],
  neg: [...unary(F.neg, (v) => -v), ...integers([[9]], F.neg, (v) => -v)],
  exp: [...unary(F.exp, Math.exp), ...unary(F.exp, Math.exp, between(-20, 3))],
  log: unary(F.log, Math.log, between(0.05, 30)),
  sqrt: unary(F.sqrt, Math.sqrt, positive),
  abs: [...unary(F.abs, Math.abs, away(0.01, 0)), ...integers([[9]], F.abs, Math.abs)],
  sigmoid: [...unary(F.sigmoid, sigmoid), ...unary(F.sigmoid, sigmoid, wide)],
  tanh: [...unary(F.tanh, Math.tanh), ...unary(F.tanh, Math.tanh, wide)],
  relu6: unary(F.relu6, (v) => Math.min(Math.max(v, 0), 6), offKinks),
  relu: [...unary(F.relu, (v) => Math.max(v, 0), away(0.01, 0)), ...integers([[9]], F.relu, (v) => Math.max(v, 0))],
  silu: unary(F.silu, (v) => v * sigmoid(v), wide),
  sin: [...unary(F.sin, Math.sin), ...unary(F.sin, Math.sin, between(-60, 60))],
  cos: [...unary(F.cos, Math.cos), ...unary(F.cos, Math.cos, between(-60, 60))],
  erf: [...unary(F.erf, erf), ...unary(F.erf, erf, between(-4, 4))],
  gelu: [
    ...unary(F.gelu, (v) => 0.5 * v * (1 + erf(v * Math.SQRT1_2))),
    ...unary(F.gelu, (v) => 0.5 * v * (1 + erf(v * Math.SQRT1_2)), wide),
    ...unary(
      (x) => F.gelu(x, { approximate: "tanh" }),
      (v) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))),
      between(-5, 5),
    ),
  ],
  clamp: [
    ...unary(
      (x) => F.clamp(x, { min: -0.5, max: 1 }),
      (v) => Math.min(Math.max(v, -0.5), 1),
      away(0.01, -0.5, 1),
    ),
    ...integers(
      [[9]],
      (x) => F.clamp(x, { min: 3, max: 16777217 }),
      (v) => Math.min(Math.max(v, 3), 16777217),
    ),
    ...unary(
      (x) => F.clamp(x, { min: 0.25 }),
      (v) => Math.max(v, 0.25),
      away(0.01, 0.25),
    ),
  ],
  pow: [
    ...[2, 3, -1, 0.5, 1.7, -2.3, 0, 17].flatMap((p) =>
      unary(
        (x) => F.pow(x, p),
        (v) => v ** p,
        between(0.2, p > 3 ? 1.2 : 3),
      ),
    ),
    ...unary(
      (x) => F.pow(2, x),
      (v) => 2 ** v,
    ),
    ...binary(F.pow, (a, b) => a ** b, between(0.2, 3), between(-3, 3)),
    {
      name: "negative base, whole exponent",
      inputs: [
        { shape: [4, 5], values: between(-1.5, -0.5) },
        { shape: [5], values: (_, i) => [-3, 2, 0, 1, 21][i]!, differentiable: false },
      ],
      run: ([a, b]) => F.pow(a!, b!),
      reference: elementwise([[4, 5], [5]], (a, b) => a ** b),
    },
  ],
  where: [
    {
      name: "broadcast",
      inputs: [{ shape: [3, 1, 5], dtype: "bool", values: (r) => r.int(2) }, [4, 1], [3, 4, 5]],
      run: ([c, a, b]) => F.where(c!, a!, b!),
      reference: elementwise(
        [
          [3, 1, 5],
          [4, 1],
          [3, 4, 5],
        ],
        (c, a, b) => (c ? a : b),
      ),
    },
    ...integers(
      INTEGERS,
      (x, y) => F.where(F.lt(x, y), x, 7),
      (a, b) => (a < b ? a : 7),
    ),
    {
      name: "number",
      inputs: [{ shape: [7], dtype: "bool", values: (r) => r.int(2) }, [7]],
      run: ([c, a]) => F.where(c!, a!, -3),
      reference: elementwise([[7], [7]], (c, a) => (c ? a : -3)),
    },
  ],
  cast: [
    {
      name: "f16 and back",
      inputs: [{ shape: [9], values: (r) => r.int(64) / 8 }],
      run: ([x]) => F.cast(F.cast(x!, "f16"), "f32"),
      reference: (x) => x,
    },
    {
      name: "to i32",
      inputs: [{ shape: [9], values: (r) => r.uniform(-9, 9), differentiable: false }],
      run: ([x]) => F.cast(x!, "i32"),
      reference: (x) => x.map(Math.trunc),
    },
    {
      name: "to bool",
      inputs: [{ shape: [9], values: (r) => r.int(3), differentiable: false }],
      run: ([x]) => F.cast(x!, "bool"),
      reference: (x) => x.map((v) => (v ? 1 : 0)),
    },
  ],
  ...Object.fromEntries(
    (
      [
        ["lt", F.lt, (a, b) => a < b],
        ["le", F.le, (a, b) => a <= b],
        ["gt", F.gt, (a, b) => a > b],
        ["ge", F.ge, (a, b) => a >= b],
        ["eq", F.eq, (a, b) => a === b],
        ["logicalAnd", F.logicalAnd, (a, b) => Boolean(a && b)],
        ["logicalOr", F.logicalOr, (a, b) => Boolean(a || b)],
      ] as [string, typeof F.lt, (a: number, b: number) => boolean][]
    ).map(([name, op, fn]) => [
      name,
      [
        ...[[[5], [5]], INTEGERS].map(([a, b]) => ({
          inputs: [a!, b!].map((shape) => ({ shape, values: halves, differentiable: false })),
          run: ([x, y]: Tensor[]) => op(x!, y!),
          reference: elementwise([a!, b!], (p, q) => Number(fn(p, q))),
        })),
        ...integers(INTEGERS, op, (p, q) => Number(fn(p, q))),
      ],
    ]),
  ),
  logicalNot: [
    {
      inputs: [{ shape: [9], values: halves, differentiable: false }],
      run: ([x]) => F.logicalNot(x!),
      reference: (x) => x.map((v) => (v ? 0 : 1)),
    },
  ],
};
