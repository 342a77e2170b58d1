/** A point on an object, as a person would click it. Works on runs: a mask may have more pixels than a list of them would hold. */
import type { Random } from "../../engine/random.ts";
import { areaOfRuns, eachStretch, type Runs } from "./mask.ts";

export type Place = { x: number; y: number };

/** Any of the mask's pixels, each as likely; undefined where it has none. */
export function anyPixel(mask: Runs, random: Random): Place | undefined {
  const pixels = areaOfRuns(mask);
  return pixels === 0 ? undefined : pixelAt(mask, random.int(pixels));
}

/** The mask's `n`-th pixel, counted row by row from 0. */
function pixelAt(mask: Runs, n: number): Place {
  const begun = new Int32Array(mask.height + 1);
  eachStretch(mask, (_, top, bottom) => {
    begun[top]!++;
    begun[bottom + 1]!--;
  });
  let [y, inRow, before] = [0, begun[0]!, 0];
  while (before + inRow <= n) {
    before += inRow;
    inRow += begun[++y]!;
  }
  let [left, at] = [n - before, 0];
  eachStretch(mask, (x, top, bottom) => {
    if (top <= y && y <= bottom && left-- === 0) at = x;
  });
  return { x: at, y };
}

/**
 * The mask's pixel nearest to its centroid, so that the point never lies beside a bent or hollow object; of equally near ones the first, row
 * by row. Undefined where the mask has no pixel.
 */
export function centerPixel(mask: Runs): Place | undefined {
  const pixels = areaOfRuns(mask);
  if (pixels === 0) return undefined;
  let [sumX, sumY] = [0, 0];
  eachStretch(mask, (x, top, bottom) => {
    const length = bottom - top + 1;
    sumX += x * length;
    sumY += ((top + bottom) * length) / 2;
  });
  const [centerX, centerY] = [sumX / pixels, sumY / pixels];
  let [best, least] = [{ x: 0, y: 0 }, Number.POSITIVE_INFINITY];
  eachStretch(mask, (x, top, bottom) => {
    // The nearest of a stretch is at one of the two rows around the centroid, or at the stretch's end.
    for (const row of [Math.floor(centerY), Math.ceil(centerY)]) {
      const y = Math.min(Math.max(row, top), bottom);
      const distance = (x - centerX) ** 2 + (y - centerY) ** 2;
      if (distance < least || (distance === least && y < best.y)) [best, least] = [{ x, y }, distance];
    }
  });
  return best;
}
