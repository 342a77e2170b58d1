/**
 * Instance masks as runs, in COCO's format and with pycocotools' results bit for bit (cocodataset/cocoapi common/maskApi.c is the
 * reference; test/parity/data holds what it gave).
 *
 * A mask is h*w pixels read column by column; `counts` are the lengths of its runs, of zeros first, then alternating. In JSON
 * `counts` is either that list or a string: each count (from the fourth on: its difference to the one two before) as groups of
 * five bits, low group first, in the characters "0".."o"; the sixth bit says that more follow, the fifth of the last is the sign.
 */
import { BadInput } from "../errors.ts";

/** [x, y, width, height], in pixels; x and y are the edges at the left and the top. */
export type Box = [x: number, y: number, width: number, height: number];

export interface Runs {
  readonly height: number;
  readonly width: number;
  /** Column-major run lengths that add up to height * width. */
  readonly counts: Uint32Array;
}

/** COCO's JSON form of a mask. */
export interface Rle {
  size: [height: number, width: number];
  counts: string | number[];
}

/** As many pixels as the image reader takes; keeps a `size` of a billion pixels from being believed. */
export const MAX_PIXELS = 0x3fff * 0x3fff;

/** Row-major 0/1 pixels (height * width) -> runs. */
export function runsOfMask(mask: Uint8Array, width: number, height: number): Runs {
  if (mask.length !== width * height) {
    throw new Error(`runsOfMask: a mask of ${width}x${height} has ${width * height} pixels; got ${mask.length}`);
  }
  const counts: number[] = [];
  let value = 0;
  let run = 0;
  for (let x = 0; x < width; x++) {
    for (let at = x; at < mask.length; at += width) {
      const pixel = mask[at] === 0 ? 0 : 1;
      if (pixel !== value) {
        counts.push(run);
        run = 0;
        value = pixel;
      }
      run++;
    }
  }
  counts.push(run);
  return { height, width, counts: Uint32Array.from(counts) };
}

/** Runs -> row-major 0/1 pixels (height * width). */
export function maskOfRuns({ height, width, counts }: Runs): Uint8Array {
  const mask = new Uint8Array(width * height);
  let at = 0;
  for (let i = 0; i < counts.length; i++) {
    const end = at + counts[i]!;
    if (i % 2 === 1) {
      let x = Math.floor(at / height);
      let y = at - x * height;
      for (let n = end - at; n > 0; n--) {
        mask[y * width + x] = 1;
        if (++y === height) {
          y = 0;
          x++;
        }
      }
    }
    at = end;
  }
  return mask;
}

/** Checks and decodes COCO's JSON form; a list of counts and a string of them are both taken. Throws BadInput. */
export function runsOfRle(rle: Rle): Runs {
  const [height, width] = rle.size;
  if (!isSize(height) || !isSize(width) || rle.size.length !== 2 || height * width > MAX_PIXELS) {
    throw new BadInput(
      `RLE size must be [height, width] of at most ${MAX_PIXELS} pixels, got ${JSON.stringify(rle.size)}`,
    );
  }
  const size = height * width;
  // As pycocotools: no counts at all are an empty mask.
  if (rle.counts.length === 0) return { height, width, counts: Uint32Array.of(size) };
  const counts = typeof rle.counts === "string" ? countsOfString(rle.counts) : checkedCounts(rle.counts);
  let sum = 0;
  for (const count of counts) sum += count;
  if (sum !== size) {
    throw new BadInput(`RLE counts cover ${sum} pixels, but its size [${height}, ${width}] has ${size}`);
  }
  return { height, width, counts };
}

function checkedCounts(list: readonly number[]): Uint32Array {
  for (const count of list) {
    if (!isSize(count)) throw new BadInput(`RLE counts must be whole numbers from 0, got ${count}`);
  }
  return Uint32Array.from(list);
}

export function rleOfRuns({ height, width, counts }: Runs): { size: [number, number]; counts: string } {
  return { size: [height, width], counts: stringOfCounts(counts) };
}

/** Row-major 0/1 pixels -> what a COCO results file holds. */
export function encodeMask(
  mask: Uint8Array,
  width: number,
  height: number,
): { size: [number, number]; counts: string } {
  return rleOfRuns(runsOfMask(mask, width, height));
}

function isSize(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) <= 0xffffffff;
}

const FIRST = 48;
const MORE = 0x20;
const SIGN = 0x10;

function stringOfCounts(counts: Uint32Array): string {
  const characters: number[] = [];
  for (let i = 0; i < counts.length; i++) {
    let rest = i > 2 ? counts[i]! - counts[i - 2]! : counts[i]!;
    for (;;) {
      const group = rest & 0x1f;
      // `>>` keeps the sign: what is left is 0 or -1 when the groups so far say it all.
      rest >>= 5;
      const done = rest === ((group & SIGN) === 0 ? 0 : -1);
      characters.push(FIRST + (done ? group : group | MORE));
      if (done) break;
    }
  }
  let text = "";
  for (let i = 0; i < characters.length; i += 4096) text += String.fromCharCode(...characters.slice(i, i + 4096));
  return text;
}

/** Each count takes a character at least, so this is never too short. */
let scratch = new Uint32Array(1024);

function countsOfString(text: string): Uint32Array {
  if (scratch.length < text.length) scratch = new Uint32Array(2 * text.length);
  const counts = scratch;
  let [length, value, shift] = [0, 0, 0];
  for (let i = 0; i < text.length; i++) {
    const group = text.charCodeAt(i) - FIRST;
    if (!(group >= 0 && group < 64))
      throw new BadInput(`RLE counts hold "${text[i]}", which is none of their characters`);
    if (shift > 30) throw new BadInput("RLE counts hold a number of more than 32 bits");
    value |= (group & 0x1f) << shift;
    shift += 5;
    if ((group & MORE) !== 0) continue;
    if ((group & SIGN) !== 0 && shift < 32) value |= -1 << shift;
    const count = length > 2 ? value + counts[length - 2]! : value;
    if (!isSize(count)) throw new BadInput(`RLE counts must be whole numbers from 0, got ${count}`);
    counts[length++] = count;
    value = 0;
    shift = 0;
  }
  if (shift !== 0) throw new BadInput("RLE counts end in the middle of a number");
  return counts.slice(0, length);
}

/** Number of pixels in the mask. */
export function areaOfRuns({ counts }: Runs): number {
  let area = 0;
  for (let i = 1; i < counts.length; i += 2) area += counts[i]!;
  return area;
}

/** Smallest box around the mask; zeros for an empty one. */
export function boxOfRuns({ width, height, counts }: Runs): Box {
  let [left, top, right, bottom] = [width, height, -1, -1];
  let at = 0;
  for (let i = 0; i < counts.length; i++) {
    const run = counts[i]!;
    if (i % 2 === 1 && run > 0) {
      const last = at + run - 1;
      const [x0, x1] = [Math.floor(at / height), Math.floor(last / height)];
      const [y0, y1] = x0 === x1 ? [at - x0 * height, last - x0 * height] : [0, height - 1];
      if (x0 < left) left = x0;
      if (x1 > right) right = x1;
      if (y0 < top) top = y0;
      if (y1 > bottom) bottom = y1;
    }
    at += run;
  }
  return right < 0 ? [0, 0, 0, 0] : [left, top, right - left + 1, bottom - top + 1];
}

/** Calls `visit(x, top, bottom)` for each stretch of a column that lies in the mask, both ends included, column by column. */
export function eachStretch({ height, counts }: Runs, visit: (x: number, top: number, bottom: number) => void): void {
  let at = 0;
  for (let i = 0; i < counts.length; i++) {
    const end = at + counts[i]!;
    if (i % 2 === 1) {
      for (let from = at; from < end; ) {
        const x = Math.floor(from / height);
        const to = Math.min(end, (x + 1) * height);
        visit(x, from - x * height, to - 1 - x * height);
        from = to;
      }
    }
    at = end;
  }
}

/** Calls `visit(length, inA, inB)` for each stretch of pixels on which neither mask changes. */
function sweep(a: Uint32Array, b: Uint32Array, visit: (length: number, inA: boolean, inB: boolean) => void): void {
  let [i, j] = [0, 0];
  let [leftA, leftB] = [a[0] ?? 0, b[0] ?? 0];
  for (;;) {
    while (leftA === 0 && i < a.length - 1) leftA = a[++i]!;
    while (leftB === 0 && j < b.length - 1) leftB = b[++j]!;
    const length = Math.min(leftA, leftB);
    if (length === 0) return;
    visit(length, i % 2 === 1, j % 2 === 1);
    leftA -= length;
    leftB -= length;
  }
}

/** Union or intersection. `size` is that of the result where there are no masks. Throws BadInput where sizes differ. */
export function mergeRuns(
  masks: readonly Runs[],
  how: "union" | "intersection",
  size: { width: number; height: number } = { width: 0, height: 0 },
): Runs {
  const first = masks[0];
  if (first === undefined) return { ...size, counts: Uint32Array.of(size.width * size.height) };
  return masks.slice(1).reduce((sum, mask) => {
    if (mask.height !== sum.height || mask.width !== sum.width) {
      throw new BadInput(
        `masks of one object must have one size, got ${sum.width}x${sum.height} and ${mask.width}x${mask.height} (width x height)`,
      );
    }
    const counts: number[] = [];
    let [value, run] = [false, 0];
    sweep(sum.counts, mask.counts, (length, inA, inB) => {
      const next = how === "union" ? inA || inB : inA && inB;
      if (next !== value) {
        counts.push(run);
        run = 0;
        value = next;
      }
      run += length;
    });
    counts.push(run);
    return { height: sum.height, width: sum.width, counts: Uint32Array.from(counts) };
  }, first);
}

/**
 * Intersection over union of each of `a` with each of `b`, row by row: (a.length * b.length). Where `crowd[j]` is true the union
 * is a's area alone: a crowd region may be hit by many results. Masks of different size give -1.
 */
export function iouOfRuns(a: readonly Runs[], b: readonly Runs[], crowd: readonly boolean[]): Float64Array {
  const near = iouOfBoxes(a.map(boxOfRuns), b.map(boxOfRuns), crowd);
  for (let i = 0; i < a.length; i++) {
    for (let j = 0; j < b.length; j++) {
      // Masks whose boxes do not meet cannot meet.
      if (near[i * b.length + j]! > 0) near[i * b.length + j] = iouOfPair(a[i]!, b[j]!, crowd[j] ?? false);
    }
  }
  return near;
}

/** As pycocotools also where runs have no length: where both masks have one in the same place, counting ends. */
function iouOfPair(a: Runs, b: Runs, crowd: boolean): number {
  if (a.height !== b.height || a.width !== b.width) return -1;
  const [countsA, countsB] = [a.counts, b.counts];
  let [i, j] = [1, 1];
  let [leftA, leftB] = [countsA[0]!, countsB[0]!];
  let [inA, inB] = [false, false];
  let [both, either] = [0, 0];
  do {
    const length = leftA < leftB ? leftA : leftB;
    if (inA || inB) either += length;
    if (inA && inB) both += length;
    leftA -= length;
    leftB -= length;
    if (leftA === 0 && i < countsA.length) {
      leftA = countsA[i++]!;
      inA = !inA;
    }
    if (leftB === 0 && j < countsB.length) {
      leftB = countsB[j++]!;
      inB = !inB;
    }
  } while (leftA + leftB > 0);
  return both === 0 ? 0 : both / (crowd ? areaOfRuns(a) : either);
}

/** The same for boxes [x, y, width, height]. */
export function iouOfBoxes(a: readonly Box[], b: readonly Box[], crowd: readonly boolean[]): Float64Array {
  const iou = new Float64Array(a.length * b.length);
  for (let i = 0; i < a.length; i++) {
    const [ax, ay, aw, ah] = a[i]!;
    for (let j = 0; j < b.length; j++) {
      const [bx, by, bw, bh] = b[j]!;
      // The order of the sums is the reference's, so that ties between boxes fall alike.
      const width = Math.min(aw + ax, bw + bx) - Math.max(ax, bx);
      const height = Math.min(ah + ay, bh + by) - Math.max(ay, by);
      if (!(width > 0 && height > 0)) continue;
      const both = width * height;
      iou[i * b.length + j] = both / (crowd[j] ? aw * ah : aw * ah + bw * bh - both);
    }
  }
  return iou;
}

/** The mask of each number that occurs in an image of numbers (row by row). */
export function runsByIndex(indices: Uint8Array, width: number, height: number): Map<number, Runs> {
  const found = new Map<number, { counts: number[]; end: number }>();
  let [value, start] = [indices[0]!, 0];
  const close = (end: number) => {
    const mask = found.get(value) ?? { counts: [], end: 0 };
    mask.counts.push(start - mask.end, end - start);
    mask.end = end;
    found.set(value, mask);
  };
  for (let x = 0, at = 0; x < width; x++)
    for (let y = 0; y < height; y++, at++) {
      const next = indices[y * width + x]!;
      if (next === value) continue;
      close(at);
      [value, start] = [next, at];
    }
  close(width * height);
  const masks = [...found].map(([index, { counts, end }]): [number, Runs] => {
    const rest = end < width * height ? [width * height - end] : [];
    return [index, { height, width, counts: Uint32Array.from([...counts, ...rest]) }];
  });
  return new Map(masks.sort(([a], [b]) => a - b));
}
