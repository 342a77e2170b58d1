/**
 * Procedural scenes, the embedded default's data: one to five textured objects of six classes on a noisy ground among clutter,
 * some behind others, with exact masks of what is visible. A scene depends on (seed, index, size) alone.
 */
import { existsSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { Random } from "../../engine/random.ts";
import { BadInput } from "../errors.ts";
import type { Category } from "./coco.ts";
import { type Image, writePng } from "./image.ts";
import { makeFolder, readJson, writeJson } from "./json.ts";
import { areaOfRuns, type Box, boxOfRuns, encodeMask, runsOfMask } from "./mask.ts";
import { type Colour, clutter, type Thing, things } from "./things.ts";

export const sceneCategories: Category[] = Object.keys(things).map((name, i) => ({
  id: i + 1,
  name,
  supercategory: "thing",
}));

export interface SceneInstance {
  /** Category id, 1..K. */
  category: number;
  /** Visible pixels: 0/1, row-major (size * size). */
  mask: Uint8Array;
  bbox: Box;
}

export interface Scene {
  image: Image;
  instances: SceneInstance[];
}

const DESCRIPTION = "procedural scenes";
const MOST_OBJECTS = 5;
/** Diameter of an object as a share of the image, drawn uniformly. */
const SMALLEST = 0.18;
const LARGEST = 0.6;
/** A class has its hue, as fruits have theirs, give or take this much of a circle of 6; the second colour and the clutter have any. */
const HUE_SPREAD = 0.4;
/** At least this much of an object stays visible behind those in front of it. */
const LEAST_VISIBLE = 0.4;
/** No less of an object lies inside the image. */
const LEAST_INSIDE = 0.6;
/** How often a piece of clutter lies in front of everything. */
const IN_FRONT = 0.3;
/** Objects that show fewer pixels are too small to be told apart. */
const LEAST_PIXELS = 12;
const TRIES = 12;

/** What a thing looks like where it is put; lengths in pixels. */
interface Placed {
  thing: Thing;
  x: number;
  y: number;
  radius: number;
  turn: number;
  first: Colour;
  second: Colour;
}

/** @param size width and height in pixels, at least 16 */
export function makeScene(seed: number, index: number, size: number): Scene {
  if (!(Number.isInteger(size) && size >= 16))
    throw new Error(`makeScene: size must be a whole number from 16, got ${size}`);
  const random = new Random(seed).fork(index);
  const ground = colour(random, [0.05, 0.5], [0.25, 0.85]);
  const canvas = paintGround(random, ground, size);
  for (let n = 1 + random.int(5); n > 0; n--) paint(canvas, size, placeClutter(random, size));

  // Index of the object that owns each pixel; -1: none.
  const owner = new Int16Array(size * size).fill(-1);
  const objects: { category: number; area: number }[] = [];
  for (let n = 1 + random.int(MOST_OBJECTS); n > 0; n--) {
    const category = 1 + random.int(sceneCategories.length);
    const placed = placeObject(random, category, ground, size, owner, objects);
    if (placed === undefined) continue;
    const { pixels, area } = cover(placed, size);
    castShadow(canvas, size, placed, random);
    paint(canvas, size, placed);
    for (const at of pixels) owner[at] = objects.length;
    objects.push({ category, area });
  }
  if (random.uniform() < IN_FRONT) {
    const placed = placeClutter(random, size);
    paint(canvas, size, placed);
    for (const at of cover(placed, size).pixels) owner[at] = -1;
  }

  const instances = objects.flatMap(({ category }, i): SceneInstance[] => {
    const mask = new Uint8Array(owner.length);
    for (let at = 0; at < mask.length; at++) if (owner[at] === i) mask[at] = 1;
    const runs = runsOfMask(mask, size, size);
    return areaOfRuns(runs) < LEAST_PIXELS ? [] : [{ category, mask, bbox: boxOfRuns(runs) }];
  });
  return { image: develop(canvas, size, random), instances };
}

/** A place where the object shows well and hides no other too far; undefined where there is none. */
function placeObject(
  random: Random,
  category: number,
  ground: Colour,
  size: number,
  owner: Int16Array,
  objects: readonly { area: number }[],
): Placed | undefined {
  const make = things[sceneCategories[category - 1]!.name]!;
  const thing = make(random);
  const [first, second] = contrasting(random, ground, category);
  for (let i = 0; i < TRIES; i++) {
    const radius = (size / 2) * random.uniform(SMALLEST, LARGEST);
    const [x, y] = [random.uniform(0.06, 0.94) * size, random.uniform(0.06, 0.94) * size];
    const placed: Placed = { thing, x, y, radius, turn: random.uniform(0, 2 * Math.PI), first, second };
    const { pixels, area } = cover(placed, size);
    if (pixels.length < Math.max(LEAST_PIXELS, LEAST_INSIDE * area)) continue;
    const left = objects.map(() => 0);
    for (const at of owner) if (at >= 0) left[at]!++;
    for (const at of pixels) if (owner[at]! >= 0) left[owner[at]!]!--;
    if (objects.every((object, n) => left[n]! >= Math.max(LEAST_PIXELS, LEAST_VISIBLE * object.area))) return placed;
  }
  return undefined;
}

function placeClutter(random: Random, size: number): Placed {
  const { thing, radius } = clutter(random);
  const [x, y] = [random.uniform() * size, random.uniform() * size];
  const first = colour(random, [0, 0.9], [0.1, 1]);
  return { thing, x, y, radius: radius * size, turn: random.uniform(0, 2 * Math.PI), first, second: first };
}

/** Calls `visit` for each pixel whose centre may lie in the thing, with its place in the thing's frame. */
function eachPixel(placed: Placed, margin: number, visit: (x: number, y: number, u: number, v: number) => void): void {
  const [cos, sin] = [Math.cos(placed.turn) / placed.radius, Math.sin(placed.turn) / placed.radius];
  const reach = placed.radius * 1.05 + margin;
  for (let y = Math.floor(placed.y - reach); y <= placed.y + reach; y++) {
    const dy = y + 0.5 - placed.y;
    const half = Math.sqrt(Math.max(0, reach * reach - dy * dy));
    for (let x = Math.floor(placed.x - half); x <= placed.x + half; x++) {
      const dx = x + 0.5 - placed.x;
      visit(x, y, cos * dx + sin * dy, cos * dy - sin * dx);
    }
  }
}

/** The pixels whose centres lie in the thing, and how many there were if the image went on beyond its edges. */
function cover(placed: Placed, size: number): { pixels: number[]; area: number } {
  const pixels: number[] = [];
  let area = 0;
  eachPixel(placed, 0, (x, y, u, v) => {
    if (placed.thing.outline(u, v) >= 0) return;
    area++;
    if (x >= 0 && y >= 0 && x < size && y < size) pixels.push(y * size + x);
  });
  return { pixels, area };
}

/** Paints over the canvas (size * size * 3, 0..1), smooth at the outline. */
function paint(canvas: Float32Array, size: number, placed: Placed): void {
  const { thing, radius, first, second } = placed;
  eachPixel(placed, 1, (x, y, u, v) => {
    if (x < 0 || y < 0 || x >= size || y >= size) return;
    const share = Math.min(1, Math.max(0, 0.5 - thing.outline(u, v) * radius));
    if (share === 0) return;
    const [mix, light] = thing.surface(u, v);
    const at = (y * size + x) * 3;
    for (let c = 0; c < 3; c++) {
      const value = (first[c]! + (second[c]! - first[c]!) * mix) * light;
      canvas[at + c]! += (value - canvas[at + c]!) * share;
    }
  });
}

/** Darkens the ground beside the thing, softly. */
function castShadow(canvas: Float32Array, size: number, placed: Placed, random: Random): void {
  const depth = random.uniform(0, 0.45);
  const blur = Math.max(1.5, placed.radius * 0.2);
  const shift = placed.radius * 0.12;
  const shadow = { ...placed, x: placed.x + shift, y: placed.y + shift };
  eachPixel(shadow, blur, (x, y, u, v) => {
    if (x < 0 || y < 0 || x >= size || y >= size) return;
    const share = Math.min(1, Math.max(0, 0.5 - (placed.thing.outline(u, v) * placed.radius) / (2 * blur)));
    const at = (y * size + x) * 3;
    for (let c = 0; c < 3; c++) canvas[at + c]! *= 1 - depth * share;
  });
}

/** Two colours mixed by noise of several sizes, under uneven light, sometimes with stripes. */
function paintGround(random: Random, first: Colour, size: number): Float32Array {
  const second = first.map((value) => Math.min(1, Math.max(0, value + random.uniform(-0.25, 0.25))));
  const layers = [3, 7, 17].map((cells) => noise(random, cells, size));
  const [slopeX, slopeY] = [random.uniform(-0.3, 0.3), random.uniform(-0.3, 0.3)];
  const striped = random.uniform() < 0.3;
  const [waveX, waveY] = [random.uniform(-40, 40) / size, random.uniform(-40, 40) / size];
  const stripe = random.uniform(0.1, 0.3);
  const canvas = new Float32Array(size * size * 3);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const at = y * size + x;
      let mix = 0.5 * layers[0]![at]! + 0.3 * layers[1]![at]! + 0.2 * layers[2]![at]!;
      if (striped) mix += Math.sin(waveX * x + waveY * y) > 0 ? stripe : -stripe;
      const light = 1 + slopeX * (x / size - 0.5) + slopeY * (y / size - 0.5);
      for (let c = 0; c < 3; c++) canvas[at * 3 + c] = (first[c]! + (second[c]! - first[c]!) * mix) * light;
    }
  }
  return canvas;
}

/** Smooth noise in 0..1 with about `cells` bumps along each side: (size * size). */
function noise(random: Random, cells: number, size: number): Float32Array {
  const side = cells + 2;
  const knots = Float32Array.from({ length: side * side }, () => random.uniform());
  const field = new Float32Array(size * size);
  const ease = (t: number) => t * t * (3 - 2 * t);
  for (let y = 0; y < size; y++) {
    const row = Math.floor((y * cells) / size);
    const v = ease((y * cells) / size - row);
    for (let x = 0; x < size; x++) {
      const column = Math.floor((x * cells) / size);
      const u = ease((x * cells) / size - column);
      const at = row * side + column;
      const top = knots[at]! * (1 - u) + knots[at + 1]! * u;
      const bottom = knots[at + side]! * (1 - u) + knots[at + side + 1]! * u;
      field[y * size + x] = top * (1 - v) + bottom * v;
    }
  }
  return field;
}

/** To 8 bits, with a camera's grain. */
function develop(canvas: Float32Array, size: number, random: Random): Image {
  const grain = random.uniform(2, 12);
  const data = new Uint8Array(canvas.length);
  for (let i = 0; i < canvas.length; i += 3) {
    const bits = random.bits();
    for (let c = 0; c < 3; c++) {
      const value = canvas[i + c]! * 255 + (((bits >>> (10 * c)) & 1023) / 1023 - 0.5) * 2 * grain;
      data[i + c] = Math.min(255, Math.max(0, Math.round(value)));
    }
  }
  return { width: size, height: size, data };
}

function colour(
  random: Random,
  saturation: [number, number],
  value: [number, number],
  hues: [number, number] = [0, 6],
): Colour {
  const hue = random.uniform(...hues);
  const s = random.uniform(...saturation);
  const v = random.uniform(...value);
  const channel = (n: number) => {
    const k = (n + hue + 6) % 6;
    return v - v * s * Math.max(0, Math.min(k, 4 - k, 1));
  };
  return [channel(5), channel(3), channel(1)];
}

/** Two colours that stand out from the ground and from one another. */
function contrasting(random: Random, ground: Colour, category: number): [Colour, Colour] {
  const typical = (6 * (category - 1)) / sceneCategories.length;
  const away = (from: Colour, least: number, hues?: [number, number]): Colour => {
    let best: Colour = from;
    let far = -1;
    for (let i = 0; i < TRIES && far < least; i++) {
      const next = hues ? colour(random, [0.5, 1], [0.45, 1], hues) : colour(random, [0.1, 1], [0.2, 1]);
      const distance = Math.hypot(...next.map((value, c) => value - from[c]!));
      if (distance > far) [best, far] = [next, distance];
    }
    return best;
  };
  const first = away(ground, 0.4, [typical - HUE_SPREAD, typical + HUE_SPREAD]);
  return [first, away(first, 0.35)];
}

/**
 * Writes scenes as a COCO data set: DIR/images/000001.png and on, DIR/annotations/instances.json. The same options give the
 * same files byte for byte.
 * @param onImage called after each image with how many are written
 */
export async function writeScenes(
  dir: string,
  { images, size = 128, seed = 0 }: { images: number; size?: number; seed?: number },
  onImage: (done: number) => void = () => {},
): Promise<{ annotations: string; imagesDir: string; instances: number }> {
  const imagesDir = join(dir, "images");
  const file = join(dir, "annotations", "instances.json");
  await removeEarlier(imagesDir, file);
  await makeFolder(imagesDir);
  await makeFolder(join(dir, "annotations"));
  const annotations: object[] = [];
  const entries: object[] = [];
  const writing = new Set<Promise<void>>();
  for (let index = 0; index < images; index++) {
    const scene = makeScene(seed, index, size);
    const id = index + 1;
    const fileName = `${String(id).padStart(6, "0")}.png`;
    entries.push({ id, file_name: fileName, width: size, height: size });
    for (const { category, mask, bbox } of scene.instances) {
      annotations.push({
        id: annotations.length + 1,
        image_id: id,
        category_id: category,
        bbox,
        area: mask.reduce((sum, value) => sum + value, 0),
        iscrowd: 0,
        segmentation: encodeMask(mask, size, size),
      });
    }
    // Files are compressed on other threads while the next scene is made.
    const written = writePng(join(imagesDir, fileName), scene.image).finally(() => writing.delete(written));
    writing.add(written);
    if (writing.size >= 8) await Promise.race(writing);
    onImage(id);
  }
  await Promise.all(writing);
  const info = { description: DESCRIPTION, version: "1", seed, size, images };
  writeJson(file, { info, images: entries, annotations, categories: sceneCategories });
  return { annotations: file, imagesDir, instances: annotations.length };
}

/** Scenes made earlier in the same folder go, so that none of their images stays behind; any other data set is left alone. */
async function removeEarlier(imagesDir: string, file: string): Promise<void> {
  if (!existsSync(file)) return;
  const earlier = readJson(file, "the instances file") as { info?: { description?: unknown }; images?: unknown };
  if (earlier.info?.description !== DESCRIPTION || !Array.isArray(earlier.images))
    throw new BadInput(`${file}: is there already and holds no scenes; choose another folder`);
  for (const { file_name } of earlier.images as { file_name?: unknown }[])
    if (typeof file_name === "string" && /^\d{6}\.png$/.test(file_name))
      await rm(join(imagesDir, file_name), { force: true });
}
