/** What the tests of convert share: a folder, and convert itself, in this process. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import * as assert from "uvu/assert";
import { run } from "../../cli/convert.ts";
import { Terminal } from "../../cli/terminal.ts";
import { fileTensor } from "../../engine/index.ts";
import type { readCheckpoint } from "../../model/weights/index.ts";
import { BadInput } from "../../train/errors.ts";
import { testDevice } from "../device.ts";

export const folder = mkdtempSync(join(tmpdir(), "convert-"));
export const at = (...names: string[]) => join(folder, ...names);
export const fixture = (name: string) => fileURLToPath(new URL(`../parity/${name}`, import.meta.url));
export const asset = (name: string) => fileURLToPath(new URL(`../../assets/${name}`, import.meta.url));
export const bytesOf = (path: string) => new Uint8Array(readFileSync(path));

export interface Report {
  model: string;
  format: string;
  tensors: number;
  modules: { module: string; tensors: number; parameters: number; types: string[] }[];
  unused: string[];
  config?: object;
}

/** Its report and its text. */
export async function convert(
  from: string,
  to: string,
  options: { any?: boolean } = {},
): Promise<{ report: Report; text: string }> {
  let outcome: { report: Report; text: string } | undefined;
  const terminal = new Terminal();
  terminal.result = (document, text) => {
    outcome = { report: document as Report, text };
  };
  const interruptible = () => new AbortController().signal;
  await run({ args: [from, to], options, terminal, open: testDevice, interruptible });
  return outcome!;
}

/** The message of BadInput; the output is not there, or as it was. */
export async function refusal(from: string): Promise<string> {
  for (const before of [undefined, "as it was"]) {
    const to = at("refused.safetensors");
    rmSync(to, { force: true });
    if (before !== undefined) writeFileSync(to, before);
    const there = readdirSync(folder);
    try {
      await convert(from, to);
      return "nothing was thrown";
    } catch (error) {
      if (!(error instanceof BadInput)) throw error;
      assert.not.match(error.message, /\n/);
      assert.equal(readdirSync(folder), there);
      if (before === undefined) continue;
      assert.is(readFileSync(to, "utf8"), before);
      return error.message;
    }
  }
  throw new Error("not reached");
}

export const zeros = (shape: readonly number[], whole = false) =>
  fileTensor(new Array(shape.reduce((product, d) => product * d, 1)).fill(0), shape, whole ? "I32" : "F32");

export const contents = (tensors: ReturnType<typeof readCheckpoint>["tensors"]) =>
  [...tensors].map(([key, { dtype, shape, data }]) => [key, dtype, [...shape], Buffer.from(data).toString("base64")]);
