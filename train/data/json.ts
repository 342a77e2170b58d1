/** JSON documents and folders that the user names: what is wrong with them is said in one line. Nothing here needs the engine. */
import { readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { BadInput } from "../errors.ts";
import { makeFolders } from "../folders.ts";
import { readText } from "./open.ts";

/** Reads and parses a file; `what` names it in errors, as in "the weak labels". Throws BadInput. */
export function readJson(path: string, what: string): unknown {
  const text = readText(path, what);
  try {
    // Editors on Windows put a byte order mark in front.
    return JSON.parse(text.replace(/^\uFEFF/, ""));
  } catch (error) {
    throw new BadInput(`${path}: not JSON (${faultOf(error as Error, text)}`);
  }
}

/** What is wrong with a JSON text, and what may be behind it. */
function faultOf({ message }: Error, text: string): string {
  if (text.trim() === "") return "the file is empty); the file may be truncated";
  // Python's json writes these; V8 stops at the name, or at the digit that it misses behind the sign.
  const name = /token '?[NI]|minus sign/.test(message) ? /[[:,]\s*(NaN|-?Infinity)\b/.exec(text)?.[1] : undefined;
  if (name !== undefined) return `${name} is no number of JSON's); write a number, or leave the entry out`;
  return `${message.replace(/\s+/g, " ")}); the file may be truncated`;
}

/** V8 holds no string of 512 MiB, but a list of results may be as long as that. */
const AT_ONCE = 2 ** 28;

/**
 * Reads and parses a file that holds a list, which may be longer than fits one string: it is then parsed in pieces. Throws BadInput. What
 * is no list is given back as it is, for the caller to refuse.
 * @param atOnce bytes of a piece
 */
export function readJsonList(path: string, what: string, atOnce = AT_ONCE): unknown {
  if ((statSync(path, { throwIfNoEntry: false })?.size ?? 0) <= atOnce) return readJson(path, what);
  const file = readFileSync(path);
  if (file[skipSpace(file)] !== "[".charCodeAt(0)) return readJson(path, what);
  const list: unknown[] = [];
  const take = (text: string): void => {
    const entries = JSON.parse(text) as unknown[];
    if (entries.length === 0 && from > start) throw new Error("a comma without an entry behind it");
    for (const entry of entries) list.push(entry);
  };
  const start = skipSpace(file) + 1;
  let from = start;
  try {
    for (const to of cuts(file, start, atOnce)) {
      take(`[${file.toString("utf8", from, to)}]`);
      from = to + 1;
    }
    // What stands behind the list is parsed with it, and is an error but for space.
    take(`[${file.toString("utf8", from)}`);
    return list;
  } catch (error) {
    throw new BadInput(`${path}: not JSON (${(error as Error).message.slice(0, 100)}); the file may be truncated`);
  }
}

/** Behind a byte order mark and space. */
function skipSpace(file: Uint8Array): number {
  let at = file[0] === 0xef && file[1] === 0xbb && file[2] === 0xbf ? 3 : 0;
  while (at < file.length && file[at]! <= 32) at++;
  return at;
}

const [QUOTE, BACKSLASH, COMMA] = [34, 92, 44];
const [OPEN, CLOSE] = [new Set([91, 123]), new Set([93, 125])];

/** Places of commas between a list's entries, about `atOnce` bytes apart. @param from behind the list's bracket */
function* cuts(file: Uint8Array, from: number, atOnce: number): Generator<number> {
  let [depth, next] = [0, from + atOnce];
  for (let at = from; at < file.length; at++) {
    const byte = file[at]!;
    if (byte === QUOTE) {
      for (at++; at < file.length && file[at] !== QUOTE; at++) if (file[at] === BACKSLASH) at++;
    } else if (OPEN.has(byte)) depth++;
    else if (CLOSE.has(byte)) depth--;
    else if (byte === COMMA && depth === 0 && at >= next) {
      yield at;
      next = at + atOnce;
    }
  }
}

/** Writes a document on one line. It is put in place whole, so that an interrupted command leaves no half of it. */
export function writeJson(path: string, document: unknown): void {
  const beside = `${path}.${process.pid}.tmp`;
  try {
    makeFolders(dirname(path));
    writeFileSync(beside, `${JSON.stringify(document)}\n`);
    renameSync(beside, path);
  } catch (error) {
    throw new BadInput(`${path}: cannot be written (${(error as Error).message})`);
  }
}

/** Makes a folder and those above it. Throws BadInput where a file is in the way or the place may not be written to. */
export async function makeFolder(path: string): Promise<void> {
  try {
    makeFolders(path);
  } catch (error) {
    throw new BadInput(`${path}: the folder cannot be made (${(error as Error).message})`);
  }
}
