/**
 * COCO instances JSON: images, categories and annotations with polygons or RLE. Everything is checked on reading, so that what
 * comes after may rely on it; each way to be wrong has one line that names the file and the entry.
 */
import { statSync } from "node:fs";
import { join } from "node:path";
import { BadInput } from "../errors.ts";
import { imageSize } from "./image.ts";
import { readJson } from "./json.ts";
import { areaOfRuns, type Box, boxOfRuns, MAX_PIXELS, type Rle, type Runs, runsOfRle } from "./mask.ts";
import { runsOfPolygons } from "./polygon.ts";

export interface Category {
  id: number;
  name: string;
  supercategory?: string;
}

export interface ImageEntry {
  id: number;
  fileName: string;
  width: number;
  height: number;
}

/** What COCO's files have in common. */
export interface ImagesDocument {
  images: { id: number; file_name: string; width: number; height: number }[];
  categories: Category[];
}

export function imagesDocument(images: readonly ImageEntry[], categories: readonly Category[]): ImagesDocument {
  return {
    images: images.map(({ id, fileName, width, height }) => ({ id, file_name: fileName, width, height })),
    categories: [...categories],
  };
}

export interface Instance {
  id: number;
  imageId: number;
  categoryId: number;
  box: Box;
  area: number;
  /** A region of many objects that are not told apart: never trained on, and no result on it counts as wrong. */
  crowd: boolean;
  /** Polygons [x0, y0, x1, y1, …] or RLE; absent where the file has boxes alone. */
  segmentation?: number[][] | Rle;
}

export interface Instances {
  file: string;
  images: ImageEntry[];
  categories: Category[];
  instances: Instance[];
}

/** A JSON object whose fields are not yet known. */
export type Fields = Record<string, unknown>;

export interface ReadOptions {
  /** The classes are the categories' supercategories: ids from 1 on by first appearance. */
  supercategories?: boolean;
  /** What only pictures or training need may be absent, as with pycocotools: names of files and classes, and sizes where there are no masks. */
  bare?: boolean;
}

/** Reads and checks a COCO instances file. Throws BadInput. */
export function readInstances(path: string, { supercategories = false, bare = false }: ReadOptions = {}): Instances {
  refuseFolder(path, "--out instances.json");
  const document = documentOf(readJson(path, "the annotations file"), path);
  if (Array.isArray(document.weak) && !Array.isArray(document.annotations)) {
    throw new BadInput(`${path}: holds weak labels; instances with masks are expected here (a COCO instances JSON)`);
  }
  const complete = bare ? completed(document, path) : document;
  const images = imagesOf(complete, path);
  const categories = categoriesOf(complete, path);
  const byId = new Map(images.map((image) => [image.id, image]));
  const known = new Set(categories.map(({ id }) => id));
  const instances = listOf(document, "annotations", path).map((entry, i) => instanceOf(entry, i, byId, known, path));
  unique(instances, "annotations", path);
  if (!supercategories) return { file: path, images, categories, instances };
  const grouped = groupCategories(categories, path);
  for (const instance of instances) instance.categoryId = grouped.idOf.get(instance.categoryId)!;
  return { file: path, images, categories: grouped.categories, instances };
}

/** Throws BadInput where a data set of another format may be meant. */
export function refuseFolder(path: string, options: string): void {
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory())
    throw new BadInput(`${path}: is a folder; turn its labels into JSON first: wgpu-wish dataset ${path} ${options}`);
}

/** Names where there are none, and sizes where nothing depends on them: a file without masks is judged by boxes alone. */
function completed(document: Fields, path: string): Fields {
  const hasMasks = listOf(document, "annotations", path).some(({ segmentation }) => segmentation !== undefined);
  const size = hasMasks ? {} : { width: 1, height: 1 };
  return {
    images: listOf(document, "images", path).map((image) => ({ file_name: `${image.id}`, ...size, ...image })),
    categories: listOf(document, "categories", path).map((category) => ({ name: `${category.id}`, ...category })),
  };
}

export function documentOf(value: unknown, path: string): Fields {
  if (!isFields(value))
    throw new BadInput(`${path}: expected a JSON object with images and categories, got ${kindOf(value)}`);
  return value;
}

export function listOf(document: Fields, key: string, path: string): Fields[] {
  const list = document[key];
  if (!Array.isArray(list))
    throw new BadInput(`${path}: "${key}" must be a list, got ${kindOf(list)}; is this a COCO instances file?`);
  list.forEach((entry, i) => {
    if (!isFields(entry)) throw new BadInput(`${path}: ${key}[${i}] must be an object, got ${kindOf(entry)}`);
  });
  return list;
}

export function imagesOf(document: Fields, path: string): ImageEntry[] {
  const images = listOf(document, "images", path).map((entry, i): ImageEntry => {
    const at = `${path}: images[${i}]`;
    const { id, file_name: fileName, width, height } = entry;
    if (!isId(id)) throw new BadInput(`${at}: "id" must be a whole number, got ${show(id)}`);
    if (typeof fileName !== "string" || fileName === "")
      throw new BadInput(`${at}: "file_name" must be a name, got ${show(fileName)}`);
    if (!isCount(width) || !isCount(height) || width * height > MAX_PIXELS) {
      throw new BadInput(
        `${at}: "width" and "height" must be pixels (at most ${MAX_PIXELS} in all), got ${show(width)} and ${show(height)}`,
      );
    }
    return { id, fileName, width, height };
  });
  unique(images, "images", path);
  return images;
}

export function categoriesOf(document: Fields, path: string): Category[] {
  const categories = listOf(document, "categories", path).map((entry, i): Category => {
    const { id, name, supercategory } = entry;
    if (!isId(id)) throw new BadInput(`${path}: categories[${i}]: "id" must be a whole number, got ${show(id)}`);
    if (typeof name !== "string")
      throw new BadInput(`${path}: categories[${i}]: "name" must be a text, got ${show(name)}`);
    return typeof supercategory === "string" ? { id, name, supercategory } : { id, name };
  });
  unique(categories, "categories", path);
  if (categories.length === 0) throw new BadInput(`${path}: "categories" is empty; at least one class is needed`);
  return categories;
}

/** Supercategories as categories, and the new id of each old one. Throws BadInput where a category has none. */
export function groupCategories(
  categories: readonly Category[],
  path: string,
): { categories: Category[]; idOf: Map<number, number> } {
  const groups: Category[] = [];
  const idOf = new Map<number, number>();
  for (const { id, name, supercategory } of categories) {
    if (supercategory === undefined) {
      throw new BadInput(
        `${path}: category "${name}" has no supercategory, but supercategories are asked for as classes`,
      );
    }
    let group = groups.find((known) => known.name === supercategory);
    if (group === undefined) groups.push((group = { id: groups.length + 1, name: supercategory, supercategory }));
    idOf.set(id, group.id);
  }
  return { categories: groups, idOf };
}

function instanceOf(
  entry: Fields,
  i: number,
  images: ReadonlyMap<number, ImageEntry>,
  categories: ReadonlySet<number>,
  path: string,
): Instance {
  const { id, image_id: imageId, category_id: categoryId, bbox, area, iscrowd = 0, segmentation } = entry;
  const at = `${path}: annotations[${i}]${isId(id) ? ` (id ${id})` : ""}`;
  if (!isId(id)) throw new BadInput(`${at}: "id" must be a whole number, got ${show(id)}`);
  const image = images.get(imageId as number);
  if (image === undefined) throw new BadInput(`${at}: image_id ${show(imageId)} names no image of the file`);
  if (!isId(categoryId) || !categories.has(categoryId)) {
    throw new BadInput(`${at}: category_id ${show(categoryId)} names no category of the file`);
  }
  if (iscrowd !== 0 && iscrowd !== 1 && typeof iscrowd !== "boolean") {
    throw new BadInput(`${at}: "iscrowd" must be 0 or 1, got ${show(iscrowd)}`);
  }
  // Tools that draw boxes alone write an empty list or null.
  const isEmpty = segmentation === undefined || segmentation === null;
  const outline =
    isEmpty || (Array.isArray(segmentation) && segmentation.length === 0)
      ? undefined
      : segmentationOf(segmentation, image, at);
  if (bbox === undefined && outline === undefined) throw new BadInput(`${at}: has neither "bbox" nor "segmentation"`);
  if (area !== undefined && !(typeof area === "number" && Number.isFinite(area) && area >= 0)) {
    throw new BadInput(`${at}: "area" must be a number from 0, got ${show(area)}`);
  }
  const runs =
    outline !== undefined && (bbox === undefined || area === undefined)
      ? runsOfSegmentation(outline, image)
      : undefined;
  const box = bbox === undefined ? boxOfRuns(runs!) : checkedBox(bbox, at);
  return {
    id,
    imageId: image.id,
    categoryId,
    box,
    area: area ?? (runs === undefined ? box[2] * box[3] : areaOfRuns(runs)),
    crowd: iscrowd === 1 || iscrowd === true,
    ...(outline === undefined ? {} : { segmentation: outline }),
  };
}

/** [x, y, width, height] of finite numbers with a size from 0. */
export function checkedBox(value: unknown, at: string): Box {
  const isBox =
    Array.isArray(value) && value.length === 4 && value.every((v) => typeof v === "number" && Number.isFinite(v));
  if (!isBox || value[2] < 0 || value[3] < 0)
    throw new BadInput(`${at}: "bbox" must be [x, y, width, height], got ${show(value)}`);
  return value as Box;
}

function segmentationOf(value: unknown, image: ImageEntry, at: string): number[][] | Rle {
  if (Array.isArray(value)) {
    value.forEach((polygon, i) => {
      // pycocotools refuses fewer than three corners too: it would take four numbers for a box.
      const isPolygon = Array.isArray(polygon) && polygon.length >= 6 && polygon.length % 2 === 0;
      if (!isPolygon || !polygon.every((v) => typeof v === "number" && Math.abs(v) < 1e6)) {
        throw new BadInput(
          `${at}: segmentation[${i}] must be a polygon [x0, y0, x1, y1, x2, y2, …], got ${show(polygon)}`,
        );
      }
    });
    return value;
  }
  const { size, counts } = isFields(value) ? value : {};
  if (!Array.isArray(size) || !(typeof counts === "string" || Array.isArray(counts))) {
    throw new BadInput(`${at}: "segmentation" must be polygons or an RLE {size, counts}, got ${show(value)}`);
  }
  if (size[0] !== image.height || size[1] !== image.width || size.length !== 2) {
    throw new BadInput(
      `${at}: segmentation is for ${show(size)} [height, width], but image ${image.id} is [${image.height}, ${image.width}]`,
    );
  }
  const rle = { size: size as [number, number], counts };
  try {
    runsOfRle(rle);
  } catch (error) {
    throw new BadInput(`${at}: ${(error as Error).message}`);
  }
  return rle;
}

/** What results on this data can be judged by: masks, or boxes where nothing but boxes was drawn. */
export function overlapOf({ instances }: Instances): "segm" | "bbox" {
  return instances.length === 0 || instances.some(({ segmentation }) => segmentation !== undefined) ? "segm" : "bbox";
}

/** The instance's mask. Throws where it has none: check `segmentation` before. */
export function instanceRuns(instance: Instance, image: { width: number; height: number }): Runs {
  if (instance.segmentation === undefined) {
    throw new BadInput(`annotation ${instance.id} has no segmentation; masks are needed here`);
  }
  return runsOfSegmentation(instance.segmentation, image);
}

export function runsOfSegmentation(
  segmentation: number[][] | Rle,
  { width, height }: { width: number; height: number },
): Runs {
  return Array.isArray(segmentation) ? runsOfPolygons(segmentation, width, height) : runsOfRle(segmentation);
}

/** Each image's instances, in the file's order; images without any have an empty list. */
export function instancesByImage(data: Instances): Map<number, Instance[]> {
  const lists = new Map<number, Instance[]>(data.images.map(({ id }) => [id, []]));
  for (const instance of data.instances) lists.get(instance.imageId)!.push(instance);
  return lists;
}

/** Names to tell results apart by: where two classes have the same, their ids stand with it. */
export function distinctNames(categories: readonly Category[]): string[] {
  const counts = new Map<string, number>();
  for (const { name } of categories) counts.set(name, (counts.get(name) ?? 0) + 1);
  return categories.map(({ id, name }) => (counts.get(name) === 1 ? name : `${name} (${id})`));
}

/** Category id -> class index 0..K-1, in the file's order. */
export function classIndex(categories: readonly Category[]): Map<number, number> {
  return new Map(categories.map(({ id }, i) => [id, i]));
}

export function imagePath(imagesDir: string, { fileName }: { fileName: string }): string {
  return join(imagesDir, fileName);
}

/** Looks whether each image is there and has the size that the file says. Throws BadInput naming the first that is wrong. */
export async function checkImages(data: { file: string; images: ImageEntry[] }, imagesDir: string): Promise<void> {
  for (const image of data.images) {
    const path = imagePath(imagesDir, image);
    const { width, height } = await imageSize(path);
    if (width !== image.width || height !== image.height) {
      throw new BadInput(
        `${path}: is ${width}x${height}, but ${data.file} says ${image.width}x${image.height} (width x height)`,
      );
    }
  }
}

function unique(entries: readonly { id: number }[], key: string, path: string): void {
  const seen = new Set<number>();
  for (const { id } of entries) {
    if (seen.has(id)) throw new BadInput(`${path}: ${key} has the id ${id} twice`);
    seen.add(id);
  }
}

export function isFields(value: unknown): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function isId(value: unknown): value is number {
  return Number.isSafeInteger(value);
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) > 0;
}

/** A value for an error line, cut where it is long. */
export function show(value: unknown): string {
  const text = value === undefined ? "nothing" : JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

function kindOf(value: unknown): string {
  return value === undefined
    ? "nothing"
    : value === null
      ? "null"
      : Array.isArray(value)
        ? "a list"
        : `a ${typeof value}`;
}
