import * as F from "../functional.ts";
import type { Shape } from "../shape.ts";
import type { Case, Cases } from "./case.ts";

/** Values of one step apart in mixed order, so that no difference changes places. */
const steps = (_: unknown, i: number): number => ((i * 7919) % 10007) * 0.01 - 20;

function topk(name: string, shape: Shape, k: number): Case {
  const n = shape.at(-1)!;
  return {
    name,
    inputs: [{ shape, values: steps }],
    run: ([x]) => F.topk(x!, k).values,
    reference: (x) =>
      Array.from({ length: x.length / n }, (_, r) =>
        Array.from(x.slice(r * n, (r + 1) * n))
          .sort((a, b) => b - a)
          .slice(0, k),
      ).flat(),
  };
}

/** The bits that shaders/dropout.wgsl draws for element i. */
function bits(seed: number, i: number): number {
  const mix = (v: number): number => {
    v = Math.imul(v ^ (v >>> 16), 0x85ebca6b);
    v = Math.imul(v ^ (v >>> 13), 0xc2b2ae35);
    return (v ^ (v >>> 16)) >>> 0;
  };
  const key = mix((mix((seed + 0x9e3779b9) >>> 0) + Math.floor(seed / 2 ** 32)) >>> 0);
  return mix((key ^ mix((i + 0x7f4a7c15) >>> 0)) >>> 0);
}

const dropout = (shape: Shape, p: number, seed: number): Case => ({
  name: `(${shape}) p ${p} seed ${seed}`,
  inputs: [shape],
  run: ([x]) => F.dropout(x!, p, { seed }),
  reference: (x) =>
    x.map((v, i) => (p < 1 && bits(seed, i) >= Math.min(Math.round(p * 2 ** 32), 2 ** 32 - 1) ? v / (1 - p) : 0)),
});

export const selectCases: Cases = {
  topk: [
    topk("1", [1], 1),
    topk("odd", [3, 7], 3),
    topk("all", [2, 130], 130),
    topk("one past a workgroup", [65, 5], 2),
    topk("real: the most uncertain points", [4, 1500], 1100),
  ],
  dropout: [
    dropout([1], 0.5, 1),
    dropout([7, 130], 0.1, 42),
    dropout([130], 0.9, 2 ** 40 + 3),
    dropout([9], 0, 1),
    dropout([9], 1, 1),
    dropout([64, 64], 0.1, 7),
  ],
};
