/**
 * labelme's files: one JSON for an image, with shapes. Polygons, circles and masks are masks, rectangles boxes, points points; flags that are
 * set are tags of the image. Shapes of one label and one group_id are parts of one object.
 */
import { existsSync, readdirSync } from "node:fs";
import { basename, dirname, join, relative, resolve, sep } from "node:path";
import { BadInput } from "../errors.ts";
import { type Fields, isFields, show } from "./coco.ts";
import { decodeIndices } from "./index-png.ts";
import { readJson } from "./json.ts";
import { type Labelled, type LabelledImage, type LabelledObject, NO_CLASS, readEach, sizeOf } from "./labelled.ts";
import { type Box, mergeRuns, type Rle, rleOfRuns, runsOfMask, runsOfRle } from "./mask.ts";
import { runsOfPolygons } from "./polygon.ts";

type Points = (readonly [x: number, y: number])[];
type Size = { width: number; height: number };

export interface LabelmeOptions {
  /** Folder that the images' names are relative to; default: the folder itself. */
  images?: string | undefined;
  onImage?: ((done: number, total: number) => void) | undefined;
}

/** A folder with labelme's files, also in folders below it. Throws BadInput. */
export async function readLabelme(folder: string, options: LabelmeOptions = {}): Promise<Labelled> {
  const { images: imagesDir = folder, onImage } = options;
  const documents = labelmeFiles(folder).flatMap((path) => {
    const document = readJson(path, "the labelme file");
    // Files that this program wrote may lie beside those of labelme.
    if (isFields(document) && Array.isArray(document.images) && Array.isArray(document.categories)) return [];
    if (!isFields(document) || !Array.isArray(document.shapes))
      throw new BadInput(`${path}: is no labelme file: "shapes" must be a list`);
    return [{ path, document }];
  });
  if (documents.length === 0)
    throw new BadInput(`${folder}: holds no labelme file (a JSON with "shapes" for each image)`);
  const images = await readEach(documents, ({ path, document }) => imageOf(document, path, imagesDir), onImage);
  return { images, imagesDir };
}

export function labelmeFiles(folder: string): string[] {
  const names = readdirSync(folder, { recursive: true }).map(String);
  return names
    .filter((name) => name.endsWith(".json"))
    .sort()
    .map((name) => join(folder, name));
}

async function imageOf(document: Fields, at: string, imagesDir: string): Promise<LabelledImage> {
  const { imagePath, imageWidth, imageHeight, shapes, flags } = document;
  if (typeof imagePath !== "string" || imagePath === "")
    throw new BadInput(`${at}: "imagePath" must be the image's file, got ${show(imagePath)}`);
  // labelme on Windows writes backslashes; a folder that was moved keeps its images' names.
  const path = [
    resolve(dirname(at), imagePath.replaceAll("\\", "/")),
    join(imagesDir, basename(imagePath.replaceAll("\\", "/"))),
  ].find(existsSync);
  if (path === undefined) throw new BadInput(`${at}: its image ${imagePath} is neither beside it nor in ${imagesDir}`);
  const fileName = relative(resolve(imagesDir), resolve(path)).replaceAll(sep, "/");
  if (fileName.startsWith("../"))
    throw new BadInput(
      `${at}: its image ${path} lies outside ${imagesDir}; name the folder of the images with --images`,
    );
  const said = typeof imageWidth === "number" && typeof imageHeight === "number";
  const size = await sizeOf(path, said ? { width: imageWidth, height: imageHeight } : undefined);
  const tags = isFields(flags) ? Object.keys(flags).filter((name) => flags[name] === true) : [];
  const objects = await objectsOf(shapes as unknown[], size, at);
  return { fileName, ...size, at, objects, ...(tags.length > 0 ? { tags } : {}) };
}

async function objectsOf(shapes: unknown[], size: Size, at: string): Promise<LabelledObject[]> {
  const objects: LabelledObject[] = [];
  const groups = new Map<string, LabelledObject>();
  for (const [i, shape] of shapes.entries()) {
    const place = `${at}: shapes[${i}]`;
    if (!isFields(shape)) throw new BadInput(`${place} must be an object, got ${show(shape)}`);
    const { label, group_id: group = null } = shape;
    if (typeof label !== "string" || label === "")
      throw new BadInput(`${place}: "label" must be a class's name, got ${show(label)}`);
    if (NO_CLASS.has(label)) continue;
    const object: LabelledObject = { label, ...(await outlineOf(shape, size, `${place} ("${label}")`)) };
    const key = JSON.stringify([label, group]);
    const whole = group === null || object.segmentation === undefined ? undefined : groups.get(key);
    if (whole !== undefined) whole.segmentation = joined(whole.segmentation!, object.segmentation!, size);
    else {
      objects.push(object);
      if (group !== null && object.segmentation !== undefined) groups.set(key, object);
    }
  }
  return objects;
}

function joined(a: number[][] | Rle, b: number[][] | Rle, { width, height }: Size): number[][] | Rle {
  if (Array.isArray(a) && Array.isArray(b)) return [...a, ...b];
  const runs = [a, b].map((part) => (Array.isArray(part) ? runsOfPolygons(part, width, height) : runsOfRle(part)));
  return rleOfRuns(mergeRuns(runs, "union"));
}

async function outlineOf(shape: Fields, size: Size, place: string): Promise<Omit<LabelledObject, "label">> {
  const { shape_type: kind = "polygon" } = shape;
  const points = pointsOf(shape.points, place);
  const need = (least: number, most = least) => {
    if (points.length < least || points.length > most)
      throw new BadInput(
        `${place}: a ${show(kind)} has ${least} points${most > least ? " or more" : ""}, got ${points.length}`,
      );
  };
  if (kind === "polygon" || kind === "oriented_rectangle") {
    need(3, Number.POSITIVE_INFINITY);
    return { segmentation: [points.flat()] };
  }
  if (kind === "rectangle") {
    need(2, 4); // Newer versions of labelme write all four corners.
    return { box: around(points) };
  }
  if (kind === "circle") {
    need(2);
    return { segmentation: [circle(points[0]!, points[1]!)] };
  }
  if (kind === "point") {
    need(1);
    const [x, y] = points[0]!;
    // labelme's coordinates are of edges, a point label names a pixel.
    return { point: [x - 0.5, y - 0.5] };
  }
  if (kind === "mask") {
    need(2);
    return { segmentation: await maskOf(shape.mask, points, size, place) };
  }
  throw new BadInput(
    `${place}: is a ${show(kind)}, which has no area; draw a polygon, rectangle, circle, mask or point`,
  );
}

function pointsOf(value: unknown, place: string): Points {
  const isPoint = (p: unknown) =>
    Array.isArray(p) && p.length === 2 && p.every((v) => typeof v === "number" && Math.abs(v) < 1e6);
  if (!Array.isArray(value) || !value.every(isPoint))
    throw new BadInput(`${place}: "points" must be a list of [x, y], got ${show(value)}`);
  return value as Points;
}

function around(points: Points): Box {
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  const [x, y] = [Math.min(...xs), Math.min(...ys)];
  return [x, y, Math.max(...xs) - x, Math.max(...ys) - y];
}

/** A circle by its centre and a point on it, as a polygon whose sides are about a pixel long. */
function circle([x, y]: Points[number], [px, py]: Points[number]): number[] {
  const radius = Math.hypot(px - x, py - y);
  const corners = Math.min(720, Math.max(12, Math.ceil(2 * Math.PI * radius)));
  return Array.from({ length: corners }, (_, i) => (2 * Math.PI * i) / corners).flatMap((angle) => [
    x + radius * Math.cos(angle),
    y + radius * Math.sin(angle),
  ]);
}

/** A mask is a PNG in base64 of the pixels from its first point to its second one. */
async function maskOf(value: unknown, points: Points, { width, height }: Size, place: string): Promise<Rle> {
  if (typeof value !== "string") throw new BadInput(`${place}: "mask" must be a PNG in base64, got ${show(value)}`);
  const part = await decodeIndices(Buffer.from(value, "base64"), `${place}: mask`);
  const [left, top] = points[0]!.map(Math.round) as [number, number];
  if (left < 0 || top < 0 || left + part.width > width || top + part.height > height)
    throw new BadInput(
      `${place}: the mask of ${part.width}x${part.height} at ${left}, ${top} reaches beyond the image of ${width}x${height}`,
    );
  const mask = new Uint8Array(width * height);
  for (let y = 0; y < part.height; y++)
    mask.set(
      part.data.subarray(y * part.width, (y + 1) * part.width).map((v) => (v > 0 ? 1 : 0)),
      (top + y) * width + left,
    );
  return rleOfRuns(runsOfMask(mask, width, height));
}
