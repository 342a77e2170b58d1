/** Folders that files are to be written to, and the files' names. */
import { existsSync, mkdirSync, realpathSync, rmdirSync, statSync } from "node:fs";
import { basename, dirname, extname, join, resolve } from "node:path";
import { BadInput } from "./errors.ts";

/**
 * Makes a folder and those above it. One by one: Node's recursive mkdir never returns where a file system answers as if the parent were
 * missing (/proc). Throws the system's error where a file is in the way or the place may not be written to. Returns those that it made.
 */
export function makeFolders(path: string): string[] {
  const missing: string[] = [];
  const made: string[] = [];
  for (let at = resolve(path); !existsSync(at); at = dirname(at)) missing.unshift(at);
  for (const folder of missing) {
    try {
      mkdirSync(folder);
      made.push(folder);
    } catch (error) {
      // Another process was faster.
      if (!existsSync(folder)) throw error;
    }
  }
  if (!statSync(path).isDirectory()) throw Object.assign(new Error("a file is in the way"), { code: "EEXIST", path });
  return made;
}

/** Removes what `makeFolders` made where nothing has been put into it. */
export function removeEmpty(made: readonly string[]): void {
  for (const folder of made.toReversed()) {
    try {
      rmdirSync(folder);
    } catch {
      return; // Something is in it, or it is gone.
    }
  }
}

/** Where a path leads, links followed as far as there is something. */
export function placeOf(path: string): string {
  const whole = resolve(path);
  try {
    return realpathSync.native(whole);
  } catch {
    // Nothing is there, or nothing that has a path, as a shell's pipe.
  }
  return dirname(whole) === whole ? whole : join(placeOf(dirname(whole)), basename(whole));
}

/** A file that is written takes the place of none that is read. Throws BadInput. @param option what names the output, as " with --dump" */
export function keepInputs(output: string, inputs: readonly string[], option = ""): void {
  const place = placeOf(output);
  if (inputs.some((path) => placeOf(path) === place))
    throw new BadInput(`${output}: is one of the files that are read; name another output${option}`);
}

/** Pictures are named after the images they are of: in one folder they would take their place. Throws BadInput. */
export function keepApart(out: string, images: readonly string[]): void {
  const place = placeOf(out);
  const inside = images.find((path) => placeOf(dirname(path)) === place);
  if (inside !== undefined)
    throw new BadInput(
      `${out}: holds the image ${inside}, which a picture could overwrite; name another folder with --out`,
    );
}

/** Names for the files of one folder, without their suffixes: none is given twice, whatever the case of its letters. */
export class FileNames {
  readonly #taken: Set<string>;

  /** @param reserved names of files that are written besides */
  constructor(reserved: readonly string[] = []) {
    this.#taken = new Set(reserved);
  }

  /** The name itself, or with the first number from 2 on that makes it a new one. */
  free(name: string): string {
    let free = name;
    for (let n = 2; this.#taken.has(free.toLowerCase()); n++) free = `${name}-${n}`;
    this.#taken.add(free.toLowerCase());
    return free;
  }

  /** Of images' pictures, in their order: images of one name may lie in several folders. The first keeps its name, whatever others get. */
  ofImages(paths: readonly string[]): string[] {
    const own = paths.map((path) => basename(path, extname(path)));
    const first = new Map<string, number>();
    own.forEach((name, i) => {
      if (!first.has(name.toLowerCase())) first.set(name.toLowerCase(), i);
    });
    const names = own.map((name, i) => (first.get(name.toLowerCase()) === i ? this.free(name) : undefined));
    return names.map((name, i) => name ?? this.free(own[i]!));
  }
}
