/**
 * Several passes as one batch. A loss term of a pass is a mean over what that pass has: objects, queries by their weights, cells. Weighted by
 * how much of the step's it has, the passes add up to the mean over all their images, as several GPUs' do in the reference (num_masks). BoxInst's
 * pairwise term is a mean over pairs of pixels whose number shows only in the pass: of it the passes' mean is taken.
 */
import type { ImageTargets } from "./targets.ts";

/** Terms that are means over the objects (num_masks). */
const OF_OBJECTS = ["prompt", "bce", "dice", "projection"] as const;

/** What each term of a pass is multiplied by before the mean over the passes is taken; terms that are not named, by 1. */
export type Shares = Readonly<Record<string, number>>;

/**
 * @param passes the objects of each pass's images
 * @param queries of the model; @param noObject the weight of "no object" in the class loss
 */
export function sharesOf(
  passes: readonly (readonly ImageTargets[])[],
  { queries, noObject }: { queries: number; noObject: number },
): Shares[] {
  const objects = sharesAmong(passes.map((images) => sum(images.map(({ targets }) => targets.length))));
  const weights = passes.map((images) =>
    sum(
      images.map(({ targets, supervised }) => {
        const matched = Math.min(targets.length, queries);
        return supervised ? matched + noObject * (queries - matched) : 0;
      }),
    ),
  );
  const classes = sharesAmong(weights);
  // L_self counts the cells of an image, here its area, once for each class in it.
  const self = sharesAmong(
    passes.map((images) =>
      sum(
        images.map(({ targets, valid: [w, h] }) => w * h * new Set(targets.map(({ classIndex }) => classIndex)).size),
      ),
    ),
  );
  return passes.map((_, i) => ({
    class: classes[i]!,
    self: self[i]!,
    ...Object.fromEntries(OF_OBJECTS.map((name) => [name, objects[i]!])),
  }));
}

/** Each one's amount over their mean. */
function sharesAmong(amounts: readonly number[]): number[] {
  const mean = sum(amounts) / amounts.length;
  return amounts.map((amount) => (mean > 0 ? amount / mean : 1));
}

const sum = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0);
