/**
 * PASCAL VOC's average precision for instances, as the tag- and point-supervised papers report it (ChainerCV's
 * eval_instance_segmentation_voc): the area under the whole precision-recall curve at one IoU. A result is matched to the ground
 * truth that it overlaps most; a second match of the same one is wrong. Classes without ground truth are left out of the mean.
 */
import type { Instances } from "../data/coco.ts";
import { type EvaluateOptions, type Group, Groups } from "./groups.ts";
import type { Result } from "./results.ts";

/** From 0 to 1; -1 where there is no ground truth at all. */
export type VocMetrics = Record<"voc25" | "voc50" | "voc70" | "voc75", number>;

export function evaluateVoc(truth: Instances, results: readonly Result[], options: EvaluateOptions = {}): VocMetrics {
  // VOC has no crowd regions.
  const instances = truth.instances.filter(({ crowd }) => !crowd);
  const sorted = new Groups({ ...truth, instances }, results, options);
  // VOC counts all results, however many.
  const groups = truth.categories.map(({ id }) => sorted.ofClass(id, results.length));
  const at = (iou: number) => {
    const values = groups.flatMap((images) => averagePrecision(images, iou) ?? []);
    return values.length === 0 ? -1 : values.reduce((sum, value) => sum + value, 0) / values.length;
  };
  return { voc25: at(0.25), voc50: at(0.5), voc70: at(0.7), voc75: at(0.75) };
}

function averagePrecision(images: readonly Group[], threshold: number): number | undefined {
  const expected = images.reduce((sum, { truths }) => sum + truths.length, 0);
  if (expected === 0) return undefined;
  const entries = images.flatMap(({ truths, found, iou }) => {
    const taken = new Set<number>();
    return found.map(({ score }, d) => {
      let best = 0;
      for (let g = 1; g < truths.length; g++)
        if (iou[d * truths.length + g]! > iou[d * truths.length + best]!) best = g;
      const hit = truths.length > 0 && iou[d * truths.length + best]! >= threshold;
      const right = hit && !taken.has(best);
      if (hit) taken.add(best);
      return { score, right };
    });
  });
  entries.sort((a, b) => b.score - a.score);

  const precisions: number[] = [];
  let right = 0;
  entries.forEach((entry, i) => {
    if (entry.right) right++;
    precisions.push(right / (i + 1));
  });
  for (let i = precisions.length - 1; i > 0; i--) precisions[i - 1] = Math.max(precisions[i - 1]!, precisions[i]!);
  // Recall grows by one ground truth with each right result; the precision there is the best at that recall or beyond.
  return entries.reduce((area, entry, i) => area + (entry.right ? precisions[i]! / expected : 0), 0);
}
