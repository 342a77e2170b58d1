/** Files that survive a crash: each is written beside its place, flushed and renamed, so that a reader sees the old or the new one, whole. */
import { dirname } from "node:path";
import { platform } from "../engine/index.ts";
import { readWhole } from "./data/open.ts";
import { BadInput } from "./errors.ts";
import { makeFolders } from "./folders.ts";

export async function writeWhole(path: string, content: string | Uint8Array): Promise<void> {
  makeFolders(dirname(path));
  await platform().writeFile(path, typeof content === "string" ? new TextEncoder().encode(content) : content);
}

/** The bytes of a file the user named; `what` says in the error what was expected there. */
export async function readNamed(path: string, what: string): Promise<Uint8Array> {
  return named(path, what, (size) => new ArrayBuffer(size));
}

/** The same in memory that can be given back piece by piece: for weights, which go on to the GPU one tensor at a time. */
export async function readWeightBytes(path: string, what: string): Promise<Uint8Array> {
  return named(path, what, (size) => new ArrayBuffer(size, { maxByteLength: size }));
}

async function named(path: string, what: string, memory: (size: number) => ArrayBuffer): Promise<Uint8Array> {
  try {
    return await readWhole(path, memory);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    const why =
      code === "ENOENT" ? "there is no such file" : code === "EISDIR" ? "is a folder" : (cause as Error).message;
    throw new BadInput(`${path}: ${why}; expected ${what}`);
  }
}
