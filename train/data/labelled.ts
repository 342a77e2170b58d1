/**
 * What a data set of any format says of its images, with files and classes by name. Each reader gives it; it becomes COCO's instances here
 * and weak labels in own-labels.ts.
 */
import { extname } from "node:path";
import { BadInput } from "../errors.ts";
import {
  type Category,
  categoriesOf,
  documentOf,
  type ImagesDocument,
  imagesDocument,
  runsOfSegmentation,
} from "./coco.ts";
import { checkSize, imageSize } from "./image.ts";
import { readJson } from "./json.ts";
import { areaOfRuns, type Box, boxOfRuns, type Rle } from "./mask.ts";
import { readText } from "./open.ts";

/** One object: its mask, the box around it, or a point on it. */
export interface LabelledObject {
  label: string;
  segmentation?: number[][] | Rle;
  box?: Box;
  /** The format's own figure, where it has one. */
  area?: number;
  point?: readonly [x: number, y: number];
  /** Not told apart, or too difficult: see coco.ts. */
  crowd?: boolean;
}

export interface LabelledImage {
  /** Relative to the folder of the images. */
  fileName: string;
  width: number;
  height: number;
  /** Where the format has one. */
  id?: number;
  /** What errors call its labels. */
  at: string;
  objects: LabelledObject[];
  /** Classes said to be in the image, without a place. */
  tags?: string[];
}

export interface Labelled {
  images: LabelledImage[];
  /** The format's own list of classes. */
  categories?: Category[];
  /** Folder of the images; undefined where the format does not say. */
  imagesDir: string | undefined;
}

/** An image's file with the size that its labels are for, where they say: it is looked at. Throws BadInput. */
export async function sizeOf(
  path: string,
  said?: { width: number; height: number },
): Promise<{ width: number; height: number }> {
  const size = await imageSize(path);
  if (said !== undefined) checkSize(path, size, said);
  return size;
}

const AT_ONCE = 8;

/** Reads many images' labels, some at once, in order. The error is that of the first that fails. */
export async function readEach<T, R>(
  items: readonly T[],
  read: (item: T, index: number) => Promise<R>,
  onImage: (done: number, total: number) => void = () => {},
): Promise<R[]> {
  const out: R[] = [];
  for (let first = 0; first < items.length; first += AT_ONCE) {
    const some = items.slice(first, first + AT_ONCE).map((item, i) => read(item, first + i));
    for (const outcome of await Promise.allSettled(some)) {
      if (outcome.status === "rejected") throw outcome.reason;
      out.push(outcome.value);
    }
    onImage(out.length, items.length);
  }
  return out;
}

/** Several sources as one. Throws BadInput where two speak of the same image: each has one kind of labels. */
export function merge(sources: readonly Labelled[]): Labelled {
  if (sources.length === 1) return sources[0]!;
  const seen = new Map<string, string>();
  const images = sources.flatMap((source) => source.images);
  for (const { fileName, at } of images) {
    const before = seen.get(fileName);
    if (before !== undefined)
      throw new BadInput(`${at}: ${fileName} is labelled in ${before} already; keep one of the two`);
    seen.set(fileName, at);
  }
  const named = sources.flatMap(({ categories }) => (categories === undefined ? [] : [categories]));
  const same = named.every((list) => JSON.stringify(list) === JSON.stringify(named[0]));
  const imagesDir = sources[0]?.imagesDir;
  if (named.length === 0) return { images, imagesDir };
  // Lists that differ are joined by name; what a source without a list calls by other names is added.
  const listed = same ? named[0]! : numbered([...new Set(named.flat().map(({ name }) => name))]);
  const complete = named.length === sources.length;
  const added = complete ? [] : labelsOf(images, new Set(listed.map(({ name }) => name)));
  const last = Math.max(0, ...listed.map(({ id }) => id));
  return { images, categories: [...listed, ...numbered(added, last + 1)], imagesDir };
}

function numbered(names: readonly string[], from = 1): Category[] {
  return names.map((name, i) => ({ id: from + i, name }));
}

/** Labels that occur and are not in `known`, in alphabetical order. */
function labelsOf(images: readonly LabelledImage[], known: ReadonlySet<string> = new Set()): string[] {
  const labels = new Set(images.flatMap(({ objects, tags = [] }) => [...objects.map(({ label }) => label), ...tags]));
  return [...labels].filter((label) => !known.has(label)).sort();
}

/** Names that labelme and its converters write for what is no object of a class. */
export const NO_CLASS = new Set(["__ignore__", "_background_"]);

/** A list of classes: a name on each line, or the categories of a JSON file. Throws BadInput. */
export function readClasses(path: string): Category[] {
  if (extname(path) === ".json") return categoriesOf(documentOf(readJson(path, "the list of classes"), path), path);
  const names = readText(path, "the list of classes")
    .split(/\r?\n/)
    .map((line) => line.trim());
  const classes = names.filter((name) => name !== "" && !NO_CLASS.has(name));
  if (classes.length === 0) throw new BadInput(`${path}: names no class; expected a name on each line`);
  const twice = classes.find((name, i) => classes.indexOf(name) !== i);
  if (twice !== undefined) throw new BadInput(`${path}: has the class "${twice}" twice`);
  return numbered(classes);
}

/** The classes: those asked for, the format's own, or all that occur, in alphabetical order. Throws BadInput. */
export function categoriesOfLabels(
  { images, categories }: Labelled,
  classes?: { file: string; categories: Category[] },
): Category[] {
  const list = classes?.categories ?? categories ?? numbered(labelsOf(images));
  const known = new Set(list.map(({ name }) => name));
  for (const { at, objects, tags = [] } of images)
    for (const label of [...objects.map((object) => object.label), ...tags])
      if (!known.has(label))
        throw new BadInput(
          `${at}: the label "${label}" is none of the classes${classes === undefined ? "" : ` of ${classes.file}`} (${shortList([...known])}); mend the label, or name it in the list of --classes`,
        );
  if (list.length === 0)
    throw new BadInput(`${images[0]?.at ?? "labels"}: there is no label; label at least one object, or give --classes`);
  return list;
}

export function shortList(names: readonly string[]): string {
  return names.length <= 8 ? names.join(", ") : `${names.slice(0, 8).join(", ")} and ${names.length - 8} more`;
}

/** Images with ids: the format's, or 1, 2, … where one has none or two have the same. */
export function identified(images: readonly LabelledImage[]): (LabelledImage & { id: number })[] {
  const own = new Set(images.map(({ id }) => id));
  const keep = own.size === images.length && !own.has(undefined);
  return images.map((image, i) => ({ ...image, id: keep ? image.id! : i + 1 }));
}

/** Throws BadInput where nothing of a box that was drawn lies in its image. */
export function checkArea([x, y, w, h]: Box, label: string, { at, width, height }: LabelledImage): void {
  if (!(w > 0 && h > 0) || x >= width || y >= height || x + w <= 0 || y + h <= 0)
    throw new BadInput(
      `${at}: the box of "${label}" [${[x, y, w, h]}] (x, y, width, height) has no area in the image of ${width}x${height}`,
    );
}

export interface InstancesDocument extends ImagesDocument {
  annotations: object[];
}

/** COCO's instances JSON. Objects without a pixel are left out. Throws BadInput where an object is a point alone. */
export function instancesDocument(labelled: Labelled, categories: readonly Category[]): InstancesDocument {
  const idOf = new Map(categories.map(({ id, name }) => [name, id]));
  const images = identified(labelled.images);
  const annotations: object[] = [];
  for (const image of images)
    for (const object of image.objects) {
      const outline = outlineOf(object, image);
      if (outline === undefined) continue;
      const [category_id, iscrowd] = [idOf.get(object.label)!, object.crowd ? 1 : 0];
      annotations.push({ id: annotations.length + 1, image_id: image.id, category_id, ...outline, iscrowd });
    }
  return { ...imagesDocument(images, categories), annotations };
}

function outlineOf(
  { label, segmentation, box, area, point }: LabelledObject,
  image: LabelledImage,
): object | undefined {
  if (point !== undefined)
    throw new BadInput(
      `${image.at}: "${label}" is a point, which has no mask; for training from points write weak labels with --weak`,
    );
  if (segmentation === undefined) {
    checkArea(box!, label, image);
    return { bbox: box, area: area ?? box![2] * box![3] };
  }
  const runs = runsOfSegmentation(segmentation, image);
  const pixels = areaOfRuns(runs);
  return pixels === 0 ? undefined : { segmentation, bbox: box ?? boxOfRuns(runs), area: area ?? pixels };
}
