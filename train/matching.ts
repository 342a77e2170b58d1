/**
 * Bipartite matching of queries and objects (paper Eq. 11 to 14, Mask2Former matcher.py): class, prompt and mask cost, the last as the least over SAM's
 * candidate masks. All decoder layers and images are compared on the GPU at the same random points and read back once; the assignment
 * runs on the host.
 */
import { type Device, F, noGrad, type Random, scope, type Tensor } from "../engine/index.ts";
import type { Masks, Prediction } from "../model/index.ts";
import { assign } from "./hungarian.ts";
import { type LatentOptions, type LatentTargets, pairwise, predictedSide } from "./latents.ts";
import { indexTensor, paddedRows, randomPoints, type TargetTensors } from "./targets.ts";

export interface MatchOptions {
  class: number;
  prompt: number;
  bce: number;
  dice: number;
  points: number;
  /** Which of an object's candidates counts: the nearest to the prediction, or the one SAM rates best. */
  candidate: "adaptive" | "iou";
}

/** The heads' answers of L layers, an image's layers side by side: query q of layer l stands at l * N + q, here called its row. */
export interface LayerStack extends Masks {
  layers: number;
  queries: number;
  /** (B, L * N, K + 1) */
  classLogits: Tensor;
  /** (B, L * N, C), to be multiplied with `maskFeatures` (B, C, h, w) as far as masks are needed. */
  maskEmbedding: Tensor;
  /** (B, L * N, S, D) */
  latents: Tensor | undefined;
}

/** A query and the object it stands for. */
export interface Pair {
  image: number;
  query: number;
  /** Index among the image's objects. */
  target: number;
  /** n*: which candidate mask of the object. */
  candidate: number;
}

export function stackLayers(predictions: readonly Prediction[]): LayerStack {
  const join = (pick: (p: Prediction) => Tensor): Tensor =>
    predictions.length === 1 ? pick(predictions[0]!) : F.cat(predictions.map(pick), 1);
  const latents = predictions.every((p) => p.promptLatents);
  return {
    layers: predictions.length,
    queries: predictions[0]!.classLogits.shape[1]!,
    classLogits: join((p) => p.classLogits),
    maskEmbedding: join((p) => p.maskEmbedding),
    maskFeatures: predictions[0]!.maskFeatures,
    latents: latents ? join((p) => p.promptLatents!) : undefined,
  };
}

/** The masks of some rows, which come in the order of their images: (M, 1, h, w). */
export function masksOfRows(gpu: Device, stack: Masks, rows: readonly { image: number; row: number }[]): Tensor {
  const { maskEmbedding, maskFeatures } = stack;
  const [B, Q, C] = maskEmbedding.shape as [number, number, number];
  const [, , h, w] = maskFeatures.shape as [number, number, number, number];
  const embeddings = F.reshape(maskEmbedding, [B * Q, C]);
  const parts: Tensor[] = [];
  for (let b = 0; b < B; b++) {
    const own = rows.filter(({ image }) => image === b).map(({ row }) => b * Q + row);
    if (own.length === 0) continue;
    const features = B === 1 ? maskFeatures : F.slice(maskFeatures, 0, b, b + 1);
    parts.push(F.matmul(F.indexSelect(embeddings, 0, indexTensor(gpu, own)), F.reshape(features, [C, h * w])));
  }
  return F.reshape(parts.length === 1 ? parts[0]! : F.cat(parts, 0), [rows.length, 1, h, w]);
}

/** Costs on the host. */
export interface Costs {
  /** (B, L * N, K + 1) probabilities */
  classes: Float32Array;
  /** (B, L * N, most, candidates), weighted */
  masks: Float32Array;
  /** (B, L * N, most) */
  prompts: Float32Array | undefined;
}

/** Pairs for each layer. `random` draws the points. */
export async function match(
  gpu: Device,
  stack: LayerStack,
  targets: TargetTensors,
  latents: { targets: LatentTargets; options: LatentOptions } | undefined,
  options: MatchOptions,
  random: Random,
): Promise<Pair[][]> {
  if (targets.total === 0) return Array.from({ length: stack.layers }, () => []);
  const B = targets.images.length;
  const points = randomPoints(B * options.points * 2, random);
  return assignAll(await costs(gpu, stack, targets, latents, options, points), stack, targets, options);
}

/** @param points (B, P, 2), x and y from -1 to 1 over the padded input */
export async function costs(
  gpu: Device,
  stack: LayerStack,
  targets: TargetTensors,
  latents: { targets: LatentTargets; options: LatentOptions } | undefined,
  options: MatchOptions,
  points: Float32Array,
): Promise<Costs> {
  const B = targets.images.length;
  const Q = stack.layers * stack.queries;
  const flat = scope(() =>
    noGrad(() => {
      const parts = [F.softmax(stack.classLogits, 2), maskCosts(gpu, stack, targets, options, points)];
      if (latents && stack.latents) {
        const rows = indexTensor(gpu, paddedRows(targets, targets.total));
        parts.push(pairwise(predictedSide(stack.latents, latents.options), latents.targets, rows, targets.most));
      }
      return F.cat(
        parts.map((x) => F.reshape(x, [x.size])),
        0,
      );
    }),
  );
  const values = (await flat.toArray()) as Float32Array;
  const first = stack.classLogits.size;
  const second = first + B * Q * targets.most * targets.candidates;
  return {
    classes: values.subarray(0, first),
    masks: values.subarray(first, second),
    prompts: values.length > second ? values.subarray(second) : undefined,
  };
}

/** bce * BCE + dice * dice of all pairs at the points: (B, Q, most * candidates). */
function maskCosts(
  gpu: Device,
  stack: LayerStack,
  targets: TargetTensors,
  options: MatchOptions,
  points: Float32Array,
): Tensor {
  const B = targets.images.length;
  const P = points.length / B / 2;
  const grid = gpu.tensor(points, [B, P * 2]);
  const sample = (x: Tensor, at: Tensor) =>
    F.gridSample(x, F.reshape(at, [x.shape[0]!, 1, P, 2]), {
      mode: "bilinear",
      paddingMode: "zeros",
      alignCorners: false,
    });
  // All queries of an image are asked at the same points, so that its features are sampled there and not their masks.
  const features = F.reshape(sample(stack.maskFeatures, grid), [B, stack.maskFeatures.shape[1]!, P]);
  const x = F.matmul(stack.maskEmbedding, features);

  const C = targets.candidates;
  const imageOf = targets.images.flatMap((image, b) => new Array<number>(image.targets.length * C).fill(b));
  const sampled = F.reshape(sample(targets.masks!, F.indexSelect(grid, 0, indexTensor(gpu, imageOf))), [
    targets.total * C,
    P,
  ]);
  const rows = Array.from(paddedRows(targets, targets.total)).flatMap((row) =>
    Array.from({ length: C }, (_, c) => Math.min(row * C + c, targets.total * C)),
  );
  const padded = F.indexSelect(F.cat([sampled, gpu.zeros([1, P])], 0), 0, indexTensor(gpu, rows));
  const t = F.permute(F.reshape(padded, [B, targets.most * C, P]), [0, 2, 1]); // (B, P, most * C)

  // BCE with logits is softplus(x) - x t; summed over the points, the second part is a matrix product.
  const softplus = F.add(F.relu(x), F.log(F.add(F.exp(F.neg(F.abs(x))), 1)));
  const bce = F.div(F.sub(F.sum(softplus, [2], { keepdim: true }), F.matmul(x, t)), P);
  const probability = F.sigmoid(x);
  const overlap = F.add(F.mul(F.matmul(probability, t), 2), 1);
  const extent = F.add(F.add(F.sum(probability, [2], { keepdim: true }), F.sum(t, [1], { keepdim: true })), 1);
  const dice = F.sub(1, F.div(overlap, extent));
  return F.add(F.mul(bce, options.bce), F.mul(dice, options.dice));
}

/** The assignment of each layer and image. */
export function assignAll(
  all: Costs,
  stack: { layers: number; queries: number },
  targets: TargetTensors,
  options: MatchOptions,
): Pair[][] {
  const { layers, queries: N } = stack;
  const B = targets.images.length;
  const classes = all.classes.length / (B * layers * N);
  return Array.from({ length: layers }, (_, layer) =>
    targets.images.flatMap((image, b): Pair[] => {
      const k = image.targets.length;
      const cost = new Float64Array(N * k);
      const candidates = new Int32Array(N * k);
      for (let q = 0; q < N; q++) {
        const row = (b * layers + layer) * N + q;
        for (const [t, target] of image.targets.entries()) {
          const at = row * targets.most + t;
          const pick = candidate(
            all.masks,
            at * targets.candidates,
            target.iou,
            targets.usable[targets.offsets[b]! + t]!,
            options.candidate,
          );
          candidates[q * k + t] = pick;
          cost[q * k + t] =
            -options.class * all.classes[row * classes + target.classIndex]! +
            all.masks[at * targets.candidates + pick]! +
            (all.prompts ? options.prompt * all.prompts[at]! : 0);
        }
      }
      return assign(cost, N, k).map(([query, target]) => ({
        image: b,
        query,
        target,
        candidate: candidates[query * k + target]!,
      }));
    }),
  );
}

function candidate(
  costs: Float32Array,
  from: number,
  iou: readonly number[],
  usable: readonly boolean[],
  rule: MatchOptions["candidate"],
): number {
  const value = (c: number): number =>
    !usable[c] ? Number.POSITIVE_INFINITY : rule === "iou" ? -iou[c]! : costs[from + c]!;
  let best = 0;
  for (let c = 1; c < usable.length; c++) if (value(c) < value(best)) best = c;
  return best;
}
