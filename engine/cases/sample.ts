/** Cases of the operations that read images at positions. Positions keep away from pixel borders, where derivatives jump. */
import * as F from "../functional.ts";
import type { Random } from "../random.ts";
import type { Case, Cases } from "./case.ts";

type Options = F.InterpolateOptions;

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

type GridOptions = Parameters<typeof F.gridSample>[2];

/** Coordinates whose positions keep a tenth of a pixel away from pixel centres, where the slope jumps, some outside the image. */
function coordinates(h: number, w: number, options: GridOptions, reach: number) {
  return (random: Random, i: number): number => {
    const size = i % 2 === 0 ? w : h;
    const cell = random.int(size + 2 * reach) - reach;
    const position = cell + random.uniform(0.1, 0.4) + (random.uniform() < 0.5 ? 0 : 0.5);
    return options?.alignCorners ? (size > 1 ? (2 * position) / (size - 1) - 1 : 0) : (2 * position + 1) / size - 1;
  };
}

function sample64(
  x: Float64Array,
  grid: Float64Array,
  shape: readonly number[],
  points: number,
  options: GridOptions = {},
): Float64Array {
  const [n, c, h, w] = shape as [number, number, number, number];
  const y = new Float64Array(n * c * points);
  const position = (v: number, size: number): number => {
    const at = options.alignCorners ? ((v + 1) * (size - 1)) / 2 : ((v + 1) * size - 1) / 2;
    return options.paddingMode === "border" ? Math.min(Math.max(at, 0), size - 1) : at;
  };
  for (let b = 0; b < n; b++)
    for (let p = 0; p < points; p++) {
      const px = position(grid[(b * points + p) * 2]!, w);
      const py = position(grid[(b * points + p) * 2 + 1]!, h);
      const nearest = options.mode === "nearest";
      const [x0, y0] = nearest ? [Math.round(px), Math.round(py)] : [Math.floor(px), Math.floor(py)];
      const [fx, fy] = nearest ? [0, 0] : [px - x0, py - y0];
      for (let ch = 0; ch < c; ch++) {
        const at = (r: number, q: number): number =>
          r < 0 || r >= h || q < 0 || q >= w ? 0 : x[((b * c + ch) * h + r) * w + q]!;
        y[(b * c + ch) * points + p] =
          (1 - fy) * ((1 - fx) * at(y0, x0) + fx * at(y0, x0 + 1)) +
          fy * ((1 - fx) * at(y0 + 1, x0) + fx * at(y0 + 1, x0 + 1));
      }
    }
  return y;
}

function gridSample(x: readonly number[], out: readonly [number, number], options: GridOptions = {}, reach = 2): Case {
  const [n, , h, w] = x as [number, number, number, number];
  return {
    name: `(${x}) at (${out}) ${JSON.stringify(options)}`,
    inputs: [x, { shape: [n, ...out, 2], values: coordinates(h, w, options, reach) }],
    run: ([a, grid]) => F.gridSample(a!, grid!, options),
    reference: (a, grid) => sample64(a, grid, x, out[0] * out[1], options),
  };
}

interface Deform {
  name: string;
  b?: number;
  q: number;
  m: number;
  d: number;
  p: number;
  shapes: readonly (readonly [number, number])[];
  reach?: number;
}

function deform({ name, b = 1, q, m, d, p, shapes, reach = 1 }: Deform): Case {
  const s = shapes.reduce((sum, [h, w]) => sum + h * w, 0);
  const l = shapes.length;
  const location = (random: Random, i: number): number => {
    const size = shapes[Math.floor(i / (2 * p)) % l]![i % 2 === 0 ? 1 : 0];
    return (random.int(size + 2 * reach) - reach + random.uniform(0.1, 0.9) + 0.5) / size;
  };
  return {
    name,
    inputs: [[b, s, m, d], { shape: [b, q, m, l, p, 2], values: location }, [b, q, m, l, p]],
    run: ([value, locations, weights]) => F.msDeformAttn(value!, shapes, locations!, weights!),
    reference: (value, locations, weights) => {
      const y = new Float64Array(b * q * m * d);
      for (let head = 0; head < b * q * m; head++) {
        const image = Math.floor(head / (q * m));
        let first = 0;
        shapes.forEach(([h, w], level) => {
          for (let k = 0; k < p; k++) {
            const sample = (head * l + level) * p + k;
            const px = locations[2 * sample]! * w - 0.5;
            const py = locations[2 * sample + 1]! * h - 0.5;
            for (const row of [Math.floor(py), Math.floor(py) + 1])
              for (const column of [Math.floor(px), Math.floor(px) + 1]) {
                if (row < 0 || row >= h || column < 0 || column >= w) continue;
                const share = (1 - Math.abs(py - row)) * (1 - Math.abs(px - column)) * weights[sample]!;
                const from = ((image * s + first + row * w + column) * m + (head % m)) * d;
                for (let c = 0; c < d; c++) y[head * d + c]! += share * value[from + c]!;
              }
          }
          first += h * w;
        });
      }
      return y;
    },
  };
}

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
  gridSample: [
    gridSample([1, 1, 1, 1], [1, 7]),
    gridSample([2, 3, 5, 7], [3, 4]),
    gridSample([2, 3, 5, 7], [3, 4], { alignCorners: true }),
    gridSample([1, 6, 5, 7], [1, 65], { paddingMode: "border" }),
    gridSample([1, 2, 4, 3], [5, 13], { paddingMode: "border", alignCorners: true }),
    gridSample([1, 2, 6, 5], [5, 13], { mode: "nearest" }),
    gridSample([1, 2, 6, 5], [5, 13], { mode: "nearest", paddingMode: "border", alignCorners: true }),
    gridSample([1, 5, 3, 333], [1, 130]),
    { ...gridSample([1, 1, 8, 8], [1, 130], {}, -3), name: "many samples in few cells" },
    { ...gridSample([1, 1, 4, 4], [1, 9], {}, 40), name: "mostly far outside" },
    { ...gridSample([4, 1, 32, 32], [1, 1000], {}, 0), name: "real: points of masks" },
  ],
  msDeformAttn: [
    deform({ name: "1", q: 1, m: 1, d: 1, p: 1, shapes: [[1, 1]], reach: 0 }),
    deform({
      name: "odd",
      b: 2,
      q: 5,
      m: 3,
      d: 7,
      p: 2,
      shapes: [
        [3, 5],
        [2, 1],
      ],
    }),
    deform({ name: "one past a workgroup", q: 65, m: 1, d: 4, p: 1, shapes: [[4, 3]] }),
    deform({
      name: "mostly outside",
      q: 13,
      m: 2,
      d: 4,
      p: 3,
      shapes: [
        [2, 3],
        [1, 1],
      ],
      reach: 4,
    }),
    deform({ name: "all in one cell", q: 130, m: 1, d: 4, p: 4, shapes: [[3, 3]], reach: -1 }),
    deform({ name: "one level of a large map", q: 3, m: 1, d: 4, p: 4, shapes: [[1, 333]] }),
    deform({
      name: "real",
      q: 84,
      m: 8,
      d: 8,
      p: 4,
      shapes: [
        [2, 2],
        [4, 4],
        [8, 8],
      ],
    }),
  ],
};
