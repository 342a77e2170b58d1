/**
 * From what the user names to image files: files, folders, and patterns that no shell has expanded (they were quoted, or the shell is
 * Windows's). tinyglobby reads the patterns: Node has a glob of its own only from version 22 on, and it is small and kept.
 */
import { existsSync, readdirSync, statSync } from "node:fs";
import { isAbsolute, join, normalize, resolve } from "node:path";
import { globSync } from "tinyglobby";
import { IMAGE_FORMATS, isImageName } from "./data/image.ts";
import { BadInput } from "./errors.ts";

/** Each image once, in the order named; those of a folder (not of folders in it) and of a pattern by name. Throws BadInput. */
export function imagePaths(named: readonly string[]): string[] {
  const seen = new Set<string>();
  return named.flatMap(expanded).filter((path) => {
    const whole = resolve(path);
    return !seen.has(whole) && seen.add(whole);
  });
}

function expanded(name: string): string[] {
  // A file may have a bracket in its name.
  if (existsSync(name)) return statSync(name).isDirectory() ? inFolder(name) : [name];
  if (!/[*?[{(!]/.test(name)) throw new BadInput(`${name}: the image does not exist`);
  const pattern = process.platform === "win32" ? name.replaceAll("\\", "/") : name;
  const found = globSync(pattern, { absolute: isAbsolute(name), expandDirectories: false })
    .filter(isImageName)
    .map(normalize)
    .sort();
  if (found.length === 0) throw new BadInput(`${name}: matches no image (${IMAGE_FORMATS})`);
  return found;
}

function inFolder(folder: string): string[] {
  const names = readdirSync(folder).filter(isImageName);
  if (names.length === 0) throw new BadInput(`${folder}: the folder holds no image (${IMAGE_FORMATS})`);
  return names.sort().map((name) => join(folder, name));
}
