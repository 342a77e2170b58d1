import * as F from "../functional.ts";
import { type Shape, sizeOf } from "../shape.ts";
import { between, type Case, type Cases } from "./case.ts";

/** Normalises the elements i of x by groups `groupOf(i)`, then scales and shifts them by channel `channelOf(i)`. */
function normalised(
  x: Float64Array,
  groupOf: (i: number) => number,
  channelOf: (i: number) => number,
  eps: number,
  weight?: Float64Array,
  bias?: Float64Array,
): Float64Array {
  const sums = new Map<number, { n: number; mean: number; squares: number }>();
  const at = (g: number) => sums.get(g) ?? sums.set(g, { n: 0, mean: 0, squares: 0 }).get(g)!;
  for (let i = 0; i < x.length; i++) {
    const s = at(groupOf(i));
    s.n++;
    s.mean += x[i]!;
  }
  for (const s of sums.values()) s.mean /= s.n;
  for (let i = 0; i < x.length; i++) {
    const s = at(groupOf(i));
    s.squares += (x[i]! - s.mean) ** 2;
  }
  return x.map((v, i) => {
    const s = at(groupOf(i));
    return (
      ((v - s.mean) / Math.sqrt(s.squares / s.n + eps)) * (weight?.[channelOf(i)] ?? 1) + (bias?.[channelOf(i)] ?? 0)
    );
  });
}

const constant = (shape: Shape) => ({ shape, values: () => 0.75 });
const shifted = (shape: Shape) => ({
  shape,
  values: (r: Parameters<ReturnType<typeof between>>[0]) => 30 + r.normal(),
});

function layer(
  x: Case["inputs"][number],
  shape: Shape,
  affine: "both" | "weight" | "none",
  eps = 1e-5,
  name = "",
): Case {
  const c = shape.at(-1)!;
  return {
    name: name || `(${shape})`,
    inputs: affine === "both" ? [x, [c], [c]] : affine === "weight" ? [x, [c]] : [x],
    run: ([x, w, b]) => F.layerNorm(x!, w, b, { eps }),
    reference: (x, w, b) =>
      normalised(
        x!,
        (i) => Math.floor(i / c),
        (i) => i % c,
        eps,
        w,
        b,
      ),
  };
}

function layer2d(x: Case["inputs"][number], shape: Shape, affine: "both" | "none", eps = 1e-6): Case {
  const c = shape[1]!;
  const hw = shape[2]! * shape[3]!;
  return {
    name: `(${shape})`,
    inputs: affine === "both" ? [x, [c], [c]] : [x],
    run: ([x, w, b]) => F.layerNorm2d(x!, w, b, { eps }),
    reference: (x, w, b) =>
      normalised(
        x!,
        (i) => Math.floor(i / (c * hw)) * hw + (i % hw),
        (i) => Math.floor(i / hw) % c,
        eps,
        w,
        b,
      ),
  };
}

function group(x: Case["inputs"][number], shape: Shape, groups: number, affine = true, eps = 1e-5): Case {
  const c = shape[1]!;
  const hw = sizeOf(shape.slice(2));
  return {
    name: `(${shape}) in ${groups}`,
    inputs: affine ? [x, [c], [c]] : [x],
    run: ([x, weight, bias]) => F.groupNorm(x!, groups, affine ? { weight: weight!, bias: bias!, eps } : { eps }),
    reference: (x, w, b) =>
      normalised(
        x!,
        (i) => Math.floor(i / (hw * (c / groups))),
        (i) => Math.floor(i / hw) % c,
        eps,
        w,
        b,
      ),
  };
}

function batch(x: Case["inputs"][number], shape: Shape, training: boolean, affine = true, eps = 1e-5): Case {
  const c = shape[1]!;
  const hw = sizeOf(shape.slice(2));
  const channel = (i: number): number => Math.floor(i / hw) % c;
  const running = [
    { shape: [c], differentiable: false },
    { shape: [c], values: between(0.5, 2), differentiable: false },
  ];
  return {
    name: `(${shape}) ${training ? "training" : "frozen"}`,
    inputs: [x, ...running, ...(affine ? [[c], [c]] : [])],
    run: ([x, mean, variance, weight, bias]) =>
      F.batchNorm(x!, {
        mean: mean!,
        variance: variance!,
        training,
        eps,
        ...(affine ? { weight: weight!, bias: bias! } : {}),
      }),
    reference: (x, mean, variance, w, b) =>
      training
        ? normalised(x!, channel, channel, eps, w, b)
        : x!.map(
            (v, i) =>
              ((v - mean![channel(i)]!) / Math.sqrt(variance![channel(i)]! + eps)) * (w?.[channel(i)] ?? 1) +
              (b?.[channel(i)] ?? 0),
          ),
  };
}

export const normCases: Cases = {
  layerNorm: [
    layer([1, 1], [1, 1], "both"),
    layer(constant([3, 7]), [3, 7], "both", 1e-5, "constant rows"),
    layer([3, 7], [3, 7], "none"),
    layer([7, 1], [7, 1], "weight", 0.1),
    layer([2, 5, 64], [2, 5, 64], "weight", 1e-6),
    layer([33, 12], [33, 12], "both"),
    layer([4, 130], [4, 130], "both"),
    layer(shifted([130, 9]), [130, 9], "both"),
    layer([130], [130], "both"),
    layer([3, 513], [3, 513], "weight", 1e-5, "few long rows"),
    layer([130, 96], [130, 96], "both", 1e-5, "real"),
  ],
  layerNorm2d: [
    layer2d([1, 1, 1, 1], [1, 1, 1, 1], "both"),
    layer2d(constant([2, 3, 1, 7]), [2, 3, 1, 7], "both", 1e-5),
    layer2d([2, 7, 3, 1], [2, 7, 3, 1], "none", 0.1),
    layer2d([3, 12, 5, 5], [3, 12, 5, 5], "both"),
    layer2d(shifted([2, 9, 7, 13]), [2, 9, 7, 13], "both", 1e-3),
    layer2d([2, 64, 8, 10], [2, 64, 8, 10], "both"),
  ],
  groupNorm: [
    group([1, 1, 1, 1], [1, 1, 1, 1], 1),
    group(constant([2, 6, 3]), [2, 6, 3], 3),
    group([2, 6, 3, 7], [2, 6, 3, 7], 3),
    group([3, 4], [3, 4], 2, false),
    group([1, 6, 19, 31], [1, 6, 19, 31], 6),
    group(shifted([1, 4, 13, 10]), [1, 4, 13, 10], 1, true, 1e-3),
    group([2, 32, 16, 20], [2, 32, 16, 20], 8),
  ],
  batchNorm: [
    ...[true, false].flatMap((training) => [
      batch([2, 1, 1, 1], [2, 1, 1, 1], training),
      batch(constant([2, 3, 2, 2]), [2, 3, 2, 2], training),
      batch([3, 7, 5, 5], [3, 7, 5, 5], training),
      batch([9, 4], [9, 4], training, false),
      batch(shifted([2, 2, 23, 31]), [2, 2, 23, 31], training),
      batch([2, 16, 20, 24], [2, 16, 20, 24], training),
    ]),
  ],
};
