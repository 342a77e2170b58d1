/** What VOC and SBD have in common: classes, lists of images, ids. */
import { BadInput } from "../errors.ts";
import { type Category, show } from "./coco.ts";
import { readText } from "./open.ts";

const NAMES =
  "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor";

/** VOC's twenty classes; SegmentationClass and SBD number them from 1 in this order. */
export const VOC_CATEGORIES: readonly Category[] = NAMES.split(" ").map((name, i) => ({ id: i + 1, name }));

/** The peers' ids: 2007_000032 is 2007000032. Names of another form have none. */
export function idOf(name: string): { id?: number } {
  const digits = name.replace("_", "");
  return /^\d{1,15}$/.test(digits) ? { id: Number(digits) } : {};
}

/** A list of names, one a line; what follows a name on its line is not read. */
export function readList(path: string): string[] {
  const names = readText(path, "the list of images")
    .split(/\r?\n/)
    .flatMap((line) => line.trim().split(/\s+/)[0] || []);
  if (names.length === 0) throw new BadInput(`${path}: the list is empty`);
  const odd = names.find((name) => !/^[\w.-]+$/.test(name) || name.startsWith("."));
  if (odd !== undefined) throw new BadInput(`${path}: ${show(odd)} is no name of an image`);
  const seen = new Set<string>();
  const twice = names.find((name) => seen.size === seen.add(name).size);
  if (twice !== undefined) throw new BadInput(`${path}: names ${twice} twice`);
  return names;
}
