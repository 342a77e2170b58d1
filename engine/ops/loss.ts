/** Losses: PyTorch's, and Mask2Former's dice. */
import { checkFloats, checkOptions, checkTensors } from "../check.ts";
import { linearGroups, run } from "../kernel.ts";
import { broadcastShapes, sameShape, show, sizeOf } from "../shape.ts";
import { record } from "../tape.ts";
import { alias, empty, Tensor } from "../tensor.ts";
import { expand } from "./movement.ts";
import { add, div, mul, sub } from "./pointwise.ts";
import { mean, sum } from "./reduce.ts";

export type Reduction = "none" | "mean" | "sum";
const REDUCTIONS: readonly Reduction[] = ["none", "mean", "sum"];

const BCE = 0;
const KL = 1;
const KL_LOG = 2;
const SQUARE = 3;
const SMOOTH_L1 = 4;

const NOTHING = { n: 0, rows: 0, c: 0, inner: 0, piece: 0, pieces: 0, ignore: 0, has_weight: 0, beta: 1 };
const groupsFor = (n: number): [number, number] => linearGroups(Math.ceil(n / 64));

function reduce(y: Tensor, reduction: Reduction): Tensor {
  return reduction === "mean" ? mean(y) : reduction === "sum" ? sum(y) : y;
}

function checkPair(op: string, x: Tensor, target: Tensor): void {
  checkFloats(op, { x, target });
  if (!sameShape(x.shape, target.shape))
    throw new Error(`${op}: both tensors must have one shape; got ${show(x.shape)} and ${show(target.shape)}`);
}

function pairwise(op: string, kind: number, x: Tensor, target: Tensor, beta = 1): Tensor {
  checkPair(op, x, target);
  const { device } = x;
  const n = Math.ceil(x.size / 4);
  const params = { ...NOTHING, n, beta };
  const y = empty(device, x.shape);
  run(device, "loss", "forward", {
    bind: { x4: x, t4: target, y4: y },
    params,
    constants: { KIND: kind },
    groups: groupsFor(n),
  });
  return record(op, [x, target], y, (g) =>
    [x, target].map((input, byTarget) => {
      if (!input.requiresGrad) return null;
      const gradient = empty(device, x.shape);
      run(device, "loss", "grad", {
        bind: { x4: x, t4: target, g4: g, y4: gradient },
        params,
        constants: { KIND: kind, BY_TARGET: byTarget },
        groups: groupsFor(n),
      });
      return gradient;
    }),
  );
}

export interface BinaryCrossEntropyOptions {
  reduction?: Reduction;
  /** Factor of each element, broadcasting. */
  weight?: Tensor | undefined;
  /** Factor of the positive part, broadcasting (a class each, for instance). */
  posWeight?: Tensor | number | undefined;
}

/** -(t log sigmoid(x) + (1 - t) log(1 - sigmoid(x))) for logits x and targets t of one shape, stable for large x; mean by default. */
export function binaryCrossEntropyWithLogits(
  x: Tensor,
  target: Tensor,
  options: BinaryCrossEntropyOptions = {},
): Tensor {
  const op = "binaryCrossEntropyWithLogits";
  checkOptions(op, options, { reduction: REDUCTIONS, weight: "tensor", posWeight: "any" });
  const { weight, posWeight, reduction = "mean" } = options;
  let y = pairwise(op, BCE, x, target);
  if (posWeight !== undefined) {
    // The positive part is t log(1 + exp(-x)), which is t times the loss of the target 1.
    const ones = x.device.ones(x.shape);
    const positive = mul(target, pairwise(op, BCE, x, ones));
    y = add(y, mul(positive, posWeight instanceof Tensor ? sub(posWeight, 1) : posWeight - 1));
    if (!sameShape(y.shape, x.shape))
      throw new Error(`${op}: posWeight must broadcast to x ${show(x.shape)}; the result would be ${show(y.shape)}`);
  }
  return reduce(weight ? mul(y, weight) : y, reduction);
}

export interface KlDivOptions {
  /** The target too is a logarithm. */
  logTarget?: boolean;
  /** "batchmean": the sum over the first dimension's size. */
  reduction?: Reduction | "batchmean";
}

/** q (log q - logP) elementwise, as torch.nn.functional.kl_div: the mean over all elements by default. Where q is 0 value and slope are 0. */
export function klDiv(logP: Tensor, q: Tensor, options: KlDivOptions = {}): Tensor {
  checkTensors("klDiv", { logP, q });
  checkOptions("klDiv", options, { logTarget: "boolean", reduction: [...REDUCTIONS, "batchmean"] });
  const { logTarget = false, reduction = "mean" } = options;
  const shape = broadcastShapes("klDiv", logP.shape, q.shape);
  const full = (x: Tensor): Tensor => (sameShape(x.shape, shape) ? x : expand(x, shape));
  const y = pairwise("klDiv", logTarget ? KL_LOG : KL, full(logP), full(q));
  if (reduction === "batchmean") return div(sum(y), Math.max(1, logP.shape[0] ?? 1));
  return reduce(y, reduction);
}

/** (x - target)^2; mean by default. */
export function mseLoss(x: Tensor, target: Tensor, options: { reduction?: Reduction } = {}): Tensor {
  checkOptions("mseLoss", options, { reduction: REDUCTIONS });
  return reduce(pairwise("mseLoss", SQUARE, x, target), options.reduction ?? "mean");
}

/** |x - target|, rounded off to a parabola where it is below `beta` (torch's smooth_l1_loss; beta 0: plain L1); mean by default. */
export function smoothL1(x: Tensor, target: Tensor, options: { beta?: number; reduction?: Reduction } = {}): Tensor {
  checkOptions("smoothL1", options, { beta: "number", reduction: REDUCTIONS });
  const { beta = 1, reduction = "mean" } = options;
  if (!(beta >= 0)) throw new Error(`smoothL1: beta must be 0 or larger; got ${beta}`);
  return reduce(pairwise("smoothL1", SMOOTH_L1, x, target, beta), reduction);
}

export interface CrossEntropyOptions {
  /** Weight of each class (C), f32; the mean is then over the targets' weights. */
  weight?: Tensor | undefined;
  /** Targets of this class count for nothing. */
  ignoreIndex?: number;
  reduction?: Reduction;
}

/**
 * torch.nn.functional.cross_entropy of logits x (N, C, …) or (C) and classes target (N, …) or (), i32. The mean is over the targets that
 * count (NaN where none does); a target that is no class gives NaN.
 */
export function crossEntropy(x: Tensor, target: Tensor, options: CrossEntropyOptions = {}): Tensor {
  const op = "crossEntropy";
  checkFloats(op, { x });
  checkTensors(op, { x, target });
  checkOptions(op, options, { weight: "tensor", ignoreIndex: "number", reduction: REDUCTIONS });
  const { weight, ignoreIndex = -100, reduction = "mean" } = options;
  const d = x.shape.length > 1 ? 1 : 0;
  const shape = x.shape.filter((_, k) => k !== d);
  if (x.shape.length === 0) throw new Error(`${op}: x must be (N, C, …); got a single number`);
  if ((target.dtype !== "i32" && target.dtype !== "u32") || !sameShape(target.shape, shape))
    throw new Error(
      `${op}: x is ${show(x.shape)}, so target must be i32 ${show(shape)}; got ${target.dtype} ${show(target.shape)}`,
    );
  const c = x.shape[d]!;
  if (weight && (weight.dtype !== "f32" || !sameShape(weight.shape, [c])))
    throw new Error(
      `${op}: x is ${show(x.shape)}, so weight must be f32 (${c}); got ${weight.dtype} ${show(weight.shape)}`,
    );

  const { device } = x;
  const rows = sizeOf(shape);
  const params = {
    ...NOTHING,
    rows,
    c,
    inner: sizeOf(x.shape.slice(d + 1)),
    ignore: ignoreIndex,
    has_weight: weight ? 1 : 0,
  };
  const [y, weights, logSums] = [empty(device, shape), empty(device, shape), empty(device, shape)];
  run(device, "loss", "cross_entropy", {
    bind: { x, classes: target, weight: weight ?? x, y, weights_out: weights, log_sums_out: logSums },
    params,
    groups: groupsFor(rows),
  });
  record(op, [x], y, (g) => {
    const gx = empty(device, x.shape);
    run(device, "loss", "cross_entropy_grad", {
      bind: { x, classes: target, g, weights, log_sums: logSums, y: gx },
      params,
      groups: groupsFor(x.size),
    });
    return [gx];
  });
  return reduction === "mean" ? div(sum(y), sum(weights)) : reduce(y, reduction);
}

/** Elements that an invocation of the dice sums takes. */
const DICE_PIECE = 128;

/**
 * Mask2Former's dice loss for each row of the last dimension: 1 - (2 sum p t + 1) / (sum p + sum t + 1) with p = sigmoid(logits); logits and
 * target (…, P) -> (…) with reduction "none", the mean of the rows by default.
 */
export function dice(logits: Tensor, target: Tensor, options: { reduction?: Reduction } = {}): Tensor {
  checkOptions("dice", options, { reduction: REDUCTIONS });
  checkPair("dice", logits, target);
  if (logits.shape.length === 0) throw new Error("dice: logits must have at least one dimension");
  const { device } = logits;
  const c = logits.shape.at(-1)!;
  const shape = logits.shape.slice(0, -1);
  const rows = sizeOf(shape);
  const pieces = Math.max(1, Math.ceil(c / DICE_PIECE));
  const params = { ...NOTHING, rows, c, piece: DICE_PIECE, pieces };
  const parts = empty(device, [3, rows, pieces]);
  run(device, "loss", "dice_sums", {
    bind: { x: logits, t: target, y: parts },
    params,
    groups: groupsFor(rows * pieces),
  });
  const sums = pieces === 1 ? alias(parts, [3, rows]) : sum(parts, -1);
  const y = empty(device, shape);
  run(device, "loss", "dice", { bind: { sums, y }, params, groups: groupsFor(rows) });
  record("dice", [logits, target], y, (g) =>
    [logits, target].map((input, byTarget) => {
      if (!input.requiresGrad) return null;
      const gradient = empty(device, logits.shape);
      run(device, "loss", "dice_grad", {
        bind: { x: logits, t: target, g, sums, y: gradient },
        params,
        constants: { BY_TARGET: byTarget },
        groups: groupsFor(logits.size),
      });
      return gradient;
    }),
  );
  return reduce(y, options.reduction ?? "mean");
}
