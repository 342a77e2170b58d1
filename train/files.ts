/** Files that survive a crash: each is written beside its place, flushed and renamed, so that a reader sees the old or the new one, whole. */
import { constants } from "node:buffer";
import { open } from "node:fs/promises";
import { dirname } from "node:path";
import { platform } from "../engine/index.ts";
import { BadInput } from "./errors.ts";
import { makeFolders } from "./folders.ts";

export async function writeWhole(path: string, content: string | Uint8Array): Promise<void> {
  makeFolders(dirname(path));
  await platform().writeFile(path, typeof content === "string" ? new TextEncoder().encode(content) : content);
}

/** The bytes of a file the user named; `what` says in the error what was expected there. */
export async function readNamed(path: string, what: string): Promise<Uint8Array> {
  try {
    return await readWhole(path);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    const why =
      code === "ENOENT" ? "there is no such file" : code === "EISDIR" ? "is a folder" : (cause as Error).message;
    throw new BadInput(`${path}: ${why}; expected ${what}`);
  }
}

/** One call of the system reads 2 GiB at most; SAM ViT-H has more. */
const PIECE = 2 ** 30;

async function readWhole(path: string): Promise<Uint8Array> {
  const file = await open(path);
  try {
    const { size } = await file.stat();
    // Pipes and the like tell no size.
    if (size < PIECE) return await file.readFile();
    if (size > constants.MAX_LENGTH)
      throw new Error(`has ${size} bytes, more than the ${constants.MAX_LENGTH} that Node holds in one piece`);
    const bytes = new Uint8Array(size);
    let at = 0;
    for (;;) {
      const { bytesRead } = await file.read(bytes, at, Math.min(PIECE, size - at), at);
      at += bytesRead;
      if (bytesRead === 0 || at === size) return bytes.subarray(0, at);
    }
  } finally {
    await file.close();
  }
}
