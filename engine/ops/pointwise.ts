/**
 * Elementwise operations: one row of the table each, its value in WGSL and, beside it, its derivatives. A row's expressions see the operands
 * `a`, `b`, `c`, the result `y` (in derivatives) and the gradient `g` that arrives, all as vec4f; or, where every operand is of one integer
 * type and the row has a form for it, as vec4i or vec4u.
 */

import type { Slot, Whole } from "../chain.ts";
import { checkNoMore, checkOptions, checkTensors, checkType, describe } from "../check.ts";
import { type Operand, pointwise } from "../fusion.ts";
import { isTensor } from "../scope.ts";
import { broadcastShapes } from "../shape.ts";
import { record } from "../tape.ts";
import { type DType, Tensor } from "../tensor.ts";
import { sumTo } from "./reduce.ts";
import { narrowed, widen } from "./strided.ts";

interface Row {
  value: string;
  /** The value for whole numbers, exact; true: written the same. Without it they are computed in f32, as torch promotes them. */
  whole?: string | true;
  /** d/da, d/db, d/dc times g; left out where the operand carries no gradient. */
  grad?: Partial<Record<"a" | "b" | "c", string>>;
  /** Type of the result where it is not the one computed in; the value of a "bool" row is a vec4<bool>. */
  to?: DType;
}

const SQRT_HALF = "0.70710678118654752";
const INV_SQRT_2PI = "0.39894228040143268";
/** tanh form of gelu: u(x) and its derivative. */
const GELU_U = "(0.79788456080286536 * (a + 0.044715 * a * a * a))";
const GELU_DU = "(0.79788456080286536 * (1.0 + 0.134145 * a * a))";
const half = "0.5 * vec4f(a == b)";

const table = {
  add: { value: "a + b", whole: true, grad: { a: "g", b: "g" } },
  sub: { value: "a - b", whole: true, grad: { a: "g", b: "-g" } },
  mul: { value: "a * b", whole: true, grad: { a: "g * b", b: "g * a" } },
  div: { value: "a / b", grad: { a: "g / b", b: "-g * a / (b * b)" } },
  // Ties share the gradient, as in PyTorch.
  maximum: {
    value: "max_(a, b)",
    whole: "max(a, b)",
    grad: { a: `g * (1.0 - vec4f(a < b) - ${half})`, b: `g * (1.0 - vec4f(b < a) - ${half})` },
  },
  minimum: {
    value: "min_(a, b)",
    whole: "min(a, b)",
    grad: { a: `g * (1.0 - vec4f(a > b) - ${half})`, b: `g * (1.0 - vec4f(b > a) - ${half})` },
  },
  neg: { value: "-a", whole: "0 - a", grad: { a: "-g" } },
  exp: { value: "exp_(a)", grad: { a: "g * y" } },
  log: { value: "log_(a)", grad: { a: "g / a" } },
  sqrt: { value: "sqrt(a)", grad: { a: "0.5 * g / y" } },
  abs: { value: "abs(a)", whole: true, grad: { a: "g * sign(a)" } },
  sigmoid: { value: "sigmoid_(a)", grad: { a: "g * y * (1.0 - y)" } },
  tanh: { value: "tanh_(a)", grad: { a: "g * (1.0 - y * y)" } },
  relu: { value: "relu_(a)", whole: "max(a, a - a)", grad: { a: "select(g, vec4f(0.0), y <= vec4f(0.0))" } },
  relu6: {
    value: "select(clamp(a, vec4f(0.0), vec4f(6.0)), a, is_nan(a))",
    grad: { a: "select(vec4f(0.0), g, (y > vec4f(0.0)) & (y < vec4f(6.0)))" },
  },
  silu: { value: "a * sigmoid_(a)", grad: { a: "g * sigmoid_(a) * (1.0 + a * (1.0 - sigmoid_(a)))" } },
  sin: { value: "sin_(a)", grad: { a: "g * cos_(a)" } },
  cos: { value: "cos_(a)", grad: { a: "-g * sin_(a)" } },
  erf: { value: "erf_(a)", grad: { a: "g * 1.12837916709551257 * exp_(-a * a)" } },
  geluNone: {
    value: `0.5 * a * (1.0 + erf_(a * ${SQRT_HALF}))`,
    grad: { a: `g * (0.5 * (1.0 + erf_(a * ${SQRT_HALF})) + a * ${INV_SQRT_2PI} * exp_(-0.5 * a * a))` },
  },
  geluTanh: {
    value: `0.5 * a * (1.0 + tanh_(${GELU_U}))`,
    grad: {
      a: `g * (0.5 * (1.0 + tanh_(${GELU_U})) + 0.5 * a * (1.0 - tanh_(${GELU_U}) * tanh_(${GELU_U})) * ${GELU_DU})`,
    },
  },
  clamp: {
    value: "select(min(max(a, b), c), a, is_nan(a))",
    whole: "min(max(a, b), c)",
    grad: { a: "select(vec4f(0.0), g, (a >= b) & (a <= c))" },
  },
  // The gradients where torch has them: none by a power of 0, none by the exponent at a base of 0.
  pow: {
    value: "pow_(a, b)",
    grad: {
      a: "select(g * b * pow_(a, b - 1.0), vec4f(0.0), b == vec4f(0.0))",
      b: "select(g * y * log_(a), vec4f(0.0), (a == vec4f(0.0)) & (b >= vec4f(0.0)))",
    },
  },
  // The condition is a, a truth value.
  where: {
    value: "select(c, b, vec4<bool>(a))",
    whole: true,
    grad: { b: "select(vec4f(0.0), g, vec4<bool>(a))", c: "select(g, vec4f(0.0), vec4<bool>(a))" },
  },
  lt: { value: "a < b", whole: true, to: "bool" },
  le: { value: "a <= b", whole: true, to: "bool" },
  gt: { value: "a > b", whole: true, to: "bool" },
  ge: { value: "a >= b", whole: true, to: "bool" },
  eq: { value: "a == b", whole: true, to: "bool" },
  logicalAnd: { value: "truth(a) & truth(b)", to: "bool" },
  logicalOr: { value: "truth(a) | truth(b)", to: "bool" },
  logicalNot: { value: "!truth(a)", to: "bool" },
  // What F.cast converts to.
  f32: { value: "a" },
  i32: { value: "vec4i(a)", whole: true, to: "i32" },
  u32: { value: "vec4u(a)", whole: true, to: "u32" },
  bool: { value: "truth(a)", whole: "vec4<bool>(a)", to: "bool" },
} satisfies Record<string, Row>;

const RANGE = { i32: [-(2 ** 31), 2 ** 31 - 1], u32: [0, 2 ** 32 - 1] } as const;

/** The integer type in which a row computes, exactly: that of its operands, truth values and whole numbers among them; undefined: f32. */
function wholeType(op: string, row: Row, operands: readonly Operand[]): Whole | undefined {
  if (!row.whole) return undefined;
  let type: Whole | undefined;
  let counts = row.to === "bool";
  for (const x of operands) {
    if (typeof x === "number") {
      if (!Number.isInteger(x)) return undefined;
      counts = true;
    } else if (x.dtype === "i32" || x.dtype === "u32") {
      if (type && type !== x.dtype) return undefined;
      type = x.dtype;
    } else if (x.dtype !== "bool") return undefined;
  }
  // Truth values alone are chosen among and compared, but counted with in f32.
  if (!type && !counts && op !== "where") return undefined;
  type ??= operands.some((x) => typeof x === "number") ? "i32" : "u32";
  const [low, high] = RANGE[type];
  const beyond = operands.find((x) => typeof x === "number" && (x < low || x > high));
  if (beyond === undefined) return type;
  if (row.to) return undefined;
  throw new Error(`${op}: ${beyond} does not fit the ${type} of the tensor; F.cast it to "f32" first`);
}

function apply(op: keyof typeof table, named: Record<string, Operand>, label: string = op): Tensor {
  const given: Record<string, Tensor> = {};
  for (const name in named) {
    const x = named[name];
    if (isTensor(x)) given[name] = x;
    else if (typeof x !== "number")
      throw new Error(`${label}: ${name} must be a tensor or a number; got ${describe(x)}`);
  }
  checkTensors(label, given);
  const tensors = Object.values(given);
  if (tensors.length === 0)
    throw new Error(`${label}: one of ${Object.keys(named).join(" and ")} must be a tensor; got numbers`);
  const row: Row = table[op];
  const operands = Object.values(named);
  const [a, b, c] = operands;
  const shape = tensors.length === 1 ? tensors[0]!.shape : broadcastShapes(label, ...tensors.map((x) => x.shape));
  // A condition is no operand, and numbers alone are f32.
  const typed = op === "where" ? operands.slice(1) : operands;
  const whole = typed.every((x) => typeof x === "number") ? undefined : wholeType(label, row, typed);
  const chosen = whole && op === "where" && typed.every((x) => x instanceof Tensor && x.dtype === "bool");
  const used: Partial<Record<Slot, Operand>> = { a: a! };
  if (b !== undefined) used.b = b;
  if (c !== undefined) used.c = c;
  const expression = whole && typeof row.whole === "string" ? row.whole : row.value;
  const dtype = row.to ?? (chosen ? "bool" : (whole ?? "f32"));
  const y = pointwise({ name: whole ? `${op} ${whole}` : op, expression, dtype, whole }, used, shape);
  const { grad } = row;
  if (!grad || whole) return y;
  const slots = (["a", "b", "c"] as const).filter((s) => used[s] instanceof Tensor);
  return record(label, tensors, y, (gy) =>
    slots.map((slot) => {
      const x = used[slot] as Tensor;
      const derivative = grad[slot];
      if (!x.requiresGrad || !derivative) return null;
      if (derivative === "g") return sumTo(gy, x.shape);
      // The result takes the place of c: no row has both three operands and a derivative that needs the result.
      const withY = /\by\b/.test(derivative);
      const from = { ...used, ...(withY ? { c: y } : {}), g: gy };
      const expression = derivative.replace(/\by\b/g, "c");
      return sumTo(pointwise({ name: `${op}/grad_${slot}`, expression, dtype: "f32" }, from, shape), x.shape);
    }),
  );
}

type Unary = (x: Tensor) => Tensor;
type Binary = (a: Operand, b: Operand, ...more: never[]) => Tensor;

/** Further arguments are let by, so that arrays can be mapped. */
const unary =
  (op: keyof typeof table): Unary =>
  (x) => {
    checkTensors(op, { x });
    return apply(op, { x });
  };

const binary =
  (op: keyof typeof table): Binary =>
  (a, b, ...more) => {
    checkNoMore(op, more);
    return apply(op, { a, b });
  };

export const add = binary("add");
export const sub = binary("sub");
export const mul = binary("mul");
/** a / b, in f32 for whole numbers too. */
export const div = binary("div");
/** Elementwise larger value; ties share the gradient. */
export const maximum = binary("maximum");
/** Elementwise smaller value; ties share the gradient. */
export const minimum = binary("minimum");
export const neg = unary("neg");
export const exp = unary("exp");
export const log = unary("log");
export const sqrt = unary("sqrt");
/** |x|; the gradient at 0 is 0. */
export const abs = unary("abs");
export const sigmoid = unary("sigmoid");
export const tanh = unary("tanh");
export const relu = unary("relu");
/** x limited to [0, 6]; the gradient passes inside, the ends not included. */
export const relu6 = unary("relu6");
export const silu = unary("silu");
export const sin = unary("sin");
export const cos = unary("cos");
export const erf = unary("erf");
export interface GeluOptions {
  approximate?: "none" | "tanh";
}
/** x times the normal distribution function, exact or by the tanh form (Hendrycks and Gimpel 2016). */
export function gelu(x: Tensor, options: GeluOptions = {}): Tensor {
  checkTensors("gelu", { x });
  checkOptions("gelu", options, { approximate: ["none", "tanh"] });
  return apply(options.approximate === "tanh" ? "geluTanh" : "geluNone", { x }, "gelu");
}
export interface ClampOptions {
  min?: number;
  max?: number;
}
/** Limits x to [min, max]; the gradient passes where x lies inside, the ends included. */
export function clamp(x: Tensor, options: ClampOptions = {}): Tensor {
  checkTensors("clamp", { x });
  checkOptions("clamp", options, { min: "number", max: "number" });
  const { min, max } = options;
  if (min === undefined && max === undefined) throw new Error("clamp: give min, max or both; got neither");
  const ends = [min, max].every((v) => v === undefined || Number.isInteger(v) || !Number.isFinite(v));
  const [low, high] = x.dtype !== "f32" && ends ? RANGE[x.dtype === "u32" ? "u32" : "i32"] : [-Infinity, Infinity];
  const within = (v: number): number => Math.min(Math.max(v, low), high);
  return apply("clamp", { x, min: within(min ?? low), max: within(max ?? high) });
}
/** a to the power of b, in f32; NaN for a negative base and a power that is not whole. */
export const pow: Binary = binary("pow");
/** `a` where `condition` is not 0, else `b`. */
export function where(condition: Tensor, a: Operand, b: Operand, ...more: never[]): Tensor {
  checkNoMore("where", more);
  checkTensors("where", { condition });
  return apply("where", { condition: cast(condition, "bool"), a, b });
}
export const lt = binary("lt");
export const le = binary("le");
export const gt = binary("gt");
export const ge = binary("ge");
export const eq = binary("eq");
export const logicalAnd = binary("logicalAnd");
export const logicalOr = binary("logicalOr");
export const logicalNot = unary("logicalNot");

/** Converts between f32, i32, u32 and bool (not 0), truncating towards 0; f16 goes to and from f32. The gradient of an f16 tensor is f32. */
export function cast(x: Tensor, dtype: DType): Tensor {
  checkTensors("cast", { x }, true);
  checkType("cast", dtype);
  if (x.dtype === dtype) return x;
  if (x.dtype !== "f16" && dtype !== "f16") return apply(dtype, { x }, "cast");
  if (x.dtype !== "f32" && dtype !== "f32") return cast(cast(x, "f32"), dtype);
  return record("cast", [x], dtype === "f16" ? narrowed(x) : widen(x), (gy) => [gy]);
}

const ACTIVATIONS = {
  relu: "relu",
  relu6: "relu6",
  sigmoid: "sigmoid",
  tanh: "tanh",
  silu: "silu",
  gelu: "geluNone",
} as const;
/** An activation that a product can apply before it writes its result. */
export type ActivationName = keyof typeof ACTIVATIONS;
export const ACTIVATION_NAMES = Object.keys(ACTIVATIONS) as readonly ActivationName[];

/** The same as calling F's function of that name. */
export function activate(name: ActivationName, x: Tensor): Tensor {
  return apply(ACTIVATIONS[name], { x }, name);
}

/** Its text, and its gradient where that needs the result alone: then the sum before it need not be kept. */
export function activationRow(name: ActivationName): {
  name: string;
  expression: string;
  gradient: string | undefined;
} {
  const { value, grad } = table[ACTIVATIONS[name]];
  return { name, expression: value, gradient: /\ba\b/.test(grad.a) ? undefined : grad.a.replace(/\by\b/g, "a") };
}
