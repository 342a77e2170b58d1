/** How well a SAM model finds objects from one point and from a box: mean IoU over instances, at the images' own size. */
import { scope } from "../../engine/index.ts";
import { bestRated, type Sam, SamPredictor } from "../../model/sam/index.ts";
import type { Annotated } from "./data.ts";

export interface PromptScores {
  /** Of the candidate with the highest predicted IoU. */
  readonly selected: number;
  /** Of the single mask. */
  readonly single: number;
  /** Of the best candidate, which only the ground truth can tell. */
  readonly oracle: number;
}

export interface SamScores {
  readonly images: number;
  readonly instances: number;
  readonly point: PromptScores;
  readonly box: PromptScores;
}

/** Instances of fewer pixels than this share of the image are left out. */
const LEAST_AREA = 0.002;
/** Prompts decoded together. */
const MOST_PROMPTS = 16;

/** `at(i)` gives image i of `count`. Points are the pixels farthest from their object's edge. */
export async function evaluateSam(
  sam: Sam,
  count: number,
  at: (i: number) => Annotated,
  onImage?: (done: number) => void,
): Promise<SamScores> {
  // Each as it was: a frozen part is in evaluation mode while the others train.
  const training = [...sam.modules()].filter((module) => module.training);
  sam.eval();
  const predictor = new SamPredictor(sam);
  const sums = { point: [0, 0, 0], box: [0, 0, 0] };
  let instances = 0;
  let images = 0;
  for (let i = 0; i < count; i++) {
    const { image, masks } = at(i);
    const { width, height } = image;
    const wanted = masks
      .filter((mask) => area(mask) >= Math.max(1, LEAST_AREA * width * height))
      .slice(0, MOST_PROMPTS);
    if (wanted.length === 0) continue;
    images++;
    instances += wanted.length;
    await scope(async () => {
      predictor.setImage(image);
      const points = {
        coords: wanted.flatMap((mask) => interiorPoint(mask, width, height)),
        labels: wanted.map(() => 1),
        count: wanted.length,
      };
      const boxes = wanted.flatMap((mask) => cornersOf(mask, width));
      for (const [kind, prompts] of [
        ["point", { points }],
        ["box", { boxes }],
      ] as const) {
        const { masks: candidates, iou } = await predictor.predict(prompts);
        const single = await predictor.predict(prompts, { multimask: false });
        wanted.forEach((mask, j) => {
          const ious = candidates[j]!.map((candidate) => iouOf(candidate, mask));
          sums[kind][0]! += ious[bestRated(iou[j]!)]!;
          sums[kind][1]! += iouOf(single.masks[j]![0]!, mask);
          sums[kind][2]! += Math.max(...ious);
        });
      }
    });
    onImage?.(i + 1);
  }
  predictor.resetImage();
  for (const module of training) module.training = true;
  const mean = ([selected, single, oracle]: number[]): PromptScores => {
    const n = Math.max(1, instances);
    return { selected: selected! / n, single: single! / n, oracle: oracle! / n };
  };
  return { images, instances, point: mean(sums.point), box: mean(sums.box) };
}

function area(mask: Uint8Array): number {
  let n = 0;
  for (const value of mask) n += value;
  return n;
}

function iouOf(a: Uint8Array, b: Uint8Array): number {
  let [both, either] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    both += a[i]! & b[i]!;
    either += a[i]! | b[i]!;
  }
  return either === 0 ? 0 : both / either;
}

/** x0, y0, x1, y1 as edges. */
function cornersOf(mask: Uint8Array, width: number): number[] {
  let [x0, y0, x1, y1] = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY, 0, 0];
  for (let i = 0; i < mask.length; i++) {
    if (mask[i] === 0) continue;
    const [x, y] = [i % width, Math.floor(i / width)];
    [x0, y0, x1, y1] = [Math.min(x0, x), Math.min(y0, y), Math.max(x1, x + 1), Math.max(y1, y + 1)];
  }
  return [x0, y0, x1, y1];
}

/** The pixel farthest from the background in steps along rows, columns and diagonals (chessboard distance), the first of equals. */
export function interiorPoint(mask: Uint8Array, width: number, height: number): [x: number, y: number] {
  const far = new Int32Array(width * height);
  const look = (x: number, y: number) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : far[y * width + x]!);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (mask[y * width + x] === 0) continue;
      far[y * width + x] = 1 + Math.min(look(x - 1, y), look(x - 1, y - 1), look(x, y - 1), look(x + 1, y - 1));
    }
  }
  let best = 0;
  for (let y = height - 1; y >= 0; y--) {
    for (let x = width - 1; x >= 0; x--) {
      const i = y * width + x;
      if (mask[i] === 0) continue;
      far[i] = Math.min(far[i]!, 1 + Math.min(look(x + 1, y), look(x + 1, y + 1), look(x, y + 1), look(x - 1, y + 1)));
      if (far[i]! >= far[best]!) best = i;
    }
  }
  return [best % width, Math.floor(best / width)];
}
