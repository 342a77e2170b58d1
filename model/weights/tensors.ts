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

const MOST_TEXT = 600;

/** A file of weights that cannot be used: the message, one line, names the file, the tensor and what is wrong. */
export class CheckpointError extends Error {
  override readonly name = "CheckpointError";

  /** Names come from the file: whatever they hold, the message stays one line of readable length. */
  constructor(text: string) {
    const line = text.replace(/[\p{Cc}\p{Zl}\p{Zp}]/gu, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
    super(line.length > MOST_TEXT ? `${line.slice(0, MOST_TEXT / 2)} … ${line.slice(-MOST_TEXT / 2)}` : line);
  }
}

/** Views may share bytes, and entries may be packed: all tensors together may be this much larger than their file. */
const MOST_GROWTH = 16;
const FREE_BYTES = 64 * 2 ** 20;

/** Keeps a small file from filling the memory. */
export class Budget {
  readonly #most: number;
  readonly #file: string;
  #taken = 0;

  constructor(fileBytes: number, file: string) {
    this.#most = MOST_GROWTH * fileBytes + FREE_BYTES;
    this.#file = file;
  }

  /** Before `bytes` are made for what the message calls `name`. */
  take(bytes: number, name: string): void {
    this.#taken += bytes;
    if (this.#taken <= this.#most) return;
    throw new CheckpointError(
      `${this.#file}: with ${name} its contents would take ${this.#taken} bytes, ${MOST_GROWTH} times as much as the file; weights do not, refused`,
    );
  }
}

/** Row-major bytes of a strided view: the source's own where they lie that way already, else a copy. Strides and offset count elements. */
export function denseBytes(
  source: Uint8Array,
  width: number,
  offset: number,
  shape: readonly number[],
  strides: readonly number[],
): Uint8Array {
  const size = shape.reduce((product, d) => product * d, 1);
  if (size === 0) return new Uint8Array(0);
  let step = 1;
  const contiguous = shape.every((_, i) => {
    const dim = shape.length - 1 - i;
    const fits = shape[dim] === 1 || strides[dim] === step;
    step *= shape[dim]!;
    return fits;
  });
  if (contiguous) return source.subarray(offset * width, (offset + size) * width);
  const data = new Uint8Array(size * width);
  const index = new Array<number>(shape.length).fill(0);
  let at = offset;
  for (let i = 0; i < size; i++) {
    for (let b = 0; b < width; b++) data[i * width + b] = source[at * width + b]!;
    for (let d = shape.length - 1; d >= 0; d--) {
      at += strides[d]!;
      if (++index[d]! < shape[d]!) break;
      at -= shape[d]! * strides[d]!;
      index[d] = 0;
    }
  }
  return data;
}
