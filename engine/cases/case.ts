/** The form in which operations are put to the test: shapes and a float64 twin. Read by gradcheck, the unit tests and the bench. */
import type { Device } from "../device.ts";
import type { Random } from "../random.ts";
import type { Shape } from "../shape.ts";
import type { DType, Tensor } from "../tensor.ts";

/** An input of a case: a shape of standard normal numbers, or a shape with its own values. */
export type Input =
  | Shape
  | {
      shape: Shape;
      /** Value of element `i`; default: standard normal. Inputs are rounded to their type. */
      values?: (random: Random, i: number) => number;
      dtype?: DType;
      /** False: no gradient is asked for. Integer types never get one. */
      differentiable?: boolean;
    };

export interface Case {
  /** Says what is special: "broadcast", "odd", "real". */
  name?: string;
  inputs: readonly Input[];
  /** The operation under test; numbers and options are closed over. */
  run: (inputs: Tensor[], gpu: Device) => Tensor;
  /** The same in float64: arrays of the inputs' elements, in row-major order, to the output's elements. */
  reference: (...inputs: Float64Array[]) => ArrayLike<number>;
}

export type Cases = Record<string, readonly Case[]>;

/** The same case with the inputs of these numbers stored as f16. */
export const halved = (test: Case, ...which: number[]): Case => ({
  ...test,
  name: [`f16 ${which}`, test.name].join(" ").trim(),
  inputs: test.inputs.map((input, i) =>
    which.includes(i) ? { ...("shape" in input ? input : { shape: input }), dtype: "f16" } : input,
  ),
});

/** Uniform values in [low, high). */
export const between =
  (low: number, high: number) =>
  (random: Random): number =>
    random.uniform(low, high);

/** Normal values kept `gap` away from each of the `kinks`, where a derivative jumps. */
export const away =
  (gap: number, ...kinks: number[]) =>
  (random: Random): number => {
    const v = random.normal();
    const near = kinks.find((k) => Math.abs(v - k) < gap);
    return near === undefined ? v : near + (v < near ? -gap : gap) * 1.5;
  };

/** Whole numbers in 0..n-1. */
export const whole =
  (n: number) =>
  (random: Random): number =>
    random.int(n);
