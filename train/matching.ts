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

/** @param points (B, P, 2), x and y from -1 to 1 over the padded input; @param limit bytes that a tensor may take */
export async function costs(
  gpu: Device,
  stack: LayerStack,
  targets: TargetTensors,
  latents: { targets: LatentTargets; options: LatentOptions } | undefined,
  options: MatchOptions,
  points: Float32Array,
  limit: number = gpu.gpu.limits.maxStorageBufferBindingSize,
): Promise<Costs> {
  const B = targets.images.length;
  const Q = stack.layers * stack.queries;
  const flat = scope(() =>
    noGrad(() => {
      const parts = [F.softmax(stack.classLogits, 2), maskCosts(gpu, stack, targets, options, points, limit)];
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

/**
 * bce * BCE + dice * dice of all pairs at the points: (B, Q, most * candidates). Images by the group, and where even one has too many queries
 * these by the group, so that no tensor is larger than the adapter can bind.
 */
function maskCosts(
  gpu: Device,
  stack: LayerStack,
  targets: TargetTensors,
  options: MatchOptions,
  points: Float32Array,
  limit: number,
): Tensor {
  const [B, Q, C] = stack.maskEmbedding.shape as [number, number, number];
  const P = points.length / B / 2;
  const most = Math.floor(limit / (4 * P));
  // Each mask is asked at points of two coordinates.
  const wide = Math.max(C, 2 * targets.most * targets.candidates);
  const parts = groups(B, Math.floor(most / Math.max(Q, wide))).map(([from, to]) =>
    scope(() => {
      const { features, t } = sampled(gpu, stack, targets, points, from, to);
      const embedding = part(stack.maskEmbedding, 0, from, to);
      return joined(
        groups(Q, most).map(([first, last]) =>
          scope(() => pairCosts(F.matmul(part(embedding, 1, first, last), features), t, options)),
        ),
        1,
      );
    }),
  );
  return joined(parts, 0);
}

/** 0 … n in runs of equal length, at most `most`. */
function groups(n: number, most: number): [from: number, to: number][] {
  const each = Math.ceil(n / Math.ceil(n / Math.max(1, most)));
  return Array.from({ length: Math.ceil(n / each) }, (_, i) => [i * each, Math.min(n, (i + 1) * each)]);
}

function part(x: Tensor, dim: number, from: number, to: number): Tensor {
  return to - from === x.shape[dim] ? x : F.slice(x, dim, from, to);
}

function joined(parts: Tensor[], dim: number): Tensor {
  return parts.length === 1 ? parts[0]! : F.cat(parts, dim);
}

/** Images `from` … `to` at their points: features (b, C, P), and t, their objects' masks (b, P, most * candidates). */
function sampled(
  gpu: Device,
  stack: LayerStack,
  targets: TargetTensors,
  points: Float32Array,
  from: number,
  to: number,
): { features: Tensor; t: Tensor } {
  const B = targets.images.length;
  const [b, P] = [to - from, points.length / B / 2];
  const grid = gpu.tensor(points.subarray(from * P * 2, to * P * 2), [b, P * 2]);
  const sample = (x: Tensor, at: Tensor) =>
    F.gridSample(x, F.reshape(at, [x.shape[0]!, 1, P, 2]), {
      mode: "bilinear",
      paddingMode: "zeros",
      alignCorners: false,
    });
  // All queries of an image are asked at the same points, so that its features are sampled there and not their masks.
  const features = F.reshape(sample(part(stack.maskFeatures, 0, from, to), grid), [b, stack.maskFeatures.shape[1]!, P]);

  const C = targets.candidates;
  const { most } = targets;
  const first = targets.offsets[from]!;
  const total = (targets.offsets[to] ?? targets.total) - first;
  if (total === 0) return { features, t: gpu.zeros([b, P, most * C]) };
  const imageOf = targets.images
    .slice(from, to)
    .flatMap((image, i) => new Array<number>(image.targets.length * C).fill(i));
  const masks = part(targets.masks!, 0, first * C, (first + total) * C);
  const own = F.reshape(sample(masks, F.indexSelect(grid, 0, indexTensor(gpu, imageOf))), [total * C, P]);
  const rows = Array.from(paddedRows(targets, targets.total).subarray(from * most, to * most)).flatMap((row) =>
    Array.from({ length: C }, (_, c) => Math.min((row - first) * C + c, total * C)),
  );
  const padded = F.indexSelect(F.cat([own, gpu.zeros([1, P])], 0), 0, indexTensor(gpu, rows));
  return { features, t: F.permute(F.reshape(padded, [b, most * C, P]), [0, 2, 1]) };
}

/** x (b, Q, P), logits of the queries' masks, and t (b, P, n), the objects': (b, Q, n). */
function pairCosts(x: Tensor, t: Tensor, options: MatchOptions): Tensor {
  // BCE with logits is softplus(x) - x t; summed over the points, the second part is a matrix product.
  const softplus = F.add(F.relu(x), F.log(F.add(F.exp(F.neg(F.abs(x))), 1)));
  const bce = F.div(F.sub(F.sum(softplus, [2], { keepdim: true }), F.matmul(x, t)), x.shape[2]!);
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
