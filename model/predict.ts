// Queries -> scored instances on the host, by Mask2Former's rule (maskformer_model.py, instance_inference), and WISH's variant that
// lets SAM's frozen mask decoder draw the masks from the predicted prompt latents.
import { F, noGrad, scope, type Tensor } from "../engine/index.ts";
import { maskLogits, type Prediction } from "./mask2former/decoder.ts";
import type { Wish, WishOutput } from "./wish.ts";

export interface Instance {
  /** Which query; one query may answer with several labels. */
  query: number;
  /** 0 … K - 1 */
  label: number;
  /** classScore * maskScore */
  score: number;
  /** Softmax probability of the label. */
  classScore: number;
  /** Mean probability inside the mask. */
  maskScore: number;
  /** height * width, row by row, 0 or 1. Instances of the same query share it. */
  mask: Uint8Array;
  size: readonly [number, number];
  /** Pixels of the mask. */
  area: number;
  /** [x, y, width, height] of the smallest rectangle around the mask. */
  box: [number, number, number, number];
}

export interface PredictOptions {
  /** [height, width] that the masks shall have: the image's before it was resized for the network. */
  original: readonly [number, number];
  /** Pairs of query and label that are kept (TEST.DETECTIONS_PER_IMAGE). Default 100. */
  topk?: number;
  /** Instances with a smaller score are left out. Default 0. */
  score?: number;
}

/** The part of SAM that draws masks from latents (model/sam). */
export interface LatentDecoder {
  decode(
    embedding: Tensor,
    sparse: Tensor,
    dense: Tensor,
    options: { multimask: boolean },
  ): { masks: Tensor; iou: Tensor };
  noMaskEmbedding(): Tensor;
  notAPointEmbedding(): Tensor;
  /** Mean over channels and places of each token of a point or a box: (1, 2, 1). */
  tokenMeans(kind: "point" | "box"): Tensor;
  postprocess(masks: Tensor, inputSize: readonly [number, number], original: readonly [number, number]): Tensor;
}

export interface SamPredictOptions extends PredictOptions {
  /** SAM's embedding (1, D, g, g) of the same image, and [height, width] of the image inside SAM's square input. */
  embedding: Tensor;
  samSize: readonly [number, number];
  /** Which latents of a `typed` model to decode: the kind it was trained with, "box" where there were boxes. Default "box". */
  kind?: "point" | "box";
  /**
   * The latents were learned by their KL divergence, which leaves a constant a token open: give them SAM's mean. Default true; false for
   * latents learned by their square distance.
   */
  recentre?: boolean;
  /** Let SAM draw three candidates and keep the one it rates best, or its single mask. Default true. */
  multimask?: boolean;
}

/** Elements of full-size mask logits that are worked on at once: 32 MiB, far below what any adapter can bind. */
const CHUNK_ELEMENTS = 2 ** 23;

/**
 * Segments one image with Mask2Former's decoder (variant a): image (1, 3, H, W) at the network's size, RGB 0..255. Instances come in
 * order of falling score; empty masks are left out.
 */
export async function predict(model: Wish, image: Tensor, options: PredictOptions): Promise<Instance[]> {
  return scope(async () => instancesOf(forward(model, image), image, options));
}

/** The last prediction of a forward pass of image b, as `predict` returns it, for callers that already have one. */
export async function instancesOf(
  output: WishOutput,
  image: Tensor,
  options: PredictOptions,
  b = 0,
): Promise<Instance[]> {
  const last = output.predictions.at(-1)!;
  const size = image.shape.slice(2) as [number, number];
  const { inputSize } = output;
  return collect(last, b, options, (queries) => {
    const logits = masksOf(last, b, queries); // (1, n, h, w)
    const padded = F.interpolate(logits, { size: inputSize, mode: "bilinear", alignCorners: false });
    const valid = F.slice(F.slice(padded, 2, 0, size[0]), 3, 0, size[1]);
    return F.interpolate(valid, { size: options.original, mode: "bilinear", alignCorners: false });
  });
}

/** Segments one image with SAM's decoder on the predicted latents (variant b). Costs accuracy: more than 3 AP in the paper (its Fig. 3b). */
export async function predictWithSam(
  model: Wish,
  sam: LatentDecoder,
  image: Tensor,
  options: SamPredictOptions,
): Promise<Instance[]> {
  const { mode } = model.config.prompt;
  const { embedding, samSize, kind = "box", recentre = true, multimask = true } = options;
  if (mode === "none" || mode === "mean")
    throw new Error(
      `predictWithSam: prompt.mode "${mode}" gives no SAM prompt; train with "typed" or "sparse", or use --inference mask2former`,
    );
  if (embedding.shape[1] !== model.config.prompt.dim)
    throw new Error(
      `predictWithSam: the model predicts latents of ${model.config.prompt.dim} channels, the SAM at hand has ${embedding.shape[1]}; use the teacher it was trained with`,
    );
  return scope(async () => {
    const last = forward(model, image).predictions.at(-1)!;
    const draw = (queries: number[]): Tensor => {
      const latents = F.indexSelect(batchItem(last.promptLatents!, 0), 0, indices(image, queries)); // (n, T, D)
      const prompt = samPrompt(latents, mode, kind, recentre, sam);
      const { masks, iou } = sam.decode(embedding, prompt, sam.noMaskEmbedding(), { multimask });
      const best = bestCandidate(masks, iou); // (n, 1, 4g, 4g)
      const full = sam.postprocess(best, samSize, options.original); // (n, 1, h0, w0)
      return F.reshape(full, [1, queries.length, ...options.original]);
    };
    return collect(last, 0, options, draw, promptsAtOnce(embedding));
  });
}

/** How many prompts SAM's decoder takes in one pass: its largest maps are of D / 8 channels at four times the embedding's side. */
function promptsAtOnce({ shape, device }: Tensor): number {
  const [, D, h, w] = shape as [number, number, number, number];
  return Math.floor(device.gpu.limits.maxStorageBufferBindingSize / (4 * (D / 8) * 16 * h * w));
}

/** Two tokens a query for SAM: (n, T, D) -> (n, 2, D). */
function samPrompt(
  latents: Tensor,
  mode: "sparse" | "typed",
  kind: "point" | "box",
  recentre: boolean,
  sam: LatentDecoder,
): Tensor {
  const [n, , D] = latents.shape as [number, number, number];
  const [first, last] = kind === "point" ? [0, 1] : mode === "sparse" ? [0, 2] : [1, 3];
  let tokens = F.slice(latents, 1, first, last);
  if (recentre) {
    const means = F.slice(sam.tokenMeans(kind), 1, 0, last - first); // (1, 1 or 2, 1)
    tokens = F.add(F.sub(tokens, F.mean(tokens, [2], { keepdim: true })), means);
  }
  if (kind === "box") return tokens;
  // The second token of a point is SAM's constant padding: it is known, so the model's guess is not needed.
  return F.cat([tokens, F.expand(F.reshape(sam.notAPointEmbedding(), [1, 1, D]), [n, 1, D])], 1);
}

/** The candidate with the highest predicted IoU: (n, M, h, w), (n, M) -> (n, 1, h, w). */
function bestCandidate(masks: Tensor, iou: Tensor): Tensor {
  const [n, M, h, w] = masks.shape as [number, number, number, number];
  if (M === 1) return masks;
  const index = F.expand(F.reshape(F.argmax(iou, 1), [n, 1, 1]), [n, 1, h * w]);
  return F.reshape(F.gather(F.reshape(masks, [n, M, h * w]), 1, index), [n, 1, h, w]);
}

function forward(model: Wish, image: Tensor): WishOutput {
  if (image.shape.length !== 4 || image.shape[0] !== 1)
    throw new Error(`predict: image must be (1, 3, H, W); got (${image.shape})`);
  return noGrad(() => model.forward(image));
}

/**
 * Ranks all pairs of query and label, draws the masks of the queries kept (`draw`: n queries, `most` at once -> logits (1, n, h0, w0)), and
 * scores them.
 */
async function collect(
  last: Prediction,
  b: number,
  options: PredictOptions,
  draw: (queries: number[]) => Tensor,
  most = Number.POSITIVE_INFINITY,
): Promise<Instance[]> {
  const { original, topk = 100, score: least = 0 } = options;
  const [h, w] = original;
  const probabilities = await scope(() => noGrad(() => F.softmax(batchItem(last.classLogits, b), -1))).toArray();
  const classes = last.classLogits.shape[2]! - 1;
  // A mask's score is at most 1, so what is below the threshold by its class alone needs no mask.
  const pairs = rank(probabilities as Float32Array, classes, topk).filter((pair) => pair.classScore >= least);

  const queries = [...new Set(pairs.map((pair) => pair.query))];
  const drawn = new Map<number, { mask: Uint8Array; maskScore: number }>();
  const [, , coarseH, coarseW] = last.maskFeatures.shape as [number, number, number, number];
  const step = Math.max(1, Math.min(most, Math.floor(CHUNK_ELEMENTS / Math.max(h * w, coarseH * coarseW * 16))));
  for (let start = 0; start < queries.length; start += step) {
    const some = queries.slice(start, start + step);
    const { inside, maskScores } = scope(() => noGrad(() => binarise(F.reshape(draw(some), [some.length, h * w]))));
    const [masks, scores] = [await inside.toArray(), await maskScores.toArray()];
    for (const [i, query] of some.entries()) {
      drawn.set(query, { mask: Uint8Array.from(masks.subarray(i * h * w, (i + 1) * h * w)), maskScore: scores[i]! });
    }
  }

  const instances = pairs.flatMap(({ query, label, classScore }): Instance[] => {
    const { mask, maskScore } = drawn.get(query)!;
    const { area, box } = extent(mask, w);
    const score = classScore * maskScore;
    return area > 0 && score >= least
      ? [{ query, label, score, classScore, maskScore, mask, size: original, area, box }]
      : [];
  });
  return instances.sort((a, b) => b.score - a.score);
}

/** Logits (n, S) -> the masks (n, S) and the mean probability inside each (n). */
function binarise(logits: Tensor): { inside: Tensor; maskScores: Tensor } {
  const inside = F.gt(logits, 0);
  const binary = F.cast(inside, "f32");
  const sum = F.sum(F.mul(F.sigmoid(logits), binary), [1]);
  return { inside, maskScores: F.div(sum, F.add(F.sum(binary, [1]), 1e-6)) };
}

/** The best `topk` pairs of (query, label) among N queries of K classes; column K, "no object", does not compete. Ties: lower index first. */
function rank(
  probabilities: Float32Array,
  classes: number,
  topk: number,
): { query: number; label: number; classScore: number }[] {
  const queries = probabilities.length / (classes + 1);
  const pairs = Array.from({ length: queries * classes }, (_, i) => {
    const [query, label] = [Math.floor(i / classes), i % classes];
    return { query, label, classScore: probabilities[query * (classes + 1) + label]! };
  });
  return pairs.sort((a, b) => b.classScore - a.classScore).slice(0, topk);
}

/** Image b of a batch: (B, …) -> (…) */
function batchItem(x: Tensor, b: number): Tensor {
  return F.reshape(x.shape[0] === 1 ? x : F.slice(x, 0, b, b + 1), x.shape.slice(1));
}

/** The masks of some queries of image b: (1, n, h, w). */
function masksOf({ maskEmbedding, maskFeatures }: Prediction, b: number, queries: number[]): Tensor {
  const [n, C] = [queries.length, maskEmbedding.shape[2]!];
  const some = F.indexSelect(batchItem(maskEmbedding, b), 0, indices(maskEmbedding, queries)); // (n, C)
  const features = F.reshape(batchItem(maskFeatures, b), [1, ...maskFeatures.shape.slice(1)]);
  return maskLogits({ maskEmbedding: F.reshape(some, [1, n, C]), maskFeatures: features });
}

function indices(like: Tensor, values: number[]): Tensor {
  return like.device.tensor(Int32Array.from(values), [values.length], { dtype: "i32" });
}

/** Pixels of a mask and the rectangle around them. */
function extent(mask: Uint8Array, width: number): { area: number; box: [number, number, number, number] } {
  let [area, left, right, top, bottom] = [0, width, -1, -1, -1];
  for (let i = mask.indexOf(1); i !== -1; i = mask.indexOf(1, i + 1)) {
    const x = i % width;
    const y = (i - x) / width;
    area++;
    if (x < left) left = x;
    if (x > right) right = x;
    if (top < 0) top = y;
    bottom = y;
  }
  return { area, box: area > 0 ? [left, top, right - left + 1, bottom - top + 1] : [0, 0, 0, 0] };
}
