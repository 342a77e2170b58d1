/** Scaled dot-product attention with masks and SAM's decomposed relative position. */
import { checkFloats, checkOptions } from "../check.ts";
import { linearGroups, run } from "../kernel.ts";
import { scope } from "../scope.ts";
import { broadcastShapes, type Shape, sameShape, show, sizeOf, stridesOf } from "../shape.ts";
import { isRecording, record } from "../tape.ts";
import { empty, fill, type Tensor } from "../tensor.ts";
import { gemm } from "./matmul.ts";
import { expand, reshape } from "./movement.ts";
import { mul } from "./pointwise.ts";
import { workgroupPerRow } from "./softmax.ts";
import { stridedRead, stridedWrite } from "./strided.ts";

export interface AttentionOptions {
  /** (…, N, M), broadcasting. Bool: true takes part. Float: added to the scores. A query that may see no key gets 0, not NaN. */
  mask?: Tensor | undefined;
  /** Factor of the scores; default 1 / sqrt(D). */
  scale?: number | undefined;
  /** (…, N, kH) and (…, N, kW) with kH kW = M: relH[n, i] + relW[n, j] is added to the score of query n and key i kW + j. */
  relH?: Tensor | undefined;
  relW?: Tensor | undefined;
  /** Scores up to this many bytes are kept for the gradient; more are made, used and made again piece by piece. Default 32 MiB. */
  scoreBytes?: number | undefined;
}

const SCORE_BYTES = 32 * 2 ** 20;
/** Queries that are worth a piece of their own: fewer would waste the products. */
const MIN_ROWS = 8;

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
  const rows = Math.max(MIN_ROWS, Math.floor(limit / (m * 4)));
  return Array.from({ length: batch }, (_, b0) =>
    Array.from({ length: Math.ceil(n / rows) }, (_, i) => ({
      b0,
      batch: 1,
      n0: i * rows,
      n: Math.min(rows, n - i * rows),
    })),
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

/** The problem as one chunk, where it is small enough. */
function onlyChunk(t: Problem): Chunk | undefined {
  return t.chunks.length === 1 && t.chunks[0]!.length === 1 ? t.chunks[0]![0] : undefined;
}

function params(t: Problem, chunk: Chunk) {
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
  const rows = chunk.batch * chunk.n;
  const wide = workgroupPerRow(s.device, rows, t.m);
  const four = !wide && t.m % 4 === 0 && !t.relH;
  run(s.device, "attention", wide ? "row_forward" : four ? "forward4" : "forward", {
    bind: four ? { s4: s, mask4: any } : { s, mask: any, rel_h: t.relH ?? t.q, rel_w: t.relW ?? t.q },
    params: params(t, chunk),
    groups: linearGroups(wide ? rows : Math.ceil(rows / 64)),
  });
  return s;
}

/** Gradients of the whole problem that chunks write their part of. */
interface Whole {
  mask: Tensor | null;
  relH: Tensor | null;
  relW: Tensor | null;
}

/** Gradients of the chunk's queries, and its share in those of the keys and values that it sees. */
function chunkGradients(
  t: Problem,
  chunk: Chunk,
  kept: Tensor | undefined,
  gy: Tensor,
  whole: Whole,
): (Tensor | undefined)[] {
  const { b0, batch, n } = chunk;
  const { m, d, dv } = t;
  const { device } = gy;
  const g = part(gy, b0, batch, chunk);
  const p = kept ?? weights(t, chunk);
  const gv = t.v.requiresGrad ? gemm({ x: p, flipped: true }, { x: g, flipped: false }, batch, m, n, dv) : undefined;
  if (!t.q.requiresGrad && !t.k.requiresGrad && !whole.mask && !whole.relH && !whole.relW)
    return [undefined, undefined, gv];

  const ds = gemm({ x: g, flipped: false }, { x: part(t.v, b0, batch), flipped: true }, batch, n, dv, m);
  const rows = batch * n;
  const wide = workgroupPerRow(device, rows, m);
  const four = !wide && m % 4 === 0;
  const all = params(t, chunk);
  const call = (entry: string, bind: Record<string, Tensor>, count: number, constants = {}): void =>
    run(device, "attention", entry, { bind, params: all, constants, groups: linearGroups(Math.ceil(count / 64)) });
  call(wide ? "row_grad" : four ? "grad4" : "grad", four ? { s4: ds, p4: p } : { s: ds, p }, wide ? rows * 64 : rows);
  if (whole.relH) call("grad_rel", { ds, g_rel: whole.relH }, rows * all.k_h, { ALONG_W: 0 });
  if (whole.relW) call("grad_rel", { ds, g_rel: whole.relW }, rows * all.k_w, { ALONG_W: 1 });
  if (whole.mask) call("grad_mask", { ds, g_mask: whole.mask }, whole.mask.size);
  return [
    t.q.requiresGrad
      ? gemm({ x: ds, flipped: false }, { x: part(t.k, b0, batch), flipped: false }, batch, n, m, d)
      : undefined,
    t.k.requiresGrad
      ? gemm({ x: ds, flipped: true }, { x: part(t.q, b0, batch, chunk), flipped: false }, batch, m, n, d)
      : undefined,
    gv,
  ];
}

/** y + b, in y's memory. */
function accumulate(y: Tensor | undefined, b: Tensor | undefined): Tensor | undefined {
  if (!y || !b) return b;
  const vectors = Math.ceil(y.size / 4);
  run(y.device, "accumulate", "in_place", {
    bind: { y, b },
    params: { n: vectors },
    groups: linearGroups(Math.ceil(vectors / 64)),
  });
  return y;
}

function gradients(t: Problem, kept: Tensor | undefined, gy: Tensor): (Tensor | null)[] {
  const like = (x: Tensor | undefined): Tensor | null => (x?.requiresGrad ? empty(gy.device, x.shape) : null);
  const whole: Whole = { mask: like(t.mask?.x), relH: like(t.relH), relW: like(t.relW) };
  if (whole.mask) fill(whole.mask, 0);
  const single = onlyChunk(t);
  if (single) {
    const [gq, gk, gv] = scope(() => chunkGradients(t, single, kept, gy, whole));
    return [gq ?? null, gk ?? null, gv ?? null, whole.mask, whole.relH, whole.relW];
  }
  const [gq, gk, gv] = [like(t.q), like(t.k), like(t.v)];
  for (const group of t.chunks)
    scope(() => {
      let sums: (Tensor | undefined)[] = [];
      for (const chunk of group)
        sums = scope(() => {
          const [q, k, v] = chunkGradients(t, chunk, undefined, gy, whole);
          if (q) place(q, gq!, chunk.b0, chunk.n0);
          return [accumulate(sums[0], k), accumulate(sums[1], v)];
        });
      if (sums[0]) place(sums[0], gk!, group[0]!.b0, 0);
      if (sums[1]) place(sums[1], gv!, group[0]!.b0, 0);
    });
  return [gq, gk, gv, whole.mask, whole.relH, whole.relW];
}

/** Brings a mask to (outer, inner, rows, M), repeating it only where its batch dimensions do not fall into two groups. */
function arrangeMask(mask: Tensor, batchShape: Shape, n: number, m: number): Mask {
  const rank = batchShape.length;
  const lead = mask.shape.length - 2;
  if (
    (mask.dtype !== "bool" && mask.dtype !== "f32") ||
    lead < 0 ||
    !sameShape(broadcastShapes("scaledDotProductAttention: mask", mask.shape, [...batchShape, n, m]), [
      ...batchShape,
      n,
      m,
    ])
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
  const op = "scaledDotProductAttention";
  checkFloats(op, { q, k, v });
  checkOptions(op, options, { mask: "tensor", scale: "number", relH: "tensor", relW: "tensor", scoreBytes: "number" });
  for (const [name, x] of Object.entries({ q, k, v }))
    if (x.shape.length < 2) throw new Error(`${op}: ${name} must have at least two dimensions; got ${show(x.shape)}`);
  const [n, d] = [q.shape.at(-2)!, q.shape.at(-1)!];
  const [m, dv] = [k.shape.at(-2)!, v.shape.at(-1)!];
  if (k.shape.at(-1) !== d || v.shape.at(-2) !== m || m === 0)
    throw new Error(
      `scaledDotProductAttention: q is ${show(q.shape)}, so k must be (…, M, ${d}) and v (…, M, Dv) with M from 1 up; got ${show(k.shape)} and ${show(v.shape)}`,
    );
  const batchShape = broadcastShapes(
    "scaledDotProductAttention",
    q.shape.slice(0, -2),
    k.shape.slice(0, -2),
    v.shape.slice(0, -2),
  );
  const batch = sizeOf(batchShape);
  const flat = (x: Tensor, r: number, c: number): Tensor => {
    const full = [...batchShape, r, c];
    return reshape(sameShape(x.shape, full) ? x : expand(x, full), [batch, r, c]);
  };
  const { relH, relW } = options;
  if (!relH !== !relW) throw new Error("scaledDotProductAttention: relH and relW come together");
  if (relH && relW) {
    const [kH, kW] = [relH.shape.at(-1)!, relW.shape.at(-1)!];
    if (
      kH * kW !== m ||
      relH.size !== batch * n * kH ||
      relW.size !== batch * n * kW ||
      relH.dtype !== "f32" ||
      relW.dtype !== "f32"
    )
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
    chunks: cut(batch, n, m, options.scoreBytes ?? SCORE_BYTES),
    q: flat(scale === 1 ? q : mul(q, scale), n, d),
    k: flat(k, m, d),
    v: flat(v, m, dv),
    mask: options.mask && arrangeMask(options.mask, batchShape, n, m),
    relH: relH && reshape(relH, [batch, n, relH.shape.at(-1)!]),
    relW: relW && reshape(relW, [batch, n, relW.shape.at(-1)!]),
  };
  const inputs = [t.q, t.k, t.v, t.mask?.x, t.relH, t.relW];
  const single = onlyChunk(t);
  const keeps = isRecording() && inputs.some((x) => x?.requiresGrad);
  const attend = (p: Tensor, chunk: Chunk): Tensor =>
    gemm(
      { x: p, flipped: false },
      { x: part(t.v, chunk.b0, chunk.batch), flipped: false },
      chunk.batch,
      chunk.n,
      m,
      dv,
    );
  let y: Tensor;
  let kept: Tensor | undefined;
  if (single) {
    [y, kept] = scope(() => {
      const p = weights(t, single);
      return [attend(p, single), keeps ? p : undefined] as const;
    });
  } else {
    y = empty(q.device, [batch, n, dv]);
    for (const chunk of t.chunks.flat()) scope(() => place(attend(weights(t, chunk), chunk), y, chunk.b0, chunk.n0));
  }
  const present = inputs.flatMap((x, i) => (x ? [{ x, i }] : []));
  const out = record(
    "scaledDotProductAttention",
    present.map(({ x }) => x),
    y,
    (gy) => {
      const all = gradients(t, kept, gy);
      return present.map(({ i }) => all[i]!);
    },
  );
  return reshape(out, [...batchShape, n, dv]);
}
