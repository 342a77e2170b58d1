/** Data sets by their place: which format lies there, and its reader. */
import { existsSync, readdirSync, statSync } from "node:fs";
import { extname, join } from "node:path";
import { BadInput } from "../errors.ts";
import { type Category, type Instances, imagePath, instancesByImage, isFields, readInstances } from "./coco.ts";
import { readJson } from "./json.ts";
import { type Labelled, type LabelledImage, type LabelledObject, readEach, sizeOf } from "./labelled.ts";
import { labelmeFiles, readLabelme } from "./labelme.ts";
import { readSbd } from "./sbd.ts";
import { readTags } from "./tags-csv.ts";
import { readVoc } from "./voc.ts";
import { readYolo } from "./yolo.ts";

export interface SourceOptions {
  /** A list of images of VOC, SBD or YOLO. */
  set?: string | undefined;
  /** SBD's folder, for VOC's train_aug. */
  sbd?: string | undefined;
  /** Folder of the images, where it is another than the format's. */
  images?: string | undefined;
  /** Classes in place of VOC's and SBD's own. */
  classes?: readonly Category[] | undefined;
  onImage?: ((done: number, total: number) => void) | undefined;
}

type Format = "voc" | "sbd" | "yolo" | "labelme" | "coco" | "csv";

const KNOWN =
  "a VOC root (JPEGImages), SBD's dataset folder (inst), a folder of labelme files, a YOLO data.yaml, a COCO instances JSON or a CSV of tags";

/** Reads a data set of any format. Throws BadInput. */
export async function readSource(path: string, options: SourceOptions = {}): Promise<Labelled> {
  const { format, place } = formatOf(path);
  const { set, sbd, images, classes, onImage } = options;
  if (sbd !== undefined && format !== "voc") throw new BadInput(`${path}: --sbd goes with a VOC root`);
  if (set !== undefined && !["voc", "sbd", "yolo"].includes(format))
    throw new BadInput(`${path}: --set goes with VOC, SBD and YOLO; other formats have no lists of images`);
  if (format === "voc") return readVoc(place, { set, sbd, classes, onImage });
  if (format === "sbd") return readSbd(place, { set, classes, onImage });
  if (format === "yolo") return readYolo(place, { set, images, onImage });
  if (format === "labelme") return readLabelme(place, { images, onImage });
  if (format === "coco") return ofInstances(readInstances(place), images, onImage);
  if (images === undefined) throw new BadInput(`${path}: a CSV of tags needs the folder of its images: --images DIR`);
  return readTags(place, { images, onImage });
}

function formatOf(path: string): { format: Format; place: string } {
  if (!existsSync(path)) throw new BadInput(`${path}: there is no such file or folder; expected ${KNOWN}`);
  if (statSync(path).isDirectory()) return formatOfFolder(path);
  const extension = extname(path).toLowerCase();
  if (extension === ".yaml" || extension === ".yml") return { format: "yolo", place: path };
  if (extension === ".csv") return { format: "csv", place: path };
  if (extension !== ".json") throw new BadInput(`${path}: is of no known format; expected ${KNOWN}`);
  const document = readJson(path, "the annotations file");
  if (isFields(document) && Array.isArray(document.shapes))
    throw new BadInput(`${path}: is one image's labelme file; give the folder that holds them all`);
  return { format: "coco", place: path };
}

function formatOfFolder(folder: string): { format: Format; place: string } {
  const has = (...parts: string[]) => existsSync(join(folder, ...parts));
  if (has("JPEGImages")) return { format: "voc", place: folder };
  if (has("inst")) return { format: "sbd", place: folder };
  for (const name of ["data.yaml", "dataset.yaml"]) if (has(name)) return { format: "yolo", place: join(folder, name) };
  const years = readdirSync(folder).filter((name) => has(name, "JPEGImages"));
  if (years.length === 1) return { format: "voc", place: join(folder, years[0]!) };
  if (years.length > 1)
    throw new BadInput(`${folder}: holds several VOC roots; name one of them: ${years.sort().join(", ")}`);
  if (has("dataset", "inst")) return { format: "sbd", place: join(folder, "dataset") };
  if (labelmeFiles(folder).length > 0) return { format: "labelme", place: folder };
  throw new BadInput(`${folder}: holds no labels of a known format; expected ${KNOWN}`);
}

/** COCO's instances, as every format is given here. Throws BadInput where an image is not as they say. */
async function ofInstances(
  data: Instances,
  imagesDir: string | undefined,
  onImage: SourceOptions["onImage"],
): Promise<Labelled> {
  // Other formats are read beside their images, which are looked at as they are read.
  if (imagesDir !== undefined)
    await readEach(data.images, (image) => sizeOf(imagePath(imagesDir, image), image), onImage);
  const nameOf = new Map(data.categories.map(({ id, name }) => [id, name]));
  const byImage = instancesByImage(data);
  const images = data.images.map((image): LabelledImage => {
    const objects = byImage.get(image.id)!.map(({ categoryId, box, area, crowd, segmentation }): LabelledObject => {
      const outline = segmentation === undefined ? { box, area } : { segmentation, box, area };
      return { label: nameOf.get(categoryId)!, ...outline, ...(crowd ? { crowd } : {}) };
    });
    return { ...image, at: `${data.file}: ${image.fileName}`, objects };
  });
  return { images, categories: data.categories, imagesDir };
}
