// Any file of weights -> named tensors on the host. The content decides on the format; the name stands in the errors and settles doubts.
import { parseSafetensors } from "../../engine/safetensors.ts";
import { checkFinite } from "./not-finite.ts";
import { onnxParts, readOnnx } from "./onnx.ts";
import { type Parts, readIndex } from "./parts.ts";
import { CheckpointError, type HostTensor } from "./tensors.ts";
import { isLegacyTorch, isZip, readPlainPickle, readTorchLegacy, readTorchZip } from "./torch.ts";

export interface Checkpoint {
  readonly tensors: Map<string, HostTensor>;
  /** Of safetensors; empty for the other formats. */
  readonly metadata: Record<string, string>;
  /** Of sharded checkpoints the shards'. */
  readonly format: "safetensors" | "torch" | "pickle" | "onnx";
}

const isOnnx = (file: string): boolean => /\.onnx$/i.test(file);
const isIndex = (file: string): boolean => /\.json$/i.test(file);

/**
 * Reads .safetensors, .pt, .pth, .bin, pickles such as detectron2's .pkl, the initialisers of .onnx, and an index of shards. Nothing in the
 * file is executed, and the tensors' bytes are the file's own wherever they can be. Weights that are not finite are refused.
 * @param parts the files that `checkpointParts` names
 */
export function readCheckpoint(bytes: Uint8Array, file: string, parts: Parts = new Map()): Checkpoint {
  const checkpoint = readAny(bytes, file, parts);
  const { tensors } = checkpoint;
  if (tensors.size === 0) throw new CheckpointError(`${file}: holds no tensors`);
  if (tensors.has("__metadata__"))
    throw new CheckpointError(`${file}: a tensor is named __metadata__, which safetensors keeps for itself`);
  checkFinite(tensors, file);
  return checkpoint;
}

function readAny(bytes: Uint8Array, file: string, parts: Parts): Checkpoint {
  if (bytes.length === 0) throw new CheckpointError(`${file}: the file is empty`);
  if (isOnnx(file)) return { tensors: readOnnx(bytes, file, parts), metadata: {}, format: "onnx" };
  if (isIndex(file)) return readShards(bytes, file, parts);
  return readOne(bytes, file);
}

/** The other files that a checkpoint consists of, by their paths in its folder. */
export function checkpointParts(bytes: Uint8Array, file: string): string[] {
  if (isOnnx(file)) return onnxParts(bytes, file);
  if (isIndex(file)) return [...new Set(readIndex(bytes, file).values())];
  return [];
}

function readOne(bytes: Uint8Array, file: string): Checkpoint {
  if (looksLikeSafetensors(bytes)) {
    try {
      return { ...parseSafetensors(bytes, file), format: "safetensors" };
    } catch (error) {
      throw new CheckpointError(error instanceof Error ? error.message : String(error));
    }
  }
  if (/\.safetensors$/i.test(file))
    throw new CheckpointError(`${file}: no safetensors file: it does not begin with the length of a header`);
  const of = (tensors: Map<string, HostTensor>, format: Checkpoint["format"]) => ({ tensors, metadata: {}, format });
  if (isZip(bytes)) return of(readTorchZip(bytes, file), "torch");
  if (isLegacyTorch(bytes)) return of(readTorchLegacy(bytes, file), "torch");
  // Protocols 0 and 1 have no mark of their own.
  if (bytes[0] === 0x80 || /\.(pkl|pickle)$/i.test(file)) return of(readPlainPickle(bytes, file), "pickle");
  throw new CheckpointError(
    `${file}: no torch checkpoint: it starts neither as a zip archive nor as a legacy torch file nor as a pickle`,
  );
}

/** The tensors that the index lists, each from the file that it names. */
function readShards(bytes: Uint8Array, file: string, parts: Parts): Checkpoint {
  const index = readIndex(bytes, file);
  const shards = new Map<string, Checkpoint>();
  for (const name of new Set(index.values())) {
    const part = parts.get(name);
    if (!part) throw new CheckpointError(`${file}: its part ${name} was not read`);
    shards.set(name, readAny(part, besides(file, name), new Map()));
  }
  const tensors = new Map<string, HostTensor>();
  for (const [key, name] of index) {
    const tensor = shards.get(name)!.tensors.get(key);
    if (!tensor) throw new CheckpointError(`${file}: tensor ${key} is not in ${name}, which the index names for it`);
    tensors.set(key, tensor);
  }
  for (const [name, shard] of shards)
    for (const key of shard.tensors.keys())
      if (!index.has(key)) throw new CheckpointError(`${file}: does not list tensor ${key} of ${name}`);
  const [{ metadata, format }] = [...shards.values()] as [Checkpoint];
  return { tensors, metadata, format };
}

function besides(file: string, name: string): string {
  return file.slice(0, Math.max(file.lastIndexOf("/"), file.lastIndexOf("\\")) + 1) + name;
}

/** Eight bytes of length, then JSON. */
function looksLikeSafetensors(bytes: Uint8Array): boolean {
  return bytes.length > 8 && bytes[8] === 0x7b && bytes[6] === 0 && bytes[7] === 0;
}
