/** Files of weights that the user names: one file of any format, shards with their index, an ONNX model with its data, or a folder of these. */
import { existsSync, readdirSync, statSync } from "node:fs";
import { realpath } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import type { Device } from "../engine/index.ts";
import {
  type LoadOptions,
  loadSam,
  readSam,
  type Sam,
  type SamCheckpoint,
  type SamSource,
} from "../model/sam/index.ts";
import {
  type Checkpoint,
  CheckpointError,
  checkOnnx,
  checkpointParts,
  type Parts,
  readCheckpoint,
} from "../model/weights/index.ts";
import { BadInput } from "./errors.ts";
import { readWeightBytes } from "./files.ts";
import { CONFIG_FILE, samHeadsBeside } from "./hub-config.ts";

/** What save_pretrained writes, the usual one first. */
const IN_FOLDER = [
  "model.safetensors.index.json",
  "model.safetensors",
  "pytorch_model.bin.index.json",
  "pytorch_model.bin",
];
const ENDING = /\.(safetensors|pt|pth|ckpt|bin|pkl|onnx)$/i;

export interface WeightFile extends Checkpoint {
  /** The file that was read first: of a folder the one in it. */
  readonly file: string;
  /** All that were read, and their bytes. */
  readonly files: readonly string[];
  readonly bytes: readonly Uint8Array[];
}

/** Reads weights from a file or folder with all that belongs to it. Throws BadInput in one line; `what` says what was expected there. */
export async function readWeightFile(path: string, what: string): Promise<WeightFile> {
  const file = fileOf(path, what);
  const bytes = await readWeightBytes(file, what);
  return refusing(async () => {
    const parts = await readParts(bytes, file);
    const files = [file, ...[...parts.keys()].map((name) => join(dirname(file), name))];
    return { ...readCheckpoint(bytes, file, parts), file, files, bytes: [bytes, ...parts.values()] };
  });
}

/** The files that reading weights reads, and what may stand beside them: none of them is to be written over. Throws BadInput as reading does. */
export async function filesOf(path: string, what: string): Promise<string[]> {
  const file = fileOf(path, what);
  const folder = dirname(file);
  const whole = [path, file, join(folder, CONFIG_FILE)];
  // Others have no parts; a pipe can be read once.
  if (!/\.(json|onnx)$/i.test(file) || !statSync(file, { throwIfNoEntry: false })?.isFile()) return whole;
  const bytes = await readWeightBytes(file, what);
  return refusing(() => [...whole, ...checkpointParts(bytes, file).map((name) => join(folder, name))]);
}

/** The bytes of an ONNX model and of the files that its data lies in. */
export interface OnnxFile {
  readonly bytes: Uint8Array;
  readonly parts: Parts;
}

/** Reads a model that is to be run as it is, and refuses what would be refused of weights. */
export async function readOnnxFile(file: string, what: string): Promise<OnnxFile> {
  const bytes = await readWeightBytes(file, what);
  return refusing(async () => {
    const parts = await readParts(bytes, file);
    checkOnnx(bytes, file, parts);
    return { bytes, parts };
  });
}

/** Gives the memory back at once: the files of a large model are not to wait there for a collection of garbage. */
export function releaseOnnxFile({ bytes, parts }: OnnxFile): void {
  for (const { buffer } of [bytes, ...parts.values()])
    if (buffer instanceof ArrayBuffer && buffer.resizable) buffer.resize(0);
}

/** Reads a SAM model's weights: throws BadInput, too, where they are no SAM's. */
export async function readSamFile(path: string, what: string): Promise<WeightFile> {
  const weights = await readWeightFile(path, what);
  await readSamOf(weights);
  return weights;
}

/** The sizes and tensors of a SAM model in a file that was read. Throws BadInput where they are no SAM's. */
export function readSamOf(weights: WeightFile): Promise<SamCheckpoint> {
  return refusing(() => readSam(samSource(weights), weights.file));
}

/** A frozen SAM. Its file's bytes are given up: they shrink as they go to the GPU. */
export function loadSamFile(gpu: Device, weights: WeightFile, options: LoadOptions = {}): Promise<Sam> {
  return refusing(() => loadSam(gpu, samSource(weights), weights.file, options));
}

/** Both in one. */
export async function openSam(gpu: Device, path: string, what: string): Promise<Sam> {
  return loadSamFile(gpu, await readSamFile(path, what));
}

function samSource(weights: WeightFile): SamSource {
  return { ...weights, decoderHeads: samHeadsBeside(weights) };
}

/** Names and values come from the file: whatever they hold, the message stays one line of readable length. */
export const refusal = (text: string): BadInput => new BadInput(new CheckpointError(text).message);

/** What a file of weights gets wrong is for the user to mend. */
export async function refusing<T>(work: () => T | Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof CheckpointError) throw new BadInput(error.message);
    throw error;
  }
}

/** The path itself, or of a folder its file of weights. */
function fileOf(path: string, what: string): string {
  if (!existsSync(path) || !statSync(path).isDirectory()) return path;
  const usual = IN_FOLDER.find((name) => existsSync(join(path, name)));
  if (usual) return join(path, usual);
  const files = readdirSync(path).filter((name) => ENDING.test(name));
  if (files.length === 1) return join(path, files[0]!);
  const there = files.length === 0 ? "no file of weights" : `${files.length} files of weights`;
  throw new BadInput(`${path}: is a folder with ${there}; expected ${what}: name the file, or the index of its shards`);
}

async function readParts(bytes: Uint8Array, file: string): Promise<Parts> {
  const parts = new Map<string, Uint8Array>();
  for (const name of checkpointParts(bytes, file)) parts.set(name, await readPart(file, name));
  return parts;
}

/** Data of an ONNX model lies in its folder, links followed; shards may be links, as in Hugging Face's cache. */
async function readPart(file: string, name: string): Promise<Uint8Array> {
  const path = join(dirname(file), name);
  if (/\.onnx$/i.test(file) && existsSync(path)) {
    const place = relative(await realpath(dirname(file)), await realpath(path));
    if (place.startsWith("..") || join(place) !== join(name))
      throw new CheckpointError(
        `${file}: its data file ${name} is a link; refused, for it may lie outside of the folder`,
      );
  }
  return readWeightBytes(path, `a part of ${file}`);
}
