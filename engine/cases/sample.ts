/** Cases of the operations that read images at positions. Positions keep away from pixel borders, where derivatives jump. */
import * as F from "../functional.ts";
import type { Case, Cases } from "./case.ts";

type Options = Parameters<typeof F.interpolate>[1];

/** Resizing in float64, position by position as PyTorch defines it. */
function resize64(x: Float64Array, shape: readonly number[], options: Options): Float64Array {
  const [n, c, h, w] = shape as [number, number, number, number];
  const s = options.scaleFactor;
  const factors = s === undefined ? undefined : typeof s === "number" ? [s, s] : s;
  const [oh, ow] = (options.size ?? [Math.floor(h * factors![0]!), Math.floor(w * factors![1]!)]) as [number, number];
  const taps = (o: number, from: number, to: number, factor: number | undefined): [number, number, number] => {
    const step = factor === undefined ? from / to : 1 / factor;
    if (options.mode !== "bilinear") return [Math.min(from - 1, Math.floor(o * step + 1e-9)), 0, 0];
    const at = options.alignCorners ? (to > 1 ? (o * (from - 1)) / (to - 1) : 0) : Math.max(0, (o + 0.5) * step - 0.5);
    const i = Math.min(from - 1, Math.floor(at + 1e-9));
    return [i, Math.min(i + 1, from - 1), at - i];
  };
  const y = new Float64Array(n * c * oh * ow);
  const columns = Array.from({ length: ow }, (_, o) => taps(o, w, ow, factors?.[1]));
  for (let p = 0; p < n * c; p++)
    for (let oy = 0; oy < oh; oy++) {
      const [r0, r1, fr] = taps(oy, h, oh, factors?.[0]);
      for (let ox = 0; ox < ow; ox++) {
        const [c0, c1, fc] = columns[ox]!;
        const at = (r: number, q: number): number => x[(p * h + r) * w + q]!;
        y[(p * oh + oy) * ow + ox] =
          (1 - fr) * ((1 - fc) * at(r0, c0) + fc * at(r0, c1)) + fr * ((1 - fc) * at(r1, c0) + fc * at(r1, c1));
      }
    }
  return y;
}

const interpolate = (shape: readonly number[], options: Options): Case => ({
  name: `(${shape}) ${JSON.stringify(options)}`,
  inputs: [shape],
  run: ([x]) => F.interpolate(x!, options),
  reference: (x) => resize64(x, shape, options),
});

export const sampleCases: Cases = {
  interpolate: [
    interpolate([1, 1, 1, 1], { size: [3, 2], mode: "bilinear" }),
    interpolate([2, 1, 7, 5], { size: [13, 9], mode: "bilinear" }),
    interpolate([1, 2, 7, 5], { size: [13, 1], mode: "bilinear", alignCorners: true }),
    interpolate([1, 3, 13, 10], { size: [4, 3], mode: "bilinear" }),
    interpolate([1, 1, 13, 10], { size: [4, 20], mode: "bilinear", alignCorners: true }),
    interpolate([2, 2, 4, 5], { scaleFactor: 2, mode: "bilinear" }),
    interpolate([1, 1, 7, 9], { scaleFactor: 1.3, mode: "bilinear" }),
    interpolate([1, 1, 7, 9], { scaleFactor: [0.5, 2.5] }),
    interpolate([1, 2, 7, 5], { size: [13, 9], mode: "nearest" }),
    interpolate([1, 2, 13, 10], { size: [4, 3], mode: "nearest" }),
    interpolate([1, 1, 2, 333], { size: [1, 1024], mode: "bilinear" }),
    interpolate([1, 130, 3, 3], { size: [5, 5], mode: "bilinear" }),
    interpolate([1, 8, 32, 32], { size: [64, 64], mode: "bilinear" }),
  ],
};

