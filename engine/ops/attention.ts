/** Scaled dot-product attention with masks and SAM's decomposed relative position. */
import { checkFloats, checkOptions, checkTensors } from "../check.ts";
import { broadcastShapes, type Shape, sameShape, show, sizeOf } from "../shape.ts";
import { isRecording, record } from "../tape.ts";
import type { Tensor } from "../tensor.ts";
import { chunked, chunkedGradients, inOnePiece } from "./attention-chunked.ts";
import { inLanes, onePass, onePassIsFaster, onePassObstacle } from "./attention-one-pass.ts";
import type { Attended, Mask, Problem } from "./attention-problem.ts";
import { expand, reshape } from "./movement.ts";
import { mul } from "./pointwise.ts";

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
  /** How it is worked out, for comparisons; default: the way that was measured to be the faster, see `attend`. */
  path?: "chunked" | "onePass" | undefined;
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
 * Which way. On GPUs one pass throughout, where it fits: its scores stay out of memory. Adapters with subgroups of 4 or 8 are CPUs:
 * - the gradient goes in pieces: in one pass it is 7 products of matrices, not 4 or 5, in workgroup memory, which is dear there (3.4 to 4.9
 *   times the CPU time on lavapipe, 4.4 on SwiftShader), and so do values whose scores are kept for it;
 * - values alone, or whose scores would be too many to keep, go in one pass with subgroups of 8 (lavapipe: 0.8 times the time for 8 heads x
 *   1024 x 64 and for SAM's 4,096 tokens, 0.9 for its windows), in pieces with 4 (SwiftShader: one pass takes 0.9 to 1.2 times as long).
 */
function attend(t: Problem, keeps: boolean, { path, scoreBytes }: AttentionOptions): Attended {
  const obstacle = onePassObstacle(t, keeps);
  if (path === "onePass" && obstacle) throw new Error(`scaledDotProductAttention: path "onePass" ${obstacle}`);
  if (path === "onePass") return onePass(t);
  if (path === "chunked" || obstacle || !onePassIsFaster(t)) return chunked(t, keeps, scoreBytes);
  if (!inLanes(t.q.device)) return onePass(t);
  if (keeps && inOnePiece(t, scoreBytes)) return chunked(t, keeps, scoreBytes);
  return { y: onePass(t).y, grad: (gy) => chunkedGradients(t, gy, scoreBytes) };
}

/**
 * softmax(scale q k^T + mask + relative position) v: q (…, N, D), k (…, M, D), v (…, M, Dv) -> (…, N, Dv). The leading dimensions broadcast.
 * Queries whose keys are all masked out give 0 and pass no gradient (torch gives NaN).
 */
export function scaledDotProductAttention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor {
  const op = "scaledDotProductAttention";
  checkFloats(op, { q, k, v });
  checkOptions(op, options, {
    mask: "tensor",
    scale: "number",
    relH: "tensor",
    relW: "tensor",
    scoreBytes: "number",
    path: ["chunked", "onePass"],
  });
  const { mask, relH, relW } = options;
  checkTensors(op, { q, ...(mask && { mask }), ...(relH && { relH }), ...(relW && { relW }) });
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
    q: flat(scale === 1 ? q : mul(q, scale), n, d),
    k: flat(k, m, d),
    v: flat(v, m, dv),
    mask: mask && arrangeMask(mask, batchShape, n, m),
    relH: relH && reshape(relH, [batch, n, relH.shape.at(-1)!]),
    relW: relW && reshape(relW, [batch, n, relW.shape.at(-1)!]),
  };
  const inputs = [t.q, t.k, t.v, t.mask?.x, t.relH, t.relW];
  const keeps = isRecording() && inputs.some((x) => x?.requiresGrad);
  const { y, grad } = attend(t, keeps, options);
  const present = inputs.flatMap((x, i) => (x ? [{ x, i }] : []));
  const out = record(
    op,
    present.map(({ x }) => x),
    y,
    (gy) => {
      const all = grad(gy);
      return present.map(({ i }) => all[i]!);
    },
  );
  return reshape(out, [...batchShape, n, dv]);
}
