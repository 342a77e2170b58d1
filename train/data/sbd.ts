/**
 * SBD, the Semantic Boundaries Dataset: `img/*.jpg`, lists `train.txt` and `val.txt`, and `inst/*.mat` with a struct GTinst, whose
 * Segmentation numbers the objects (0: ground; no void border) and whose Categories are their classes in VOC's order from 1.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { BadInput } from "../errors.ts";
import type { Category } from "./coco.ts";
import { clauseOf } from "./image.ts";
import { type Labelled, type LabelledImage, type LabelledObject, readEach, sizeOf } from "./labelled.ts";
import { rleOfRuns, runsByIndex } from "./mask.ts";
import { type Matrix, readMatStruct } from "./mat.ts";
import { readBytes } from "./open.ts";
import { idOf, readList, VOC_CATEGORIES } from "./voc-names.ts";

export interface SbdOptions {
  /** train, val, or both (the default). */
  set?: string | undefined;
  classes?: readonly Category[] | undefined;
  onImage?: ((done: number, total: number) => void) | undefined;
}

/** SBD by itself. Throws BadInput. */
export async function readSbd(root: string, options: SbdOptions = {}): Promise<Labelled> {
  const { set, classes = VOC_CATEGORIES, onImage } = options;
  const sets = set === undefined ? ["train", "val"] : [set];
  const names = [...new Set(sets.flatMap((name) => sbdList(root, name)))];
  const images = await readEach(
    names,
    async (name): Promise<LabelledImage> => {
      const fileName = `${name}.jpg`;
      const path = join(root, "img", fileName);
      return { ...(await readSbdObjects(root, name, await sizeOf(path), classes)), fileName, ...idOf(name) };
    },
    onImage,
  );
  return { images, categories: [...classes], imagesDir: join(root, "img") };
}

/** Names of one of SBD's lists. */
export function sbdList(root: string, set: string): string[] {
  const path = join(root, `${set}.txt`);
  if (!existsSync(path))
    throw new BadInput(
      `${path}: there is no such list; expected SBD's dataset folder with train.txt, val.txt and inst/`,
    );
  return readList(path);
}

/** An image's objects; `size` is that of its file. */
export async function readSbdObjects(
  root: string,
  name: string,
  size: { width: number; height: number },
  classes: readonly Category[],
): Promise<Pick<LabelledImage, "at" | "objects" | "width" | "height">> {
  const at = join(root, "inst", `${name}.mat`);
  const bytes = await readBytes(at, "the MAT-file of the objects");
  let fields: Map<string, Matrix>;
  try {
    fields = readMatStruct(bytes, "GTinst", ["Segmentation", "Categories"]);
  } catch (error) {
    throw new BadInput(`${at}: ${clauseOf(error)}`);
  }
  const [segmentation, categories] = [fields.get("Segmentation")!, fields.get("Categories")!];
  const { rows, columns } = segmentation;
  if (rows !== size.height || columns !== size.width)
    throw new BadInput(
      `${at}: is for ${columns}x${rows}, but its image is ${size.width}x${size.height} (width x height)`,
    );
  const objects = [...runsByIndex(rowByRow(segmentation, at), size.width, size.height)]
    .filter(([object]) => object !== 0)
    .map(([object, runs]): LabelledObject => {
      const kind = categories.values[object - 1];
      const category = kind === undefined ? undefined : classes[kind - 1];
      if (category === undefined)
        throw new BadInput(
          `${at}: object ${object} is of class ${kind ?? "nothing"}; Categories has ${categories.values.length} of 1 to ${classes.length}`,
        );
      return { label: category.name, segmentation: rleOfRuns(runs) };
    });
  return { at, objects, ...size };
}

/** MATLAB's matrix as pixels. */
function rowByRow({ rows, columns, values }: Matrix, at: string): Uint8Array {
  const out = new Uint8Array(rows * columns);
  for (let i = 0; i < out.length; i++) {
    const value = values[i]!;
    if (!(Number.isInteger(value) && value >= 0 && value <= 255))
      throw new BadInput(`${at}: Segmentation holds ${value}, which is no object's number`);
    out[(i % rows) * columns + Math.floor(i / rows)] = value;
  }
  return out;
}
