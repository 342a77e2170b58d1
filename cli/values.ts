/** Parsers of option values. Each takes the text and the option's flag, and throws BadInput with what was expected. */
import { BadInput } from "../train/errors.ts";
import { LARGEST_SIDE } from "../train/limits.ts";

function number(text: string): number {
  return text.trim() === "" ? Number.NaN : Number(text);
}

/** An integer of at least 1. */
export function count(text: string, flag: string): number {
  const value = number(text);
  if (!Number.isSafeInteger(value) || value < 1)
    throw new BadInput(`${flag}: expected a whole number from 1, got "${text}"`);
  return value;
}

/** Of an image, in pixels. */
export function side(text: string, flag: string): number {
  const value = number(text);
  if (!Number.isInteger(value) || value < 1 || value > LARGEST_SIDE)
    throw new BadInput(`${flag}: expected a whole number from 1 to ${LARGEST_SIDE}, got "${text}"`);
  return value;
}

/** An integer of at least 0, at most 2^32 - 1. */
export function seed(text: string, flag: string): number {
  const value = number(text);
  if (!Number.isInteger(value) || value < 0 || value > 0xffffffff) {
    throw new BadInput(`${flag}: expected a whole number from 0 to 4294967295, got "${text}"`);
  }
  return value;
}

/** A number from 0 to 1, or a fraction such as 1/3. */
export function share(text: string, flag: string): number {
  const [over, under, ...rest] = text.split("/").map(number);
  const value = under === undefined ? over! : over! / under;
  if (!(value >= 0 && value <= 1) || rest.length > 0)
    throw new BadInput(`${flag}: expected a number from 0 to 1 or a fraction such as 1/3, got "${text}"`);
  return value;
}

/** A finite number of at least 0. */
export function amount(text: string, flag: string): number {
  const value = number(text);
  if (!(value >= 0 && Number.isFinite(value))) throw new BadInput(`${flag}: expected a number from 0, got "${text}"`);
  return value;
}

export interface PointPrompt {
  x: number;
  y: number;
  /** 1: on the object, 0: on the background. */
  label: 0 | 1;
}

/** `X,Y` or `X,Y,LABEL`, in pixels of the image as it is stored. */
export function point(text: string, flag: string): PointPrompt {
  const [x, y, label = 1, ...rest] = text.split(",").map(number);
  if (!Number.isFinite(x) || !Number.isFinite(y) || (label !== 0 && label !== 1) || rest.length > 0) {
    throw new BadInput(`${flag}: expected X,Y or X,Y,0 (background) or X,Y,1 (object), got "${text}"`);
  }
  return { x: x as number, y: y as number, label };
}

/** `X0,Y0,X1,Y1` with X0 < X1 and Y0 < Y1. */
export function box(text: string, flag: string): [number, number, number, number] {
  const values = text.split(",").map(number);
  const [x0 = Number.NaN, y0 = Number.NaN, x1 = Number.NaN, y1 = Number.NaN] = values;
  if (values.length !== 4 || !values.every(Number.isFinite) || x0 >= x1 || y0 >= y1) {
    throw new BadInput(`${flag}: expected X0,Y0,X1,Y1 with X0 < X1 and Y0 < Y1, got "${text}"`);
  }
  return [x0, y0, x1, y1];
}

/** `tags:F,points:F,boxes:F`, each kind once; absent kinds are 0. */
export function mix(text: string, flag: string): { tags: number; points: number; boxes: number } {
  const shares = { tags: 0, points: 0, boxes: 0 };
  const given = new Set<string>();
  for (const part of text.split(",")) {
    const [kind = "", value = "", ...rest] = part.split(":");
    const isKind = (name: string): name is keyof typeof shares => Object.hasOwn(shares, name);
    if (!isKind(kind) || rest.length > 0) {
      throw new BadInput(`${flag}: expected tags:F,points:F,boxes:F with shares from 0 to 1, got "${text}"`);
    }
    if (given.has(kind)) throw new BadInput(`${flag}: has ${kind} twice, got "${text}"; give each kind one share`);
    given.add(kind);
    shares[kind] = share(value, `${flag} ${kind}`);
  }
  return shares;
}

export const PEERS = ["tfjs", "jax-js", "onnxruntime"] as const;
export type PeerName = (typeof PEERS)[number];

/** Names of other engines, separated by commas. */
export function peers(text: string, flag: string): PeerName[] {
  const names = text.split(",");
  const isPeer = (name: string): name is PeerName => (PEERS as readonly string[]).includes(name);
  if (!names.every(isPeer)) throw new BadInput(`${flag}: expected some of ${PEERS.join(",")}, got "${text}"`);
  return names as PeerName[];
}
