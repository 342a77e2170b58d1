/** `--dump`: a file of raw tensors that the user names. What is wrong with its place is said before any work. */
import { existsSync, statSync } from "node:fs";
import { dirname, relative, resolve, sep } from "node:path";
import { makeWritable } from "./claim.ts";
import { BadInput } from "./errors.ts";
import { keepInputs, placeOf, removeEmpty } from "./folders.ts";

/** Endings of what stands in the folder --out. */
const OUTPUT = /\.(png|json)$/i;

/**
 * Throws BadInput where the file cannot be written, would take the place of one of the inputs, or of what is to be written to the folder
 * `out`. Leaves nothing behind.
 */
export function checkDump(dump: string, out: string, inputs: readonly string[]): void {
  keepInputs(dump, inputs, " with --dump");
  const refuse = (what: string): never => {
    throw new BadInput(`${dump}: ${what}; name another file with --dump`);
  };
  const path = resolve(dump);
  const there = existsSync(path) ? statSync(path) : undefined;
  if (there?.isDirectory() || /[\\/]$/.test(dump)) refuse("is a folder");
  if (there && !there.isFile()) refuse("is no regular file");
  const inside = relative(placeOf(out), placeOf(dump)).split(sep);
  // On the way from --out to it there are but folders above: one of them is to be the file itself.
  if (inside.every((name) => name === ".." || name === "")) refuse(`stands where the folder --out ${out} is to be`);
  if (OUTPUT.test(inside[0]!)) refuse(`may be what is written to --out ${out}`);
  removeEmpty(makeWritable(dirname(path), "--dump FILE"));
}
