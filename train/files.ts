/** Files that survive a crash: each is written beside its place, flushed and renamed, so that a reader sees the old or the new one, whole. */
import { constants } from "node:buffer";
import { type FileHandle, open } from "node:fs/promises";
import { dirname } from "node:path";
import { platform } from "../engine/index.ts";
import { BadInput } from "./errors.ts";
import { makeFolders } from "./folders.ts";

/** Bytes of one read. */
const PIECE = 2 ** 26;

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
    const file = await open(path);
    try {
      return await readAll(file, memory);
    } finally {
      await file.close();
    }
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    const why =
      code === "ENOENT" ? "there is no such file" : code === "EISDIR" ? "is a folder" : (cause as Error).message;
    throw new BadInput(`${path}: ${why}; expected ${what}`);
  }
}

/** In pieces: Node reads at most 2 GiB at once, and SAM ViT-H's weights take 2.4. */
async function readAll(file: FileHandle, memory: (size: number) => ArrayBuffer): Promise<Uint8Array> {
  const stat = await file.stat();
  if (!stat.isFile()) return file.readFile(); // A pipe does not know its size.
  const { size } = stat;
  if (size > constants.MAX_LENGTH)
    throw new Error(`has ${size} bytes, more than the ${constants.MAX_LENGTH} that Node holds in one piece`);
  const bytes = new Uint8Array(memory(size));
  for (let at = 0; at < size; ) {
    const { bytesRead } = await file.read(bytes, at, Math.min(PIECE, size - at), at);
    if (bytesRead === 0) return bytes.subarray(0, at);
    at += bytesRead;
  }
  return bytes;
}
