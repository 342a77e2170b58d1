/** Scaled dot-product attention with masks and SAM's decomposed relative position. */
import { linearGroups, run } from "../kernel.ts";
import { scope } from "../scope.ts";
import { broadcastShapes, sameShape, type Shape, show, sizeOf, stridesOf } from "../shape.ts";
import { isRecording, record } from "../tape.ts";
import { empty, fill, type Tensor } from "../tensor.ts";
import { gemm } from "./matmul.ts";
import { expand, reshape } from "./movement.ts";
import { mul } from "./pointwise.ts";
import { stridedRead, stridedWrite } from "./strided.ts";

export interface AttentionOptions {
  /** (…, N, M), broadcasting. Bool: true takes part. Float: added to the scores. A query that may see no key gets 0, not NaN. */
  mask?: Tensor | undefined;
  /** Factor of the scores; default 1 / sqrt(D). */
  scale?: number | undefined;
  /** (…, N, kH) and (…, N, kW) with kH kW = M: relH[n, i] + relW[n, j] is added to the score of query n and key i kW + j. */
  relH?: Tensor | undefined;
  relW?: Tensor | undefined;
}

/** Scores up to this many bytes are kept for the gradient; larger ones are made, used and made again piece by piece. */
export const SCORE_BYTES = 32 * 2 ** 20;

/** Batch entries b0..b0+batch of queries n0..n0+n: whole entries, or some queries of one entry, so that it is one stretch of memory. */
interface Chunk {
  b0: number;
  batch: number;
  n0: number;
  n: number;
}

interface Problem {
  batch: number;
  n: number;
  m: number;
  d: number;
  dv: number;
  chunks: Chunk[][];
  q: Tensor;
  k: Tensor;
  v: Tensor;
  mask: Mask | undefined;
  relH: Tensor | undefined;
  relW: Tensor | undefined;
}

/** A mask as (outer, inner, rows, M) over the batch (outer · inner), N and M; sizes of 1 are repeated. */
interface Mask {
  x: Tensor;
  size: [number, number, number, number];
  split: number;
}

/** Groups of chunks: those of one group share the keys and values they see. */
function cut(batch: number, n: number, m: number, limit: number): Chunk[][] {
  const entry = n * m * 4;
  if (entry <= limit) {
    const each = Math.max(1, Math.min(batch, Math.floor(limit / Math.max(entry, 1))));
    return Array.from({ length: Math.ceil(batch / each) }, (_, i) => [
      { b0: i * each, batch: Math.min(each, batch - i * each), n0: 0, n },
    ]);
  }
  const rows = Math.max(8, Math.floor(limit / (m * 4)));
  return Array.from({ length: batch }, (_, b0) =>
    Array.from({ length: Math.ceil(n / rows) }, (_, i) => ({ b0, batch: 1, n0: i * rows, n: Math.min(rows, n - i * rows) })),
  );
}

/** The chunk's part of x: (batch, R, C), all R rows where `rows` is left out. */
function part(x: Tensor, b0: number, batch: number, rows?: Chunk): Tensor {
  const [all, r, c] = x.shape as [number, number, number];
  const n = rows ? rows.n : r;
  if (batch === all && n === r) return x;
  const shape = [batch, n, c];
  return stridedRead(x, shape, { offset: (b0 * r + (rows?.n0 ?? 0)) * c, strides: stridesOf(shape) });
}

/** Writes a chunk's part of y: (batch, R, C). */
function place(x: Tensor, y: Tensor, b0: number, n0: number): void {
  const [, r, c] = y.shape as [number, number, number];
  stridedWrite(x, y, (b0 * r + n0) * c, stridesOf(x.shape));
}

function params(t: Problem, chunk: Chunk): Record<string, number | number[]> {
  const size = t.mask?.size ?? [1, 1, 1, 1];
  return {
    rows: chunk.batch * chunk.n,
    m: t.m,
    n: t.n,
    n0: chunk.n0,
    n_chunk: chunk.n,
    b0: chunk.b0,
    mask_kind: t.mask ? (t.mask.x.dtype === "f32" ? 2 : 1) : 0,
    split: t.mask?.split ?? 1,
    mask_outer: size[0] > 1 ? size[1] * size[2] * t.m : 0,
    mask_inner: size[1] > 1 ? size[2] * t.m : 0,
    mask_row: size[2] > 1 ? t.m : 0,
    k_h: t.relH?.shape.at(-1) ?? 0,
    k_w: t.relW?.shape.at(-1) ?? 0,
    mask_size: size,
  };
}

/** softmax(q k^T + mask + relative position) of a chunk: (chunk.batch, chunk.n, M). */
function weights(t: Problem, chunk: Chunk): Tensor {
  const q = part(t.q, chunk.b0, chunk.batch, chunk);
  const k = part(t.k, chunk.b0, chunk.batch);
  const s = gemm({ x: q, flipped: false }, { x: k, flipped: true }, chunk.batch, chunk.n, t.d, t.m);
  const any = t.mask?.x ?? t.q;
  const four = t.m % 4 === 0 && !t.relH;
  run(s.device, "attention", four ? "forward4" : "forward", {
    bind: four ? { s4: s, mask4: any } : { s, mask: any, rel_h: t.relH ?? t.q, rel_w: t.relW ?? t.q },
    params: params(t, chunk),
    groups: linearGroups(Math.ceil((chunk.batch * chunk.n) / 64)),
  });
  return s;
}

function accumulate(y: Tensor | undefined, b: Tensor): Tensor {
  if (!y) return b;
  const vectors = Math.ceil(y.size / 4);
  run(y.device, "accumulate", "in_place", { bind: { y, b }, params: { n: vectors }, groups: linearGroups(Math.ceil(vectors / 64)) });
  return y;
}

function gradients(t: Problem, kept: Tensor | undefined, gy: Tensor): (Tensor | null)[] {
  const { device } = gy;
  const like = (x: Tensor | undefined): Tensor | null => (x?.requiresGrad ? empty(device, x.shape) : null);
  const [gq, gk, gv, gh, gw] = [like(t.q), like(t.k), like(t.v), like(t.relH), like(t.relW)];
  const gMask = t.mask?.x.requiresGrad ? fill(empty(device, t.mask.x.shape), 0) : null;
  for (const group of t.chunks)
    scope(() => {
      const { b0, batch } = group[0]!;
      const k = part(t.k, b0, batch);
      const v = part(t.v, b0, batch);
      let sumK: Tensor | undefined;
      let sumV: Tensor | undefined;
      for (const chunk of group)
        [sumK, sumV] = scope(() => {
          const g = part(gy, b0, batch, chunk);
          const p = kept ?? weights(t, chunk);
          if (gv) sumV = accumulate(sumV, gemm({ x: p, flipped: true }, { x: g, flipped: false }, batch, t.m, chunk.n, t.dv));
          if (!gq && !gk && !gh && !gw && !gMask) return [sumK, sumV];

          const ds = gemm({ x: g, flipped: false }, { x: v, flipped: true }, batch, chunk.n, t.dv, t.m);
          const four = t.m % 4 === 0;
          const rows = batch * chunk.n;
          const all = params(t, chunk);
          run(device, "attention", four ? "grad4" : "grad", {
            bind: four ? { s4: ds, p4: p } : { s: ds, p },
            params: all,
            groups: linearGroups(Math.ceil(rows / 64)),
          });
          if (gq) place(gemm({ x: ds, flipped: false }, { x: k, flipped: false }, batch, chunk.n, t.m, t.d), gq, b0, chunk.n0);
          if (gk) {
            const q = part(t.q, b0, batch, chunk);
            sumK = accumulate(sumK, gemm({ x: ds, flipped: true }, { x: q, flipped: false }, batch, t.m, chunk.n, t.d));
          }
          for (const [g_rel, along] of [[gh, 0], [gw, 1]] as const)
            if (g_rel)
              run(device, "attention", "grad_rel", {
                bind: { ds, g_rel },
                params: all,
                constants: { ALONG_W: along },
                groups: linearGroups(Math.ceil((rows * g_rel.shape.at(-1)!) / 64)),
              });
          if (gMask)
            run(device, "attention", "grad_mask", {
              bind: { ds, g_mask: gMask },
              params: all,
              groups: linearGroups(Math.ceil(gMask.size / 64)),
            });
          return [sumK, sumV];
        });
      if (gk) place(sumK!, gk, b0, 0);
      if (gv) place(sumV!, gv, b0, 0);
    });
  return [gq, gk, gv, gMask, gh, gw];
}

/** Brings a mask to (outer, inner, rows, M), repeating it only where its batch dimensions do not fall into two groups. */
function arrangeMask(mask: Tensor, batchShape: Shape, n: number, m: number): Mask {
  const rank = batchShape.length;
  const lead = mask.shape.length - 2;
  if (
    (mask.dtype !== "bool" && mask.dtype !== "f32") ||
    lead < 0 ||
    !sameShape(broadcastShapes("scaledDotProductAttention: mask", mask.shape, [...batchShape, n, m]), [...batchShape, n, m])
  )
    throw new Error(
      `scaledDotProductAttention: mask must be bool or f32 and broadcast to ${show([...batchShape, n, m])}; got ${mask.dtype} ${show(mask.shape)}`,
    );
  let x = mask.shape.at(-1) === m ? mask : expand(mask, [...mask.shape.slice(0, -1), m]);
  const own = batchShape.map((_, d) => x.shape[d - rank + lead] ?? 1);
  const rows = x.shape.at(-2)!;
  const repeated = (from: number, to: number): boolean => own.slice(from, to).every((s) => s === 1);
  const full = (from: number, to: number): boolean => sameShape(own.slice(from, to), batchShape.slice(from, to));
  for (let at = 0; at <= rank; at++) {
    if (!(repeated(0, at) || full(0, at)) || !(repeated(at, rank) || full(at, rank))) continue;
    const size: Mask["size"] = [sizeOf(own.slice(0, at)), sizeOf(own.slice(at)), rows, m];
    return { x, size, split: Math.max(1, sizeOf(batchShape.slice(at))) };
  }
  x = expand(x, [...batchShape, rows, m]);
  return { x, size: [1, sizeOf(batchShape), rows, m], split: Math.max(1, sizeOf(batchShape)) };
}

/**
 * softmax(scale q k^T + mask + relative position) v: q (…, N, D), k (…, M, D), v (…, M, Dv) -> (…, N, Dv). The leading dimensions broadcast.
 * Queries whose keys are all masked out give 0 and pass no gradient (torch gives NaN).
 */
export function scaledDotProductAttention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor {
  for (const [name, x] of Object.entries({ q, k, v }))
    if (x.dtype !== "f32" || x.shape.length < 2)
      throw new Error(`scaledDotProductAttention: ${name} must be f32 with at least two dimensions; got ${x.dtype} ${show(x.shape)}`);
  const [n, d] = [q.shape.at(-2)!, q.shape.at(-1)!];
  const [m, dv] = [k.shape.at(-2)!, v.shape.at(-1)!];
  if (k.shape.at(-1) !== d || v.shape.at(-2) !== m || m === 0)
    throw new Error(
      `scaledDotProductAttention: q is ${show(q.shape)}, so k must be (…, M, ${d}) and v (…, M, Dv) with M from 1 up; got ${show(k.shape)} and ${show(v.shape)}`,
    );
  const batchShape = broadcastShapes("scaledDotProductAttention", q.shape.slice(0, -2), k.shape.slice(0, -2), v.shape.slice(0, -2));
  const batch = sizeOf(batchShape);
  const flat = (x: Tensor, r: number, c: number): Tensor => {
    const full = [...batchShape, r, c];
    return reshape(sameShape(x.shape, full) ? x : expand(x, full), [batch, r, c]);
  };
  const { relH, relW } = options;
  if (!relH !== !relW) throw new Error("scaledDotProductAttention: relH and relW come together");
  if (relH && relW) {
    const [kH, kW] = [relH.shape.at(-1)!, relW.shape.at(-1)!];
    if (kH * kW !== m || relH.size !== batch * n * kH || relW.size !== batch * n * kW || relH.dtype !== "f32" || relW.dtype !== "f32")
      throw new Error(
        `scaledDotProductAttention: relH and relW must be f32 (…, ${n}, kH) and (…, kW) with kH kW = ${m}; got ${show(relH.shape)} and ${show(relW.shape)}`,
      );
  }
  const scale = options.scale ?? 1 / Math.sqrt(d);
  const t: Problem = {
    batch,
    n,
    m,
    d,
    dv,
    chunks: cut(batch, n, m, SCORE_BYTES),
    q: flat(scale === 1 ? q : mul(q, scale), n, d),
    k: flat(k, m, d),
    v: flat(v, m, dv),
    mask: options.mask && arrangeMask(options.mask, batchShape, n, m),
    relH: relH && reshape(relH, [batch, n, relH.shape.at(-1)!]),
    relW: relW && reshape(relW, [batch, n, relW.shape.at(-1)!]),
  };
  const inputs = [t.q, t.k, t.v, t.mask?.x, t.relH, t.relW];
  const whole = t.chunks.length === 1 && t.chunks[0]!.length === 1;
  const keeps = whole && isRecording() && inputs.some((x) => x?.requiresGrad);
  const y = empty(q.device, [batch, n, dv]);
  let kept: Tensor | undefined;
  for (const chunk of t.chunks.flat())
    kept = scope(() => {
      const p = weights(t, chunk);
      const values = part(t.v, chunk.b0, chunk.batch);
      place(gemm({ x: p, flipped: false }, { x: values, flipped: false }, chunk.batch, chunk.n, m, dv), y, chunk.b0, chunk.n0);
      return keeps ? p : undefined;
    });
  const present = inputs.flatMap((x, i) => (x ? [{ x, i }] : []));
  const out = record("scaledDotProductAttention", present.map(({ x }) => x), y, (gy) => {
    const all = gradients(t, kept, gy);
    return present.map(({ i }) => all[i]!);
  });
  return reshape(out, [...batchShape, n, dv]);
}
