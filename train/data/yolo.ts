/**
 * YOLO's segmentation data sets: a data.yaml with `path`, `train`, `val`, `test` and `names`, and for an image `images/…/a.jpg` the labels
 * `labels/…/a.txt`. A line is a class's number and a polygon `x y x y …`, or a box `x y width height` around its centre, in shares of the
 * image's sides. An image without a file of labels has no objects, as Ultralytics takes it.
 */
import { existsSync, readdirSync, statSync } from "node:fs";
import { dirname, isAbsolute, join, relative, resolve, sep } from "node:path";
import { parse } from "yaml";
import { BadInput } from "../errors.ts";
import { type Category, type Fields, isFields, show } from "./coco.ts";
import { IMAGE_FORMATS, isImageName } from "./image.ts";
import { type Labelled, type LabelledImage, type LabelledObject, readEach, sizeOf } from "./labelled.ts";
import { readText } from "./open.ts";

export interface YoloOptions {
  /** train (the default), val or test. */
  set?: string | undefined;
  /** Folder that the images' names are relative to; default: that of the set. */
  images?: string | undefined;
  onImage?: ((done: number, total: number) => void) | undefined;
}

/** Throws BadInput. @param file the data.yaml */
export async function readYolo(file: string, options: YoloOptions = {}): Promise<Labelled> {
  const { set = "train", onImage } = options;
  const document = readYaml(file);
  const names = namesOf(document, file);
  const root = rootOf(document, file);
  const { paths, folder } = imagesOf(document, set, root, file);
  const imagesDir = options.images ?? folder;
  const images = await readEach(
    paths,
    async (path): Promise<LabelledImage> => {
      const size = await sizeOf(path);
      const at = labelsPath(path);
      const fileName = relative(resolve(imagesDir), resolve(path)).replaceAll(sep, "/");
      if (fileName.startsWith("../"))
        throw new BadInput(`${path}: lies outside ${imagesDir}; name the folder of the images with --images`);
      return { fileName, ...size, at, objects: existsSync(at) ? objectsOf(at, names, size) : [] };
    },
    onImage,
  );
  const categories = names.map((name, i): Category => ({ id: i + 1, name }));
  return { images, categories, imagesDir };
}

function readYaml(file: string): Fields {
  const text = readText(file, "the data set");
  let document: unknown;
  try {
    document = parse(text);
  } catch (error) {
    throw new BadInput(`${file}: not YAML (${(error as Error).message.split("\n", 1)[0]})`);
  }
  if (!isFields(document))
    throw new BadInput(`${file}: expected YOLO's path, train, val and names, got ${show(document)}`);
  return document;
}

/** Names by number: a list, or a mapping from 0 on. */
function namesOf({ names, nc }: Fields, file: string): string[] {
  const list = isFields(names) ? Object.keys(names).map((_, i) => names[i]) : names;
  if (!Array.isArray(list) || list.length === 0 || !list.every((name) => typeof name === "string" && name !== ""))
    throw new BadInput(`${file}: "names" must name the classes from 0 on, got ${show(names)}`);
  if (typeof nc === "number" && nc !== list.length)
    throw new BadInput(`${file}: "nc" is ${nc}, but there are ${list.length} names`);
  return list;
}

function rootOf({ path }: Fields, file: string): string {
  if (path === undefined || path === null) return dirname(file);
  if (typeof path !== "string") throw new BadInput(`${file}: "path" must be a folder, got ${show(path)}`);
  // Ultralytics looks below its own folder of data sets; the file's own place is as good a guess when it is not there.
  const places = isAbsolute(path) ? [path] : [join(dirname(file), path), path, dirname(file)];
  return places.find(existsSync) ?? dirname(file);
}

/** The set's images, sorted, and the folder that holds them all. */
function imagesOf(document: Fields, set: string, root: string, file: string): { paths: string[]; folder: string } {
  const value = document[set];
  const entries = Array.isArray(value) ? value : [value];
  if (!entries.every((entry) => typeof entry === "string" && entry !== "")) {
    const sets = Object.keys(document).filter((key) => ["train", "val", "test"].includes(key));
    throw new BadInput(`${file}: "${set}" must name a folder or list of images; --set takes ${sets.join(", ")}`);
  }
  const places = entries.map((entry: string) => {
    // Roboflow writes ../train/images for a folder beside the file.
    const found = [join(root, entry), entry, join(root, entry.replace(/^\.\.\//, ""))].find(existsSync);
    if (isAbsolute(entry) && existsSync(entry)) return entry;
    if (found === undefined) throw new BadInput(`${file}: ${set}: ${join(root, entry)} does not exist`);
    return found;
  });
  const paths = places.flatMap((place) => (statSync(place).isDirectory() ? filesBelow(place) : listed(place, root)));
  if (paths.length === 0) throw new BadInput(`${file}: ${set}: holds no ${IMAGE_FORMATS}`);
  const folder = places.length === 1 && statSync(places[0]!).isDirectory() ? places[0]! : root;
  return { paths, folder };
}

function filesBelow(folder: string): string[] {
  const names = readdirSync(folder, { recursive: true }).map(String).sort();
  return names.filter((name) => isImageName(name)).map((name) => join(folder, name));
}

function listed(list: string, root: string): string[] {
  const lines = readText(list, "the list of images").split(/\r?\n/);
  const names = lines.map((line) => line.trim()).filter((line) => line !== "");
  return names.map((name) => (isAbsolute(name) ? name : join(name.startsWith("./") ? dirname(list) : root, name)));
}

/** The last folder called images becomes labels. */
function labelsPath(image: string): string {
  const parts = image.split(/[\\/]/);
  const at = parts.lastIndexOf("images");
  if (at >= 0) parts[at] = "labels";
  return parts.join("/").replace(/\.[^.]+$/, ".txt");
}

function objectsOf(at: string, names: readonly string[], size: { width: number; height: number }): LabelledObject[] {
  return readText(at, "the labels")
    .split(/\r?\n/)
    .flatMap((line, i): LabelledObject[] => {
      const fields = line.trim().split(/\s+/);
      if (fields[0] === "") return [];
      const place = `${at}:${i + 1}`;
      const label = names[Number(fields[0])];
      if (!/^\d+$/.test(fields[0]!) || label === undefined)
        throw new BadInput(`${place}: the class ${show(fields[0])} is no number from 0 to ${names.length - 1}`);
      const shares = fields.slice(1).map(Number);
      // A share may exceed 1 by what rounding left over.
      const odd = fields.slice(1).find((_, n) => !(shares[n]! >= -0.001 && shares[n]! <= 1.001));
      if (odd !== undefined) throw new BadInput(`${place}: ${show(odd)} is no share of the image's side from 0 to 1`);
      if (shares.length === 4) return [{ label, box: boxOfShares(shares, size) }];
      if (shares.length < 6 || shares.length % 2 !== 0)
        throw new BadInput(
          `${place}: has ${shares.length} numbers after the class; expected a box of 4 or a polygon of 6, 8, 10, …`,
        );
      return [{ label, segmentation: [shares.map((v, n) => v * (n % 2 === 0 ? size.width : size.height))] }];
    });
}

function boxOfShares(
  [x = 0, y = 0, w = 0, h = 0]: readonly number[],
  { width, height }: { width: number; height: number },
): [number, number, number, number] {
  return [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height];
}
