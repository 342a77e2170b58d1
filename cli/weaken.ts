/** `wgpu-wish weaken`: weak labels from full masks. */
import { resolve } from "node:path";
import { readInstances } from "../train/data/coco.ts";
import { describeCounts, type Shares, weaken, writeWeak } from "../train/data/weak.ts";
import { BadInput } from "../train/errors.ts";
import type { Call } from "./command.ts";

interface Options {
  ann: string;
  out: string;
  tags?: number;
  points?: number;
  boxes?: number;
  budget?: number;
  mix?: Shares;
  seed: number;
  point: "center" | "uniform";
}

export async function run({ options, terminal }: Call<Options>): Promise<void> {
  const { ann, out, tags, points, boxes, budget, mix, seed, point } = options;
  const shares = {
    ...(tags !== undefined && { tags }),
    ...(points !== undefined && { points }),
    ...(boxes !== undefined && { boxes }),
  };
  if (resolve(ann) === resolve(out)) throw new BadInput(`--out: ${out} is the file with the masks; name another`);
  if (budget !== undefined && Object.keys(shares).length > 0) {
    throw new BadInput("--budget takes its shares from --mix; leave out --tags, --points and --boxes");
  }
  if ((budget === undefined) !== (mix === undefined))
    throw new BadInput("--budget and --mix belong together; give both or neither");
  const plan = budget === undefined || mix === undefined ? shares : { budget, mix };
  const document = weaken(readInstances(ann), plan, { seed, point });
  writeWeak(out, document);

  const { counts, spent } = document.info;
  // Boxes and points are rounded to whole images; tags spend the rest to the last one, as long as there are images.
  if (budget !== undefined && (mix?.tags ?? 0) > 0 && spent < Math.round(budget))
    terminal.warn(
      `${spent} of the budget of ${budget} is spent: tags for ${Math.round(budget) - spent} more images were due, but there are no more`,
    );
  const summary = `${describeCounts(counts)}, ${counts.unlabelled} unlabelled; cost ${spent}`;
  terminal.result({ out, ...document.info }, `${out}: ${summary}`);
}
