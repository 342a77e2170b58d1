/**
 * SAM's loss: focal and dice on masks, the best of three candidates counted, the single mask beside them, and a square error on the
 * predicted IoU. Targets are covered shares of cells, so that the soft edge of a small mask is learned as one.
 */
import { F, noGrad, type Tensor } from "../../engine/index.ts";

export interface LossWeights {
  readonly focal: number;
  readonly bce: number;
  readonly dice: number;
  readonly iou: number;
}

/** Names of `samLoss`'s terms, in the order of its vector. */
export const TERMS = ["loss", "best", "single", "iou", "miou"] as const;

/**
 * @param masks (P, 4, N) logits, the single mask first
 * @param iou (P, 4) predicted
 * @param targets (P, 1, N) in 0..1
 * @returns the loss, and a (5) vector of TERMS for the log
 */
export function samLoss(
  masks: Tensor,
  iou: Tensor,
  targets: Tensor,
  weights: LossWeights,
): { loss: Tensor; terms: Tensor } {
  const [, , N] = masks.shape as [number, number, number];
  const p = F.sigmoid(masks);
  // max(x, 0) - x t + log(1 + exp(-|x|)): binary cross entropy of logits, targets broadcast over the four masks.
  const bce = F.add(F.sub(F.relu(masks), F.mul(masks, targets)), F.log(F.add(F.exp(F.neg(F.abs(masks))), 1)));
  const overlap = F.sum(F.mul(p, targets), [2]); // (P, 4)
  const covered = F.add(F.sum(p, [2]), F.sum(targets, [2]));
  const dice = F.sub(1, F.div(F.add(F.mul(overlap, 2), 1), F.add(covered, 1)));
  let each = F.add(F.mul(dice, weights.dice), F.mul(F.sum(bce, [2]), weights.bce / N)); // (P, 4)
  if (weights.focal > 0) {
    // 1 - p_t = |p - t| for hard targets; gamma 2
    const miss = F.sub(p, targets);
    each = F.add(each, F.mul(F.sum(F.mul(bce, F.mul(miss, miss)), [2]), weights.focal / N));
  }
  const single = F.mean(F.slice(each, 1, 0, 1));
  const best = F.mean(F.min(F.slice(each, 1, 1, each.shape[1]!), [1]));
  const actual = noGrad(() => actualIou(masks, targets));
  const gap = F.sub(iou, actual);
  const iouLoss = F.mean(F.mul(gap, gap));
  const loss = F.add(F.add(best, single), F.mul(iouLoss, weights.iou));
  const terms = noGrad(() =>
    F.stack(
      [loss, best, single, iouLoss, F.mean(F.slice(actual, 1, 0, 1))].map((x) => F.reshape(F.detach(x), [1])),
      0,
    ),
  );
  return { loss, terms: F.reshape(terms, [TERMS.length]) };
}

/** IoU of thresholded masks with targets of which more than half a cell is covered: (P, 4). */
function actualIou(masks: Tensor, targets: Tensor): Tensor {
  const inside = F.cast(F.gt(masks, 0), "f32");
  const wanted = F.cast(F.gt(targets, 0.5), "f32"); // (P, 1, N)
  const both = F.sum(F.mul(inside, wanted), [2]);
  const either = F.sub(F.add(F.sum(inside, [2]), F.sum(wanted, [2])), both);
  return F.div(both, F.maximum(either, 1));
}
