/** Pictures of labels and predictions: coloured masks with contours, boxes, points, names and scores on the image. */
import { resizeBilinear } from "../model/sam/preprocess.ts";
import type { Image } from "./data/image.ts";
import type { Box } from "./data/mask.ts";
import { type Lettering, letter } from "./lettering.ts";

export type Rgb = [red: number, green: number, blue: number];

export interface Overlay {
  /** Masks are 0/1, as large as the image, row-major; the first lies lowest. */
  masks?: { mask: Uint8Array; classIndex: number; label?: string; score?: number }[];
  /** (x, y) names a pixel. */
  points?: { x: number; y: number; classIndex: number; label?: string }[];
  /** [x, y, width, height] in the image's pixels. */
  boxes?: { box: Box; classIndex: number; label?: string; score?: number }[];
  /** A line below the picture. */
  caption?: string;
}

/** Neighbouring classes get hues far apart; after twelve the colours darken. */
export function classColour(index: number): Rgb {
  const hue = (((index * 5) % 12) / 12 + 0.02 * Math.floor(index / 12)) % 1;
  const value = 1 - 0.25 * (Math.floor(index / 12) % 3);
  const channel = (n: number) => {
    const k = (n + hue * 6) % 6;
    return Math.round(255 * value * (1 - 0.85 * Math.max(0, Math.min(k, 4 - k, 1))));
  };
  return [channel(5), channel(3), channel(1)];
}

const BLEND = 0.45;
/** Pictures of small images are enlarged to about this many pixels, so that labels have room. */
const ROOMY = 400;
/** Up to this many pixels a picture is seen as it is. */
const LARGE = 1024;

/**
 * Draws labels over an image.
 * @param scale enlargement of the picture, a whole number (default: what makes small images about 400 pixels large)
 */
export async function drawOverlay(
  image: Image,
  overlay: Overlay,
  { scale = roomyScale(image) }: { scale?: number } = {},
): Promise<Image> {
  const [width, height] = [image.width * scale, image.height * scale];
  const data = Uint8Array.from(resizeBilinear(image.data, image.width, image.height, 3, width, height));
  const picture = { width, height, data };
  const grown = growth(picture);
  const { masks = [], boxes = [], points = [], caption } = overlay;
  for (const { mask, classIndex } of masks) paintMask(picture, mask, image, scale, classColour(classIndex));
  for (const { box, classIndex } of boxes) {
    const [x, y, w, h] = box.map((value) => Math.round(value * scale)) as Box;
    strokeBox(picture, x, y, x + w - 1, y + h - 1, classColour(classIndex));
  }
  for (const { x, y, classIndex } of points) {
    dot(picture, (x + 0.5) * scale, (y + 0.5) * scale, 4 * grown, classColour(classIndex));
  }
  // Texts come last, so that no mask covers them, and none covers another.
  const plates: Plate[] = [];
  const put = (text: string, x: number, y: number, classIndex: number): Promise<void> =>
    write(picture, text, x, y, classColour(classIndex), plates);
  for (const { mask, classIndex, label, score } of masks) {
    const corner = anchor(mask, image.width);
    if (corner) await put(textOf(label, score), corner[0] * scale, corner[1] * scale, classIndex);
  }
  for (const { box, classIndex, label, score } of boxes)
    await put(textOf(label, score), box[0] * scale, box[1] * scale, classIndex);
  for (const { x, y, classIndex, label } of points)
    await put(textOf(label), (x + 0.5) * scale + 6 * grown, (y + 0.5) * scale - 5 * grown, classIndex);
  return caption === undefined ? picture : withCaption(picture, caption);
}

function roomyScale({ width, height }: Image): number {
  return Math.max(1, Math.min(8, Math.round(ROOMY / Math.max(width, height))));
}

/** Large pictures are seen smaller than they are: by what texts and lines grow. */
function growth({ width, height }: Image): number {
  return Math.max(1, Math.max(width, height) / LARGE);
}

function textOf(label?: string, score?: number): string {
  return [label, score?.toFixed(2)].filter((part) => part !== undefined && part !== "").join(" ");
}

function paintMask(picture: Image, mask: Uint8Array, { width, height }: Image, scale: number, colour: Rgb): void {
  if (mask.length !== width * height) {
    throw new Error(`drawOverlay: a mask must have the image's ${width}x${height} pixels; got ${mask.length}`);
  }
  const inside = (x: number, y: number) =>
    x >= 0 &&
    y >= 0 &&
    x < picture.width &&
    y < picture.height &&
    mask[Math.floor(y / scale) * width + Math.floor(x / scale)] !== 0;
  const rim = scale > 1 ? 2 : Math.round(growth(picture));
  for (let y = 0; y < picture.height; y++) {
    for (let x = 0; x < picture.width; x++) {
      if (!inside(x, y)) continue;
      const edge = !inside(x - rim, y) || !inside(x + rim, y) || !inside(x, y - rim) || !inside(x, y + rim);
      blend(picture, x, y, colour, edge ? 1 : BLEND);
    }
  }
}

function blend({ width, height, data }: Image, x: number, y: number, colour: Rgb, share: number): void {
  if (x < 0 || y < 0 || x >= width || y >= height) return;
  const at = (y * width + x) * 3;
  for (let c = 0; c < 3; c++) data[at + c] = Math.round(data[at + c]! * (1 - share) + colour[c]! * share);
}

/** Two pixels thick, or more in a large picture, inwards. */
function strokeBox(picture: Image, x0: number, y0: number, x1: number, y1: number, colour: Rgb): void {
  const thick = Math.round(2 * growth(picture));
  for (let inset = 0; inset < thick; inset++) {
    for (let x = x0; x <= x1; x++) for (const y of [y0 + inset, y1 - inset]) blend(picture, x, y, colour, 1);
    for (let y = y0; y <= y1; y++) for (const x of [x0 + inset, x1 - inset]) blend(picture, x, y, colour, 1);
  }
}

/** A disc with a white rim. */
function dot(picture: Image, x: number, y: number, radius: number, colour: Rgb): void {
  for (let j = Math.floor(y - 1.5 * radius); j <= y + 1.5 * radius; j++) {
    for (let i = Math.floor(x - 1.5 * radius); i <= x + 1.5 * radius; i++) {
      const far = Math.hypot(i + 0.5 - x, j + 0.5 - y);
      if (far <= radius) blend(picture, i, j, colour, 1);
      else if (far <= 1.375 * radius) blend(picture, i, j, [255, 255, 255], 1);
    }
  }
}

/** The font's size. */
const TEXT = 13;
const MARGIN = 3;
/** How many of its own heights a text may be moved away from its place. */
const ROWS = 6;

interface Plate {
  left: number;
  top: number;
  width: number;
  height: number;
}

/** Text on a plate of the colour, its lower left corner at (x, y) or as near to it as the picture and the other plates let it. */
async function write(picture: Image, text: string, x: number, y: number, colour: Rgb, plates: Plate[]): Promise<void> {
  if (text === "") return;
  const [lettering, margin] = await line(picture, text);
  const plate = freePlace(picture, x, y, lettering.width + 2 * margin, lettering.height, plates);
  plates.push(plate);
  for (let j = 0; j < plate.height; j++)
    for (let i = 0; i < plate.width; i++) blend(picture, plate.left + i, plate.top + j, colour, 0.85);
  const bright = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 110;
  ink(picture, lettering, plate.left + margin, plate.top, bright ? [0, 0, 0] : [255, 255, 255]);
}

/** A text of the picture's size, cut off where it would not fit between the margins. */
async function line(picture: Image, text: string): Promise<[lettering: Lettering, margin: number]> {
  const margin = Math.round(MARGIN * growth(picture));
  return [await letter(text, Math.round(TEXT * growth(picture)), picture.width - 2 * margin), margin];
}

function ink(picture: Image, { width, height, coverage }: Lettering, left: number, top: number, colour: Rgb): void {
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) blend(picture, left + x, top + y, colour, coverage[y * width + x]! / 255);
}

/** Above the place, else row by row further below and above it; where all is taken, above it all the same. */
function freePlace(
  picture: Image,
  x: number,
  y: number,
  width: number,
  height: number,
  plates: readonly Plate[],
): Plate {
  const at = (top: number): Plate => ({
    left: Math.round(Math.max(0, Math.min(x, picture.width - width))),
    top: Math.round(Math.max(0, Math.min(top, picture.height - height))),
    width,
    height,
  });
  const isFree = (plate: Plate): boolean =>
    plates.every(
      (other) =>
        plate.left >= other.left + other.width ||
        other.left >= plate.left + plate.width ||
        plate.top >= other.top + other.height ||
        other.top >= plate.top + plate.height,
    );
  for (let row = 0; row <= ROWS; row++)
    for (const top of [y + (row - 1) * height, y - (row + 1) * height]) if (isFree(at(top))) return at(top);
  return at(y - height);
}

/** The mask's upper rim above its middle pixel: a stray pixel elsewhere does not draw the text away from the object. */
function anchor(mask: Uint8Array, width: number): [x: number, y: number] | undefined {
  const pixels: number[] = [];
  for (let at = mask.indexOf(1); at !== -1; at = mask.indexOf(1, at + 1)) pixels.push(at);
  let at = pixels[pixels.length >> 1];
  if (at === undefined) return undefined;
  while (at >= width && mask[at - width] !== 0) at -= width;
  return [at % width, Math.floor(at / width)];
}

async function withCaption(picture: Image, caption: string): Promise<Image> {
  const [lettering, margin] = await line(picture, caption);
  const taller = blank(picture.width, picture.height + lettering.height + 2 * margin, 24);
  taller.data.set(picture.data);
  ink(taller, lettering, margin, picture.height + margin, [235, 235, 235]);
  return taller;
}

function blank(width: number, height: number, grey: number): Image {
  return { width, height, data: new Uint8Array(width * height * 3).fill(grey) };
}

/** A sheet is as wide as fits a screen, unless a single picture is wider. */
const SHEET_WIDTH = 2400;

/** Images side by side in rows, each in a cell as large as the largest. `columns`: at most so many; `most`: limit of the sheet's width. */
export function contactSheet(
  images: readonly Image[],
  { columns, gap = 6, most = SHEET_WIDTH }: { columns?: number; gap?: number; most?: number } = {},
): Image {
  if (images.length === 0) return blank(1, 1, 24);
  const widest = Math.max(...images.map(({ width }) => width)) + gap;
  const wanted = Math.min(columns ?? Math.ceil(Math.sqrt(images.length)), Math.floor(most / widest));
  const across = Math.min(images.length, Math.max(1, wanted));
  const down = Math.ceil(images.length / across);
  const cellWidth = Math.max(...images.map(({ width }) => width));
  const cellHeight = Math.max(...images.map(({ height }) => height));
  const sheet = blank(across * (cellWidth + gap) + gap, down * (cellHeight + gap) + gap, 24);
  images.forEach(({ width, height, data }, n) => {
    const left = gap + (n % across) * (cellWidth + gap);
    const top = gap + Math.floor(n / across) * (cellHeight + gap);
    for (let y = 0; y < height; y++) {
      sheet.data.set(data.subarray(y * width * 3, (y + 1) * width * 3), ((top + y) * sheet.width + left) * 3);
    }
  });
  return sheet;
}

/**
 * Values over an image, from nothing (0) over blue and yellow to red (1); they are spread over the whole image.
 * @param values (height, width), 0..1; what is not finite counts as 0
 */
export function heatmap(image: Image, values: ArrayLike<number>, width: number, height: number): Image {
  if (values.length !== width * height) {
    throw new Error(`heatmap: ${width}x${height} values are expected; got ${values.length}`);
  }
  const levels = new Uint8Array(width * height);
  for (let i = 0; i < levels.length; i++) {
    const value = values[i]!;
    levels[i] = Number.isFinite(value) ? Math.round(255 * Math.min(1, Math.max(0, value))) : 0;
  }
  const smooth = resizeBilinear(levels, width, height, 1, image.width, image.height);
  const picture = { ...image, data: Uint8Array.from(image.data) };
  smooth.forEach((level, at) => {
    const t = level / 255;
    const colour: Rgb = [255 * Math.min(1, 2 * t), 255 * (1 - Math.abs(2 * t - 1)), 255 * Math.max(0, 1 - 2 * t)];
    blend(picture, at % image.width, Math.floor(at / image.width), colour, 0.15 + 0.6 * t);
  });
  return picture;
}
