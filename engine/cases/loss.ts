import * as F from "../functional.ts";
import { type Shape, sizeOf } from "../shape.ts";
import { away, between, type Case, type Cases, whole } from "./case.ts";
import { logSumExp64 } from "./softmax.ts";

type Reduction = "none" | "mean" | "sum";
const REDUCTIONS: readonly Reduction[] = ["none", "mean", "sum"];
const SHAPES: readonly Shape[] = [[1], [7], [5, 13], [2, 130]];

const reduced = (y: ArrayLike<number>, reduction: string, rows = 1): ArrayLike<number> => {
  if (reduction === "none") return y;
  const total = Array.from(y).reduce((a, v) => a + v, 0);
  return [reduction === "sum" ? total : total / (reduction === "mean" ? y.length : rows)];
};
const elementwise = (x: Float64Array, t: Float64Array, f: (x: number, t: number) => number): Float64Array =>
  x.map((v, i) => f(v, t[i]!));
const softplus = (v: number): number => Math.max(v, 0) + Math.log1p(Math.exp(-Math.abs(v)));

const bce: Case[] = [
  ...SHAPES.flatMap((shape) =>
    REDUCTIONS.map((reduction) => ({
      name: reduction,
      inputs: [shape, { shape, values: between(0, 1) }],
      run: ([x, t]: Parameters<Case["run"]>[0]) => F.binaryCrossEntropyWithLogits(x!, t!, { reduction }),
      reference: (x: Float64Array, t: Float64Array) =>
        reduced(
          elementwise(x, t, (v, u) => softplus(v) - v * u),
          reduction,
        ),
    })),
  ),
  {
    name: "large logits",
    inputs: [{ shape: [9], values: away(0.1, 0) }, [9]],
    run: ([x, t]) => F.binaryCrossEntropyWithLogits(F.mul(x!, 60), t!, { reduction: "none" }),
    reference: (x, t) => elementwise(x, t, (v, u) => softplus(60 * v) - 60 * v * u),
  },
  {
    name: "weight and posWeight",
    inputs: [[4, 5], { shape: [4, 5], values: between(0, 1) }, [5], [4, 1]],
    run: ([x, t, posWeight, weight]) => F.binaryCrossEntropyWithLogits(x!, t!, { posWeight, weight }),
    reference: (x, t, p, w) =>
      reduced(
        x.map((v, i) => w[Math.floor(i / 5)]! * ((1 - t[i]!) * v + (1 + (p[i % 5]! - 1) * t[i]!) * softplus(-v))),
        "mean",
      ),
  },
  {
    name: "real: points of masks",
    inputs: [[4, 1000], { shape: [4, 1000], values: whole(2) }],
    run: ([x, t]) => F.binaryCrossEntropyWithLogits(x!, t!),
    reference: (x, t) =>
      reduced(
        elementwise(x, t, (v, u) => softplus(v) - v * u),
        "mean",
      ),
  },
];

const klDiv: Case[] = ([...REDUCTIONS, "batchmean"] as const).flatMap((reduction) =>
  [false, true].map((logTarget) => ({
    name: `${reduction}${logTarget ? ", target a logarithm" : ""}`,
    inputs: [[5, 13], { shape: [5, 13], values: logTarget ? between(-4, 0) : between(0.05, 1) }],
    run: ([p, q]: Parameters<Case["run"]>[0]) => F.klDiv(p!, q!, { reduction, logTarget }),
    reference: (p: Float64Array, q: Float64Array) =>
      reduced(
        elementwise(p, q, (v, u) => (logTarget ? Math.exp(u) * (u - v) : u * (Math.log(u) - v))),
        reduction,
        5,
      ),
  })),
);
klDiv.push(
  {
    name: "target of zeros and ones",
    inputs: [[7, 3], { shape: [7, 3], values: whole(2), differentiable: false }],
    run: ([p, q]) => F.klDiv(p!, q!),
    reference: (p, q) =>
      reduced(
        elementwise(p, q, (v, u) => (u > 0 ? u * (Math.log(u) - v) : 0)),
        "mean",
      ),
  },
  {
    name: "real: every query's tokens against every target's, broadcast",
    inputs: [[20, 1, 256], { shape: [1, 5, 256], values: between(-4, 0) }],
    run: ([p, q]) => F.klDiv(p!, q!, { reduction: "none", logTarget: true }),
    reference: (p, q) =>
      Float64Array.from({ length: 100 * 256 }, (_, i) => {
        const [v, u] = [p[Math.floor(i / 1280) * 256 + (i % 256)]!, q[i % 1280]!];
        return Math.exp(u) * (u - v);
      }),
  },
);

interface Classes {
  name: string;
  shape: Shape;
  reduction?: Reduction;
  weighted?: boolean;
  /** Classes drawn from 0..range-1; the last one is then ignored. */
  range?: number;
  ignoreIndex?: number;
}

function crossEntropy({ name, shape, reduction = "mean", weighted = false, ignoreIndex = -100, range }: Classes): Case {
  const c = shape.length > 1 ? shape[1]! : shape[0]!;
  const rows = shape.filter((_, k) => k !== (shape.length > 1 ? 1 : 0));
  const inner = sizeOf(shape.slice(2));
  return {
    name,
    inputs: [
      shape,
      { shape: rows, values: whole(range ?? c), dtype: "i32" },
      ...(weighted ? [{ shape: [c], values: between(0.1, 2), differentiable: false }] : []),
    ],
    run: ([x, target, weight]) => F.crossEntropy(x!, target!, { weight, ignoreIndex, reduction }),
    reference: (x, target, weight) => {
      let weights = 0;
      const y = Array.from(target, (k, row) => {
        if (k === ignoreIndex) return 0;
        const base = Math.floor(row / inner) * c * inner + (row % inner);
        const logits = Array.from({ length: c }, (_, j) => x[base + j * inner]!);
        const w = weight ? weight[k]! : 1;
        weights += w;
        return w * (logSumExp64(logits) - logits[k]!);
      });
      return reduction === "mean" ? [y.reduce((a, v) => a + v, 0) / weights] : reduced(y, reduction);
    },
  };
}

const dice = (shape: Shape, reduction: Reduction): Case => ({
  name: `(${shape}) ${reduction}`,
  inputs: [shape, { shape, values: between(0, 1) }],
  run: ([x, t]) => F.dice(x!, t!, { reduction }),
  reference: (x, t) => {
    const c = shape.at(-1)!;
    const rows = Array.from({ length: x.length / c }, (_, r) => {
      let [both, p, q] = [0, 0, 0];
      for (let k = r * c; k < (r + 1) * c; k++) {
        const s = 1 / (1 + Math.exp(-x[k]!));
        both += s * t[k]!;
        p += s;
        q += t[k]!;
      }
      return 1 - (2 * both + 1) / (p + q + 1);
    });
    return reduced(rows, reduction);
  },
});

export const lossCases: Cases = {
  crossEntropy: [
    crossEntropy({ name: "1", shape: [1, 1] }),
    crossEntropy({ name: "one row", shape: [7] }),
    crossEntropy({ name: "sum", shape: [65, 5], reduction: "sum" }),
    crossEntropy({ name: "none, images", shape: [2, 3, 4, 5], reduction: "none" }),
    crossEntropy({ name: "weights", shape: [7, 130], weighted: true }),
    crossEntropy({ name: "images, weights, some ignored", shape: [2, 3, 5], weighted: true, range: 4, ignoreIndex: 3 }),
    crossEntropy({ name: "ignored by default, weighted sum", shape: [5, 13], weighted: true, reduction: "sum" }),
    crossEntropy({ name: "real: queries by class, no object weighs a tenth", shape: [200, 21], weighted: true }),
  ],
  binaryCrossEntropyWithLogits: bce,
  dice: [
    dice([1], "mean"),
    dice([3, 7], "none"),
    dice([2, 2, 130], "sum"),
    dice([65, 3], "mean"),
    dice([3, 1025], "none"),
    dice([4, 1000], "mean"),
  ],
  klDiv,
  mseLoss: SHAPES.flatMap((shape) =>
    REDUCTIONS.map((reduction) => ({
      name: reduction,
      inputs: [shape, shape],
      run: ([x, t]: Parameters<Case["run"]>[0]) => F.mseLoss(x!, t!, { reduction }),
      reference: (x: Float64Array, t: Float64Array) =>
        reduced(
          elementwise(x, t, (v, u) => (v - u) ** 2),
          reduction,
        ),
    })),
  ),
  smoothL1: [0, 0.5, 1].flatMap((beta) =>
    REDUCTIONS.map((reduction) => ({
      name: `beta ${beta}, ${reduction}`,
      // Differences keep away from the corner at 0.
      inputs: [
        { shape: [3, 7], values: between(1.1, 3) },
        { shape: [3, 7], values: between(0, 1) },
      ],
      run: ([x, t]: Parameters<Case["run"]>[0]) => F.smoothL1(x!, t!, { reduction, beta }),
      reference: (x: Float64Array, t: Float64Array) =>
        reduced(
          elementwise(x, t, (v, u) => {
            const d = Math.abs(v - u);
            return d < beta ? (d * d) / (2 * beta) : d - beta / 2;
          }),
          reduction,
        ),
    })),
  ),
};
