/**
 * COCO's average precision and recall, figure for figure those of pycocotools' COCOeval (its oddities are marked "as
 * pycocotools"), and AP at IoU 0.25 and 0.70.
 */
import { type Instances, instancesByImage, runsOfSegmentation } from "../data/coco.ts";
import { areaOfRuns, type Box, boxOfRuns, iouOfBoxes, iouOfRuns, type Runs } from "../data/mask.ts";
import { BadInput } from "../errors.ts";
import type { Result } from "./results.ts";

export { type Result, readResults, resultsDocument } from "./results.ts";

const FIGURES = [
  "AP",
  "AP50",
  "AP75",
  "APs",
  "APm",
  "APl",
  "AR1",
  "AR10",
  "AR100",
  "ARs",
  "ARm",
  "ARl",
  "AP25",
  "AP70",
] as const;
export type Figure = (typeof FIGURES)[number];

/** From 0 to 1; -1 where there is nothing to measure (no ground truth of that size or class), as pycocotools. */
export type Metrics = Record<Figure, number> & {
  /** AP of each class by its name. */
  perClass: Record<string, number>;
};

/** Precision over recall of one class, or of their mean ("all"). */
export interface Curve {
  name: string;
  iou: 0.5 | 0.75;
  recall: number[];
  precision: number[];
}

export interface EvaluateOptions {
  /** Masks (the default) or boxes are compared. */
  iou?: "segm" | "bbox";
  /** Only these images count (default: all). */
  imageIds?: readonly number[];
}

/** As numpy's linspace, whose rounding decides ties at a threshold. */
function linspace(start: number, stop: number, count: number): number[] {
  const step = (stop - start) / (count - 1);
  return Array.from({ length: count }, (_, i) => (i === count - 1 ? stop : i * step + start));
}

/** COCO's ten thresholds, then 0.25, which stands apart. */
const THRESHOLDS = [...linspace(0.5, 0.95, 10), 0.25];
const COCO = THRESHOLDS.slice(0, 10).map((_, i) => i);
const [AT_50, AT_70, AT_75, AT_25] = [0, 4, 5, 10];
const RECALLS = linspace(0, 1, 101);
const AREAS: readonly (readonly [number, number])[] = [
  [0, 1e10],
  [0, 32 ** 2],
  [32 ** 2, 96 ** 2],
  [96 ** 2, 1e10],
];
const [ALL, SMALL, MEDIUM, LARGE] = [0, 1, 2, 3];
const MOST = [1, 10, 100];

/** @param truth ground truth; crowd regions swallow results without counting them */
export function evaluate(truth: Instances, results: readonly Result[], options: EvaluateOptions = {}): Metrics {
  return evaluateDetailed(truth, results, options).metrics;
}

/** The same with precision-recall curves for a report. */
export function evaluateDetailed(
  truth: Instances,
  results: readonly Result[],
  options: EvaluateOptions = {},
): { metrics: Metrics; curves: Curve[] } {
  const classes = [...truth.categories].sort((a, b) => a.id - b.id);
  const groups = groupUp(truth, results, options);
  const tables = classes.map(({ id }) => tableOf(groups.get(id) ?? []));

  const precision = (thresholds: readonly number[], area: number, of = tables) =>
    mean(of.flatMap((table) => thresholds.flatMap((t) => [...(table.precision(t, area) ?? [])])));
  const recall = (area: number, most: number) =>
    mean(tables.flatMap((table) => COCO.flatMap((t) => table.recall(t, area, most) ?? [])));
  const metrics: Metrics = {
    AP: precision(COCO, ALL),
    AP50: precision([AT_50], ALL),
    AP75: precision([AT_75], ALL),
    APs: precision(COCO, SMALL),
    APm: precision(COCO, MEDIUM),
    APl: precision(COCO, LARGE),
    AR1: recall(ALL, 0),
    AR10: recall(ALL, 1),
    AR100: recall(ALL, 2),
    ARs: recall(SMALL, 2),
    ARm: recall(MEDIUM, 2),
    ARl: recall(LARGE, 2),
    AP25: precision([AT_25], ALL),
    AP70: precision([AT_70], ALL),
    perClass: Object.fromEntries(classes.map(({ name }, i) => [name, precision(COCO, ALL, [tables[i]!])])),
  };

  const curves: Curve[] = [];
  for (const [threshold, iou] of [
    [AT_50, 0.5],
    [AT_75, 0.75],
  ] as const) {
    const known = classes.flatMap(({ name }, i) => {
      const values = tables[i]!.precision(threshold, ALL);
      return values === undefined ? [] : [{ name, iou, recall: RECALLS, precision: [...values] }];
    });
    const average = RECALLS.map((_, r) => mean(known.map((curve) => curve.precision[r]!)));
    if (known.length > 0) curves.push({ name: "all", iou, recall: RECALLS, precision: average }, ...known);
  }
  return { metrics, curves };
}

/** -1 for no values, as pycocotools. */
function mean(values: readonly number[]): number {
  return values.length === 0 ? -1 : values.reduce((sum, value) => sum + value, 0) / values.length;
}

interface Truth {
  id: number;
  area: number;
  crowd: boolean;
}
interface Found {
  score: number;
  area: number;
}

/** One class in one image: what is there, what was found (by falling score), and how they overlap. */
export interface Group {
  imageId: number;
  truths: Truth[];
  found: Found[];
  /** (found.length * truths.length) */
  iou: Float64Array;
}

/** Category id -> its images with anything in them, by ascending image id. */
export function groupUp(
  truth: Instances,
  results: readonly Result[],
  { iou: kind = "segm", imageIds }: EvaluateOptions,
): Map<number, Group[]> {
  const wanted = new Set(imageIds ?? truth.images.map(({ id }) => id));
  const images = truth.images.filter(({ id }) => wanted.has(id)).sort((a, b) => a.id - b.id);
  const byImage = instancesByImage(truth);
  const found = new Map<number, Result[]>(images.map(({ id }) => [id, []]));
  for (const result of results) {
    if (Number.isNaN(result.score)) throw new BadInput(`a result on image ${result.imageId} has the score NaN`);
    if (!byImage.has(result.imageId))
      throw new BadInput(`a result is on image ${result.imageId}, which ${truth.file} does not have`);
    found.get(result.imageId)?.push(result);
  }
  // As pycocotools' loadRes: the first result decides whether areas are those of the boxes, also where masks are compared.
  const areaFromBox = results[0]?.box !== undefined;

  const groups = new Map<number, Group[]>(truth.categories.map(({ id }) => [id, []]));
  for (const image of images) {
    for (const [categoryId, list] of groups) {
      const truths = byImage.get(image.id)!.filter((instance) => instance.categoryId === categoryId);
      const guesses = found
        .get(image.id)!
        .filter((result) => result.categoryId === categoryId)
        .sort((a, b) => b.score - a.score)
        .slice(0, MOST.at(-1));
      if (truths.length === 0 && guesses.length === 0) continue;
      const crowd = truths.map((instance) => instance.crowd);
      const masks = guesses.map((result) => maskOf(result, image));
      const boxes = guesses.map((result, i) => result.box ?? boxOfRuns(masks[i]!()));
      const areas = guesses.map((result, i) => {
        if (!areaFromBox) return areaOfRuns(masks[i]!());
        if (result.box === undefined) {
          throw new BadInput(`the first result has a bbox, so all must; one on image ${image.id} has none`);
        }
        return result.box[2] * result.box[3];
      });
      const iou =
        kind === "bbox"
          ? iouOfBoxes(
              boxes,
              truths.map(({ box }) => box),
              crowd,
            )
          : iouOfRuns(
              masks.map((mask) => mask()),
              truths.map(({ segmentation, id }) => {
                if (segmentation !== undefined) return runsOfSegmentation(segmentation, image);
                throw new BadInput(
                  `${truth.file}: annotation ${id} has no segmentation; compare boxes (--iou bbox) or give masks`,
                );
              }),
              crowd,
            );
      list.push({
        imageId: image.id,
        truths: truths.map(({ id, area }, i) => ({ id, area, crowd: crowd[i]! })),
        found: guesses.map(({ score }, i) => ({ score, area: areas[i]! })),
        iou,
      });
    }
  }
  return groups;
}

/** The result's mask, made when it is first asked for; where it has a box alone, the box filled, as pycocotools' loadRes. */
function maskOf(result: Result, image: { width: number; height: number }): () => Runs {
  let runs: Runs | undefined;
  return () => (runs ??= runsOfSegmentation(result.segmentation ?? [cornersOf(result.box!)], image));
}

function cornersOf([x, y, width, height]: Box): number[] {
  return [x, y, x, y + height, x + width, y + height, x + width, y];
}

/** A class's precision at each of RECALLS, and its recall; undefined where it has no ground truth. */
interface Table {
  precision(threshold: number, area: number): Float64Array | undefined;
  recall(threshold: number, area: number, most: number): number | undefined;
}

function tableOf(groups: readonly Group[]): Table {
  const precisions: (Float64Array | undefined)[][] = [];
  const recalls: (number | undefined)[][][] = [];
  AREAS.forEach((range, area) => {
    const matched = groups.map((group) => matchesOf(group, range));
    const expected = matched.reduce((sum, { expected: count }) => sum + count, 0);
    MOST.forEach((most, m) => {
      // Only the full table needs precisions; the shorter ones give recalls.
      const entries = groups.flatMap(({ found }, g) =>
        found.slice(0, most).map(({ score }, d) => ({ score, at: d, outcomes: matched[g]!.outcomes })),
      );
      entries.sort((a, b) => b.score - a.score);
      THRESHOLDS.forEach((_, t) => {
        const curve =
          expected === 0
            ? undefined
            : curveOf(
                entries.map(({ at, outcomes }) => outcomes[t]![at]!),
                expected,
              );
        ((recalls[t] ??= [])[area] ??= [])[m] = curve?.recall;
        if (m === MOST.length - 1) (precisions[t] ??= [])[area] = curve?.precision;
      });
    });
  });
  return {
    precision: (threshold, area) => precisions[threshold]?.[area],
    recall: (threshold, area, most) => recalls[threshold]?.[area]?.[most],
  };
}

const WRONG = 0;
const RIGHT = 1;
/** Neither right nor wrong: matched to what does not count, or unmatched and of a size that does not. */
const IGNORED = 2;

interface Matches {
  /** Per threshold: what became of each result. */
  outcomes: Uint8Array[];
  /** Ground truths that count. */
  expected: number;
}

/** Gives each result, by falling score, the free ground truth that it overlaps most. */
function matchesOf({ truths, found, iou }: Group, [least, most]: readonly [number, number]): Matches {
  const outside = (area: number) => area < least || area > most;
  const ignored = truths.map(({ area, crowd }) => crowd || outside(area));
  // Those that count come first, so that a result prefers them.
  const order = truths.map((_, i) => i).sort((a, b) => Number(ignored[a]) - Number(ignored[b]));
  const outcomes = THRESHOLDS.map((threshold) => {
    const taken = new Uint8Array(truths.length);
    return Uint8Array.from(found, ({ area }, d) => {
      let best = -1;
      let reached = Math.min(threshold, 1 - 1e-10);
      for (const g of order) {
        if (taken[g] === 1 && !truths[g]!.crowd) continue;
        if (best >= 0 && !ignored[best] && ignored[g]) break;
        const overlap = iou[d * truths.length + g]!;
        if (overlap < reached) continue;
        reached = overlap;
        best = g;
      }
      if (best >= 0) taken[best] = 1;
      if (best >= 0 && ignored[best]) return IGNORED;
      // As pycocotools: a match with an annotation whose id is 0 counts as none.
      if (best >= 0 && truths[best]!.id !== 0) return RIGHT;
      return outside(area) ? IGNORED : WRONG;
    });
  });
  return { outcomes, expected: ignored.filter((value) => !value).length };
}

/** Outcomes by falling score -> interpolated precision at each of RECALLS, and the recall reached. */
function curveOf(outcomes: readonly number[], expected: number): { precision: Float64Array; recall: number } {
  const recalls: number[] = [];
  const precisions: number[] = [];
  let [right, wrong] = [0, 0];
  for (const outcome of outcomes) {
    if (outcome === RIGHT) right++;
    if (outcome === WRONG) wrong++;
    recalls.push(right / expected);
    precisions.push(right / (right + wrong + Number.EPSILON));
  }
  for (let i = precisions.length - 1; i > 0; i--) precisions[i - 1] = Math.max(precisions[i - 1]!, precisions[i]!);
  const precision = new Float64Array(RECALLS.length);
  let at = 0;
  for (let r = 0; r < RECALLS.length; r++) {
    while (at < recalls.length && recalls[at]! < RECALLS[r]!) at++;
    if (at === recalls.length) break;
    precision[r] = precisions[at]!;
  }
  return { precision, recall: recalls.at(-1) ?? 0 };
}
