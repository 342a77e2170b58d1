// Tensors on the host, as files hold them, whatever the file's format.
import type { FileTensor, FileType } from "../../engine/safetensors.ts";

/** Contiguous, row-major, little-endian; types under safetensors' names. */
export type HostTensor = FileTensor;

export const ITEM_BYTES: Record<FileType, number> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
};

/** A file of weights that cannot be used: the message names the file, the tensor and what is wrong. */
export class CheckpointError extends Error {
  override readonly name = "CheckpointError";
}
