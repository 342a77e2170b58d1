/** Matrix products: batched, broadcasting over batches, with an optional bias. */
import { checkFloats, checkNoMore } from "../check.ts";
import { linearGroups, run } from "../kernel.ts";
import { broadcastShapes, sameShape, show, sizeOf } from "../shape.ts";
import { record } from "../tape.ts";
import { alias, empty, type Tensor } from "../tensor.ts";
import { sumTo } from "./reduce.ts";
import { expandTo, permuteData } from "./strided.ts";

/** A matrix of the product: (batch, rows, columns), stored as (batch, columns, rows) where `flipped`. */
interface Matrix {
  x: Tensor;
  flipped: boolean;
}

/**
 * (batch, M, K) x (batch, K, N) -> (batch, M, N), plus bias (N) where given. The subgroup kernel reads `a` by any stride but wants the rows of
 * `b` contiguous, so a flipped `b` is turned first: that copy is small beside the product.
 */
export function gemm(a: Matrix, b: Matrix, batch: number, m: number, k: number, n: number, bias?: Tensor): Tensor {
  const { device } = a.x;
  const y = empty(device, [batch, m, n]);
  if (y.size === 0) return y;
  const aStrides = { a_row: a.flipped ? 1 : k, a_col: a.flipped ? m : 1, a_batch: m * k };
  const lanes = device.subgroupSize;
  const fits = (lanes === 4 || lanes === 8) && n % 4 === 0 && k > 0 && m * n >= 64;
  const common = { m, n, k, batch, has_bias: bias ? 1 : 0, ...aStrides };
  if (fits) {
    const rows = b.flipped ? permuteData(alias(b.x, [batch, n, k]), [0, 2, 1]) : b.x;
    const [tilesM, tilesN] = [Math.ceil(m / 8), Math.ceil(n / (4 * lanes))];
    run(device, "matmul_subgroup", "forward", {
      lanes: { lanes, tiles: 1 },
      bind: { a: a.x, b: rows, bias: bias ?? rows, y },
      params: { ...common, b_batch: (k * n) / 4, tiles_m: tilesM, tiles_n: tilesN },
      groups: linearGroups(tilesM * tilesN * batch),
      flops: 2 * batch * m * n * k,
    });
    return y;
  }
  const [tilesM, tilesN] = [Math.ceil(m / 4), Math.ceil(n / 4)];
  run(device, "matmul", "forward", {
    bind: { a: a.x, b: b.x, bias: bias ?? b.x, y },
    params: {
      ...common,
      b_row: b.flipped ? 1 : n,
      b_col: b.flipped ? k : 1,
      b_batch: k * n,
      tiles_m: tilesM,
      tiles_n: tilesN,
    },
    groups: linearGroups(Math.ceil((tilesM * tilesN * batch) / 64)),
    flops: 2 * batch * m * n * k,
  });
  return y;
}

/** torch.matmul: (…, M, K) x (…, K, N) -> (…, M, N); the leading dimensions broadcast. A vector on either side is taken as one row or column. */
export function matmul(a: Tensor, b: Tensor, ...more: never[]): Tensor {
  checkFloats("matmul", { a, b });
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
  const spread = (x: Tensor, own: readonly number[], tail: readonly number[]): Tensor =>
    shared || sameShape(own, batchShape) ? x : expandTo(alias(x, [...own, ...tail]), [...batchShape, ...tail], 1);
  const A = spread(a, aBatch, [m, k]);
  const B = spread(b, bBatch, [k, n]);
  const y = gemm({ x: A, flipped: false }, { x: B, flipped: false }, batch, rows, k, n);
  return record("matmul", [a, b], alias(y, shape), (gy) => [
    a.requiresGrad
      ? alias(
          sumTo(
            alias(gemm({ x: gy, flipped: false }, { x: B, flipped: true }, batch, rows, n, k), [...batchShape, m, k]),
            aShape,
          ),
          a.shape,
        )
      : null,
    b.requiresGrad
      ? shared
        ? alias(gemm({ x: A, flipped: true }, { x: gy, flipped: false }, 1, k, rows, n), b.shape)
        : alias(
            sumTo(
              alias(gemm({ x: A, flipped: true }, { x: gy, flipped: false }, batch, k, m, n), [...batchShape, k, n]),
              bShape,
            ),
            b.shape,
          )
      : null,
  ]);
}

/** x W^T + b: (…, in), (out, in), (out) -> (…, out), as torch.nn.functional.linear. */
export function linear(x: Tensor, weight: Tensor, bias?: Tensor, ...more: never[]): Tensor {
  checkFloats("linear", bias === undefined ? { x, weight } : { x, weight, bias });
  checkNoMore("linear", more);
  const [out, width] = [weight.shape[0]!, weight.shape[1]!];
  if (weight.shape.length !== 2 || x.shape.at(-1) !== width || (bias && !sameShape(bias.shape, [out])))
    throw new Error(
      `linear: x is ${show(x.shape)}, so weight must be (out, ${x.shape.at(-1)}) and bias (out); got ${show(weight.shape)}${bias ? ` and ${show(bias.shape)}` : ""}`,
    );
  const rows = x.size / width;
  const y = gemm({ x, flipped: false }, { x: weight, flipped: true }, 1, rows, width, out, bias);
  return record("linear", bias ? [x, weight, bias] : [x, weight], alias(y, [...x.shape.slice(0, -1), out]), (gy) => [
    x.requiresGrad
      ? alias(gemm({ x: gy, flipped: false }, { x: weight, flipped: false }, 1, rows, out, width), x.shape)
      : null,
    weight.requiresGrad
      ? alias(gemm({ x: gy, flipped: true }, { x, flipped: false }, 1, out, rows, width), weight.shape)
      : null,
    bias?.requiresGrad ? sumTo(alias(gy, [rows, out]), [out]) : null,
  ]);
}
