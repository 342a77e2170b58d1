/** What augmentation makes of training images and their labels: the original, then some versions as the network sees them. */
import { Random } from "../engine/index.ts";
import { bestRated } from "../model/sam/index.ts";
import type { Config } from "./config.ts";
import { pointToNetwork, warpMask } from "./data/augment.ts";
import type { Category } from "./data/coco.ts";
import { type Image, readImage, resizeImage } from "./data/image.ts";
import type { Box } from "./data/mask.ts";
import { type Item, loadSample, type Sample, type SampleJob } from "./data/sample.ts";
import { classText } from "./lettering.ts";
import { contactSheet, drawOverlay, type Overlay } from "./pictures.ts";
import type { SamProxy } from "./proxies.ts";
import { labelOverlay } from "./stages.ts";

const VERSIONS = 4;

export interface AugmentedOptions {
  categories: readonly Category[];
  config: Pick<Config, "data" | "seed">;
  /** SAM's masks of an item's labels, to be transformed with them. */
  proxies?: (item: Item, index: number) => readonly SamProxy[] | undefined;
  /** Peaks in a sample's frame and SAM's masks of them, for images with tags. */
  pseudo?: (image: Image, sample: Sample, item: Item) => Promise<Overlay>;
}

export function sampleOptions({ data }: Pick<Config, "data">): Pick<SampleJob, "augment" | "maskStride"> {
  const { width, height, flip, scale, tagScale, colour, maskStride } = data;
  return { augment: { width, height, flip, scale, tagScale, colour }, maskStride };
}

export async function augmentedPicture(item: Item, index: number, options: AugmentedOptions): Promise<Image> {
  const { categories, config, proxies, pseudo } = options;
  const image = await readImage(item.path);
  const how = sampleOptions(config);
  const panels = [await originalPanel(image, item, categories, how.augment)];
  const given = proxies?.(item, index);
  for (let version = 0; version < VERSIONS; version++) {
    const random = new Random(config.seed).fork(`show ${item.imageId} ${version}`);
    const sample = await loadSample({ item, index, proxies: given, ...how, random: random.state });
    const frame = { width: sample.width, height: sample.height, data: sample.rgb };
    const more = item.kind === "tags" ? await pseudo?.(image, sample, item) : undefined;
    const overlay = { ...sampleOverlay(sample, categories, how.maskStride), ...more };
    panels.push(await drawOverlay(frame, { ...overlay, caption: described(sample) }));
  }
  return contactSheet(panels, { columns: panels.length, most: Number.POSITIVE_INFINITY });
}

/** The image with its labels, made smaller where it is larger than the frame, so that the panels are alike and texts can be read. */
function originalPanel(
  image: Image,
  item: Item,
  categories: readonly Category[],
  frame: { width: number; height: number },
): Promise<Image> {
  const shrink = Math.min(1, frame.width / image.width, frame.height / image.height);
  const [width, height] = [image.width, image.height].map((side) => Math.max(1, Math.round(side * shrink))) as Size;
  const affine = { scaleX: width / image.width, offsetX: 0, scaleY: height / image.height, offsetY: 0 };
  const under = shrink < 1 ? resizeImage(image, width, height) : image;
  const [w, h] = [affine.scaleX, affine.scaleY];
  const shown = {
    ...item,
    points: item.points.map(([x, y]) => pointToNetwork(affine, x, y)),
    boxes: item.boxes.map(([x, y, across, down]): Box => [x * w, y * h, across * w, down * h]),
  };
  const masks = item.runs.map((runs, i) => ({
    mask: warpMask(runs, affine, width, height),
    ...named(item.classes[i]!, categories),
  }));
  return drawOverlay(under, { ...labelOverlay(shown, categories), ...(masks.length > 0 ? { masks, boxes: [] } : {}) });
}

type Size = [width: number, height: number];

function named(classIndex: number, categories: readonly Category[]): { classIndex: number; label: string } {
  return { classIndex, label: classText(categories[classIndex]!) };
}

/** A sample's labels in its frame; of SAM's three masks the best rated. */
function sampleOverlay(sample: Sample, categories: readonly Category[], stride = 1): Overlay {
  const label = (i: number) => named(sample.classes[i]!, categories);
  const best = sample.proxies?.map(({ masks, iou }) => masks[bestRated(iou)]!);
  return {
    // Points and boxes carry the names.
    masks: (best ?? sample.masks).map((mask, i) => ({
      mask: enlarged(mask, sample, stride),
      classIndex: sample.classes[i]!,
    })),
    points: sample.points.map(([x, y], i) => ({ x, y, ...label(i) })),
    boxes: sample.boxes.map(([x0, y0, x1, y1], i) => ({ box: [x0, y0, x1 - x0, y1 - y0], ...label(i) })),
  };
}

/** Each of the mask's cells over its stride * stride pixels. */
function enlarged(mask: Uint8Array, { width, height }: Sample, stride: number): Uint8Array {
  if (stride === 1) return mask;
  const across = Math.ceil(width / stride);
  return Uint8Array.from(
    { length: width * height },
    (_, i) => mask[Math.floor(Math.floor(i / width) / stride) * across + Math.floor((i % width) / stride)]!,
  );
}

function described({ affine, kind, tags }: Sample): string {
  const scale = `x${Math.abs(affine.scaleX).toFixed(2)}${affine.scaleX < 0 ? ", flipped" : ""}`;
  return kind === "tags" ? `${scale}, ${tags.length} tags` : scale;
}
