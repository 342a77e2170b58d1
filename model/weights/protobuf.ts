// Protobuf's wire format, read by protobufjs: a message's fields one after the other, each as it lies there. A whole message is never decoded,
// so that large ones take no memory of their own and nesting no stack.
import protobuf from "protobufjs/minimal.js";
import { CheckpointError } from "./tensors.ts";

export interface Field {
  readonly number: number;
  readonly wire: number;
  /** Of wire type 0. */
  readonly value: bigint;
  /** Of wire types 1 (eight bytes), 2 (as many as it says) and 5 (four): a view. */
  readonly bytes: Uint8Array;
}

const NONE = new Uint8Array(0);

/** @param what names the message in errors, as in "model.onnx: the ONNX model" */
export function* fieldsOf(message: Uint8Array, what: string): Generator<Field> {
  const reader = protobuf.Reader.create(message);
  while (reader.pos < reader.len) yield within(reader, what, fieldAt);
}

/** The numbers of a packed field. */
export function* packedNumbers(bytes: Uint8Array, what: string): Generator<bigint> {
  const reader = protobuf.Reader.create(bytes);
  while (reader.pos < reader.len) yield within(reader, what, varint);
}

function fieldAt(reader: protobuf.Reader): Field {
  const tag = reader.uint32();
  const [number, wire] = [tag >>> 3, tag & 7];
  if (wire === 0) return { number, wire, value: varint(reader), bytes: NONE };
  if (wire === 2) return { number, wire, value: 0n, bytes: reader.bytes() };
  const from = reader.pos;
  if (wire !== 1 && wire !== 5) throw new Error(`wire type ${wire}`);
  reader.skip(wire === 1 ? 8 : 4);
  return { number, wire, value: 0n, bytes: reader.raw(from, reader.pos) };
}

/** 64 bits, unsigned. */
function varint(reader: protobuf.Reader): bigint {
  const { high, low } = reader.uint64();
  return high === 0 ? BigInt(low >>> 0) : (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);
}

function within<T>(reader: protobuf.Reader, what: string, read: (reader: protobuf.Reader) => T): T {
  const from = reader.pos;
  try {
    return read(reader);
  } catch (error) {
    if (error instanceof RangeError) throw new CheckpointError(`${what} is truncated at byte ${reader.pos}`);
    throw new CheckpointError(`${what} is damaged at byte ${from}: ${(error as Error).message}`);
  }
}
