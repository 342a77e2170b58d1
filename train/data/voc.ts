/**
 * PASCAL VOC 2012: a root with JPEGImages and, of the images that are segmented, SegmentationObject (0 ground, 1..n objects, 255 the border
 * that belongs to none) and SegmentationClass, whose number at the same pixels is the object's class. Lists of images are ImageSets/Segmentation;
 * those under ImageSets/Main are of many more images, whose objects have boxes alone (Annotations, XML).
 */
import { existsSync, readdirSync } from "node:fs";
import { basename, extname, join } from "node:path";
import { XMLParser, XMLValidator } from "fast-xml-parser";
import { BadInput } from "../errors.ts";
import { type Category, type Fields, isFields, show } from "./coco.ts";
import { clauseOf } from "./image.ts";
import { decodeIndices, type Indices } from "./index-png.ts";
import { type Labelled, type LabelledImage, type LabelledObject, readEach, sizeOf } from "./labelled.ts";
import { type Box, rleOfRuns, runsByIndex } from "./mask.ts";
import { readBytes } from "./open.ts";
import { readSbdObjects, sbdList } from "./sbd.ts";
import { idOf, readList, VOC_CATEGORIES } from "./voc-names.ts";

/** Pixels of an object's border, and of objects that are not labelled. */
const VOID = 255;

export interface VocOptions {
  /** A list of ImageSets: `train`, `Main/train`; `train_aug`; default: all images that are segmented. */
  set?: string | undefined;
  /** SBD's `dataset` folder, for train_aug. */
  sbd?: string | undefined;
  /** Classes in place of VOC's, in the order of their numbers. */
  classes?: readonly Category[] | undefined;
  onImage?: ((done: number, total: number) => void) | undefined;
}

/** Throws BadInput. */
export async function readVoc(root: string, options: VocOptions = {}): Promise<Labelled> {
  const { set, sbd, classes = VOC_CATEGORIES, onImage } = options;
  if ((set === "train_aug") !== (sbd !== undefined))
    throw new BadInput(
      `${root}: train_aug is made from VOC and SBD: give --set train_aug with --sbd, SBD's dataset folder`,
    );
  const own = set === undefined ? segmented(root) : vocList(root, set === "train_aug" ? "train" : set);
  const extra = sbd === undefined ? [] : sbdExtra(own, vocList(root, "val"), sbd);
  const boxes = set?.startsWith("Main/") ?? false;
  const images = await readEach(
    [...own.map((name) => ({ name, from: boxes ? "xml" : "png" })), ...extra.map((name) => ({ name, from: "sbd" }))],
    async ({ name, from }): Promise<LabelledImage> => {
      const fileName = `${name}.jpg`;
      const path = join(root, "JPEGImages", fileName);
      const size = await sizeOf(path);
      if (from === "sbd") return { ...(await readSbdObjects(sbd!, name, size, classes)), fileName, ...idOf(name) };
      const read = from === "xml" ? readBoxes : readMasks;
      return { ...(await read(root, name, size, classes)), ...size, fileName, ...idOf(name) };
    },
    onImage,
  );
  return { images, categories: [...classes], imagesDir: join(root, "JPEGImages") };
}

function segmented(root: string): string[] {
  const folder = join(root, "SegmentationObject");
  const names = existsSync(folder) ? readdirSync(folder).filter((name) => extname(name) === ".png") : [];
  if (names.length === 0)
    throw new BadInput(
      `${folder}: holds no PNG of objects; for boxes from Annotations name a list, such as --set Main/trainval`,
    );
  return names.map((name) => basename(name, ".png")).sort();
}

/** The images of a list. */
function vocList(root: string, set: string): string[] {
  const sets = join(root, "ImageSets");
  const path = join(sets, `${set.includes("/") ? set : `Segmentation/${set}`}.txt`);
  if (!existsSync(path)) {
    const there = ["Segmentation", "Main"].flatMap((folder) =>
      existsSync(join(sets, folder))
        ? readdirSync(join(sets, folder)).flatMap((name) =>
            extname(name) === ".txt" && !/_(train|val|trainval|test)\.txt$/.test(name)
              ? [`${folder === "Main" ? "Main/" : ""}${basename(name, ".txt")}`]
              : [],
          )
        : [],
    );
    throw new BadInput(`${path}: there is no such list; --set takes ${[...there, "train_aug"].join(", ")}`);
  }
  return readList(path);
}

/**
 * What SBD adds to VOC's train for train_aug: its train and val without those that VOC has in train, and without VOC's val, on which
 * everybody evaluates. 9,118 of them make the 10,582 images.
 */
export function sbdExtra(train: readonly string[], val: readonly string[], sbd: string): string[] {
  const taken = new Set([...train, ...val]);
  const names = new Set([...sbdList(sbd, "train"), ...sbdList(sbd, "val")]);
  return [...names].filter((name) => !taken.has(name)).sort();
}

async function readMasks(
  root: string,
  name: string,
  size: { width: number; height: number },
  classes: readonly Category[],
): Promise<Pick<LabelledImage, "at" | "objects">> {
  const at = join(root, "SegmentationObject", `${name}.png`);
  const [objects, kinds] = await Promise.all([
    readIndices(at, size),
    readIndices(join(root, "SegmentationClass", `${name}.png`), size),
  ]);
  const votes = new Map<number, Map<number, number>>();
  for (let i = 0; i < objects.data.length; i++) {
    const [object, kind] = [objects.data[i]!, kinds.data[i]!];
    if (object === 0 || object === VOID || kind === 0 || kind === VOID) continue;
    const counts = votes.get(object) ?? new Map<number, number>();
    votes.set(object, counts.set(kind, (counts.get(kind) ?? 0) + 1));
  }
  return {
    at,
    objects: [...runsByIndex(objects.data, size.width, size.height)]
      .filter(([object]) => object !== 0 && object !== VOID)
      .map(([object, runs]): LabelledObject => {
        const [best] = [...(votes.get(object) ?? [])].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
        if (best === undefined)
          throw new BadInput(
            `${at}: object ${object} has no class: SegmentationClass is 0 or 255 on all of its pixels`,
          );
        const category = classes[best[0] - 1];
        if (category === undefined)
          throw new BadInput(`${at}: object ${object} is of class ${best[0]}; there are ${classes.length} classes`);
        return { label: category.name, segmentation: rleOfRuns(runs) };
      }),
  };
}

async function readIndices(path: string, size: { width: number; height: number }): Promise<Indices> {
  const indices = await decodeIndices(await readBytes(path, "the labels' PNG"), path);
  if (indices.width !== size.width || indices.height !== size.height)
    throw new BadInput(`${path}: is ${indices.width}x${indices.height}, but its image is ${size.width}x${size.height}`);
  return indices;
}

// Entities and attributes are not VOC's; a document that defines entities could grow without limit.
const parser = new XMLParser({ processEntities: false, parseTagValue: false, isArray: (name) => name === "object" });

async function readBoxes(
  root: string,
  name: string,
  size: { width: number; height: number },
  classes: readonly Category[],
): Promise<Pick<LabelledImage, "at" | "objects">> {
  const at = join(root, "Annotations", `${name}.xml`);
  const text = new TextDecoder().decode(await readBytes(at, "the annotation"));
  const valid = XMLValidator.validate(text);
  if (valid !== true)
    throw new BadInput(`${at}: not XML (${valid.err.msg}, line ${valid.err.line}); it may be truncated`);
  const annotation = fieldsOf(parsed(text, at), "annotation", at);
  const said = fieldsOf(annotation, "size", at);
  if (Number(said.width) !== size.width || Number(said.height) !== size.height)
    throw new BadInput(
      `${at}: is for ${show(said.width)} x ${show(said.height)}, but its image is ${size.width}x${size.height}`,
    );
  const list = annotation.object ?? [];
  const objects = (Array.isArray(list) ? list : [list]).map((object: unknown, i): LabelledObject => {
    const place = `${at}: object ${i + 1}`;
    if (!isFields(object)) throw new BadInput(`${place} must have a name and a bndbox, got ${show(object)}`);
    const label = object.name;
    if (typeof label !== "string" || !classes.some((category) => category.name === label))
      throw new BadInput(
        `${place}: the name ${show(label)} is none of the ${classes.length} classes; --classes can name others`,
      );
    const box = boxOfBndbox(fieldsOf(object, "bndbox", place), size, place);
    return { label, box, ...(Number(object.difficult) === 1 ? { crowd: true } : {}) };
  });
  return { at, objects };
}

function parsed(text: string, at: string): unknown {
  try {
    return parser.parse(text);
  } catch (error) {
    throw new BadInput(`${at}: cannot be read as a VOC annotation (${clauseOf(error)})`);
  }
}

function fieldsOf(value: unknown, key: string, at: string): Fields {
  const inner = isFields(value) ? value[key] : undefined;
  if (!isFields(inner)) throw new BadInput(`${at}: <${key}> is missing; expected a VOC annotation`);
  return inner;
}

/** VOC counts pixels from 1 and includes the last one. */
function boxOfBndbox(fields: Fields, size: { width: number; height: number }, place: string): Box {
  const [x0 = Number.NaN, y0 = Number.NaN, x1 = Number.NaN, y1 = Number.NaN] = ["xmin", "ymin", "xmax", "ymax"].map(
    (key) => (typeof fields[key] === "string" && fields[key].trim() !== "" ? Number(fields[key]) : Number.NaN),
  );
  const box: Box = [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1];
  if (
    !box.every(Number.isFinite) ||
    x0 < 0 ||
    y0 < 0 ||
    x1 <= x0 - 1 ||
    y1 <= y0 - 1 ||
    x1 > size.width + 1 ||
    y1 > size.height + 1
  )
    throw new BadInput(
      `${place}: the bndbox ${show(fields)} does not lie in the image of ${size.width}x${size.height}`,
    );
  return box;
}
