/**
 * What the report shows of the best and the worst evaluation images, and of some training images: every stage side by side, as files in
 * pictures/stages. Evaluation images have masks but no label, so one is derived from the masks, as it would have been given; training
 * images have a label but no masks to show.
 */
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { Random } from "../engine/index.ts";
import {
  type Category,
  classIndex,
  type ImageEntry,
  type Instance,
  type Instances,
  imagePath,
  instancesByImage,
  overlapOf,
} from "./data/coco.ts";
import { type Image, jpegOf, readImage } from "./data/image.ts";
import { makeFolder } from "./data/json.ts";
import type { Item } from "./data/loader.ts";
import { type Kind, pointOf } from "./data/weak.ts";
import { truthOverlay } from "./evaluate.ts";
import { writeWhole } from "./files.ts";
import { contactSheet, drawOverlay } from "./pictures.ts";
import { drawStages, type StageParts } from "./stages.ts";

/** One image of a section of the report. */
export interface Row {
  section: "best" | "worst" | "training";
  caption: string;
  /** In the gallery's folder. */
  file: string;
  /** How many stand side by side. */
  panels: number;
}

const folderOf = (run: string): string => join(run, "pictures", "stages");
const INDEX = "stages.json";
/** Five panels side by side, each as wide as a picture of the report. */
const PANEL = 400;

/** The rows that were drawn last. */
export function readGallery(run: string): (Row & { path: string })[] {
  const index = join(folderOf(run), INDEX);
  if (!existsSync(index)) return [];
  const rows = JSON.parse(readFileSync(index, "utf8")) as Row[];
  return rows.map((row) => ({ ...row, path: join(folderOf(run), row.file) })).filter(({ path }) => existsSync(path));
}

export interface GallerySource {
  items: readonly Item[];
  truth: Instances;
  /** Image id -> how well it came out. */
  quality: ReadonlyMap<number, number>;
}

export interface GalleryOptions {
  onImage?: (done: number, total: number) => void;
  /** Where it is aborted, there is no gallery. */
  signal?: AbortSignal;
}

/** Draws `config.val.stages` of the best, as many of the worst, and as many training images. */
export async function writeGallery(
  run: string,
  parts: StageParts,
  source: GallerySource,
  { onImage, signal }: GalleryOptions = {},
): Promise<void> {
  const count = parts.config.val.stages;
  const folder = folderOf(run);
  // The index goes first: without it a reader sees no gallery rather than half of one.
  rmSync(folder, { recursive: true, force: true });
  if (count === 0) return;
  await makeFolder(folder);
  const { best, worst } = extremes(source.quality, count);
  const byImage = instancesByImage(source.truth);
  const evaluated = (section: Row["section"]) => (id: number) => {
    const entry = source.truth.images.find((image) => image.id === id)!;
    const caption = `${entry.fileName}, quality ${source.quality.get(id)!.toFixed(2)}`;
    return { section, caption, draw: () => evaluationPanels(parts, source, entry, byImage.get(id)!) };
  };
  const trained = (item: Item) => {
    const caption = `image ${item.imageId}, labelled with ${item.kind}`;
    return { section: "training" as const, caption, draw: () => drawStages(parts, item) };
  };
  const wanted = [
    ...best.map(evaluated("best")),
    ...worst.map(evaluated("worst")),
    ...(parts.teacher ? examples(source.items, count).map(trained) : []),
  ];
  const rows: Row[] = [];
  parts.model.eval();
  for (const { section, caption, draw } of wanted) {
    if (signal?.aborted) break;
    const panels = await draw();
    const sheet = contactSheet(panels, { columns: panels.length, most: Number.POSITIVE_INFINITY });
    const file = `${section}-${rows.length + 1}.jpg`;
    await writeWhole(join(folder, file), await jpegOf(sheet, PANEL * panels.length));
    rows.push({ section, caption, file, panels: panels.length });
    onImage?.(rows.length, wanted.length);
  }
  parts.model.train();
  if (rows.length === wanted.length) await writeWhole(join(folder, INDEX), JSON.stringify(rows));
}

/** Ids of the images that came out best and worst; none stands in both. */
function extremes(quality: ReadonlyMap<number, number>, count: number): { best: number[]; worst: number[] } {
  const order = [...quality].sort(([a, x], [b, y]) => y - x || a - b).map(([id]) => id);
  const each = Math.min(count, Math.ceil(order.length / 2));
  return { best: order.slice(0, each), worst: order.slice(each).slice(-count).reverse() };
}

/** The truth, then the stages from a label that is derived from it, of the kind that most training images have. */
async function evaluationPanels(
  parts: StageParts,
  { truth, items }: GallerySource,
  entry: ImageEntry,
  instances: readonly Instance[],
): Promise<Image[]> {
  const { config, categories } = parts;
  const path = imagePath(config.val.images, entry);
  const picture = await drawOverlay(await readImage(path), truthOverlay(truth, instances, entry));
  // A point is found in a mask; where the truth is boxes, these are the labels.
  const kind = overlapOf(truth) === "bbox" ? "boxes" : commonest(items);
  return [
    picture,
    ...(await drawStages(parts, derived(kind, entry, instances, { path, categories, file: truth.file }))),
  ];
}

/** @param file what errors call the truth */
function derived(
  kind: Kind,
  entry: ImageEntry,
  instances: readonly Instance[],
  { path, categories, file }: { path: string; categories: readonly Category[]; file: string },
): Item {
  const place = classIndex(categories);
  const objects = instances.filter(({ crowd, categoryId }) => !crowd && place.has(categoryId));
  const classes = objects.map(({ categoryId }) => place.get(categoryId)!);
  const tags = [...new Set(classes)].sort((a, b) => a - b);
  const { id: imageId, width, height } = entry;
  const bare: Item = { imageId, path, width, height, kind, classes: [], points: [], boxes: [], runs: [], tags };
  if (kind === "tags") return bare;
  if (kind === "boxes") return { ...bare, classes, boxes: objects.map(({ box }) => box) };
  const placed = objects.flatMap((object, i) => {
    const at = pointOf(object, entry, "center", new Random(0), file);
    return at === undefined ? [] : [{ at, classIndex: classes[i]! }];
  });
  return {
    ...bare,
    classes: placed.map(({ classIndex }) => classIndex),
    points: placed.map(({ at }): [number, number] => [at.x, at.y]),
  };
}

function commonest(items: readonly Item[]): Kind {
  const count = (kind: Kind): number => items.filter((item) => item.kind === kind).length;
  return (["boxes", "points", "tags"] as const).reduce((a, b) => (count(b) > count(a) ? b : a));
}

/** Labelled images, each kind in turn. */
function examples(items: readonly Item[], count: number): Item[] {
  const kinds = (["tags", "points", "boxes"] as const).map((kind) =>
    items.filter((item) => item.kind === kind && item.tags.length > 0).slice(0, count),
  );
  return Array.from({ length: count }, (_, i) => kinds.flatMap((list) => list.slice(i, i + 1)))
    .flat()
    .slice(0, count);
}
