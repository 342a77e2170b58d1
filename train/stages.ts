/** The way from a label to a prediction as pictures side by side: label, CAM with its peaks, SAM's answer, prediction. */
import { type Device, noGrad, scope } from "../engine/index.ts";
import type { Wish } from "../model/index.ts";
import { bestRated } from "../model/sam/index.ts";
import { findPeaks } from "./cam.ts";
import type { Config } from "./config.ts";
import type { Category } from "./data/coco.ts";
import { type Image, readImage } from "./data/image.ts";
import { evalSample, type Item } from "./data/loader.ts";
import { predictionOverlay, segment } from "./evaluate.ts";
import { classText } from "./lettering.ts";
import { drawOverlay, heatmap, type Overlay } from "./pictures.ts";
import { imageTensor } from "./step.ts";
import type { Teacher } from "./teacher.ts";

export interface StageParts {
  gpu: Device;
  model: Wish;
  categories: readonly Category[];
  config: Config;
  /** Undefined where the model was trained from masks: then there is neither a CAM nor an answer of SAM's to see. */
  teacher?: Pick<Teacher, "prompt"> | undefined;
}

/** An image's panels: its weak label, the CAM of its classes, SAM's best rated answers to the label (or to the peaks), the prediction. */
export async function drawStages(parts: StageParts, item: Item): Promise<Image[]> {
  const { gpu, model, categories, config, teacher } = parts;
  const image = await readImage(item.path);
  const draw = (overlay: Overlay, under = image): Promise<Image> => drawOverlay(under, overlay);
  const panels: Image[] = [];
  if (teacher) {
    panels.push(await draw(labelOverlay(item, categories)));
    const cam = model.config.cam.feature === "none" ? undefined : await camOf(gpu, model, image, item.tags, config);
    if (cam) {
      const points = cam.peaks.map((peak) => ({ ...peak, label: classText(categories[peak.classIndex]!) }));
      panels.push(await draw({ points, caption: "CAM and peaks" }, cam.together));
    }
    const asked = item.kind === "tags" && cam ? peaksItem(item, cam.peaks) : item;
    panels.push(await draw(await answers(teacher, image, asked, categories)));
  }
  const found = await segment(gpu, model, image, config.val);
  return [...panels, await draw(predictionOverlay(found, categories))];
}

export function labelOverlay(item: Item, categories: readonly Category[]): Overlay {
  const label = (i: number) => ({ classIndex: item.classes[i]!, label: classText(categories[item.classes[i]!]!) });
  if (item.kind === "tags")
    return { caption: `tags: ${item.tags.map((tag) => classText(categories[tag]!)).join(", ") || "none"}` };
  return {
    points: item.points.map(([x, y], i) => ({ x, y, ...label(i) })),
    boxes: item.boxes.map((box, i) => ({ box, ...label(i) })),
    caption: `label: ${item.kind}`,
  };
}

/** The item as if its peaks had been clicked. */
function peaksItem(item: Item, peaks: readonly Peak[]): Item {
  const points = peaks.map(({ x, y }): [number, number] => [x, y]);
  return { ...item, kind: "points", points, classes: peaks.map(({ classIndex }) => classIndex) };
}

async function answers(
  teacher: Pick<Teacher, "prompt">,
  image: Image,
  { kind, points, boxes, classes }: Item,
  categories: readonly Category[],
): Promise<Overlay> {
  const prompts = kind === "points" ? points : boxes.map(([x, y, w, h]) => [x, y, x + w, y + h]);
  const [given = []] = await teacher.prompt([image], kind === "points" ? "point" : "box", [prompts]);
  return {
    masks: given.map(({ masks, iou }, i) => {
      const best = bestRated(iou);
      const classIndex = classes[i]!;
      return { mask: masks[best]!, score: iou[best]!, classIndex, label: classText(categories[classIndex]!) };
    }),
    caption: "SAM, best rated",
  };
}

export interface Peak {
  classIndex: number;
  /** A pixel of the image. */
  x: number;
  y: number;
  value: number;
}

export interface Cam {
  /** The map of each class over the image, in the order of the classes asked for. */
  maps: { classIndex: number; picture: Image; active: boolean }[];
  /** All of them over each other. */
  together: Image;
  peaks: Peak[];
}

/** @param classes whose maps and peaks are wanted */
export async function camOf(
  gpu: Device,
  model: Wish,
  image: Image,
  classes: readonly number[],
  config: Pick<Config, "val" | "cam">,
): Promise<Cam> {
  const sample = await evalSample(image, config.val);
  const { values, shape } = await scope(async () => {
    const { cam } = noGrad(() => model.forwardCam(imageTensor(gpu, [sample])));
    return { values: (await cam.toArray()) as Float32Array, shape: cam.shape.slice(1) as [number, number, number] };
  });
  const [, h, w] = shape;
  const frame = [ceil32(sample.width), ceil32(sample.height)] as const;
  const { scaleX, scaleY } = sample.affine;
  const peaks = findPeaks(values, shape, [...classes], sample.valid, frame, config.cam).map(
    ({ classIndex, x, y, value }) => ({ classIndex, value, x: x / scaleX - 0.5, y: y / scaleY - 0.5 }),
  );
  const maps = classes.map((classIndex) => normalised(values.subarray(classIndex * h * w, (classIndex + 1) * h * w)));
  const highest = new Float32Array(h * w).map((_, i) => Math.max(0, ...maps.map((map) => map[i]!)));
  return {
    maps: maps.map((map, i) => ({
      classIndex: classes[i]!,
      picture: heatmap(image, map, w, h),
      active: map.some((v) => v > 0),
    })),
    together: heatmap(image, highest, w, h),
    peaks,
  };
}

/** The network pads to multiples of 32. */
function ceil32(length: number): number {
  return 32 * Math.ceil(length / 32);
}

function normalised(map: Float32Array): Float32Array {
  const most = map.reduce((a, b) => Math.max(a, b), 1e-5);
  return map.map((v) => Math.max(0, v) / most);
}
