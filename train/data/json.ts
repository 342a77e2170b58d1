/** JSON documents and folders that the user names: what is wrong with them is said in one line. Nothing here needs the engine. */
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { BadInput } from "../errors.ts";
import { makeFolders } from "../folders.ts";
import { reasonOf } from "./image.ts";

/** Reads and parses a file; `what` names it in errors, as in "the weak labels". Throws BadInput. */
export function readJson(path: string, what: string): unknown {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new BadInput(`${path}: ${reasonOf(error, what)}`);
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    const cut = text.trim() === "" ? "the file is empty" : (error as Error).message.replace(/\s+/g, " ");
    throw new BadInput(`${path}: not JSON (${cut}); the file may be truncated`);
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
