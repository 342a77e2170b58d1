// Weights that are NaN or infinite would give masks of nothing, in silence: they are found before anything is done with them.
import { fileNumbers } from "../../engine/safetensors.ts";
import { CheckpointError, type HostTensor, ITEM_BYTES } from "./tensors.ts";

/** Bits that are all set in NaN and in infinities alone: the exponent's. */
const EXPONENT = { F32: 0x7f800000, F16: 0x7c00, BF16: 0x7f80 } as const;
/** From here on a number rounds to no f32. */
const F32_END = 2 ** 128 - 2 ** 103;
/** Buffers that models make anew; a mask may well be infinite. What an optimizer keeps is no weight. */
const NO_WEIGHT = /\.attn_mask$|^optimizer\./;

/** Bytes that are looked at together: copied, for a file's own lie unaligned in a resizable buffer, where each access takes five times as long. */
const PIECE = 2 ** 16;

/** Throws where a floating-point number of the tensors is NaN, infinite, or too large for f32; a gigabyte takes about 0.4 s. */
export function checkFinite(tensors: ReadonlyMap<string, HostTensor>, file: string): void {
  const scratch = new ArrayBuffer(PIECE);
  for (const [key, tensor] of tensors) {
    if (NO_WEIGHT.test(key)) continue;
    const at = firstNotFinite(tensor, scratch);
    if (at === undefined) continue;
    const value = numberAt(tensor, at);
    const holds = `${value} (element ${at})${Number.isFinite(value) ? ", beyond the largest f32, 3.4e38" : ""}`;
    throw new CheckpointError(
      `${file}: tensor ${key} holds ${holds}; the file is damaged, or its training diverged: take other weights`,
    );
  }
}

/** As the file has it: f32 would make infinities of large f64. */
function numberAt({ dtype, data }: HostTensor, at: number): number {
  const bytes = ITEM_BYTES[dtype];
  const one = data.slice(at * bytes, (at + 1) * bytes);
  return dtype === "F64" ? new Float64Array(one.buffer)[0]! : fileNumbers({ dtype, shape: [1], data: one })[0]!;
}

/** Its index in the tensor. */
function firstNotFinite({ dtype, data }: HostTensor, scratch: ArrayBuffer): number | undefined {
  const bytes = ITEM_BYTES[dtype];
  const find = finder(dtype, scratch);
  if (!find) return undefined;
  const copy = new Uint8Array(scratch);
  for (let start = 0; start < data.length; start += PIECE) {
    const end = Math.min(data.length, start + PIECE);
    copy.set(data.subarray(start, end));
    const found = find((end - start) / bytes);
    if (found >= 0) return start / bytes + found;
  }
  return undefined;
}

/** What finds the first among the first n numbers of a buffer, -1 where there is none. */
function finder(dtype: HostTensor["dtype"], buffer: ArrayBuffer): ((n: number) => number) | undefined {
  if (dtype === "F64") {
    const numbers = new Float64Array(buffer);
    return (n) => numbers.subarray(0, n).findIndex((v) => !(Math.abs(v) < F32_END));
  }
  if (dtype === "F32") return (n) => firstWithBits(new Uint32Array(buffer), n, EXPONENT.F32);
  if (dtype === "F16" || dtype === "BF16") return (n) => firstWithBits(new Uint16Array(buffer), n, EXPONENT[dtype]);
  return undefined;
}

function firstWithBits(words: Uint32Array | Uint16Array, n: number, bits: number): number {
  for (let i = 0; i < n; i++) if ((words[i]! & bits) === bits) return i;
  return -1;
}
