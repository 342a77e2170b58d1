/**
 * COCO's average precision and recall, figure for figure those of pycocotools' COCOeval (its oddities are marked "as
 * pycocotools"), and AP at IoU 0.25 and 0.70.
 */
import { distinctNames, type Instances } from "../data/coco.ts";
import { type EvaluateOptions, type Group, Groups } from "./groups.ts";
import type { Result } from "./results.ts";

export type { EvaluateOptions } from "./groups.ts";
export { type Result, readResults, resultsDocument } from "./results.ts";

/** Names of the figures, in the order of tables. */
export const FIGURES = [
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
  /** AP of each class by its name, and its id where another has the same name. */
  perClass: Record<string, number>;
};

/** Precision over recall of one class, or of their mean ("all"). */
export interface Curve {
  name: string;
  iou: 0.5 | 0.75;
  recall: number[];
  precision: number[];
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
  const names = distinctNames(classes);
  const groups = new Groups(truth, results, options);
  const tables = classes.map(({ id }) => tableOf(groups.ofClass(id, MOST.at(-1)!)));

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
    perClass: Object.fromEntries(names.map((name, i) => [name, precision(COCO, ALL, [tables[i]!])])),
  };

  const curves: Curve[] = [];
  for (const [threshold, iou] of [
    [AT_50, 0.5],
    [AT_75, 0.75],
  ] as const) {
    const known = names.flatMap((name, i) => {
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

/** A class's precision at each of RECALLS, and its recall; undefined where it has no ground truth. */
interface Table {
  precision(threshold: number, area: number): Float64Array | undefined;
  recall(threshold: number, area: number, most: number): number | undefined;
}

function tableOf(groups: readonly Group[]): Table {
  const found = groups.flatMap((group) => group.found.map(({ score }, rank) => ({ score, rank })));
  const order = Uint32Array.from(found.keys()).sort((a, b) => found[b]!.score - found[a]!.score || a - b);
  const ranks = Uint32Array.from(found, ({ rank }) => rank);
  const precisions: (Float64Array | undefined)[][] = THRESHOLDS.map(() => []);
  const recalls: (number[] | undefined)[][] = THRESHOLDS.map(() => []);
  AREAS.forEach((range, area) => {
    const { outcomes, expected } = outcomesOf(groups, found.length, range);
    if (expected === 0) return;
    THRESHOLDS.forEach((_, t) => {
      precisions[t]![area] = precisionsOf(outcomes[t]!, order, expected);
      recalls[t]![area] = MOST.map((most) => {
        let right = 0;
        for (let i = 0; i < ranks.length; i++) if (ranks[i]! < most && outcomes[t]![i] === RIGHT) right++;
        return right / expected;
      });
    });
  });
  return {
    precision: (threshold, area) => precisions[threshold]![area],
    recall: (threshold, area, most) => recalls[threshold]![area]?.[most],
  };
}

const WRONG = 0;
const RIGHT = 1;
/** Neither right nor wrong: matched to what does not count, or unmatched and of a size that does not. */
const IGNORED = 2;

interface Outcomes {
  /** Per threshold: what became of each result, group after group. */
  outcomes: Uint8Array[];
  /** Ground truths that count. */
  expected: number;
}

function outcomesOf(groups: readonly Group[], count: number, range: readonly [number, number]): Outcomes {
  const outcomes = THRESHOLDS.map(() => new Uint8Array(count));
  let [expected, from] = [0, 0];
  for (const group of groups) {
    expected += match(group, range, outcomes, from);
    from += group.found.length;
  }
  return { outcomes, expected };
}

/**
 * Gives each result of a group, by falling score, the free ground truth that it overlaps most, and writes down from place `from` on what
 * became of it. Returns how many ground truths count.
 */
function match(
  { truths, found, iou }: Group,
  [least, most]: readonly [number, number],
  outcomes: readonly Uint8Array[],
  from: number,
): number {
  const outside = (area: number) => area < least || area > most;
  const ignored = truths.map(({ area, crowd }) => crowd || outside(area));
  // Those that count come first, so that a result prefers them.
  const order = truths.map((_, i) => i).sort((a, b) => Number(ignored[a]) - Number(ignored[b]));
  const alone = found.map(({ area }) => (outside(area) ? IGNORED : WRONG));
  THRESHOLDS.forEach((threshold, t) => {
    const taken = new Uint8Array(truths.length);
    const outcome = outcomes[t]!;
    for (let d = 0; d < found.length; d++) {
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
      // As pycocotools: a match with an annotation whose id is 0 counts as none.
      const matched = best >= 0 && (ignored[best] || truths[best]!.id !== 0);
      outcome[from + d] = !matched ? alone[d]! : ignored[best] ? IGNORED : RIGHT;
    }
  });
  return ignored.filter((value) => !value).length;
}

/** Outcomes, by falling score in `order` -> interpolated precision at each of RECALLS. */
function precisionsOf(outcomes: Uint8Array, order: Uint32Array, expected: number): Float64Array {
  const [recalls, precisions] = [new Float64Array(order.length), new Float64Array(order.length)];
  let [right, wrong] = [0, 0];
  for (let i = 0; i < order.length; i++) {
    const outcome = outcomes[order[i]!];
    if (outcome === RIGHT) right++;
    else if (outcome === WRONG) wrong++;
    recalls[i] = right / expected;
    precisions[i] = right / (right + wrong + Number.EPSILON);
  }
  for (let i = precisions.length - 1; i > 0; i--)
    if (precisions[i]! > precisions[i - 1]!) precisions[i - 1] = precisions[i]!;
  const precision = new Float64Array(RECALLS.length);
  let at = 0;
  for (let r = 0; r < RECALLS.length; r++) {
    while (at < recalls.length && recalls[at]! < RECALLS[r]!) at++;
    if (at === recalls.length) break;
    precision[r] = precisions[at]!;
  }
  return precision;
}
