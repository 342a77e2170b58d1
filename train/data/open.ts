/** Files that the user names, read whole: what is wrong with them is said in one line. */
import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { BadInput } from "../errors.ts";

/** `what` names the file in errors, as in "the list of classes". Throws BadInput. */
export function readText(path: string, what: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw notRead(path, error, what);
  }
}

/** As readText, while other work goes on. */
export async function readBytes(path: string, what: string): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (error) {
    throw notRead(path, error, what);
  }
}

function notRead(path: string, error: unknown, what: string): BadInput {
  const code = (error as NodeJS.ErrnoException).code;
  const clauses: Record<string, string> = {
    ENOENT: "does not exist",
    EISDIR: "is a folder, a file is expected",
    EACCES: "may not be read",
    EPERM: "may not be read",
  };
  return new BadInput(`${path}: ${what} ${clauses[code ?? ""] ?? `cannot be read (${(error as Error).message})`}`);
}
