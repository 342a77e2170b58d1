/**
 * SAM's masks of a data set's points and boxes, computed once on the original images and kept in the cache folder:
 *
 *   <cache>/proxies-<key>/00000.json   32 images each: [{ image, proxies: [{ masks: RLE[3], iou: number[3], soft?: base64[3], side }] }]
 *
 * The key stands for the labels' and the weights' bytes, so that neither can change unnoticed. A file is there as a whole or not at all;
 * an interrupted run goes on with the next one.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { readImage } from "./data/image.ts";
import type { Item } from "./data/loader.ts";
import { encodeMask, maskOfRuns, type Rle, type Runs, runsOfMask, runsOfRle } from "./data/mask.ts";
import { writeWhole } from "./files.ts";
import { hashOf, type Prompted, type Teacher } from "./teacher.ts";

const IMAGES_IN_A_FILE = 32;
/** Pixels of SAM's input that one pass takes: several images of a small teacher, one of SAM. */
const PIXELS_AT_ONCE = 4 * 256 * 256;
const PROMPTS_AT_ONCE = 32;
const VERSION = "1";

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

type StoredImage = { image: number; proxies: StoredProxy[] };

/** The proxies of each item by its index; undefined for items without points and boxes. */
export async function makeProxies(
  teacher: Teacher,
  items: readonly Item[],
  options: ProxyOptions,
  progress: (done: number, total: number, fresh: boolean) => void = () => {},
  signal?: AbortSignal,
): Promise<(SamProxy[] | undefined)[]> {
  const out: (SamProxy[] | undefined)[] = items.map(() => undefined);
  const labelled = items.flatMap((item, index) => (item.kind === "points" || item.kind === "boxes" ? [index] : []));
  const folder = join(
    options.cache,
    `proxies-${hashOf(VERSION, teacher.key, options.soft ? "soft" : "binary", options.labels)}`,
  );
  const atOnce = Math.max(1, Math.floor(PIXELS_AT_ONCE / teacher.sam.config.imageSize ** 2));
  let done = 0;
  for (let first = 0; first < labelled.length; first += IMAGES_IN_A_FILE) {
    const group = labelled.slice(first, first + IMAGES_IN_A_FILE);
    const path = join(folder, `${String(first / IMAGES_IN_A_FILE).padStart(5, "0")}.json`);
    let stored = readStored(path, group, items);
    const fresh = !stored;
    if (!stored) {
      stored = [];
      for (let i = 0; i < group.length; i += atOnce) {
        if (signal?.aborted) return out;
        const some = group.slice(i, i + atOnce).map((index) => items[index]!);
        for (const [j, prompted] of (await ask(teacher, some)).entries())
          stored.push({ image: some[j]!.imageId, proxies: prompted.map((p) => store(p, some[j]!, options.soft)) });
        done += some.length;
        progress(done, labelled.length, true);
      }
      await writeWhole(path, JSON.stringify(stored));
    } else done += group.length;
    for (const [i, index] of group.entries())
      out[index] = stored[i]!.proxies.map((p, j) => restore(p, items[index]!, j, options));
    progress(done, labelled.length, fresh);
  }
  return out;
}

async function ask(teacher: Teacher, items: readonly Item[]): Promise<Prompted[][]> {
  const out: Prompted[][] = items.map(() => []);
  for (const kind of ["points", "boxes"] as const) {
    const of = items.flatMap((item, i) => (item.kind === kind && item[kind].length > 0 ? [i] : []));
    for (const some of packed(of, (i) => items[i]![kind].length)) {
      const images = await Promise.all(some.map((i) => readImage(items[i]!.path)));
      const prompts = some.map((i) =>
        kind === "points" ? items[i]!.points : items[i]!.boxes.map(([x, y, w, h]) => [x, y, x + w, y + h]),
      );
      const answers = await teacher.prompt(images, kind === "points" ? "point" : "box", prompts);
      for (const [j, i] of some.entries()) out[i] = answers[j]!;
    }
  }
  return out;
}

/** Images of like numbers of prompts go together, for the pass pads them to the greatest; no pass has more than a few dozen in all. */
function packed(indices: readonly number[], count: (i: number) => number): number[][] {
  const groups: number[][] = [];
  for (const i of [...indices].sort((a, b) => count(a) - count(b) || a - b)) {
    const group = groups.at(-1);
    if (group && (group.length + 1) * count(i) <= PROMPTS_AT_ONCE) group.push(i);
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

/** The file's images where it is whole and about this group. */
function readStored(path: string, group: readonly number[], items: readonly Item[]): StoredImage[] | undefined {
  if (!existsSync(path)) return undefined;
  try {
    const stored = JSON.parse(readFileSync(path, "utf8")) as StoredImage[];
    const fits =
      stored.length === group.length && stored.every((entry, i) => entry.image === items[group[i]!]!.imageId);
    return fits ? stored : undefined;
  } catch {
    return undefined; // A damaged file of a cache is made again.
  }
}
