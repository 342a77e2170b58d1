/**
 * Checkpoints: all that a run needs to go on bit for bit, in one safetensors file, so that it is there as a whole or not at all.
 *
 *   <run>/checkpoints/step-00000100.safetensors   `model.<name>`, `optimizer.<group>.<index>.<m|v>`; metadata: format, state and
 *                                                 config (JSON)
 *   <run>/last, <run>/best                        one line: the name of a file in checkpoints/
 *
 * A checkpoint is written beside its place, flushed and renamed; only then `last` moves on and old files are removed, so that a kill at
 * any moment leaves a complete one behind.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import {
  type Device,
  encodeSafetensors,
  type FileTensor,
  fileNumbers,
  fileTensor,
  type nn,
  type optim,
  parseSafetensors,
  type SafetensorsFile,
  type Tensor,
} from "../engine/index.ts";
import { BadInput } from "./errors.ts";
import { readNamed, writeWhole } from "./files.ts";

const FORMAT = "wgpu-wish checkpoint 1";
const MODEL = "model.";
const OPTIMIZER = "optimizer.";

export interface Savable {
  model: nn.Module;
  optimizer: optim.AdamW;
  /** Plain JSON: step, data position, random counters, keys of caches. The optimizer's step count is added. */
  state: object;
  /** The run's resolved configuration, plain JSON. */
  config: object;
}

export interface Retention {
  /** How many of the newest files stay; `best` stays besides. Default 3. */
  keep?: number;
  /** This one is the best so far. */
  best?: boolean;
}

export interface LoadedCheckpoint {
  state: Record<string, unknown>;
  config: Record<string, unknown>;
}

/** Writes a checkpoint and moves `last` (and `best`) to it. Returns its path. */
export async function saveCheckpoint(
  run: string,
  step: number,
  savable: Savable,
  options: Retention = {},
): Promise<string> {
  const { model, optimizer, state, config } = savable;
  const tensors = new Map<string, Tensor>();
  for (const [name, x] of model.stateDict()) tensors.set(MODEL + name, x);
  for (const [name, x] of optimizer.stateDict()) tensors.set(OPTIMIZER + name, x);
  const metadata = {
    format: FORMAT,
    state: JSON.stringify({ ...state, optimizerSteps: optimizer.steps }),
    config: JSON.stringify(config),
  };
  const name = `step-${String(step).padStart(8, "0")}.safetensors`;
  const path = join(run, "checkpoints", name);
  await writeWhole(path, encodeSafetensors(await hostTensors(tensors), metadata));
  await writeWhole(join(run, "last"), `${name}\n`);
  if (options.best) await writeWhole(join(run, "best"), `${name}\n`);
  await prune(run, options.keep ?? 3);
  return path;
}

/** Moves `best` to the checkpoint of a step that was saved before. */
export async function markBest(run: string, step: number): Promise<void> {
  await writeWhole(join(run, "best"), `step-${String(step).padStart(8, "0")}.safetensors\n`);
}

/** Path of the newest checkpoint of a run; undefined where there is none. */
export function latestCheckpoint(run: string): string | undefined {
  const files = checkpointFiles(run);
  return named(run, "last") ?? (files.length > 0 ? join(run, "checkpoints", files.at(-1)!) : undefined);
}

/** Path of the checkpoint with the best evaluation; undefined where none was evaluated. */
export function bestCheckpoint(run: string): string | undefined {
  return named(run, "best");
}

/** Loads a checkpoint into a model and, to go on training, its optimizer. Throws BadInput that names the file. */
export async function loadCheckpoint(
  gpu: Device,
  path: string,
  target: { model: nn.Module; optimizer?: optim.AdamW },
): Promise<LoadedCheckpoint> {
  const file = await parse(path);
  if (file.metadata.format !== FORMAT)
    throw new BadInput(
      `${path}: is no training checkpoint (format ${JSON.stringify(file.metadata.format ?? "unknown")}, expected "${FORMAT}")`,
    );
  const state = json(path, "state", file.metadata.state);
  fitted(path, () => target.model.loadStateDict(tensorsUnder(gpu, path, file, MODEL)));
  if (target.optimizer) {
    const { optimizer } = target;
    fitted(path, () => optimizer.loadStateDict(tensorsUnder(gpu, path, file, OPTIMIZER), Number(state.optimizerSteps)));
  }
  return { state, config: json(path, "config", file.metadata.config) };
}

/** State and configuration of a checkpoint without its tensors' upload. */
export async function readCheckpointHead(path: string): Promise<LoadedCheckpoint> {
  const { metadata } = await parse(path);
  return {
    state: metadata.state ? json(path, "state", metadata.state) : {},
    config: json(path, "config", metadata.config),
  };
}

/** Writes weights alone, for shipping: `half` rounds them to f16. */
export async function saveWeights(
  path: string,
  model: nn.Module,
  metadata: Record<string, string>,
  options: { half?: boolean } = {},
): Promise<void> {
  await writeWhole(path, encodeSafetensors(await hostTensors(model.stateDict(), options.half), metadata));
}

export interface Weights {
  weights: Map<string, Tensor>;
  metadata: Record<string, string>;
}

/** Weights from a file of weights alone, or the model's part of a checkpoint. */
export async function readWeights(gpu: Device, path: string): Promise<Weights> {
  const file = await parse(path);
  const prefix = file.metadata.format === FORMAT ? MODEL : "";
  return { weights: tensorsUnder(gpu, path, file, prefix), metadata: file.metadata };
}

async function hostTensors(tensors: ReadonlyMap<string, Tensor>, half = false): Promise<Map<string, FileTensor>> {
  const types = { f32: half ? "F16" : "F32", f16: "F16", i32: "I32", u32: "U32", bool: "BOOL" } as const;
  const entries = [...tensors].map(
    async ([name, x]) => [name, fileTensor(await x.toArray(), x.shape, types[x.dtype])] as const,
  );
  return new Map(await Promise.all(entries));
}

async function parse(path: string): Promise<SafetensorsFile> {
  const bytes = await readNamed(path, "a safetensors file");
  try {
    return parseSafetensors(bytes, path);
  } catch (cause) {
    throw new BadInput((cause as Error).message);
  }
}

function tensorsUnder(gpu: Device, path: string, file: SafetensorsFile, prefix: string): Map<string, Tensor> {
  const out = new Map<string, Tensor>();
  for (const [name, t] of file.tensors) {
    if (!name.startsWith(prefix)) continue;
    const dtype = t.dtype === "BOOL" ? "bool" : t.dtype === "U32" ? "u32" : undefined;
    out.set(name.slice(prefix.length), gpu.tensor(fileNumbers(t, `${path}: ${name}`), t.shape, dtype ? { dtype } : {}));
  }
  return out;
}

function fitted(path: string, load: () => void): void {
  try {
    load();
  } catch (cause) {
    throw new BadInput(`${path}: does not fit this configuration: ${(cause as Error).message}`);
  }
}

function json(path: string, key: string, text: string | undefined): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text ?? "");
    if (typeof value === "object" && value !== null) return value as Record<string, unknown>;
  } catch {
    // Said below, with the file's name.
  }
  throw new BadInput(
    `${path}: the metadata "${key}" is missing or not JSON; the file is not a checkpoint or is damaged`,
  );
}

function checkpointFiles(run: string): string[] {
  const folder = join(run, "checkpoints");
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .filter((name) => /^step-\d+\.safetensors$/.test(name))
    .sort();
}

function named(run: string, pointer: string): string | undefined {
  const file = join(run, pointer);
  if (!existsSync(file)) return undefined;
  const path = join(run, "checkpoints", readFileSync(file, "utf8").trim());
  return existsSync(path) ? path : undefined;
}

/** Removes all but the newest `keep` files and `best`, and what a killed writer left. */
async function prune(run: string, keep: number): Promise<void> {
  const folder = join(run, "checkpoints");
  const best = named(run, "best");
  const old = checkpointFiles(run).slice(0, -Math.max(1, keep));
  const torn = readdirSync(folder).filter((name) => name.endsWith(".tmp"));
  for (const name of [...old, ...torn]) if (join(folder, name) !== best) await rm(join(folder, name), { force: true });
}
