// Checkpoints in several files: transformers' shards with an index, and ONNX models with external data. Which files these are is told here;
// reading them is the caller's work.
import { CheckpointError } from "./tensors.ts";

/** The bytes of the other files, by their paths in the first one's folder. */
export type Parts = ReadonlyMap<string, Uint8Array>;

const MOST_PARTS = 10_000;

/** A path in the folder or below it, on every system. `where` stands in the error. */
export function checkInside(path: string, where: string): void {
  const steps = path.split("/");
  const inside = path !== "" && !/^[a-z]:|\\|\0/i.test(path) && !steps.some((step) => step === "" || step === "..");
  if (!inside)
    throw new CheckpointError(
      `${where}: names the file "${path}", which is outside of the model's own folder; refused`,
    );
}

/** model.safetensors.index.json and pytorch_model.bin.index.json: {"metadata": {…}, "weight_map": {key: file}}. */
export function readIndex(bytes: Uint8Array, file: string): Map<string, string> {
  let index: unknown;
  try {
    index = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new CheckpointError(`${file}: is no JSON (${(error as Error).message})`);
  }
  const map = (index as { weight_map?: unknown } | null)?.weight_map;
  if (typeof map !== "object" || map === null || Array.isArray(map))
    throw new CheckpointError(`${file}: holds no "weight_map", so it is no index of a checkpoint's parts`);
  const entries = Object.entries(map);
  if (entries.length === 0) throw new CheckpointError(`${file}: its "weight_map" is empty`);
  for (const [key, part] of entries) {
    if (typeof part !== "string") throw new CheckpointError(`${file}: tensor ${key}: its file is no text`);
    checkInside(part, `${file}: tensor ${key}`);
    if (/\.json$/i.test(part)) throw new CheckpointError(`${file}: tensor ${key}: ${part} is no file of weights`);
  }
  const found = new Map(entries as [string, string][]);
  if (new Set(found.values()).size > MOST_PARTS)
    throw new CheckpointError(`${file}: names more than ${MOST_PARTS} files`);
  return found;
}
