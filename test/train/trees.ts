/** Small data sets in formats of their own, written into a folder; see test/parity/make_formats.py. */
import { cpSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import * as assert from "uvu/assert";
import type { Rle } from "../../train/data/mask.ts";
import { BadInput } from "../../train/errors.ts";

export interface Wanted {
  label: string;
  rle?: Rle;
  bbox: number[];
  area: number;
  crowd: number;
}
const { files, want }: { files: Record<string, string>; want: Record<string, Record<string, Wanted[]>> } = JSON.parse(
  readFileSync(new URL("../parity/data/formats.json", import.meta.url), "utf8"),
);
export const root = mkdtempSync(join(tmpdir(), "wgpu-wish-formats-"));
for (const [path, data] of Object.entries(files)) {
  mkdirSync(dirname(join(root, path)), { recursive: true });
  writeFileSync(join(root, path), Buffer.from(data, "base64"));
}
export const voc = join(root, "VOCdevkit", "VOC2012");
export const sbd = join(root, "benchmark_RELEASE", "dataset");
export const labelme = join(root, "labelme");

/** A copy of a part of the trees, to be damaged. */
let copies = 0;
export function copyOf(path: string): string {
  const copy = join(root, `copy${copies++}`);
  cpSync(path, copy, { recursive: true });
  return copy;
}

export async function refused(work: () => unknown, reason: RegExp): Promise<void> {
  try {
    await work();
  } catch (error) {
    assert.instance(error, BadInput, String((error as Error).stack));
    assert.not.match((error as Error).message, /\n/);
    assert.match((error as Error).message, reason);
    return;
  }
  assert.unreachable(`was not refused: ${reason}`);
}

export { want };
