/** Matrix products: batched, broadcasting over batches, with an optional bias. Operands may be f16: they are read as stored and summed in f32. */
import { rounding } from "../autocast.ts";
import { checkFloats, checkNoMore, checkOptions } from "../check.ts";
import { type Finish, finishing } from "../epilogue.ts";
import { linearGroups, run } from "../kernel.ts";
import { matrixConsts } from "../matrices.ts";
import { scope } from "../scope.ts";
import { broadcastShapes, sameShape, show, sizeOf } from "../shape.ts";
import { record } from "../tape.ts";
import { alias, empty, reshaped, type Tensor } from "../tensor.ts";
import { FINISH_OPTIONS, type FinishOptions, finished } from "./finish.ts";
import { cast } from "./pointwise.ts";
import { sumTo } from "./reduce.ts";
import { expandTo, permuteData, stridedRead, widen } from "./strided.ts";

/** A matrix of the product: (batch, rows, columns), stored as (batch, columns, rows) where `flipped`. */
interface Matrix {
  x: Tensor;
  flipped: boolean;
}

interface Product {
  a: Matrix;
  b: Matrix;
  batch: number;
  m: number;
  k: number;
  n: number;
  finish: Finish;
}

/** A long K is cut into `parts` of `piece` steps each, whose sums are kept one after the other and added up at the end. */
interface Cut {
  parts: number;
  piece: number;
}

/**
 * The kernels of a product. All take the products of 64 steps of k into one sum by fused multiply-adds and then those sums into a total, in
 * the same order, so that they give the same bits and may stand in for each other:
 *   plain      every shape and adapter
 *   tiled      workgroup memory, for GPUs
 *   rows       subgroups of few lanes; b's rows four at a time
 *   columns    the same for a flipped b, its columns four at a time
 *   packed     b is copied to rows whose length divides by four, for `rows`
 * Of two f16 matrices
 *   matrices   the adapter's matrix units, for large ones. They add in an order of their own, so that where they are used nothing stands in for them.
 */
type Variant = "plain" | "tiled" | "rows" | "columns" | "packed" | "matrices";

/** Rows and columns of y that an invocation of `plain`, or a workgroup, owns. */
const TILES: Partial<Record<Variant, readonly [number, number]>> = {
  plain: [4, 4],
  tiled: [64, 64],
  matrices: [64, 64],
};

/** Rows of a, and columns of b, from which on copying b is small beside the product. */
const PACKED = { rows: 128, columns: 64 };

/** The variants that can do the work, first the rule's: subgroups on software adapters, workgroup memory on GPUs. */
function variants(product: Product): readonly Variant[] {
  const { a, b, batch, m, k, n } = product;
  const { subgroupSize: lanes, isSoftware } = a.x.device;
  if (k === 0 || m * n * batch < 64) return ["plain"];
  if (matricesDo(product)) return ["matrices"];
  const few = lanes === 4 || lanes === 8;
  const fours = (b.flipped ? k : n) % 4 === 0;
  const direct = b.flipped ? "columns" : "rows";
  const gpu = isSoftware || m < 16 || n < 16 ? "plain" : "tiled";
  // What neither divides by four nor fills a tile is no faster by it, and would only have one more kernel compiled.
  const worth = fours && (n % 4 === 0 || n >= 4 * lanes);
  const large = m >= PACKED.rows && n >= PACKED.columns;
  const rule = !few || m * n < 64 ? gpu : worth ? direct : large ? "packed" : "plain";
  const list: Variant[] = [rule, "plain", "tiled"];
  if (few && (b.flipped || !fours)) list.push("packed");
  if (fours && (few || lanes === 16 || lanes === 32)) list.push(direct);
  return [...new Set(list)];
}

/**
 * Few outputs of a long sum (a weight's gradient, say) leave most of an adapter idle, so K is cut. That changes the order of the sum: where to
 * cut follows from the sizes and the kind of adapter alone, never from a measurement.
 */
function cutOf({ a, batch, m, k, n }: Product): Cut {
  const { isSoftware } = a.x.device;
  const [wanted, least] = isSoftware ? [4, 8192] : [64, 256];
  const tiles = (isSoftware ? Math.ceil(m / 8) * Math.ceil(n / 32) : Math.ceil(m / 64) * Math.ceil(n / 64)) * batch;
  const parts = Math.min(Math.floor(wanted / tiles), Math.floor(k / least));
  if (parts < 2) return { parts: 1, piece: k };
  const piece = Math.ceil(k / parts / 64) * 64;
  return { parts: Math.ceil(k / piece), piece };
}

/** Fours of what lies next to each other can be read and written at once. */
function inFours({ a, b, m, k, n }: Product): boolean {
  return n % 4 === 0 && (a.flipped ? m : k) % 4 === 0 && (b.flipped ? k : n) % 4 === 0;
}

function matricesDo(product: Product): boolean {
  const { a, b, m, n } = product;
  return a.x.device.matrices !== undefined && isHalf(a) && isHalf(b) && m >= 32 && n >= 32 && inFours(product);
}

const isHalf = ({ x }: Matrix): boolean => x.dtype === "f16";

/**
 * b, (batch, K, N), as rows of a multiple of four; what is added at their ends is never looked at. An f16 matrix is made f32 before: it is
 * copied anyway, and copies move whole words.
 */
function pack({ b: { x, flipped }, batch, k, n }: Product): Matrix {
  const b = { x: widen(x), flipped };
  if (n % 4 === 0) return { x: b.flipped ? permuteData(alias(b.x, [batch, n, k]), [0, 2, 1]) : b.x, flipped: false };
  const strides = b.flipped ? [k * n, 1, k] : [k * n, n, 1];
  const shape = [batch, k, Math.ceil(n / 4) * 4];
  return { x: stridedRead(b.x, shape, { strides, low: [0, 0, 0], bound: [batch, k, n] }), flipped: false };
}

/** Runs one kernel: the sums of each part, (batch, parts, M, N). The bias is for products in one part. */
function dispatch(variant: Variant, product: Product, { parts, piece }: Cut): Tensor {
  const { a, batch, m, k, n, finish } = product;
  const { bias, rest, activation } = finish;
  const { device } = a.x;
  const packed = variant === "packed";
  const b = packed ? pack(product) : product.b;
  const y = empty(device, [batch, parts, m, n]);
  const four = n % 4 === 0;
  const width = packed ? Math.ceil(n / 4) * 4 : n;
  const lanes = device.subgroupSize;
  const [tileM, tileN] = TILES[variant] ?? [8, 4 * lanes];
  const [tilesM, tilesN] = [Math.ceil(m / tileM), Math.ceil(n / tileN)];
  const tiles = tilesM * tilesN * batch * parts;
  const flops = 2 * batch * m * n * k;
  const inputs = { a: a.x, b: b.x, bias: bias ?? b.x };
  const halves = { HALF_A: isHalf(a) ? 1 : 0, HALF_B: isHalf(b) ? 1 : 0 };
  const added = rest ?? b.x;
  const REST = rest ? 1 : 0;
  const params = {
    ...{ m, n, k, batch, parts, piece, tiles_m: tilesM, tiles_n: tilesN, has_bias: bias ? 1 : 0 },
    ...{ a_row: a.flipped ? 1 : k, a_col: a.flipped ? m : 1, a_batch: m * k },
    ...{ b_row: b.flipped ? 1 : width, b_col: b.flipped ? k : 1, b_batch: k * width },
  };
  if (variant === "plain") {
    run(device, finishing("matmul", activation), "forward", {
      bind: { ...inputs, rest: added, y },
      params,
      constants: { REST, ...halves },
      groups: linearGroups(Math.ceil(tiles / 64)),
      flops,
    });
  } else if (variant === "tiled") {
    const aligned = inFours(product);
    run(device, finishing("matmul", activation), aligned ? "tiled4" : "tiled", {
      bind: { ...inputs, a4: a.x, b4: b.x, ...(aligned ? { y4: y, rest4: added } : { y, rest: added }) },
      params,
      constants: { FOUR: aligned ? 1 : 0, REST, ...halves },
      halves: isHalf(a) && isHalf(b) && device.hasHalves,
      groups: linearGroups(tiles),
      flops,
    });
  } else if (variant === "matrices") {
    run(device, finishing("matmul_matrices", activation), "forward", {
      consts: matrixConsts(device.matrices!, lanes),
      bind: { a2: a.x, b2: b.x, bias: inputs.bias, rest4: added, y4: y },
      params,
      constants: { REST },
      groups: linearGroups(tiles),
      flops,
    });
  } else {
    run(device, finishing("matmul_subgroup", activation), four ? "forward4" : "forward", {
      lanes: { lanes, tiles: 1 },
      bind: { a: a.x, b4: b.x, b2: b.x, bias: inputs.bias, ...(four ? { y4: y, rest4: added } : { y, rest: added }) },
      params,
      constants: { COLUMNS: b.flipped ? 1 : 0, REST, ...halves },
      groups: linearGroups(tiles),
      flops,
    });
  }
  return y;
}

/** The product, and nothing else that it took. */
function multiply(variant: Variant, product: Product): Tensor {
  return scope(() => summed(variant, product));
}

function summed(variant: Variant, product: Product): Tensor {
  const { batch, m, n, finish } = product;
  const { bias, rest, activation } = finish;
  const cut = cutOf(product);
  if (cut.parts === 1) return alias(dispatch(variant, product, cut), [batch, m, n]);
  const parts = dispatch(variant, { ...product, finish: {} }, cut);
  const y = empty(parts.device, [batch, m, n]);
  run(parts.device, finishing("matmul_parts", activation), "forward", {
    bind: { parts, bias: bias ?? parts, rest: rest ?? parts, y },
    params: { n: y.size, parts: cut.parts, matrix: m * n, columns: n, has_bias: bias ? 1 : 0 },
    constants: { REST: rest ? 1 : 0 },
    groups: linearGroups(Math.ceil(y.size / 64)),
  });
  return y;
}

/** Normal numbers in the places of a product's operands, for measurements. */
function trial({ a, b, batch, m, k, n, finish }: Product): (variant: string) => Tensor {
  const { device } = a.x;
  const like = ({ x, flipped }: Matrix, size: number, seed: number): Matrix => ({
    x: cast(device.randn([size], { seed }), x.dtype),
    flipped,
  });
  const product: Product = {
    ...{ batch, m, k, n },
    a: like(a, batch * m * k, 1),
    b: like(b, batch * k * n, 2),
    finish: finish.bias ? { bias: device.randn([n], { seed: 3 }) } : {},
  };
  return (variant) => multiply(variant as Variant, product);
}

/** (batch, M, K) x (batch, K, N) -> (batch, M, N) in f32, with what follows the product: bias is (N). */
export function gemm(
  a: Matrix,
  b: Matrix,
  batch: number,
  m: number,
  k: number,
  n: number,
  finish: Finish = {},
): Tensor {
  const product: Product = { a, b, batch, m, k, n, finish };
  if (batch * m * n === 0) return empty(a.x.device, [batch, m, n]);
  const kind = (x: Matrix): string => `${isHalf(x) ? "half " : ""}${x.flipped ? "flipped" : "plain"}`;
  const flags = `${kind(a)} x ${kind(b)}`;
  const { tuner } = a.x.device;
  return multiply(
    tuner.pick("matmul", [batch, m, k, n], flags, variants(product), () => trial(product)) as Variant,
    product,
  );
}

/**
 * torch.matmul: (…, M, K) x (…, K, N) -> (…, M, N); the leading dimensions broadcast. A vector on either side is taken as one row or column.
 * Either side may be f16; the result and the gradients are f32.
 */
export function matmul(a: Tensor, b: Tensor, ...more: never[]): Tensor {
  checkFloats("matmul", { a, b }, ["a", "b"]);
  checkNoMore("matmul", more);
  if (a.shape.length === 0 || b.shape.length === 0)
    throw new Error("matmul: a single number has no rows or columns; use F.mul");
  const aShape = a.shape.length === 1 ? [1, ...a.shape] : a.shape;
  const bShape = b.shape.length === 1 ? [...b.shape, 1] : b.shape;
  const [m, k] = [aShape.at(-2)!, aShape.at(-1)!];
  const n = bShape.at(-1)!;
  if (bShape.at(-2) !== k)
    throw new Error(
      `matmul: ${show(a.shape)} x ${show(b.shape)}: the inner sizes ${k} and ${bShape.at(-2)} must be equal`,
    );
  const [aBatch, bBatch] = [aShape.slice(0, -2), bShape.slice(0, -2)];
  const batchShape = broadcastShapes("matmul", aBatch, bBatch);
  const shape = [...batchShape];
  if (a.shape.length > 1) shape.push(m);
  if (b.shape.length > 1) shape.push(n);

  // One matrix b for all of a: the batch is nothing but more rows.
  const shared = sizeOf(bBatch) === 1 && sizeOf(aBatch) === sizeOf(batchShape);
  const batch = shared ? 1 : sizeOf(batchShape);
  const rows = shared ? sizeOf(batchShape) * m : m;
  // A batch that broadcasts is copied, which f16 cannot be by itself: see `pack`.
  const spread = (x: Tensor, own: readonly number[], tail: readonly number[]): Tensor =>
    shared || sameShape(own, batchShape)
      ? x
      : expandTo(alias(widen(x), [...own, ...tail]), [...batchShape, ...tail], 1);
  const low = rounding();
  const A = low(spread(a, aBatch, [m, k]));
  const B = low(spread(b, bBatch, [k, n]));
  const y = gemm({ x: A, flipped: false }, { x: B, flipped: false }, batch, rows, k, n);
  const gradient = (gy: Tensor): (Tensor | null)[] => {
    const G = { x: low(gy), flipped: false };
    const ofA = (): Tensor => alias(gemm(G, { x: B, flipped: true }, batch, rows, n, k), [...batchShape, m, k]);
    const ofB = (): Tensor =>
      shared
        ? gemm({ x: A, flipped: true }, G, 1, k, rows, n)
        : sumTo(alias(gemm({ x: A, flipped: true }, G, batch, k, m, n), [...batchShape, k, n]), bShape);
    return [
      a.requiresGrad ? alias(sumTo(ofA(), aShape), a.shape) : null,
      b.requiresGrad ? alias(ofB(), b.shape) : null,
    ];
  };
  return record("matmul", [a, b], reshaped(y, shape), gradient, [A, B]);
}

/**
 * x W^T + b: (…, in), (out, in), (out) -> (…, out), as torch.nn.functional.linear; with `residual` (…, out) and `activation`,
 * activation(x W^T + b + residual). x, W and the residual may be f16; the bias, the gradients and, but for `forProducts`, the result are f32.
 */
export function linear(
  x: Tensor,
  weight: Tensor,
  bias?: Tensor,
  options: FinishOptions = {},
  ...more: never[]
): Tensor {
  checkFloats("linear", bias === undefined ? { x, weight } : { x, weight, bias }, ["x", "weight"]);
  checkOptions("linear", options, FINISH_OPTIONS);
  checkNoMore("linear", more);
  if (x.shape.length === 0) throw new Error("linear: x is a single number; it must have features, (…, in)");
  const [out, width] = [weight.shape[0]!, weight.shape[1]!];
  if (weight.shape.length !== 2 || x.shape.at(-1) !== width || (bias && !sameShape(bias.shape, [out])))
    throw new Error(
      `linear: x is ${show(x.shape)}, so weight must be (out, ${x.shape.at(-1)}) and bias (out); got ${show(weight.shape)}${bias ? ` and ${show(bias.shape)}` : ""}`,
    );
  const shape = [...x.shape.slice(0, -1), out];
  const rows = sizeOf(x.shape.slice(0, -1));
  const low = rounding();
  const [X, W] = [low(x), low(weight)];
  return finished(
    "linear",
    { x, weight, bias },
    shape,
    options,
    (finish) => reshaped(gemm({ x: X, flipped: false }, { x: W, flipped: true }, 1, rows, width, out, finish), shape),
    (gy) => {
      const G = low(gy);
      return [
        x.requiresGrad
          ? alias(gemm({ x: G, flipped: false }, { x: W, flipped: false }, 1, rows, out, width), x.shape)
          : null,
        weight.requiresGrad
          ? alias(gemm({ x: G, flipped: true }, { x: X, flipped: false }, 1, out, rows, width), weight.shape)
          : null,
        bias?.requiresGrad ? sumTo(alias(gy, [rows, out]), [out]) : null,
      ];
    },
    [X, W],
  );
}
