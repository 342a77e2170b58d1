/**
 * L_seg (paper Eq. 15, weights of Mask2Former criterion.py): classification of all queries, and prompt, mask cross entropy and dice of the matched pairs, summed over the
 * supervised decoder layers. Masks are compared at points, most of them where the prediction is least sure (Kirillov et al., PointRend).
 */
import { type Device, F, noGrad, type Random, scope, type Tensor } from "../engine/index.ts";
import { type BoxLosses, boxLosses, colourPairs } from "./boxinst.ts";
import { type LatentOptions, type LatentTargets, matched, predictedSide } from "./latents.ts";
import { type LayerStack, masksOfRows, type Pair } from "./matching.ts";
import { indexTensor, randomPoints, type TargetTensors } from "./targets.ts";

export interface SegmentationOptions {
  /** Weight of the class "no object". */
  noObject: number;
  points: number;
  oversample: number;
  importance: number;
}

/** Unweighted, summed over the layers; absent where nothing of the batch gives it. */
export interface SegmentationLosses {
  class?: Tensor;
  prompt?: Tensor;
  bce?: Tensor;
  dice?: Tensor;
}

const IGNORE = -100;

export function segmentationLosses(
  gpu: Device,
  stack: LayerStack,
  targets: TargetTensors,
  pairs: readonly (readonly Pair[])[],
  latents: { targets: LatentTargets; options: LatentOptions } | undefined,
  options: SegmentationOptions,
  random: Random,
): SegmentationLosses {
  const out: SegmentationLosses = {};
  if (targets.images.some((image) => image.supervised))
    out.class = classLoss(gpu, stack, targets, pairs, options.noObject);
  const matchedPairs = matchedRows(stack, targets, pairs);
  if (matchedPairs.length === 0) return out;

  const objects = Math.max(1, targets.total); // num_masks
  const { bce, dice } = maskLosses(gpu, stack, targets, matchedPairs, options, random);
  out.bce = F.div(bce, objects);
  out.dice = F.div(dice, objects);

  if (latents && stack.latents) {
    const labelled = matchedPairs.filter((pair) => targets.images[pair.image]!.targets[pair.target]!.prompt);
    const [B, Q, S, D] = stack.latents.shape as [number, number, number, number];
    const z = F.indexSelect(
      F.reshape(stack.latents, [B * Q, S * D]),
      0,
      indexTensor(
        gpu,
        labelled.map(({ image, row }) => image * Q + row),
      ),
    );
    const predicted = predictedSide(F.reshape(z, [labelled.length, S, D]), latents.options);
    const distances = matched(
      predicted,
      latents.targets,
      indexTensor(
        gpu,
        labelled.map((pair) => pair.object),
      ),
    );
    out.prompt = F.div(F.sum(distances), objects);
  }
  return out;
}

/** A matched query, by its row of the stack. */
interface Matched extends Pair {
  row: number;
  /** Row of the targets. */
  object: number;
}

/** The matched pairs of all layers, in the order of their images. */
function matchedRows(stack: LayerStack, targets: TargetTensors, pairs: readonly (readonly Pair[])[]): Matched[] {
  return pairs
    .flatMap((layer, l) =>
      layer.map((pair) => ({
        ...pair,
        row: l * stack.queries + pair.query,
        object: targets.offsets[pair.image]! + pair.target,
      })),
    )
    .sort((a, b) => a.image - b.image);
}

/**
 * BoxInst's two terms in the place of the masks', where the targets' masks are filled boxes: summed over the layers, the projections over
 * the matched pairs as well. Undefined where nothing is matched.
 */
export function boxSupervision(
  gpu: Device,
  stack: LayerStack,
  targets: TargetTensors,
  pairs: readonly (readonly Pair[])[],
  images: Parameters<typeof colourPairs>[1],
): BoxLosses | undefined {
  const matched = matchedRows(stack, targets, pairs);
  if (matched.length === 0) return undefined;
  const [, , h, w] = stack.maskFeatures.shape as [number, number, number, number];
  const [boxes, alike] = noGrad(() => {
    const chosen = matched.map((pair) => pair.object * targets.candidates + pair.candidate);
    const filled = F.indexSelect(targets.masks!, 0, indexTensor(gpu, chosen));
    const small = F.interpolate(filled, { size: [h, w], mode: "bilinear", alignCorners: false });
    const imageOf = matched.map(({ image }) => image);
    return [
      F.cast(F.ge(small, 0.5), "f32"),
      F.indexSelect(colourPairs(gpu, images, [h, w]), 0, indexTensor(gpu, imageOf)),
    ];
  }) as [Tensor, Tensor];
  const { projection, pairwise } = boxLosses(masksOfRows(gpu, stack, matched), boxes, alike);
  return { projection: F.div(projection, Math.max(1, targets.total)), pairwise: F.mul(pairwise, stack.layers) };
}

/** Numbers of the masks that are worked on at once: 64 MiB, half of what every adapter can bind. */
const MOST_NUMBERS = 2 ** 24;

/** Both summed over the matched pairs, which come in the order of their images. */
function maskLosses(
  gpu: Device,
  stack: LayerStack,
  targets: TargetTensors,
  pairs: readonly Matched[],
  options: SegmentationOptions,
  random: Random,
): { bce: Tensor; dice: Tensor } {
  const [, , h, w] = stack.maskFeatures.shape as [number, number, number, number];
  const [, , H, W] = targets.masks!.shape as [number, number, number, number];
  const candidates = 2 * Math.floor(options.points * options.oversample); // x and y
  const most = Math.max(1, Math.floor(MOST_NUMBERS / Math.max(h * w, H * W, candidates)));
  const bce: Tensor[] = [];
  const dice: Tensor[] = [];
  for (let start = 0; start < pairs.length; start += most) {
    const some = pairs.slice(start, start + most);
    const chosen = indexTensor(
      gpu,
      some.map((pair) => pair.object * targets.candidates + pair.candidate),
    );
    const masks = (): Tensor => F.indexSelect(targets.masks!, 0, chosen);
    const { x, t } = samplePoints(gpu, masksOfRows(gpu, stack, some), masks, options, random);
    bce.push(F.sum(F.mean(F.binaryCrossEntropyWithLogits(x, t, { reduction: "none" }), [1])));
    dice.push(F.dice(x, t, { reduction: "sum" }));
  }
  const total = (parts: Tensor[]): Tensor => parts.reduce((a, b) => F.add(a, b));
  return { bce: total(bce), dice: total(dice) };
}

/**
 * Cross entropy of all queries, weighted mean of each layer. Every layer matches the same number of objects, so the layers' weights have
 * one sum and the mean over all of them, times their number, is the sum of the layers' means.
 */
function classLoss(
  gpu: Device,
  stack: LayerStack,
  targets: TargetTensors,
  pairs: readonly (readonly Pair[])[],
  noObject: number,
): Tensor {
  const [B, Q, classes] = stack.classLogits.shape as [number, number, number];
  const labels = new Int32Array(B * Q).fill(classes - 1);
  for (const [b, image] of targets.images.entries()) if (!image.supervised) labels.fill(IGNORE, b * Q, (b + 1) * Q);
  for (const [layer, list] of pairs.entries())
    for (const pair of list)
      labels[(pair.image * stack.layers + layer) * stack.queries + pair.query] =
        targets.images[pair.image]!.targets[pair.target]!.classIndex;
  const weight = gpu.tensor(Float32Array.from({ length: classes }, (_, c) => (c === classes - 1 ? noObject : 1)));
  const label = gpu.tensor(labels, [B * Q], { dtype: "i32" });
  const mean = F.crossEntropy(F.reshape(stack.classLogits, [B * Q, classes]), label, { weight, ignoreIndex: IGNORE });
  return F.mul(mean, stack.layers);
}

/** Logits (M, 1, h, w) and masks (M, 1, H, W) -> both at the points chosen: (M, P). The masks are not differentiated, and not kept. */
export function samplePoints(
  gpu: Device,
  logits: Tensor,
  masks: () => Tensor,
  options: Pick<SegmentationOptions, "points" | "oversample" | "importance">,
  random: Random,
): { x: Tensor; t: Tensor } {
  const M = logits.shape[0]!;
  const grid = uncertainPoints(gpu, logits, options, random);
  const P = grid.shape[2]!;
  const t = noGrad(() => scope(() => F.reshape(sample(masks(), grid), [M, P])));
  return { x: F.reshape(sample(logits, grid), [M, P]), t };
}

/** PointRend's get_uncertain_point_coords_with_randomness: (M, 1, P, 2), from -1 to 1. */
function uncertainPoints(
  gpu: Device,
  logits: Tensor,
  { points: P, oversample, importance }: Pick<SegmentationOptions, "points" | "oversample" | "importance">,
  random: Random,
): Tensor {
  const M = logits.shape[0]!;
  const draw = (n: number): Tensor => gpu.tensor(randomPoints(M * n * 2, random), [M, n, 2]);
  const unsure = Math.floor(importance * P);
  return scope(() =>
    noGrad(() => {
      const kept: Tensor[] = [];
      if (unsure > 0) {
        const n = Math.max(unsure, Math.floor(P * oversample));
        const candidates = draw(n);
        const sure = F.abs(F.reshape(sample(logits, F.reshape(candidates, [M, 1, n, 2])), [M, n]));
        const { indices } = F.topk(F.neg(sure), unsure); // (M, unsure)
        const pairs = F.expand(F.reshape(indices, [M, unsure, 1]), [M, unsure, 2]);
        kept.push(F.gather(candidates, 1, pairs));
      }
      if (P > unsure) kept.push(draw(P - unsure));
      return F.reshape(F.cat(kept, 1), [M, 1, P, 2]);
    }),
  );
}

function sample(x: Tensor, grid: Tensor): Tensor {
  return F.gridSample(x, grid, { mode: "bilinear", paddingMode: "zeros", alignCorners: false });
}
