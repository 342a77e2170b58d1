/**
 * Elementwise operations: one row of the table each, its value in WGSL and, beside it, its derivatives. A row's expressions see the operands
 * `a`, `b`, `c`, the result `y` (in derivatives) and the gradient `g` that arrives, all as vec4f.
 */
import { defineSource, linearGroups, run } from "../kernel.ts";
import { platform } from "../platform.ts";
import { broadcastShapes, broadcastStrides, collapse, type Shape } from "../shape.ts";
import { record } from "../tape.ts";
import { type DType, empty, Tensor } from "../tensor.ts";
import { sumTo } from "./reduce.ts";

interface Row {
  value: string;
  /** d/da, d/db, d/dc times g; left out where the operand carries no gradient. */
  grad?: Partial<Record<"a" | "b" | "c", string>>;
  /** Type of the result; default: that of the operands where they agree, else f32. */
  dtype?: DType;
}

const SQRT_HALF = "0.70710678118654752";
const INV_SQRT_2PI = "0.39894228040143268";
/** tanh form of gelu: u(x) and its derivative. */
const GELU_U = "(0.79788456080286536 * (a + 0.044715 * a * a * a))";
const GELU_DU = "(0.79788456080286536 * (1.0 + 0.134145 * a * a))";
const half = "0.5 * vec4f(a == b)";

const table = {
  add: { value: "a + b", grad: { a: "g", b: "g" } },
  sub: { value: "a - b", grad: { a: "g", b: "-g" } },
  mul: { value: "a * b", grad: { a: "g * b", b: "g * a" } },
  div: { value: "a / b", grad: { a: "g / b", b: "-g * a / (b * b)" } },
  // Ties share the gradient, as in PyTorch.
  maximum: { value: "max(a, b)", grad: { a: `g * (vec4f(a > b) + ${half})`, b: `g * (vec4f(b > a) + ${half})` } },
  minimum: { value: "min(a, b)", grad: { a: `g * (vec4f(a < b) + ${half})`, b: `g * (vec4f(b < a) + ${half})` } },
  neg: { value: "-a", grad: { a: "-g" } },
  exp: { value: "exp_(a)", grad: { a: "g * y" } },
  log: { value: "log_(a)", grad: { a: "g / a" } },
  sqrt: { value: "sqrt(a)", grad: { a: "0.5 * g / y" } },
  abs: { value: "abs(a)", grad: { a: "g * sign(a)" } },
  sigmoid: { value: "sigmoid_(a)", grad: { a: "g * y * (1.0 - y)" } },
  tanh: { value: "tanh_(a)", grad: { a: "g * (1.0 - y * y)" } },
  relu: { value: "max(a, vec4f(0.0))", grad: { a: "g * vec4f(a > vec4f(0.0))" } },
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
  clamp: { value: "min(max(a, b), c)", grad: { a: "g * vec4f((a >= b) & (a <= c))" } },
  pow: { value: "pow_(a, b)", grad: { a: "g * b * pow_(a, b - 1.0)" } },
  // The condition is a.
  where: {
    value: "select(c, b, a != vec4f(0.0))",
    grad: { b: "select(vec4f(0.0), g, a != vec4f(0.0))", c: "select(g, vec4f(0.0), a != vec4f(0.0))" },
  },
  lt: { value: "vec4f(a < b)", dtype: "bool" },
  le: { value: "vec4f(a <= b)", dtype: "bool" },
  gt: { value: "vec4f(a > b)", dtype: "bool" },
  ge: { value: "vec4f(a >= b)", dtype: "bool" },
  eq: { value: "vec4f(a == b)", dtype: "bool" },
  logicalAnd: { value: "vec4f((a != vec4f(0.0)) & (b != vec4f(0.0)))", dtype: "bool" },
  logicalOr: { value: "vec4f((a != vec4f(0.0)) | (b != vec4f(0.0)))", dtype: "bool" },
  logicalNot: { value: "vec4f(a == vec4f(0.0))", dtype: "bool" },
  copy: { value: "a", grad: { a: "g" } },
} satisfies Record<string, Row>;

type Operand = Tensor | number;
type Slot = "a" | "b" | "c" | "g";
const SLOTS: readonly Slot[] = ["a", "b", "c", "g"];
const TYPES: Record<DType, number> = { f32: 0, i32: 1, u32: 2, bool: 3, f16: 0 };

/** Evaluates an expression over operands that broadcast to `shape`. `name` labels the pipeline: one for each expression. */
function evaluate(
  name: string,
  expression: string,
  operands: Partial<Record<Slot, Operand>>,
  shape: Shape,
  dtype: DType,
): Tensor {
  const tensors = SLOTS.map((s) => operands[s]).filter((x) => x instanceof Tensor);
  const device = tensors[0]!.device;
  const y = empty(device, shape, dtype);
  if (y.size === 0) return y;

  let modes = 0;
  let types = TYPES[dtype] << 8;
  const numbers = [0, 0, 0, 0];
  const strides: number[][] = [];
  SLOTS.forEach((slot, k) => {
    const x = operands[slot];
    const own = x instanceof Tensor ? broadcastStrides(x.shape, shape) : shape.map(() => 0);
    strides.push(own);
    if (!(x instanceof Tensor)) {
      modes |= 2 << (k * 2);
      numbers[k] = x ?? 0;
      return;
    }
    types |= TYPES[x.dtype] << (k * 2);
    if (x.size !== y.size) modes |= 1 << (k * 2);
  });
  const plain = types === 0 && (modes & 0x55) === 0;
  const source = `pointwise ${name}${plain ? " plain" : ""}`;
  defineSource(source, () => {
    const loads = SLOTS.filter((s) => new RegExp(`\\b${s}\\b`).test(expression)).map(
      (s) => `let ${s}_ = ${plain ? "plain" : "load"}_${s}(i);`,
    );
    // The operands' names are those of the bindings too, so inside the row they are written with an underscore.
    const body = `${loads.join(" ")} return ${expression.replace(/\b([abcg])\b(?!_)/g, "$1_")};`;
    return platform()
      .shader("pointwise")
      .replace(/\/\/ <row>[\s\S]*\/\/ <\/row>/, body);
  });

  const walk = collapse(shape, strides);
  if (walk.shape.length > 8)
    throw new Error(
      `${name}: broadcasting over more than 8 separate dimensions is not offered; reshape the operands first`,
    );

  const first = tensors[0]!;
  const bind: Record<string, Tensor> = {};
  for (const slot of SLOTS) {
    const x = operands[slot];
    bind[slot] = x instanceof Tensor ? x : first;
  }
  bind.y = y;
  const last = walk.shape.length - 1;
  const vectors =
    last >= 0 &&
    walk.shape[last]! % 4 === 0 &&
    walk.strides.every(
      (own) => own[last]! === 0 || (own[last] === 1 && own.every((stride, d) => d === last || stride % 4 === 0)),
    );
  run(device, source, plain ? "forward_plain" : "forward", {
    bind,
    params: {
      n: y.size,
      rank: walk.shape.length,
      modes,
      types,
      numbers,
      vectors: vectors ? 1 : 0,
      shape: walk.shape,
      strides: walk.shape.flatMap((_, d) => walk.strides.map((own) => own[d]!)),
    },
    groups: linearGroups(Math.ceil(y.size / 256)),
  });
  return y;
}

function check(op: string, operands: readonly (Operand | undefined)[]): void {
  let device: unknown;
  operands.forEach((x, i) => {
    if (typeof x === "number" || x === undefined) return;
    if (!(x instanceof Tensor))
      throw new Error(`${op}: argument ${i + 1} must be a tensor or a number; got ${typeof x}`);
    if (x.dtype === "f16")
      throw new Error(`${op}: argument ${i + 1} is f16, which is storage only; F.cast(x, "f32") first`);
    device ??= x.device;
    if (x.device !== device)
      throw new Error(`${op}: argument ${i + 1} lives on another device than the arguments before it`);
  });
  if (!device) throw new Error(`${op}: at least one argument must be a tensor`);
}

function apply(op: keyof typeof table, a: Operand, b?: Operand, c?: Operand, label: string = op): Tensor {
  check(label, [a, b, c]);
  const row: Row = table[op];
  const operands = { a, b, c };
  const tensors = [a, b, c].filter((x) => x instanceof Tensor);
  const shape = tensors.length === 1 ? tensors[0]!.shape : broadcastShapes(label, ...tensors.map((x) => x.shape));
  const typed = op === "where" ? tensors.slice(1) : tensors;
  const common = typed.every((x) => x.dtype === typed[0]!.dtype) ? (typed[0]?.dtype ?? "f32") : "f32";
  // Numbers do not change a tensor's type, but counting with truth values or fractions needs a number type.
  const dtype = row.dtype ?? (common === "bool" && op !== "where" && op !== "copy" ? "f32" : common);
  const used = Object.fromEntries(Object.entries(operands).filter(([, x]) => x !== undefined)) as Partial<
    Record<Slot, Operand>
  >;
  const y = evaluate(op, row.value, used, shape, dtype);
  const { grad } = row;
  if (!grad) return y;
  const slots = (["a", "b", "c"] as const).filter((s) => operands[s] instanceof Tensor);
  return record(label, tensors, y, (gy) =>
    slots.map((slot) => {
      const x = operands[slot] as Tensor;
      const derivative = grad[slot];
      if (!x.requiresGrad || !derivative) return null;
      if (derivative === "g") return sumTo(gy, x.shape);
      // The result takes the place of c: no row has both three operands and a derivative that needs the result.
      const withY = /\by\b/.test(derivative);
      const from = { ...used, ...(withY ? { c: y } : {}), g: gy };
      return sumTo(evaluate(`${op}/grad_${slot}`, derivative.replace(/\by\b/g, "c"), from, shape, "f32"), x.shape);
    }),
  );
}

export const add = (a: Operand, b: Operand): Tensor => apply("add", a, b);
export const sub = (a: Operand, b: Operand): Tensor => apply("sub", a, b);
export const mul = (a: Operand, b: Operand): Tensor => apply("mul", a, b);
export const div = (a: Operand, b: Operand): Tensor => apply("div", a, b);
/** Elementwise larger value; ties share the gradient. */
export const maximum = (a: Operand, b: Operand): Tensor => apply("maximum", a, b);
/** Elementwise smaller value; ties share the gradient. */
export const minimum = (a: Operand, b: Operand): Tensor => apply("minimum", a, b);
export const neg = (x: Tensor): Tensor => apply("neg", x);
export const exp = (x: Tensor): Tensor => apply("exp", x);
export const log = (x: Tensor): Tensor => apply("log", x);
export const sqrt = (x: Tensor): Tensor => apply("sqrt", x);
/** |x|; the gradient at 0 is 0. */
export const abs = (x: Tensor): Tensor => apply("abs", x);
export const sigmoid = (x: Tensor): Tensor => apply("sigmoid", x);
export const tanh = (x: Tensor): Tensor => apply("tanh", x);
export const relu = (x: Tensor): Tensor => apply("relu", x);
export const silu = (x: Tensor): Tensor => apply("silu", x);
export const sin = (x: Tensor): Tensor => apply("sin", x);
export const cos = (x: Tensor): Tensor => apply("cos", x);
export const erf = (x: Tensor): Tensor => apply("erf", x);
/** x times the normal distribution function, exact or by the tanh form (Hendrycks and Gimpel 2016). */
export function gelu(x: Tensor, options: { approximate?: "none" | "tanh" } = {}): Tensor {
  return apply(options.approximate === "tanh" ? "geluTanh" : "geluNone", x, undefined, undefined, "gelu");
}
/** Limits x to [min, max]; the gradient passes where x lies inside, the ends included. */
export function clamp(x: Tensor, options: { min?: number; max?: number }): Tensor {
  return apply("clamp", x, options.min ?? -3.4e38, options.max ?? 3.4e38);
}
/** x to the power of a number. */
export const pow = (x: Tensor, p: number): Tensor => apply("pow", x, p);
/** `a` where `condition` is not 0, else `b`. */
export const where = (condition: Tensor, a: Operand, b: Operand): Tensor => apply("where", condition, a, b);
export const lt = (a: Operand, b: Operand): Tensor => apply("lt", a, b);
export const le = (a: Operand, b: Operand): Tensor => apply("le", a, b);
export const gt = (a: Operand, b: Operand): Tensor => apply("gt", a, b);
export const ge = (a: Operand, b: Operand): Tensor => apply("ge", a, b);
export const eq = (a: Operand, b: Operand): Tensor => apply("eq", a, b);
export const logicalAnd = (a: Operand, b: Operand): Tensor => apply("logicalAnd", a, b);
export const logicalOr = (a: Operand, b: Operand): Tensor => apply("logicalOr", a, b);
export const logicalNot = (x: Tensor): Tensor => apply("logicalNot", x);

/** Converts between f32, i32, u32 and bool (not 0), truncating towards 0; f16 goes to and from f32. */
export function cast(x: Tensor, dtype: DType): Tensor {
  if (x.dtype === dtype) return x;
  if (x.dtype === "f16" || dtype === "f16") {
    if (x.dtype !== "f32" && dtype !== "f32") return cast(cast(x, "f32"), dtype);
    const y = empty(x.device, x.shape, dtype);
    const pairs = Math.ceil(x.size / 2);
    run(x.device, "half", dtype === "f16" ? "pack" : "unpack", {
      bind: dtype === "f16" ? { full: x, packed_out: y } : { packed: x, full_out: y },
      params: { pairs },
      groups: linearGroups(Math.ceil(pairs / 64)),
    });
    return record("cast", [x], y, (gy) => [gy]);
  }
  const y = evaluate("copy", table.copy.value, { a: x }, x.shape, dtype);
  return dtype === "f32" && x.dtype === "f32" ? record("cast", [x], y, (gy) => [gy]) : y;
}
