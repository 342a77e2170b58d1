import * as F from "../functional.ts";
import { type Shape, sizeOf } from "../shape.ts";
import { type Case, type Cases, halved } from "./case.ts";

interface Window {
  stride?: [number, number];
  /** [left, right, top, bottom] */
  padding?: [number, number, number, number];
  dilation?: [number, number];
  groups?: number;
}

/** y[b, o, oy, ox] += w[o, i, ky, kx] * x[b, g, i, iy, ix], calling `meet` with the three offsets for every pair that meets. */
function walk(x: Shape, w: Shape, y: Shape, o: Window, meet: (x: number, w: number, y: number) => void): void {
  const [sy, sx] = o.stride ?? [1, 1];
  const [dy, dx] = o.dilation ?? [1, 1];
  const [left, , top] = o.padding ?? [0, 0, 0, 0];
  const groups = o.groups ?? 1;
  const [B, C, H, W] = x as [number, number, number, number];
  const [O, I, KH, KW] = w as [number, number, number, number];
  const [, , OH, OW] = y as [number, number, number, number];
  for (let b = 0; b < B; b++)
    for (let c = 0; c < O; c++)
      for (let i = 0; i < I; i++)
        for (let ky = 0; ky < KH; ky++)
          for (let kx = 0; kx < KW; kx++)
            for (let oy = 0; oy < OH; oy++) {
              const iy = oy * sy + ky * dy - top;
              if (iy < 0 || iy >= H) continue;
              const channel = Math.floor(c / (O / groups)) * I + i;
              const from = ((b * C + channel) * H + iy) * W;
              const to = ((b * O + c) * OH + oy) * OW;
              for (let ox = 0; ox < OW; ox++) {
                const ix = ox * sx + kx * dx - left;
                if (ix >= 0 && ix < W) meet(from + ix, ((c * I + i) * KH + ky) * KW + kx, to + ox);
              }
            }
}

function convShape(x: Shape, w: Shape, o: Window): number[] {
  const [left, right, top, bottom] = o.padding ?? [0, 0, 0, 0];
  const size = (n: number, pad: number, k: number, d: number, s: number): number =>
    Math.floor((n + pad - d * (k - 1) - 1) / s) + 1;
  return [
    x[0]!,
    w[0]!,
    size(x[2]!, top + bottom, w[2]!, o.dilation?.[0] ?? 1, o.stride?.[0] ?? 1),
    size(x[3]!, left + right, w[3]!, o.dilation?.[1] ?? 1, o.stride?.[1] ?? 1),
  ];
}

/** Adds b[c] to every pixel of channel c. */
function biased(y: Float64Array, shape: Shape, bias?: Float64Array): Float64Array {
  if (!bias) return y;
  const plane = shape[2]! * shape[3]!;
  return y.map((v, i) => v + bias[Math.floor(i / plane) % shape[1]!]!);
}

function conv(x: Shape, w: Shape, o: Window = {}, bias = true, name = ""): Case {
  const shape = convShape(x, w, o);
  return {
    name: name || `(${x}) * (${w}) ${JSON.stringify(o)}`,
    inputs: bias ? [x, w, [w[0]!]] : [x, w],
    run: ([x, w, b]) => F.conv2d(x!, w!, { ...o, bias: b }),
    reference: (xs, ws, b) => {
      const y = new Float64Array(sizeOf(shape));
      walk(x, w, shape, o, (i, k, to) => {
        y[to]! += xs![i]! * ws![k]!;
      });
      return biased(y, shape, b);
    },
  };
}

const ACTIVATIONS = {
  tanh: Math.tanh,
  silu: (v: number): number => v / (1 + Math.exp(-v)),
};

/** Convolution, residual and activation in one kernel. */
function ended(
  x: Shape,
  w: Shape,
  o: Window,
  activation: keyof typeof ACTIVATIONS,
  residual = true,
  bias = true,
): Case {
  const plain = conv(x, w, o, bias);
  const shape = convShape(x, w, o);
  const inputs: Case["inputs"] = [...plain.inputs, ...(residual ? [shape] : [])];
  return {
    name: `${activation} of ${plain.name}`,
    inputs,
    run: ([t, k, ...more]) =>
      F.conv2d(t!, k!, { ...o, bias: bias ? more.shift() : undefined, residual: more[0], activation }),
    reference: (xs, ws, ...more) => {
      const b = bias ? more.shift() : undefined;
      const rest = more[0];
      return Array.from(plain.reference(xs!, ws!, b!), (v, i) => ACTIVATIONS[activation](v + (rest?.[i] ?? 0)));
    },
  };
}

function transposed(x: Shape, w: Shape, stride: number, padding: number, bias = true, name = ""): Case {
  const size = (n: number, k: number): number => (n - 1) * stride - 2 * padding + k;
  const shape = [x[0]!, w[1]!, size(x[2]!, w[2]!), size(x[3]!, w[3]!)];
  return {
    name: name || `(${x}) * (${w}) by ${stride}, padding ${padding}`,
    inputs: bias ? [x, w, [w[1]!]] : [x, w],
    run: ([x, w, b]) => F.convTranspose2d(x!, w!, { stride, padding, bias: b }),
    reference: (xs, ws, b) => {
      const y = new Float64Array(sizeOf(shape));
      // The convolution of y that gives x, walked backwards.
      const o: Window = { stride: [stride, stride], padding: [padding, padding, padding, padding] };
      walk(shape, w, x, o, (to, k, from) => {
        y[to]! += xs![from]! * ws![k]!;
      });
      return biased(y, shape, b);
    },
  };
}

/** Values 0.002 apart, in an order that depends on the place: no ties, and steps of the differences never swap two. */
const distinct = (shape: Shape) => ({
  shape,
  values: (_: unknown, i: number) => ((i * 7919) % sizeOf(shape)) / 500 - 3,
});

function pooled(
  x: Shape,
  size: [number, number],
  stride: [number, number] | undefined,
  padding: [number, number],
  isMax: boolean,
): Case {
  const [sy, sx] = stride ?? size;
  const planes = sizeOf(x.slice(0, -2));
  const [h, w] = x.slice(-2) as [number, number];
  const oh = Math.floor((h + 2 * padding[0] - size[0]) / sy) + 1;
  const ow = Math.floor((w + 2 * padding[1] - size[1]) / sx) + 1;
  return {
    name: `(${x}) by ${size}`,
    inputs: [isMax ? distinct(x) : x],
    run: ([t]) => (isMax ? F.maxPool2d : F.avgPool2d)(t!, size, { padding, ...(stride ? { stride } : {}) }),
    reference: (v) =>
      Float64Array.from({ length: planes * oh * ow }, (_, i) => {
        const plane = Math.floor(i / (oh * ow));
        const [oy, ox] = [Math.floor(i / ow) % oh, i % ow];
        let best = Number.NEGATIVE_INFINITY;
        let total = 0;
        for (let ky = 0; ky < size[0]; ky++)
          for (let kx = 0; kx < size[1]; kx++) {
            const [iy, ix] = [oy * sy - padding[0] + ky, ox * sx - padding[1] + kx];
            if (iy < 0 || ix < 0 || iy >= h || ix >= w) continue;
            best = Math.max(best, v![(plane * h + iy) * w + ix]!);
            total += v![(plane * h + iy) * w + ix]!;
          }
        return isMax ? best : total / (size[0] * size[1]);
      }),
  };
}

const around = (p: number): [number, number, number, number] => [p, p, p, p];

function pools(isMax: boolean): Case[] {
  return [
    pooled([1, 1, 1, 1], [1, 1], undefined, [0, 0], isMax),
    pooled([2, 3, 7, 8], [2, 2], undefined, [0, 0], isMax),
    pooled([2, 3, 10, 24], [2, 2], undefined, [0, 0], isMax),
    pooled([1, 2, 9, 13], [3, 3], [2, 2], [1, 1], isMax),
    pooled([3, 11, 6], [2, 3], [1, 2], [1, 0], isMax),
    pooled([2, 5, 33, 29], [3, 3], [2, 2], [1, 1], isMax),
  ];
}

export const convCases: Cases = {
  conv2d: [
    conv([1, 1, 1, 1], [1, 1, 1, 1]),
    conv([2, 3, 5, 7], [4, 3, 3, 3], { padding: around(1) }),
    conv([2, 3, 7, 5], [5, 3, 3, 2], { stride: [2, 3], padding: [0, 1, 2, 1] }),
    conv([1, 5, 9, 8], [7, 5, 3, 3], { dilation: [2, 3], padding: around(3) }),
    conv([2, 4, 11, 9], [6, 4, 5, 3], { stride: [3, 2], dilation: [2, 2], padding: [1, 2, 3, 4] }),
    conv([1, 6, 8, 7], [9, 2, 3, 3], { groups: 3, stride: [2, 2], padding: around(1) }),
    conv([2, 12, 5, 7], [20, 6, 3, 3], { groups: 2, padding: around(1) }, true, "groups of 10 channels"),
    conv([1, 40, 9, 10], [36, 40, 3, 3], { padding: around(1) }, false),
    conv([1, 130, 7, 7], [12, 130, 1, 1], {}, true, "1x1 odd plane"),
    conv([2, 33, 6, 6], [70, 33, 1, 1], {}, true, "1x1"),
    conv([2, 16, 7, 7], [8, 16, 1, 1], { stride: [2, 2] }, true, "1x1 stride 2"),
    conv([2, 3, 8, 12], [20, 3, 4, 4], { stride: [4, 4] }, true, "patches"),
    conv([1, 3, 9, 13], [8, 3, 4, 4], { stride: [4, 4] }, false, "patches with a rest"),
    conv([1, 3, 37, 41], [16, 3, 7, 7], { stride: [2, 2], padding: around(3) }, false, "stem"),
    conv([2, 7, 9, 8], [7, 1, 3, 3], { groups: 7, padding: around(1) }, true, "depthwise"),
    conv(
      [1, 5, 9, 10],
      [10, 1, 3, 5],
      { groups: 5, stride: [2, 3], dilation: [2, 1], padding: around(2) },
      true,
      "depthwise x2 strided",
    ),
    conv([2, 3, 7, 11], [3, 1, 3, 3], { groups: 3, dilation: [2, 2], padding: around(2) }, true, "depthwise dilated"),
    conv(
      [1, 3, 8, 13],
      [6, 1, 3, 5],
      { groups: 3, stride: [3, 2], dilation: [1, 3], padding: [5, 4, 1, 2] },
      false,
      "depthwise dilated and strided",
    ),
    conv([1, 130, 5, 6], [130, 1, 5, 5], { groups: 130, padding: around(2) }, false, "depthwise 130"),
    ended([2, 3, 5, 7], [4, 3, 3, 3], { padding: around(1) }, "tanh"),
    ended([2, 12, 5, 7], [20, 6, 3, 3], { groups: 2 }, "silu", true, false),
    ended([2, 3, 5, 7], [4, 3, 3, 3], {}, "tanh", true, false),
    ended([1, 8, 6, 6], [18, 8, 3, 3], { padding: around(1) }, "tanh"),
    ended([1, 8, 6, 6], [36, 8, 1, 1], {}, "tanh", false),
    ended([2, 5, 7, 6], [5, 1, 3, 3], { groups: 5, padding: around(1) }, "tanh"),
    halved(conv([2, 3, 7, 5], [5, 3, 3, 3], { stride: [2, 3], padding: [0, 1, 2, 1] }), 1),
    halved(conv([1, 6, 8, 7], [9, 2, 3, 3], { groups: 3, stride: [2, 2], padding: around(1) }), 1),
    halved(conv([2, 7, 9, 8], [7, 1, 3, 3], { groups: 7, padding: around(1) }, true, "depthwise"), 1),
    conv([1, 64, 10, 12], [64, 64, 3, 3], { padding: around(1) }, false, "real"),
    conv([1, 96, 32, 32], [96, 1, 3, 3], { groups: 96, padding: around(1) }, false, "real depthwise"),
  ],
  convTranspose2d: [
    transposed([1, 1, 1, 1], [1, 1, 1, 1], 1, 0),
    transposed([2, 3, 4, 5], [3, 4, 2, 2], 2, 0),
    transposed([1, 5, 6, 7], [5, 3, 3, 3], 2, 1),
    transposed([2, 7, 5, 4], [7, 6, 4, 3], 3, 2),
    transposed([1, 4, 7, 6], [4, 5, 3, 3], 1, 1),
    transposed([1, 3, 5, 4], [3, 2, 2, 2], 3, 0),
    halved(transposed([1, 5, 6, 7], [5, 3, 3, 3], 2, 1), 1),
    transposed([1, 64, 16, 12], [64, 32, 2, 2], 2, 0, false, "real"),
  ],
  maxPool2d: pools(true),
  avgPool2d: pools(false),
};
