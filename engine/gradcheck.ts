/**
 * Checks operations against their float64 twins: the forward values, and the gradient against central differences of the twin (never of
 * the GPU, which has no float64). Small inputs are checked element by element, larger ones along random directions.
 */
import type { Case, Cases } from "./cases/case.ts";
import { cases } from "./cases/index.ts";
import type { Device } from "./device.ts";
import { halfBits, halfValue } from "./half.ts";
import { Random } from "./random.ts";
import { scope } from "./scope.ts";
import { type Shape, sizeOf } from "./shape.ts";
import { backward } from "./tape.ts";

export const TOLERANCE = 1e-5;
/** Inputs with more elements are checked along this many random directions instead of element by element. */
const DIRECTIONS = 8;
const ELEMENTWISE = 400;
/** Step of the central differences in float64: truncation near 1e-10, rounding near 1e-11. */
const STEP = 1e-5;

export interface CheckResult {
  op: string;
  cases: number;
  maxRelError: number;
  pass: boolean;
  /** The case and the quantity with the largest error. */
  worst: string;
}

/** max |got - want| / max(1, max |want|); anything that is not finite where the twin is counts as infinitely wrong. */
export function tensorError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) return Number.POSITIVE_INFINITY;
  let difference = 0;
  let largest = 1;
  for (let i = 0; i < want.length; i++) {
    const d = Math.abs(got[i]! - want[i]!);
    if (!(d <= difference))
      difference = Number.isNaN(d) ? (Object.is(got[i], want[i]) ? difference : Number.POSITIVE_INFINITY) : d;
    largest = Math.max(largest, Math.abs(want[i]!));
  }
  return difference / largest;
}

const toHalf = (v: number): number => halfValue(halfBits(v));

/** Errors of one case: of the forward values ("y") and of each input's gradient ("gx0", "gx1", …). */
export async function checkCase(gpu: Device, test: Case, seed: number): Promise<Record<string, number>> {
  const random = new Random(seed);
  const inputs = test.inputs.map((input) => {
    const plain = Array.isArray(input) ? { shape: input as Shape } : (input as Exclude<typeof input, Shape>);
    const values = plain.values ?? ((r: Random) => r.normal());
    const dtype = plain.dtype ?? "f32";
    const held = dtype === "f32" ? Math.fround : dtype === "f16" ? toHalf : Math.trunc;
    const data = Float64Array.from({ length: sizeOf(plain.shape) }, (_, i) => held(values(random, i)));
    return { shape: plain.shape, data, dtype, differentiable: held !== Math.trunc && plain.differentiable !== false };
  });
  const want = Float64Array.from(test.reference(...inputs.map((x) => x.data)));
  const gy = Float64Array.from(want, () => Math.fround(random.normal()));

  return scope(async () => {
    const tensors = inputs.map((x) => gpu.tensor(x.data, x.shape, { dtype: x.dtype, requiresGrad: x.differentiable }));
    const y = test.run(tensors, gpu);
    const got = await y.toArray();
    const exact = y.dtype === "f32" || want.every((v, i) => v === got[i]);
    const errors: Record<string, number> = { y: exact ? tensorError(got, want) : Number.POSITIVE_INFINITY };
    if (!inputs.some((x) => x.differentiable)) return errors;
    backward(y, gpu.tensor(gy, y.shape));
    for (const [k, x] of inputs.entries()) {
      if (!x.differentiable) continue;
      const { grad } = tensors[k]!;
      if (!grad) {
        errors[`gx${k}`] = Number.POSITIVE_INFINITY;
        continue;
      }
      const got = await grad.toArray();
      const along = (direction: (i: number) => number): number => {
        const at = (sign: number): number => {
          const moved = x.data.map((v, i) => v + sign * STEP * direction(i));
          const out = test.reference(...inputs.map((other, j) => (j === k ? moved : other.data)));
          let dot = 0;
          for (let i = 0; i < gy.length; i++) dot += gy[i]! * out[i]!;
          return dot;
        };
        return (at(1) - at(-1)) / (2 * STEP);
      };
      if (x.data.length <= ELEMENTWISE) {
        const gradient = Float64Array.from(x.data, (_, e) => along((i) => (i === e ? 1 : 0)));
        errors[`gx${k}`] = tensorError(got, gradient);
      } else {
        const directions = Array.from({ length: DIRECTIONS }, () =>
          Float64Array.from(x.data, () => random.normal() / Math.sqrt(x.data.length)),
        );
        const dots = directions.map((d) => d.reduce((sum, v, i) => sum + v * got[i]!, 0));
        errors[`gx${k}`] = tensorError(
          dots,
          directions.map((d) => along((i) => d[i]!)),
        );
      }
    }
    return errors;
  });
}

/** Checks every case of `ops` (default: all functions of F that have a gradient, and those that have none but values). */
export async function gradcheck(
  gpu: Device,
  ops: readonly string[] = Object.keys(cases),
  table: Cases = cases,
): Promise<CheckResult[]> {
  const results: CheckResult[] = [];
  for (const op of ops) {
    const list = table[op];
    if (!list) throw new Error(`gradcheck: no function "${op}"; known are ${Object.keys(table).join(", ")}`);
    const result: CheckResult = { op, cases: list.length, maxRelError: 0, pass: true, worst: "" };
    for (const [i, test] of list.entries()) {
      const errors = await checkCase(gpu, test, 1000 + i);
      for (const [what, error] of Object.entries(errors)) {
        if (error <= result.maxRelError && result.worst) continue;
        result.maxRelError = error;
        result.worst = `case ${i}${test.name ? ` (${test.name})` : ""}: ${what}`;
      }
    }
    result.pass = result.maxRelError <= TOLERANCE;
    results.push(result);
  }
  return results;
}
