/**
 * Files that the user names, read whole: what is wrong with them is said in one line. Pipes are files, too (`<(…)` of a shell); devices are
 * not: most never end.
 */
import { constants as buffers } from "node:buffer";
import { constants, openSync, readFileSync, type Stats, statSync } from "node:fs";
import { open, stat } from "node:fs/promises";
import { Socket } from "node:net";
import { BadInput } from "../errors.ts";

/** Bytes of one read: Node reads at most 2 GiB at once, and SAM ViT-H's weights take 2.4. */
const PIECE = 2 ** 26;
/** Bytes that a pipe may give: more than the largest weights that are known here. */
const MOST_PIPED = 3 * 2 ** 30;

/** `what` names the file in errors, as in "the list of classes". Throws BadInput. */
export function readText(path: string, what: string): string {
  try {
    checkKind(statSync(path));
    return readFileSync(path, "utf8");
  } catch (error) {
    throw notRead(path, error, what);
  }
}

/** As readText, while other work goes on. */
export async function readBytes(path: string, what: string): Promise<Uint8Array> {
  try {
    return await readWhole(path);
  } catch (error) {
    throw notRead(path, error, what);
  }
}

/** The system's errors, or one that says "is …" or "gives …" of the file. @param most bytes of a pipe */
export async function readWhole(
  path: string,
  memoryOf: (size: number) => ArrayBuffer = (size) => new ArrayBuffer(size),
  most = MOST_PIPED,
): Promise<Uint8Array> {
  const found = await stat(path);
  checkKind(found);
  if (found.isFIFO()) return readPipe(path, memoryOf, most);
  const file = await open(path);
  try {
    const { size } = await file.stat();
    if (size > buffers.MAX_LENGTH)
      throw new Error(`has ${size} bytes, more than the ${buffers.MAX_LENGTH} that Node holds in one piece`);
    const bytes = new Uint8Array(memoryOf(size));
    for (let at = 0; at < size; ) {
      const { bytesRead } = await file.read(bytes, at, Math.min(PIECE, size - at), at);
      if (bytesRead === 0) return bytes.subarray(0, at);
      at += bytesRead;
    }
    return bytes;
  } finally {
    await file.close();
  }
}

/** Opened without waiting for who writes to it: a thread that waits in the system keeps the process from ending at a signal. */
async function readPipe(path: string, memoryOf: (size: number) => ArrayBuffer, most: number): Promise<Uint8Array> {
  const pipe = new Socket({
    fd: openSync(path, constants.O_RDONLY | constants.O_NONBLOCK),
    readable: true,
    writable: false,
  });
  const pieces: Uint8Array[] = [];
  let size = 0;
  // Leaving the loop closes it.
  for await (const piece of pipe as AsyncIterable<Uint8Array>) {
    size += piece.length;
    if (size > most) throw new Error(`gives more than ${most} bytes, which is the most that is read from a pipe`);
    pieces.push(piece);
  }
  const bytes = new Uint8Array(memoryOf(size));
  let at = 0;
  for (const piece of pieces) {
    bytes.set(piece, at);
    at += piece.length;
  }
  return bytes;
}

function checkKind(found: Stats): void {
  if (found.isFile() || found.isFIFO()) return;
  const [what, code] = found.isDirectory() ? ["is a folder", "EISDIR"] : ["is no regular file", "ODD"];
  throw Object.assign(new Error(what), { code });
}

function notRead(path: string, error: unknown, what: string): BadInput {
  const code = (error as NodeJS.ErrnoException).code;
  const clauses: Record<string, string> = {
    ENOENT: "does not exist",
    EISDIR: "is a folder, a file is expected",
    EACCES: "may not be read",
    EPERM: "may not be read",
    ODD: "is no regular file",
  };
  return new BadInput(`${path}: ${what} ${clauses[code ?? ""] ?? `cannot be read (${(error as Error).message})`}`);
}
