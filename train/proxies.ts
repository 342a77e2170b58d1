/**
 * SAM's masks of a data set's points and boxes, computed once on the original images and kept in the cache folder:
 *
 *   <cache>/proxies-<key>/00000.json   32 images each:
 *                                      [{ image, bytes, proxies: [{ masks: RLE[3], iou: number[3], soft?: base64[3], side }] }]
 *
 * The key stands for the labels' and the weights' bytes, `bytes` for an image's, so that none can change unnoticed. A file is there as a
 * whole or not at all; an interrupted run goes on with the next one.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { checkSize, decodeImage, type Image } from "./data/image.ts";
import type { Item } from "./data/loader.ts";
import { encodeMask, maskOfRuns, type Rle, type Runs, runsOfMask, runsOfRle } from "./data/mask.ts";
import { BadInput } from "./errors.ts";
import { readNamed, writeWhole } from "./files.ts";
import { hashOf, type Prompted, type Teacher } from "./teacher.ts";

const IMAGES_IN_A_FILE = 32;
/** Pixels of SAM's input that one pass takes: several images of a small teacher, one of SAM. */
const PIXELS_AT_ONCE = 4 * 256 * 256;
const VERSION = "2";

/** SAM's three masks of one label, on the original image. */
export interface SamProxy {
  candidates: Runs[];
  iou: number[];
  /** Probabilities times 255 over SAM's square input, side * side each; only where they were asked for. */
  soft?: { maps: Uint8Array[]; side: number };
}

export interface ProxyOptions {
  cache: string;
  /** Bytes of the weak labels file. */
  labels: Uint8Array;
  soft: boolean;
  clipToBox: boolean;
}

interface StoredProxy {
  masks: Rle[];
  iou: number[];
  soft?: string[];
  side: number;
}

/** `bytes`: the hash of the image file. */
type StoredImage = { image: number; bytes: string; proxies: StoredProxy[] };

/** The proxies of each item by its index; undefined for items without points and boxes. `progress` counts those that had to be computed. */
export async function makeProxies(
  teacher: Teacher,
  items: readonly Item[],
  options: ProxyOptions,
  progress: (done: number, total: number) => void = () => {},
  signal?: AbortSignal,
): Promise<(SamProxy[] | undefined)[]> {
  const out: (SamProxy[] | undefined)[] = items.map(() => undefined);
  const labelled = items.flatMap((item, index) => (item.kind === "points" || item.kind === "boxes" ? [index] : []));
  const folder = join(
    options.cache,
    `proxies-${hashOf(VERSION, teacher.key, options.soft ? "soft" : "binary", options.labels)}`,
  );
  const keep = (group: readonly number[], stored: readonly StoredImage[]): void => {
    for (const [i, index] of group.entries())
      out[index] = stored[i]!.proxies.map((p, j) => restore(p, items[index]!, j, options));
  };
  const missing: { path: string; group: number[] }[] = [];
  for (let first = 0; first < labelled.length; first += IMAGES_IN_A_FILE) {
    if (signal?.aborted) return out;
    const group = labelled.slice(first, first + IMAGES_IN_A_FILE);
    const path = join(folder, `${String(first / IMAGES_IN_A_FILE).padStart(5, "0")}.json`);
    const stored = await readStored(
      path,
      group.map((index) => items[index]!),
    );
    if (stored) keep(group, stored);
    else missing.push({ path, group });
  }

  const atOnce = Math.max(1, Math.floor(PIXELS_AT_ONCE / teacher.sam.config.imageSize ** 2));
  const total = missing.reduce((sum, { group }) => sum + group.length, 0);
  let done = 0;
  if (total > 0) progress(0, total);
  for (const { path, group } of missing) {
    const stored: StoredImage[] = [];
    for (let i = 0; i < group.length; i += atOnce) {
      if (signal?.aborted) return out;
      const some = group.slice(i, i + atOnce).map((index) => items[index]!);
      stored.push(...(await computed(teacher, some, options.soft)));
      done += some.length;
      progress(done, total);
    }
    await writeWhole(path, JSON.stringify(stored));
    keep(group, stored);
  }
  return out;
}

/** In SAM's place: the boxes themselves, filled. Undefined for an item without labels; throws BadInput for labels that are no boxes. */
export function filledBoxes(item: Item): SamProxy[] | undefined {
  if (item.kind !== "boxes")
    throw new BadInput(
      `proxy.source=box: every image must be labelled with boxes; image ${item.imageId} has ${item.kind}; weaken with --boxes 1`,
    );
  const { width, height } = item;
  return item.boxes.map(([x, y, w, h]) => {
    const filled = new Uint8Array(width * height);
    for (let row = Math.max(0, Math.round(y)); row < Math.min(height, Math.round(y + h)); row++)
      filled.fill(1, row * width + Math.max(0, Math.round(x)), row * width + Math.min(width, Math.round(x + w)));
    const runs = runsOfMask(filled, width, height);
    return { candidates: [runs, runs, runs], iou: [1, 1, 1] };
  });
}

async function computed(teacher: Teacher, items: readonly Item[], soft: boolean): Promise<StoredImage[]> {
  const read = await Promise.all(
    items.map(async (item) => {
      const bytes = await imageBytes(item.path);
      const image = await decodeImage(bytes, item.path);
      checkSize(item.path, image, item);
      return { image, hash: hashOf(bytes) };
    }),
  );
  const answers = await ask(
    teacher,
    items,
    read.map(({ image }) => image),
  );
  return items.map((item, i) => ({
    image: item.imageId,
    bytes: read[i]!.hash,
    proxies: answers[i]!.map((p) => store(p, item, soft)),
  }));
}

async function ask(teacher: Teacher, items: readonly Item[], images: readonly Image[]): Promise<Prompted[][]> {
  const out: Prompted[][] = items.map(() => []);
  for (const kind of ["points", "boxes"] as const) {
    const of = items.flatMap((item, i) => (item.kind === kind && item[kind].length > 0 ? [i] : []));
    for (const some of packed(of, (i) => items[i]![kind].length, teacher.promptsAtOnce)) {
      const prompts = some.map((i) =>
        kind === "points" ? items[i]!.points : items[i]!.boxes.map(([x, y, w, h]) => [x, y, x + w, y + h]),
      );
      const answers = await teacher.prompt(
        some.map((i) => images[i]!),
        kind === "points" ? "point" : "box",
        prompts,
      );
      for (const [j, i] of some.entries()) out[i] = answers[j]!;
    }
  }
  return out;
}

/**
 * Images of like numbers of prompts go together, for the pass pads them to the greatest, and no more of them than `most` prompts in all.
 * An image with more than that is alone; the teacher takes its prompts in several passes.
 */
function packed(indices: readonly number[], count: (i: number) => number, most: number): number[][] {
  const groups: number[][] = [];
  for (const i of [...indices].sort((a, b) => count(a) - count(b) || a - b)) {
    const group = groups.at(-1);
    if (group && (group.length + 1) * count(i) <= most) group.push(i);
    else groups.push([i]);
  }
  return groups;
}

function store({ masks, iou, logits, side }: Prompted, { width, height }: Item, soft: boolean): StoredProxy {
  return {
    masks: masks.map((mask) => encodeMask(mask, width, height)),
    iou: iou.map((v) => Math.round(v * 1e6) / 1e6),
    ...(soft
      ? {
          soft: logits.map((map) =>
            Buffer.from(Uint8Array.from(map, (v) => Math.round(255 / (1 + Math.exp(-v))))).toString("base64"),
          ),
        }
      : {}),
    side,
  };
}

function restore({ masks, iou, soft, side }: StoredProxy, item: Item, index: number, options: ProxyOptions): SamProxy {
  let candidates = masks.map(runsOfRle);
  if (options.clipToBox && item.kind === "boxes") candidates = candidates.map((runs) => clip(runs, item.boxes[index]!));
  return {
    candidates,
    iou,
    ...(soft ? { soft: { maps: soft.map((text) => new Uint8Array(Buffer.from(text, "base64"))), side } } : {}),
  };
}

/** What of a mask lies in the box [x, y, w, h]: a pixel belongs to it when its centre does. */
function clip(runs: Runs, [x, y, w, h]: readonly [number, number, number, number]): Runs {
  const mask = maskOfRuns(runs);
  const { width, height } = runs;
  for (let row = 0; row < height; row++)
    for (let column = 0; column < width; column++) {
      const inside = column + 0.5 >= x && column + 0.5 <= x + w && row + 0.5 >= y && row + 0.5 <= y + h;
      if (!inside) mask[row * width + column] = 0;
    }
  return runsOfMask(mask, width, height);
}

/** The file's images where it is whole and about these items. */
async function readStored(path: string, items: readonly Item[]): Promise<StoredImage[] | undefined> {
  if (!existsSync(path)) return undefined;
  let stored: StoredImage[];
  try {
    stored = JSON.parse(readFileSync(path, "utf8")) as StoredImage[];
  } catch {
    return undefined; // A damaged file of a cache is made again.
  }
  if (stored.length !== items.length || stored.some(({ image }, i) => image !== items[i]!.imageId)) return undefined;
  for (const [i, { bytes }] of stored.entries())
    if (bytes !== hashOf(await imageBytes(items[i]!.path))) return undefined;
  return stored;
}

function imageBytes(path: string): Promise<Uint8Array> {
  return readNamed(path, "an image");
}
