/**
 * Weak labels: tags, points or boxes in place of masks, one kind an image. `weaken` derives them from masks once; training reads
 * the file that comes out and never opens the one with the masks.
 *
 * Decisions where WISH's paper is silent: images are drawn by a seeded permutation, disjointly, so that a budget gives exact
 * counts; crowd regions are no objects; an image without objects keeps its place and gets an empty list of its kind, which is
 * what an annotator would hand back; an object whose mask has no pixel gets no point, one whose box has no area no box.
 */
import { Random } from "../../engine/random.ts";
import { BadInput } from "../errors.ts";
import { anyPixel, centerPixel, type Place } from "./click.ts";
import {
  type Category,
  categoriesOf,
  checkedBox,
  documentOf,
  type Fields,
  groupCategories,
  type ImageEntry,
  type ImagesDocument,
  type Instance,
  type Instances,
  imagesDocument,
  imagesOf,
  instanceRuns,
  instancesByImage,
  isFields,
  isId,
  listOf,
  type ReadOptions,
  refuseFolder,
  show,
} from "./coco.ts";
import { readJson, writeJson } from "./json.ts";
import type { Box } from "./mask.ts";

export type Kind = "tags" | "points" | "boxes";

/** Cost of labelling one image, whatever is in it (WISH, eq. 26). */
export const COSTS = { tag: 1, point: 6, box: 12 } as const;

export type WeakEntry =
  | { imageId: number; kind: "tags"; categoryIds: number[] }
  | { imageId: number; kind: "points"; points: { categoryId: number; x: number; y: number }[] }
  | { imageId: number; kind: "boxes"; boxes: { categoryId: number; box: Box }[] };

export interface WeakLabels {
  file: string;
  images: ImageEntry[];
  categories: Category[];
  entries: WeakEntry[];
}

export type Shares = Partial<Record<Kind, number>>;

/** Shares of the images, or a budget and the kinds' shares of it. */
export type WeakenPlan = Shares | { budget: number; mix: Shares };

export interface WeakenOptions {
  seed?: number;
  /** `center`: the mask's pixel nearest to its centroid; `uniform`: any of its pixels. */
  point?: "center" | "uniform";
}

/** The weak labels file as JSON. */
export interface WeakDocument extends ImagesDocument {
  info: {
    description: string;
    seed: number;
    /** null where shares of the images were asked for. */
    budget: number | null;
    costs: typeof COSTS;
    counts: Record<Kind, number> & { unlabelled: number };
    /** What the labels cost. */
    spent: number;
    point: "center" | "uniform";
  };
  weak: object[];
}

/** Derives weak labels; the same arguments give the same document. Throws BadInput where the plan cannot be met. */
export function weaken(
  data: Instances,
  plan: WeakenPlan,
  { seed = 0, point = "center" }: WeakenOptions = {},
): WeakDocument {
  const counts = labelCounts(plan, data.images.length);
  const random = new Random(seed).fork("weaken");
  const order = random.shuffle(data.images.map(({ id }) => id));
  const kindOf = new Map<number, Kind>();
  for (const kind of ["boxes", "points", "tags"] as const) {
    for (const id of order.splice(0, counts[kind])) kindOf.set(id, kind);
  }

  const byImage = instancesByImage(data);
  const weak = data.images.flatMap((image): object[] => {
    const kind = kindOf.get(image.id);
    if (kind === undefined) return [];
    const objects = byImage.get(image.id)!.filter(({ crowd }) => !crowd);
    const label = { image_id: image.id, kind };
    if (kind === "tags") return [{ ...label, category_ids: tagsOf(objects, data.categories) }];
    if (kind === "boxes") {
      const boxes = objects.filter(({ box }) => box[2] > 0 && box[3] > 0);
      return [{ ...label, boxes: boxes.map(({ categoryId, box }) => ({ category_id: categoryId, bbox: box })) }];
    }
    const points = objects.flatMap((object): object[] => {
      const place = pointOf(object, image, point, random.fork(`point ${object.id}`), data.file);
      return place === undefined ? [] : [{ category_id: object.categoryId, ...place }];
    });
    return [{ ...label, points }];
  });

  return {
    info: {
      description: "weak labels: tags, points or boxes, one kind an image",
      seed,
      budget: "budget" in plan ? plan.budget : null,
      costs: COSTS,
      counts: { ...counts, unlabelled: data.images.length - weak.length },
      spent: counts.tags * COSTS.tag + counts.points * COSTS.point + counts.boxes * COSTS.box,
      point,
    },
    ...imagesDocument(data.images, data.categories),
    weak,
  };
}

/** How many of `images` images get each kind. Throws BadInput where that is impossible. */
export function labelCounts(plan: WeakenPlan, images: number): Record<Kind, number> {
  const counts = "budget" in plan ? budgetCounts(plan.budget, plan.mix, images) : shareCounts(plan, images);
  const needed = counts.tags + counts.points + counts.boxes;
  if (needed === 0)
    throw new BadInput(
      "weaken: no image would be labelled; give --tags, --points or --boxes a larger share, or a larger --budget",
    );
  if (needed > images) {
    throw new BadInput(
      `weaken: ${needed} images are needed (${describeCounts(counts)}), but there are ${images}; ask for less`,
    );
  }
  return counts;
}

/**
 * Boxes and points are rounded to whole images, tags take what is left of the budget: the paper's counts come out (its Table 3).
 * What is left may be more than the images that are left; it then stays unspent.
 */
function budgetCounts(budget: number, mix: Shares, images: number): Record<Kind, number> {
  const { tags, points, boxes } = checkedShares(mix, "--mix");
  if (!(Number.isFinite(budget) && budget >= 0))
    throw new BadInput(`weaken: --budget must be a number from 0, got ${budget}`);
  if (Math.abs(tags + points + boxes - 1) > 0.01) {
    throw new BadInput(
      `weaken: the shares of --mix must add up to 1, got ${Number((tags + points + boxes).toFixed(6))}`,
    );
  }
  const counts = {
    boxes: Math.round((boxes * budget) / COSTS.box),
    points: Math.round((points * budget) / COSTS.point),
  };
  const left = Math.round(budget) - counts.boxes * COSTS.box - counts.points * COSTS.point;
  const free = images - counts.boxes - counts.points;
  return { tags: tags > 0 ? Math.max(0, Math.min(left, free)) : 0, ...counts };
}

/** Largest remainders: the counts add up to the shares' sum, and shares that add up to 1 label every image. */
function shareCounts(shares: Shares, images: number): Record<Kind, number> {
  const { tags, points, boxes } = checkedShares(shares, "shares");
  if (tags + points + boxes > 1 + 1e-9) {
    throw new BadInput(
      `weaken: --tags, --points and --boxes must add up to at most 1, got ${Number((tags + points + boxes).toFixed(6))}`,
    );
  }
  const kinds = [
    { kind: "boxes" as const, exact: boxes * images },
    { kind: "points" as const, exact: points * images },
    { kind: "tags" as const, exact: tags * images },
  ].map((entry) => ({ ...entry, count: Math.floor(entry.exact + 1e-9) }));
  let left = Math.round((tags + points + boxes) * images) - kinds.reduce((sum, { count }) => sum + count, 0);
  for (const entry of [...kinds].sort((a, b) => b.exact - b.count - (a.exact - a.count))) if (left-- > 0) entry.count++;
  return Object.fromEntries(kinds.map(({ kind, count }) => [kind, count])) as Record<Kind, number>;
}

function checkedShares({ tags = 0, points = 0, boxes = 0 }: Shares, flag: string): Record<Kind, number> {
  for (const [kind, share] of Object.entries({ tags, points, boxes })) {
    if (!(share >= 0 && share <= 1)) throw new BadInput(`weaken: ${flag}: ${kind} must be from 0 to 1, got ${share}`);
  }
  return { tags, points, boxes };
}

export function describeCounts(counts: Record<Kind, number>): string {
  return `${counts.tags} tags, ${counts.points} points, ${counts.boxes} boxes`;
}

/** The classes present, each once, in the order of the categories. */
function tagsOf(objects: readonly Instance[], categories: readonly Category[]): number[] {
  const present = new Set(objects.map(({ categoryId }) => categoryId));
  return categories.map(({ id }) => id).filter((id) => present.has(id));
}

/** Undefined where the mask has no pixel. */
export function pointOf(
  object: Instance,
  image: ImageEntry,
  where: "center" | "uniform",
  random: Random,
  file: string,
): Place | undefined {
  if (object.segmentation === undefined) {
    throw new BadInput(`${file}: annotation ${object.id} has no segmentation; points are taken from masks`);
  }
  const runs = instanceRuns(object, image);
  return where === "uniform" ? anyPixel(runs, random) : centerPixel(runs);
}

export function writeWeak(path: string, document: WeakDocument): void {
  writeJson(path, document);
}

/** Reads and checks a weak labels file. Throws BadInput, also where a file with masks is given. */
export function readWeak(path: string, { supercategories = false }: ReadOptions = {}): WeakLabels {
  refuseFolder(path, "--weak --out weak.json");
  const document = documentOf(readJson(path, "the weak labels file"), path);
  if (Array.isArray(document.annotations)) {
    throw new BadInput(
      `${path}: holds annotations with masks; weak labels are expected here (derive them: wgpu-wish weaken --ann ${path} --out weak.json --tags 1)`,
    );
  }
  const images = imagesOf(document, path);
  const categories = categoriesOf(document, path);
  const grouped = supercategories
    ? groupCategories(categories, path)
    : { categories, idOf: new Map(categories.map(({ id }) => [id, id])) };
  const byId = new Map(images.map((image) => [image.id, image]));
  const seen = new Set<number>();
  const entries = listOf(document, "weak", path).map((fields, i) => {
    const at = `${path}: weak[${i}]`;
    const image = byId.get(fields.image_id as number);
    if (image === undefined) throw new BadInput(`${at}: image_id ${show(fields.image_id)} names no image of the file`);
    if (seen.has(image.id))
      throw new BadInput(`${at}: image ${image.id} has a label already; each image has exactly one kind`);
    seen.add(image.id);
    return entryOf(fields, image, grouped.idOf, at);
  });
  return { file: path, images, categories: grouped.categories, entries };
}

/** A box with a shorter side, in pixels, is empty (Box2Mask's rule). */
const LEAST_SIDE = 1e-5;

/** Where each kind's labels stand in an entry. */
const FIELD: Record<Kind, string> = { tags: "category_ids", points: "points", boxes: "boxes" };

function entryOf(fields: Fields, image: ImageEntry, idOf: ReadonlyMap<number, number>, at: string): WeakEntry {
  const { kind } = fields;
  if (kind !== "tags" && kind !== "points" && kind !== "boxes") {
    throw new BadInput(`${at}: "kind" must be tags, points or boxes, got ${show(kind)}`);
  }
  for (const name of [...Object.values(FIELD), "segmentation"]) {
    if (name !== FIELD[kind] && name in fields)
      throw new BadInput(`${at}: is of kind ${kind}, so it may not have "${name}"`);
  }
  const list = fields[FIELD[kind]];
  if (!Array.isArray(list))
    throw new BadInput(`${at}: is of kind ${kind}, so "${FIELD[kind]}" must be a list, got ${show(list)}`);
  const categoryOf = (id: unknown, place: string): number => {
    const category = isId(id) ? idOf.get(id) : undefined;
    if (category === undefined) throw new BadInput(`${place}: category id ${show(id)} names no category of the file`);
    return category;
  };
  const imageId = image.id;
  if (kind === "tags") {
    return {
      imageId,
      kind,
      categoryIds: [...new Set(list.map((id, i) => categoryOf(id, `${at}: category_ids[${i}]`)))],
    };
  }
  const items = list.map((item, i) => {
    const place = `${at}: ${FIELD[kind]}[${i}]`;
    if (!isFields(item)) throw new BadInput(`${place} must be an object, got ${show(item)}`);
    if ("segmentation" in item) throw new BadInput(`${place}: holds a mask; weak labels have none`);
    return { item, place, categoryId: categoryOf(item.category_id, place) };
  });
  if (kind === "points") {
    const points = items.map(({ item: { x, y }, place, categoryId }) => {
      if (!isWithin(x, image.width) || !isWithin(y, image.height)) {
        throw new BadInput(
          `${place}: x and y must lie in the image of ${image.width}x${image.height}, got ${show(x)} and ${show(y)}`,
        );
      }
      return { categoryId, x, y };
    });
    return { imageId, kind, points };
  }
  const boxes = items.map(({ item, place, categoryId }) => {
    const box = checkedBox(item.bbox, place);
    const [x, y, width, height] = box;
    if (!(width > LEAST_SIDE && height > LEAST_SIDE))
      throw new BadInput(`${place}: the box has no area, got ${show(box)}`);
    if (x >= image.width || y >= image.height || x + width <= 0 || y + height <= 0) {
      throw new BadInput(`${place}: the box ${show(box)} lies outside the image of ${image.width}x${image.height}`);
    }
    if (width > 2 * image.width || height > 2 * image.height) {
      throw new BadInput(
        `${place}: the box ${show(box)} is more than twice as large as the image of ${image.width}x${image.height}; expected [x, y, width, height] in pixels`,
      );
    }
    return { categoryId, box };
  });
  return { imageId, kind, boxes };
}

/** A pixel coordinate: 0 is the first pixel's, and its centre lies half a pixel further. */
function isWithin(value: unknown, size: number): value is number {
  return typeof value === "number" && value >= -0.5 && value <= size - 0.5;
}
