/** Resizing of images by bilinear or nearest sampling. */
import { checkFloats, checkOptions } from "../check.ts";
import { linearGroups, run } from "../kernel.ts";
import { show } from "../shape.ts";
import { record } from "../tape.ts";
import { empty, type Tensor } from "../tensor.ts";

export interface InterpolateOptions {
  /** Height and width of the result; a number is both. */
  size?: number | readonly number[];
  /** Or the factor by which both sides, or each of them, grow. */
  scaleFactor?: number | readonly number[];
  mode?: "bilinear" | "nearest";
  /** Bilinear only: corner pixels keep their place. */
  alignCorners?: boolean;
}

/** Output o reads the input at (o a + b) / den. */
interface Axis {
  in: number;
  out: number;
  a: number;
  b: number;
  den: number;
}

/** The nearest fraction p / q with q up to 4096: factors are written with a few digits, and these come out exactly. */
function fraction(v: number): [number, number] {
  for (let q = 1; q < 4096; q++) {
    const p = Math.round(v * q);
    if (p > 0 && Math.abs(p / q - v) <= 1e-9 * v) return [p, q];
  }
  return [Math.max(1, Math.round(v * 4096)), 4096];
}

function axisOf(from: number, to: number, factor: number | undefined, nearest: boolean, alignCorners: boolean): Axis {
  if (alignCorners) return { in: from, out: to, a: to > 1 ? from - 1 : 0, b: 0, den: Math.max(to - 1, 1) };
  // The input's step for one of the output: as torch does, by the factor itself where one is given.
  const [p, q] = factor === undefined ? [to, from] : fraction(factor);
  return nearest ? { in: from, out: to, a: q, b: 0, den: p } : { in: from, out: to, a: 2 * q, b: q - p, den: 2 * p };
}

function gradAlong(
  g: Tensor,
  shape: readonly number[],
  outer: number,
  inner: number,
  axis: Axis,
  nearest: boolean,
): Tensor {
  const gx = empty(g.device, shape);
  const four = inner % 4 === 0;
  run(g.device, "interpolate", four ? "grad_axis4" : "grad_axis", {
    bind: four ? { g4: g, gx4: gx } : { g, gx },
    params: {
      planes: 0,
      planes_each: 1,
      y_axis: [axis.in, axis.out, axis.a, axis.den],
      x_axis: [],
      y_shift: axis.b,
      x_shift: 0,
      inner: four ? inner / 4 : inner,
      outer,
    },
    constants: { NEAREST: nearest ? 1 : 0 },
    groups: linearGroups(Math.ceil(gx.size / (four ? 256 : 64))),
  });
  return gx;
}

/** torch.nn.functional.interpolate of images (N, C, H, W); mode "nearest" unless told otherwise, corners not aligned. */
export function interpolate(x: Tensor, options: InterpolateOptions = {}): Tensor {
  checkFloats("interpolate", { x });
  checkOptions("interpolate", options, {
    size: "any",
    scaleFactor: "any",
    mode: ["bilinear", "nearest"],
    alignCorners: "boolean",
  });
  const { mode = "nearest", alignCorners = false, size, scaleFactor } = options;
  if (x.shape.length !== 4) throw new Error(`interpolate: x must be (N, C, H, W); got ${show(x.shape)}`);
  if ((size === undefined) === (scaleFactor === undefined))
    throw new Error("interpolate: give either size or scaleFactor");
  if (alignCorners && mode === "nearest") throw new Error("interpolate: alignCorners goes with mode bilinear only");
  const [n, c, h, w] = x.shape as [number, number, number, number];
  const both = (v: number | readonly number[]): readonly number[] => (typeof v === "number" ? [v, v] : v);
  const factors = scaleFactor === undefined ? undefined : both(scaleFactor);
  const [outH, outW] =
    size !== undefined ? both(size) : [Math.floor(h * factors![0]! + 1e-9), Math.floor(w * factors![1]! + 1e-9)];
  if (![outH, outW].every((v) => Number.isInteger(v) && v! > 0) || h === 0 || w === 0)
    throw new Error(
      `interpolate: x is ${show(x.shape)}; the result must have a whole height and width from 1 up; got ${outH} x ${outW}`,
    );
  const nearest = mode === "nearest";
  const rows = axisOf(h, outH!, factors?.[0], nearest, alignCorners);
  const columns = axisOf(w, outW!, factors?.[1], nearest, alignCorners);
  if ([rows, columns].some((axis) => axis.out * axis.a + Math.abs(axis.b) > 2 ** 31 - 1))
    throw new Error(
      `interpolate: ${show(x.shape)} to ${outH} x ${outW} is too large to keep positions exact; resize in two steps`,
    );

  const planes = n * c;
  const area = outH! * outW!;
  const y = empty(x.device, [n, c, outH!, outW!]);
  // Enough invocations to fill the adapter; beyond that planes share the work of finding positions.
  const each = Math.max(1, Math.min(planes, Math.floor((area * planes) / 16384), 16));
  run(x.device, "interpolate", "forward", {
    bind: { x, y },
    params: {
      planes,
      planes_each: each,
      y_axis: [h, outH!, rows.a, rows.den],
      x_axis: [w, outW!, columns.a, columns.den],
      y_shift: rows.b,
      x_shift: columns.b,
      inner: 0,
      outer: 0,
    },
    constants: { NEAREST: nearest ? 1 : 0 },
    groups: linearGroups(Math.ceil((area * Math.ceil(planes / each)) / 64)),
  });
  return record("interpolate", [x], y, (g) => {
    const byRow = gradAlong(g, [n, c, h, outW!], planes, outW!, rows, nearest); // (N, C, H, outW)
    return [gradAlong(byRow, x.shape, planes * h, 1, columns, nearest)];
  });
}
