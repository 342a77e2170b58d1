// Any file of weights -> named tensors on the host. The content decides on the format; the name stands in the errors and settles doubts.
import { parseSafetensors } from "../../engine/safetensors.ts";
import { readDetectron } from "./detectron.ts";
import { readOnnx } from "./onnx.ts";
import { CheckpointError, type HostTensor } from "./tensors.ts";
import { readTorch } from "./torch.ts";

export interface Checkpoint {
  readonly tensors: Map<string, HostTensor>;
  /** Of safetensors; empty for the other formats. */
  readonly metadata: Record<string, string>;
  readonly format: "safetensors" | "torch" | "pickle" | "onnx";
}

/** Reads .safetensors, .pt, .pth, detectron2's .pkl and the initialisers of .onnx. Nothing in the file is executed. */
export function readCheckpoint(bytes: Uint8Array, file: string): Checkpoint {
  if (bytes.length === 0) throw new CheckpointError(`${file}: the file is empty`);
  if (/\.onnx$/i.test(file)) return { tensors: readOnnx(bytes, file), metadata: {}, format: "onnx" };
  if (looksLikeSafetensors(bytes)) {
    try {
      return { ...parseSafetensors(bytes, file), format: "safetensors" };
    } catch (error) {
      throw new CheckpointError(error instanceof Error ? error.message : String(error));
    }
  }
  if (/\.pkl$/i.test(file)) return { tensors: readDetectron(bytes, file), metadata: {}, format: "pickle" };
  if (/\.safetensors$/i.test(file))
    throw new CheckpointError(`${file}: no safetensors file: it does not begin with the length of a header`);
  return { tensors: readTorch(bytes, file), metadata: {}, format: "torch" };
}

/** Eight bytes of length, then JSON. */
function looksLikeSafetensors(bytes: Uint8Array): boolean {
  return bytes.length > 8 && bytes[8] === 0x7b && bytes[6] === 0 && bytes[7] === 0;
}
