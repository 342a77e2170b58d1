/**
 * The rows of the paper's tables as training runs: what is labelled, and which settings differ. A name is a folder's and a table's.
 */
import type { WeakenPlan } from "./data/weak.ts";

/** Settings by dotted key, as on the command line. */
export type Changes = Record<string, string | number | boolean>;

export interface Arm {
  name: string;
  /** In the table. */
  title: string;
  /** Which table it belongs to. */
  group: "kinds" | "budget" | "ablations" | "others";
  /** Labels to train on: weak ones, of all images or of a budget, or the masks. */
  labels: WeakenPlan | "masks";
  changes: Changes;
  /** Arms that are trained alike are trained once: this one takes the numbers of that one. */
  sameAs?: string;
  /** Evaluated a second time with SAM's decoder on the predicted latents (variant b), under this name. */
  variantB?: string;
}

const third = 1 / 3;
const MIXED = { tags: third, points: third, boxes: third };
/** Plain Mask2Former: no prompt head, no CAM. */
const PLAIN: Changes = { "prompt.mode": "none", "cam.feature": "none" };

/** @param budget what the labels of one equal-budget arm may cost; @param images the number that there are */
export function studyArms(budget: number, images: number): Arm[] {
  const mix = (name: string, title: string, shares: Extract<WeakenPlan, { mix: object }>["mix"]): Arm => ({
    name: `budget-${name}`,
    title,
    group: "budget",
    labels: { budget, mix: shares },
    changes: {},
    // Tags for everything cost as much as there are images.
    ...(name === "tags" && budget >= images ? { sameAs: "tags" } : {}),
  });
  const ablation = (name: string, title: string, changes: Changes): Arm => ({
    name: `mixed-${name}`,
    title,
    group: "ablations",
    labels: MIXED,
    changes,
  });
  return [
    { name: "tags", title: "tags", group: "kinds", labels: { tags: 1 }, changes: {} },
    { name: "points", title: "points", group: "kinds", labels: { points: 1 }, changes: {} },
    { name: "boxes", title: "boxes", group: "kinds", labels: { boxes: 1 }, changes: {}, variantB: "boxes-b" },
    { name: "masks", title: "masks (Mask2Former)", group: "kinds", labels: "masks", changes: PLAIN },
    mix("tags", "tags", { tags: 1 }),
    mix("points", "points", { points: 1 }),
    mix("boxes", "boxes", { boxes: 1 }),
    mix("tags-points", "half tags, half points", { tags: 0.5, points: 0.5 }),
    mix("tags-boxes", "half tags, half boxes", { tags: 0.5, boxes: 0.5 }),
    mix("points-boxes", "half points, half boxes", { points: 0.5, boxes: 0.5 }),
    mix("thirds", "a third of each", MIXED),
    { name: "mixed", title: "WISH", group: "ablations", labels: MIXED, changes: {}, variantB: "mixed-b" },
    ablation("no-prompt-cost", "without the prompt cost in the matching", { "match.prompt": 0 }),
    ablation("no-mask-cost", "without the mask cost in the matching", { "match.bce": 0, "match.dice": 0 }),
    ablation("no-choice", "SAM's best-rated mask in place of the adaptive choice", { "match.candidate": "iou" }),
    ablation("no-self", "without self-enhancement of the CAM", { "loss.self": 0 }),
    {
      name: "boxinst",
      title: "boxes by projection and pairwise losses (BoxInst), no SAM",
      group: "others",
      labels: { boxes: 1 },
      changes: {
        ...PLAIN,
        "proxy.source": "box",
        "loss.bce": 0,
        "loss.dice": 0,
        "loss.projection": 5,
        "loss.pairwise": 5,
      },
    },
    {
      name: "pseudo-masks",
      title: "tags: CAM points through SAM as pseudo masks, no latents",
      group: "others",
      labels: { tags: 1 },
      changes: { "prompt.mode": "none", "match.candidate": "iou", "loss.self": 0 },
    },
  ];
}
