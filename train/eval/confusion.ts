/**
 * Which class is taken for which, and how well each image came out. Results above a score are paired with ground truths, whatever their
 * classes, one to one by falling overlap; pairs overlap by IOU at least. A result without a partner on a crowd region is left out.
 */
import {
  classIndex,
  distinctNames,
  type Instance,
  type Instances,
  instancesByImage,
  runsOfSegmentation,
} from "../data/coco.ts";
import { boxOfRuns, iouOfBoxes, iouOfRuns } from "../data/mask.ts";
import { type EvaluateOptions, maskOf } from "./groups.ts";
import type { Result } from "./results.ts";

const IOU = 0.5;
/** As in the pictures: what is less sure is not shown. */
const SCORE = 0.3;

export interface Confusion {
  /** Names of rows and columns; after the last class stands the background. */
  classes: string[];
  iou: number;
  score: number;
  /** counts[predicted][true]: the last row counts what was missed, the last column what was made up. */
  counts: number[][];
}

export interface Judgement {
  confusion: Confusion;
  /** Image id -> panoptic quality from 0 to 1: the overlaps of right pairs over pairs and half of what has no right partner. */
  quality: Map<number, number>;
}

export function judge(truth: Instances, results: readonly Result[], options: EvaluateOptions = {}): Judgement {
  const classes = truth.categories;
  const index = classIndex(classes);
  const background = classes.length;
  const counts = Array.from({ length: background + 1 }, () => new Array<number>(background + 1).fill(0));
  const count = (predicted: number, real: number): void => void counts[predicted]![real]!++;
  const wanted = options.imageIds && new Set(options.imageIds);
  const there = instancesByImage(truth);
  const found = new Map<number, Result[]>(truth.images.map(({ id }) => [id, []]));
  for (const result of results)
    if (result.score >= SCORE && index.has(result.categoryId)) found.get(result.imageId)?.push(result);
  const quality = new Map<number, number>();
  for (const image of truth.images) {
    if (wanted && !wanted.has(image.id)) continue;
    const guesses = found.get(image.id)!;
    const objects = there.get(image.id)!.filter(({ crowd }) => !crowd);
    const crowds = there.get(image.id)!.filter(({ crowd }) => crowd);
    const pairs = pairUp(overlaps(guesses, objects, image, options), guesses.length, objects.length);
    let [right, overlap] = [0, 0];
    for (const { guess, object, iou } of pairs) {
      const [predicted, real] = [index.get(guesses[guess]!.categoryId)!, index.get(objects[object]!.categoryId)!];
      count(predicted, real);
      if (predicted !== real) continue;
      right++;
      overlap += iou;
    }
    const [paired, met] = [new Set(pairs.map(({ guess }) => guess)), new Set(pairs.map(({ object }) => object))];
    objects.forEach(({ categoryId }, i) => {
      if (!met.has(i)) count(background, index.get(categoryId)!);
    });
    const alone = guesses.filter((_, i) => !paired.has(i));
    const onCrowd = overlaps(alone, crowds, image, options);
    const madeUp = alone.filter((_, i) => !crowds.some((_, c) => onCrowd[i * crowds.length + c]! >= IOU));
    for (const { categoryId } of madeUp) count(index.get(categoryId)!, background);
    const others = (objects.length - right + pairs.length - right + madeUp.length) / 2;
    quality.set(image.id, right + others === 0 ? 1 : overlap / (right + others));
  }
  return { confusion: { classes: distinctNames(classes), iou: IOU, score: SCORE, counts }, quality };
}

/** (results.length * instances.length) */
function overlaps(
  results: readonly Result[],
  instances: readonly Instance[],
  image: { width: number; height: number },
  { iou }: EvaluateOptions,
): Float64Array {
  const crowd = instances.map((instance) => instance.crowd);
  const masks = results.map((result) => maskOf(result, image));
  if (iou !== "bbox" && instances.every(({ segmentation }) => segmentation !== undefined))
    return iouOfRuns(
      masks.map((mask) => mask()),
      instances.map(({ segmentation }) => runsOfSegmentation(segmentation!, image)),
      crowd,
    );
  return iouOfBoxes(
    results.map(({ box }, i) => box ?? boxOfRuns(masks[i]!())),
    instances.map(({ box }) => box),
    crowd,
  );
}

interface Pair {
  guess: number;
  object: number;
  iou: number;
}

function pairUp(ious: Float64Array, guesses: number, objects: number): Pair[] {
  const near: Pair[] = [];
  for (let guess = 0; guess < guesses; guess++)
    for (let object = 0; object < objects; object++) {
      const iou = ious[guess * objects + object]!;
      if (iou >= IOU) near.push({ guess, object, iou });
    }
  near.sort((a, b) => b.iou - a.iou);
  const [taken, met] = [new Set<number>(), new Set<number>()];
  return near.filter(({ guess, object }) => {
    if (taken.has(guess) || met.has(object)) return false;
    taken.add(guess);
    met.add(object);
    return true;
  });
}
