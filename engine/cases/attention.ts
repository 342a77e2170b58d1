import * as F from "../functional.ts";
import type { AttentionOptions } from "../ops/attention.ts";
import { broadcastStrides, type Shape, sizeOf } from "../shape.ts";
import type { Case, Cases, Input } from "./case.ts";

interface Setup {
  name: string;
  batch?: Shape;
  n: number;
  m: number;
  d: number;
  dv?: number;
  /** Shape of the mask, and its values: bool where `allowed` says so. */
  mask?: Shape;
  allowed?: (i: number) => boolean;
  rel?: readonly [number, number];
  scale?: number;
  scoreBytes?: number;
  path?: AttentionOptions["path"];
}

function attention(s: Setup): Case {
  const batch = s.batch ?? [];
  const dv = s.dv ?? s.d;
  const inputs: Input[] = [
    [...batch, s.n, s.d],
    [...batch, s.m, s.d],
    [...batch, s.m, dv],
  ];
  const { allowed } = s;
  if (s.mask)
    inputs.push(
      allowed
        ? { shape: s.mask, dtype: "bool", values: (_, i) => (allowed(i) ? 1 : 0) }
        : { shape: s.mask, differentiable: s.path !== "onePass" },
    );
  if (s.rel) inputs.push([...batch, s.n, s.rel[0]], [...batch, s.n, s.rel[1]]);
  const at = s.mask ? 4 : 3;
  return {
    name: s.name,
    inputs,
    run: (x) =>
      F.scaledDotProductAttention(x[0]!, x[1]!, x[2]!, {
        mask: s.mask && x[3],
        scale: s.scale,
        scoreBytes: s.scoreBytes,
        path: s.path,
        relH: s.rel && x[at],
        relW: s.rel && x[at + 1],
      }),
    reference: (q, k, v, ...rest) => {
      const mask = s.mask ? rest[0] : undefined;
      const [relH, relW] = rest.slice(at - 3);
      const strides = s.mask ? broadcastStrides(s.mask, [...batch, s.n, s.m]) : [];
      const y = new Float64Array(sizeOf(batch) * s.n * dv);
      const scale = s.scale ?? 1 / Math.sqrt(s.d);
      for (let b = 0; b < sizeOf(batch); b++) {
        let maskBase = 0;
        for (let dim = batch.length - 1, left = b; dim >= 0; dim--) {
          maskBase += (left % batch[dim]!) * (strides[dim] ?? 0);
          left = Math.floor(left / batch[dim]!);
        }
        for (let n = 0; n < s.n; n++) {
          const scores = new Float64Array(s.m);
          for (let m = 0; m < s.m; m++) {
            let sum = 0;
            for (let d = 0; d < s.d; d++) sum += q[(b * s.n + n) * s.d + d]! * k[(b * s.m + m) * s.d + d]!;
            sum *= scale;
            if (s.rel) {
              const [kH, kW] = s.rel;
              sum += relH![(b * s.n + n) * kH + Math.floor(m / kW)]! + relW![(b * s.n + n) * kW + (m % kW)]!;
            }
            if (mask) {
              const value = mask[maskBase + n * strides.at(-2)! + m * strides.at(-1)!]!;
              if (!allowed) sum += value;
              else if (value === 0) sum = Number.NEGATIVE_INFINITY;
            }
            scores[m] = sum;
          }
          const top = Math.max(...scores);
          if (top === Number.NEGATIVE_INFINITY) continue;
          const e = scores.map((v) => Math.exp(v - top));
          const total = e.reduce((a, v) => a + v, 0);
          for (let m = 0; m < s.m; m++)
            for (let c = 0; c < dv; c++) y[(b * s.n + n) * dv + c]! += (e[m]! / total) * v[(b * s.m + m) * dv + c]!;
        }
      }
      return y;
    },
  };
}

const setups: readonly Setup[] = [
  { name: "1", n: 1, m: 1, d: 1 },
  { name: "odd", batch: [2, 1], n: 7, m: 5, d: 3, dv: 6 },
  { name: "one past a workgroup", batch: [3], n: 65, m: 12, d: 4 },
  {
    name: "bool mask with closed rows",
    batch: [2, 2],
    n: 4,
    m: 6,
    d: 3,
    mask: [2, 1, 4, 6],
    allowed: (i) => i % 24 >= 6 && i % 5 !== 0,
  },
  {
    name: "bool mask of keys in fours",
    batch: [2, 2],
    n: 5,
    m: 8,
    d: 4,
    mask: [2, 1, 1, 8],
    allowed: (i) => i % 3 !== 0,
  },
  { name: "closed rows in fours", n: 6, m: 8, d: 4, mask: [6, 8], allowed: (i) => i >= 16 && i % 7 !== 0 },
  { name: "float mask over heads", batch: [2, 3], n: 4, m: 5, d: 3, mask: [1, 3, 4, 5] },
  { name: "float mask in fours", batch: [2, 3], n: 4, m: 8, d: 3, mask: [4, 8] },
  { name: "float mask of one column", batch: [2, 2], n: 3, m: 4, d: 2, mask: [2, 2, 3, 1] },
  {
    name: "float mask whose batch does not fold",
    batch: [2, 2, 2],
    n: 3,
    m: 4,
    d: 2,
    mask: [2, 1, 2, 1, 4],
  },
  { name: "scale and relative position", batch: [2], n: 6, m: 12, d: 4, rel: [3, 4], scale: 0.7 },
  { name: "relative position and mask", batch: [2], n: 3, m: 6, d: 5, rel: [2, 3], mask: [1, 3, 6] },
  {
    name: "few long rows, some closed",
    batch: [2],
    n: 3,
    m: 520,
    d: 2,
    mask: [3, 520],
    allowed: (i) => i >= 520 && i % 3 > 0,
  },
  { name: "few long rows, relative position and mask", n: 2, m: 525, d: 2, rel: [25, 21], mask: [2, 525] },
  { name: "real: a window of SAM", batch: [2], n: 49, m: 49, d: 32, rel: [7, 7] },
  { name: "real", batch: [1, 2], n: 20, m: 130, d: 32, mask: [1, 2, 20, 130], allowed: (i) => i % 3 > 0 },

  { name: "one query", n: 1, m: 36, d: 16 },
  { name: "one key", n: 35, m: 1, d: 24, dv: 16 },
  { name: "tiles that are not full", batch: [2], n: 33, m: 37, d: 33, dv: 63 },
  { name: "the same in fours", batch: [2], n: 33, m: 36, d: 33, dv: 60 },
  { name: "a float mask of queries", batch: [2], n: 9, m: 68, d: 64, mask: [9, 1] },
  {
    name: "the widest heads, closed rows and relative position",
    batch: [1, 2],
    n: 11,
    m: 40,
    d: 128,
    mask: [1, 2, 11, 40],
    allowed: (i) => i % 440 >= 40 && i % 3 > 0,
    rel: [5, 8],
  },
  { name: "a bool mask of keys", n: 5, m: 34, d: 20, dv: 12, mask: [1, 34], allowed: (i) => i > 3 },
];

/** Those that concern the pieces in which scores are made. */
const inPieces: readonly Setup[] = [
  {
    name: "in pieces of two entries, a bool mask each head",
    batch: [2, 3],
    n: 4,
    m: 8,
    d: 4,
    mask: [3, 4, 8],
    allowed: (i) => i >= 8 && i % 5 > 0,
    scoreBytes: 300,
  },
  {
    name: "in pieces, a float mask each image",
    batch: [2, 3],
    n: 4,
    m: 5,
    d: 3,
    mask: [2, 1, 4, 5],
    scoreBytes: 100,
  },
  {
    name: "in pieces of rows, a float mask each head",
    batch: [1, 2],
    n: 19,
    m: 5,
    d: 3,
    mask: [2, 19, 5],
    scoreBytes: 1,
  },
  {
    name: "in pieces of rows, a float mask for all and relative position",
    batch: [2],
    n: 19,
    m: 6,
    d: 2,
    mask: [1, 6],
    rel: [2, 3],
    scoreBytes: 1,
  },
];

export const attentionCases: Cases = {
  scaledDotProductAttention: [
    ...[...setups, ...inPieces].map((s) => attention({ ...s, path: "chunked" })),
    ...setups.map((s) => attention({ ...s, name: `${s.name}, in one pass`, path: "onePass" })),
    attention({ name: "the way that it chooses", batch: [2], n: 9, m: 8, d: 16 }),
  ],
};
