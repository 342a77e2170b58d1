// The initialisers of an ONNX model: ModelProto.graph (7) holds GraphProto.initializer (5), TensorProtos with dims (1), data_type (2),
// typed data (4, 5, 7, 10), name (8), raw_data (9) and external_data (13). The graph itself is not read. Protobuf's wire format only:
// each field is a varint of number * 8 + wire type; types 0 varint, 1 eight bytes, 2 a length and bytes, 5 four bytes.
import type { FileType } from "../../engine/safetensors.ts";
import { CheckpointError, type HostTensor, ITEM_BYTES } from "./tensors.ts";

/** TensorProto.DataType */
const TYPES: Record<number, FileType> = {
  1: "F32",
  2: "U8",
  3: "I8",
  4: "U16",
  5: "I16",
  6: "I32",
  7: "I64",
  9: "BOOL",
  10: "F16",
  11: "F64",
  12: "U32",
  13: "U64",
  16: "BF16",
};

interface Field {
  readonly number: number;
  /** Of wire type 0. */
  readonly value: number;
  /** Of wire types 1, 2 and 5. */
  readonly bytes: Uint8Array;
}

class Reader {
  readonly #bytes: Uint8Array;
  readonly #file: string;
  #at = 0;

  constructor(bytes: Uint8Array, file: string) {
    this.#bytes = bytes;
    this.#file = file;
  }

  *fields(): Generator<Field> {
    while (this.#at < this.#bytes.length) {
      const tag = this.varint();
      const [number, wire] = [Math.floor(tag / 8), tag % 8];
      if (wire === 0) yield { number, value: this.varint(), bytes: this.#take(0) };
      else if (wire === 1) yield { number, value: 0, bytes: this.#take(8) };
      else if (wire === 2) yield { number, value: 0, bytes: this.#take(this.varint()) };
      else if (wire === 5) yield { number, value: 0, bytes: this.#take(4) };
      else throw new CheckpointError(`${this.#file}: no ONNX model: wire type ${wire} at byte ${this.#at}`);
    }
  }

  get done(): boolean {
    return this.#at >= this.#bytes.length;
  }

  varint(): number {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      const byte = this.#take(1)[0]!;
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return Number(BigInt.asIntN(64, value));
    }
    throw new CheckpointError(`${this.#file}: no ONNX model: a number has no end`);
  }

  #take(n: number): Uint8Array {
    if (n < 0 || this.#at + n > this.#bytes.length)
      throw new CheckpointError(`${this.#file}: the ONNX model is truncated at byte ${this.#at}`);
    this.#at += n;
    return this.#bytes.subarray(this.#at - n, this.#at);
  }
}

export function readOnnx(bytes: Uint8Array, file: string): Map<string, HostTensor> {
  const tensors = new Map<string, HostTensor>();
  for (const model of new Reader(bytes, file).fields()) {
    if (model.number !== 7) continue;
    for (const graph of new Reader(model.bytes, file).fields()) {
      if (graph.number !== 5) continue;
      const { name, tensor } = readTensor(graph.bytes, file);
      if (tensors.has(name)) throw new CheckpointError(`${file}: two initialisers are named ${name}`);
      tensors.set(name, tensor);
    }
  }
  if (tensors.size === 0) throw new CheckpointError(`${file}: the ONNX model holds no initialisers`);
  return tensors;
}

function readTensor(bytes: Uint8Array, file: string): { name: string; tensor: HostTensor } {
  const shape: number[] = [];
  const whole: number[] = [];
  let [name, type] = ["", 0];
  let floats: Uint8Array[] = [];
  let raw: Uint8Array | undefined;
  let external = false;
  const numbers = (field: Field, into: number[]) => {
    if (field.bytes.length === 0) into.push(field.value);
    else for (const packed = new Reader(field.bytes, file); !packed.done; ) into.push(packed.varint());
  };
  for (const field of new Reader(bytes, file).fields()) {
    if (field.number === 1) numbers(field, shape);
    else if (field.number === 2) type = field.value;
    else if (field.number === 4 || field.number === 10) floats.push(field.bytes);
    else if (field.number === 5 || field.number === 7 || field.number === 11) numbers(field, whole);
    else if (field.number === 8) name = new TextDecoder().decode(field.bytes);
    else if (field.number === 9) raw = field.bytes;
    else if (field.number === 13) external = true;
  }
  const dtype = TYPES[type];
  if (external)
    throw new CheckpointError(`${file}: initialiser ${name} lies in another file; save the model as one file`);
  if (!dtype)
    throw new CheckpointError(
      `${file}: initialiser ${name} is of ONNX type ${type}, which is no number that is read here`,
    );
  if (!raw && whole.length > 0) {
    floats = [];
    raw = packWhole(whole, dtype);
  }
  const data = raw ? raw.slice() : joined(floats);
  const expected = shape.reduce((product, d) => product * d, 1) * ITEM_BYTES[dtype];
  if (data.length !== expected) {
    throw new CheckpointError(
      `${file}: initialiser ${name} of shape (${shape.join(", ")}) has ${data.length} bytes; ${expected} were expected`,
    );
  }
  return { name, tensor: { dtype, shape, data } };
}

/** int32_data also carries the narrower types, among them the bits of halves. */
function packWhole(values: readonly number[], dtype: FileType): Uint8Array {
  const width = ITEM_BYTES[dtype];
  const out = new Uint8Array(values.length * width);
  const view = new DataView(out.buffer);
  values.forEach((value, i) => {
    if (width === 8) view.setBigInt64(i * 8, BigInt(value), true);
    else if (width === 4) view.setInt32(i * 4, value, true);
    else if (width === 2) view.setUint16(i * 2, value & 0xffff, true);
    else view.setUint8(i, value & 0xff);
  });
  return out;
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
