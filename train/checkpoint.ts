/**
 * Checkpoints: all that a run needs to go on bit for bit, in one safetensors file, so that it is there as a whole or not at all.
 *
 *   <run>/checkpoints/step-00000100.safetensors   `model.<name>`, `optimizer.<group>.<index>.<m|v>`; metadata: format, state and
 *                                                 config (JSON), sha256 of all that
 *   <run>/last, <run>/best                        one line: the name of a file in checkpoints/
 *
 * A checkpoint is written beside its place, flushed and renamed; only then `last` moves on and old files are removed, so that a kill at
 * any moment leaves a complete one behind. Weights that are not finite are never written: the last good checkpoint stays.
 */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import {
  type Device,
  encodeSafetensors,
  type FileTensor,
  fileNumbers,
  fileTensor,
  firstBeyondHalf,
  type nn,
  type optim,
  parseSafetensors,
  type SafetensorsFile,
  scope,
  type Tensor,
} from "../engine/index.ts";
import { mask2FormerNames } from "../model/index.ts";
import { nameTensors } from "../model/weights/index.ts";
import { BadInput } from "./errors.ts";
import { readNamed, writeWhole } from "./files.ts";
import { checkFinite, NotFinite } from "./finite.ts";
import { readWeightFile, refusing, type WeightFile } from "./weights.ts";

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

/** A checkpoint that has been read and found whole. */
export interface Checkpoint extends LoadedCheckpoint {
  path: string;
  /** Puts it into a model and, to go on training, its optimizer. Throws BadInput where it does not fit. */
  restore(gpu: Device, target: { model: nn.Module; optimizer?: optim.AdamW }): void;
}

/** The file is not as it was written, so that an older one may stand in for it. */
class Damaged extends BadInput {}

/** Writes a checkpoint and moves `last` (and `best`) to it. Returns its path. Throws NotFinite where a weight is no number. */
export async function saveCheckpoint(
  run: string,
  step: number,
  savable: Savable,
  options: Retention = {},
): Promise<string> {
  const { model, optimizer, state, config } = savable;
  const weights = await scope(async () => {
    const tensors = new Map<string, Tensor>();
    for (const [name, x] of model.stateDict()) tensors.set(MODEL + name, x);
    const found = await hostTensors(tensors);
    checkFinite(found, step);
    for (const [name, x] of await hostTensors(optimizer.stateDict())) found.set(OPTIMIZER + name, x);
    return found;
  });
  const metadata = {
    format: FORMAT,
    state: JSON.stringify({ ...state, optimizerSteps: optimizer.steps }),
    config: JSON.stringify(config),
  };
  const path = checkpointPath(run, step);
  await writeWhole(path, encodeSafetensors(weights, { ...metadata, sha256: checksum(weights, metadata) }));
  await writeWhole(join(run, "last"), `${basename(path)}\n`);
  if (options.best) await markBest(run, step);
  await prune(run, options.keep ?? 3, path);
  return path;
}

export function checkpointPath(run: string, step: number): string {
  return join(run, "checkpoints", `step-${String(step).padStart(8, "0")}.safetensors`);
}

/** Moves `best` to the checkpoint of a step that was saved before. */
export async function markBest(run: string, step: number): Promise<void> {
  await writeWhole(join(run, "best"), `${basename(checkpointPath(run, step))}\n`);
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
  const checkpoint = await openCheckpoint(path);
  checkpoint.restore(gpu, target);
  return checkpoint;
}

/**
 * The checkpoint that a run goes on from; undefined where it has none. Where the newest one is damaged it is an older one: `warn` is told,
 * and the damaged file keeps its bytes under a name that nobody takes for a checkpoint.
 */
export async function newestCheckpoint(run: string, warn: (line: string) => void): Promise<Checkpoint | undefined> {
  const newest = latestCheckpoint(run);
  if (!newest) return undefined;
  const older = checkpointFiles(run).filter((name) => name < basename(newest));
  const damaged = new Map<string, string>();
  for (const path of [newest, ...older.reverse().map((name) => join(run, "checkpoints", name))]) {
    try {
      const found = await openCheckpoint(path);
      for (const [file, message] of damaged) {
        await rename(file, `${file}.damaged`);
        warn(`${message}; it is now ${basename(file)}.damaged, and the run goes on from ${path}`);
      }
      return found;
    } catch (cause) {
      if (!(cause instanceof Damaged)) throw cause;
      damaged.set(path, cause.message);
    }
  }
  throw new BadInput(
    `${damaged.get(newest)}; ${run} has no other checkpoint that is whole: start another run with run=DIR`,
  );
}

/** Reads a checkpoint whole and checks it. Throws BadInput that names the file. */
async function openCheckpoint(path: string): Promise<Checkpoint> {
  const file = await parse(path);
  if (file.metadata.format !== FORMAT)
    throw new BadInput(
      `${path}: is no training checkpoint (format ${JSON.stringify(file.metadata.format ?? "unknown")}, expected "${FORMAT}")`,
    );
  checkWhole(path, file);
  const state = json(path, "state", file.metadata.state);
  return {
    path,
    state,
    config: json(path, "config", file.metadata.config),
    restore(gpu, { model, optimizer }) {
      // Model and optimizer have copies: the file's own are gone when they have.
      scope(() => fitted(path, () => model.loadStateDict(tensorsUnder(gpu, path, file, MODEL))));
      if (!optimizer) return;
      scope(() => {
        const moments = tensorsUnder(gpu, path, file, OPTIMIZER);
        fitted(path, () => optimizer.loadStateDict(moments, Number(state.optimizerSteps)));
      });
    },
  };
}

/** Runs a step or a save; where a number is not finite, the error tells which checkpoint is left and what to do. */
export async function keepingGood<T>(run: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (!(cause instanceof NotFinite)) throw cause;
    const kept = latestCheckpoint(run);
    throw new NotFinite(
      `${run}: ${cause.message}; the last good state ${kept ? `is ${kept}` : "was not saved yet"}; try a lower optim.lr or a tighter optim.clip`,
    );
  }
}

/** State and configuration of a checkpoint, from its metadata. */
export function checkpointHead(path: string, { state, config }: Record<string, string>): LoadedCheckpoint {
  return { state: state ? json(path, "state", state) : {}, config: json(path, "config", config) };
}

/** Writes weights alone, for shipping: `half` rounds them to f16. Tensors with a number that f16 cannot hold stay f32. */
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

/** Weights from a file of weights alone, in any format and from elsewhere, or the model's part of a checkpoint. */
export async function readWeights(gpu: Device, path: string): Promise<Weights> {
  return weightsOf(gpu, await readWeightFile(path, "a file of weights"));
}

/** The same of a file that was read. */
export async function weightsOf(gpu: Device, { tensors, metadata, file }: WeightFile): Promise<Weights> {
  checkWhole(file, { tensors, metadata });
  const { format = "" } = metadata;
  if (format === FORMAT) return { weights: tensorsUnder(gpu, file, { tensors }, MODEL), metadata };
  if (format.startsWith("wgpu-wish ")) return { weights: tensorsUnder(gpu, file, { tensors }, ""), metadata };
  const named = await refusing(() => nameTensors(tensors, file));
  const weights = tensorsUnder(gpu, file, named, "");
  if (named.family !== "mask2former") return { weights, metadata };
  return { weights: fitted(file, () => mask2FormerNames(weights)), metadata };
}

/** As files hold them; `half` rounds those to f16 that it can hold. */
export async function hostTensors(
  tensors: ReadonlyMap<string, Tensor>,
  half = false,
): Promise<Map<string, FileTensor>> {
  const types = { f32: "F32", f16: "F16", i32: "I32", u32: "U32", bool: "BOOL" } as const;
  const entries = [...tensors].map(async ([name, x]) => {
    const values = await x.toArray();
    const narrow = half && x.dtype === "f32" && firstBeyondHalf(values) < 0;
    return [name, fileTensor(values, x.shape, narrow ? "F16" : types[x.dtype])] as const;
  });
  return new Map(await Promise.all(entries));
}

async function parse(path: string): Promise<SafetensorsFile> {
  const bytes = await readNamed(path, "a safetensors file");
  try {
    return parseSafetensors(bytes, path);
  } catch (cause) {
    throw new Damaged((cause as Error).message);
  }
}

/** Files without a checksum are older than checksums, or weights alone. */
function checkWhole(path: string, { tensors, metadata }: SafetensorsFile): void {
  const { sha256, ...rest } = metadata;
  if (sha256 !== undefined && sha256 !== checksum(tensors, rest))
    throw new Damaged(`${path}: its bytes are not those that were written (the checksum differs); the file is damaged`);
}

/** Over names, types, shapes and bytes of the tensors and all other metadata. */
function checksum(tensors: ReadonlyMap<string, FileTensor>, metadata: Record<string, string>): string {
  const hash = createHash("sha256");
  for (const [name, { dtype, shape, data }] of tensors) hash.update(JSON.stringify([name, dtype, shape])).update(data);
  for (const entry of Object.entries(metadata).sort()) hash.update(JSON.stringify(entry));
  return hash.digest("hex");
}

function tensorsUnder(
  gpu: Device,
  path: string,
  file: Pick<SafetensorsFile, "tensors">,
  prefix: string,
): Map<string, Tensor> {
  const out = new Map<string, Tensor>();
  for (const [name, t] of file.tensors) {
    if (!name.startsWith(prefix)) continue;
    const dtype = t.dtype === "BOOL" ? "bool" : t.dtype === "U32" ? "u32" : undefined;
    out.set(name.slice(prefix.length), gpu.tensor(fileNumbers(t, `${path}: ${name}`), t.shape, dtype ? { dtype } : {}));
  }
  return out;
}

function fitted<T>(path: string, load: () => T): T {
  try {
    return load();
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
  throw new Damaged(
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

/** Removes all but the newest `keep` files, `best` and the one just written, and what a killed writer left. */
async function prune(run: string, keep: number, written: string): Promise<void> {
  const folder = join(run, "checkpoints");
  const stay = [written, named(run, "best")];
  const old = checkpointFiles(run).slice(0, -Math.max(1, keep));
  const torn = readdirSync(folder).filter((name) => name.endsWith(".tmp"));
  for (const path of [...old, ...torn].map((name) => join(folder, name)))
    if (!stay.includes(path)) await rm(path, { force: true });
}
