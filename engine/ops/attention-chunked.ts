/** Attention by products of whole matrices: scores, softmax in rows, values; piece by piece where the scores would take much memory. */
import { linearGroups, run } from "../kernel.ts";
import { scope } from "../scope.ts";
import { stridesOf } from "../shape.ts";
import { empty, fill, type Tensor } from "../tensor.ts";
import { type Attended, maskParams, type Problem } from "./attention-problem.ts";
import { gemm } from "./matmul.ts";
import { workgroupPerRow } from "./softmax.ts";
import { stridedRead, stridedWrite } from "./strided.ts";

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

/** Groups of chunks: those of one group share the keys and values they see. */
type Chunks = readonly Chunk[][];

function cut(batch: number, n: number, m: number, limit: number): Chunks {
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
function onlyChunk(chunks: Chunks): Chunk | undefined {
  return chunks.length === 1 && chunks[0]!.length === 1 ? chunks[0]![0] : undefined;
}

function params(t: Problem, chunk: Chunk) {
  return {
    rows: chunk.batch * chunk.n,
    m: t.m,
    n: t.n,
    n0: chunk.n0,
    n_chunk: chunk.n,
    b0: chunk.b0,
    k_h: t.relH?.shape.at(-1) ?? 0,
    k_w: t.relW?.shape.at(-1) ?? 0,
    mask_size: t.mask?.size ?? [1, 1, 1, 1],
    ...maskParams(t),
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

function gradients(t: Problem, chunks: Chunks, kept: Tensor | undefined, gy: Tensor): (Tensor | null)[] {
  const like = (x: Tensor | undefined): Tensor | null => (x?.requiresGrad ? empty(gy.device, x.shape) : null);
  const whole: Whole = { mask: like(t.mask?.x), relH: like(t.relH), relW: like(t.relW) };
  if (whole.mask) fill(whole.mask, 0);
  const single = onlyChunk(chunks);
  if (single) {
    const [gq, gk, gv] = scope(() => chunkGradients(t, single, kept, gy, whole));
    return [gq ?? null, gk ?? null, gv ?? null, whole.mask, whole.relH, whole.relW];
  }
  const [gq, gk, gv] = [like(t.q), like(t.k), like(t.v)];
  for (const group of chunks)
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

/** Whether all scores are kept for the gradient. */
export function inOnePiece({ batch, n, m }: Problem, scoreBytes = SCORE_BYTES): boolean {
  return onlyChunk(cut(batch, n, m, scoreBytes)) !== undefined;
}

/** The gradients where no scores were kept. */
export function chunkedGradients(t: Problem, gy: Tensor, scoreBytes = SCORE_BYTES): (Tensor | null)[] {
  return gradients(t, cut(t.batch, t.n, t.m, scoreBytes), undefined, gy);
}

/** `scoreBytes`: what the scores of a piece may take; only those of a problem of one piece are kept for the gradient. */
export function chunked(t: Problem, keeps: boolean, scoreBytes = SCORE_BYTES): Attended {
  const chunks = cut(t.batch, t.n, t.m, scoreBytes);
  const attend = (p: Tensor, { b0, batch, n }: Chunk): Tensor =>
    gemm({ x: p, flipped: false }, { x: part(t.v, b0, batch), flipped: false }, batch, n, t.m, t.dv);
  const single = onlyChunk(chunks);
  if (single) {
    const [y, kept] = scope(() => {
      const p = weights(t, single);
      return [attend(p, single), keeps ? p : undefined] as const;
    });
    return { y, grad: (gy) => gradients(t, chunks, kept, gy) };
  }
  const y = empty(t.q.device, [t.batch, t.n, t.dv]);
  for (const chunk of chunks.flat()) scope(() => place(attend(weights(t, chunk), chunk), y, chunk.b0, chunk.n0));
  return { y, grad: (gy) => gradients(t, chunks, undefined, gy) };
}
