/**
 * TensorBoard's event files, written by hand: there is little to them.
 *
 * A file is a row of records: uint64 length, masked CRC-32C of these 8 bytes, the bytes, masked CRC-32C of the bytes; all little-endian.
 * The bytes of a record are a protocol buffer (tensorflow/core/util/event.proto):
 *   Event   { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5 }
 *   Summary { repeated Value value = 1 }
 *   Value   { string tag = 1; float simple_value = 2; Image image = 4 }
 *   Image   { int32 height = 1; int32 width = 2; int32 colorspace = 3; bytes encoded_image_string = 4 }
 */
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { writeWhole } from "./files.ts";

/** One file a run, whose name TensorBoard's reader asks for in this form. */
const FILE = join("tensorboard", "events.out.tfevents.0000000000.wgpu-wish");

export interface Picture {
  tag: string;
  png: Uint8Array;
}

export class EventFile {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  /** Whether a run has one. */
  static in(run: string): boolean {
    return existsSync(join(run, FILE));
  }

  /** @param from events of later steps are forgotten, and what a kill has torn off at the end */
  static async open(run: string, from: number): Promise<EventFile> {
    const path = join(run, FILE);
    const old = existsSync(path) ? readRecords(readFileSync(path)) : [];
    const kept = old.filter((record, i) => i > 0 && stepOf(record) <= from);
    const head = message([fixed64(1, seconds()), bytes(3, "brain.Event:2")]);
    await writeWhole(path, Buffer.concat([head, ...kept].map(framed)));
    return new EventFile(path);
  }

  scalars(step: number, values: Readonly<Record<string, number>>): void {
    const entries = Object.entries(values).map(([tag, value]) => message([bytes(1, tag), fixed32(2, value)]));
    if (entries.length > 0) this.#append(step, entries);
  }

  pictures(step: number, pictures: readonly Picture[]): void {
    const RGB = 3;
    for (const { tag, png } of pictures) {
      // A PNG's first chunk begins with its size, big-endian.
      const header = Buffer.from(png.buffer, png.byteOffset, png.byteLength);
      const [width, height] = [header.readUInt32BE(16), header.readUInt32BE(20)];
      const image = message([varint(1, height), varint(2, width), varint(3, RGB), bytes(4, png)]);
      this.#append(step, [message([bytes(1, tag), bytes(4, image)])]);
    }
  }

  /** In one write, so that a kill tears at most the last record. */
  #append(step: number, values: readonly Uint8Array[]): void {
    const summary = message(values.map((value) => bytes(1, value)));
    appendFileSync(this.#path, framed(message([fixed64(1, seconds()), varint(2, step), bytes(5, summary)])));
  }
}

function seconds(): number {
  return Date.now() / 1000;
}

const [VARINT, FIXED64, LENGTH, FIXED32] = [0, 1, 2, 5];

function message(fields: readonly Uint8Array[]): Uint8Array {
  return Buffer.concat(fields);
}

/** Seven bits a byte, the low ones first; not negative. */
function varintBytes(value: number): number[] {
  const out: number[] = [];
  let rest = value;
  for (; rest >= 128; rest = Math.floor(rest / 128)) out.push((rest % 128) + 128);
  out.push(rest);
  return out;
}

function varint(field: number, value: number): Uint8Array {
  return Uint8Array.from([field * 8 + VARINT, ...varintBytes(value)]);
}

function bytes(field: number, value: Uint8Array | string): Uint8Array {
  const data = typeof value === "string" ? Buffer.from(value) : value;
  return Buffer.concat([Uint8Array.from([field * 8 + LENGTH, ...varintBytes(data.length)]), data]);
}

function fixed64(field: number, value: number): Uint8Array {
  const out = Buffer.alloc(9, field * 8 + FIXED64);
  out.writeDoubleLE(value, 1);
  return out;
}

function fixed32(field: number, value: number): Uint8Array {
  const out = Buffer.alloc(5, field * 8 + FIXED32);
  out.writeFloatLE(value, 1);
  return out;
}

/** An event's step: its second field, or 0 where it is left out. */
function stepOf(record: Uint8Array): number {
  const at = 9;
  if (record[at] !== 2 * 8 + VARINT) return 0;
  let [value, scale] = [0, 1];
  for (let i = at + 1; i < record.length; i++) {
    value += (record[i]! & 127) * scale;
    scale *= 128;
    if (record[i]! < 128) break;
  }
  return value;
}

const HEAD = 12;
const TAIL = 4;

function framed(record: Uint8Array): Uint8Array {
  const out = Buffer.alloc(HEAD + record.length + TAIL);
  out.writeBigUInt64LE(BigInt(record.length));
  out.writeUInt32LE(maskedCrc(out.subarray(0, 8)), 8);
  out.set(record, HEAD);
  out.writeUInt32LE(maskedCrc(record), HEAD + record.length);
  return out;
}

/** The whole records of a file, up to the first that is torn or damaged. */
function readRecords(file: Buffer): Uint8Array[] {
  const records: Uint8Array[] = [];
  for (let at = 0; at + HEAD <= file.length; ) {
    const length = Number(file.readBigUInt64LE(at));
    const end = at + HEAD + length;
    if (file.readUInt32LE(at + 8) !== maskedCrc(file.subarray(at, at + 8)) || end + TAIL > file.length) break;
    const record = file.subarray(at + HEAD, end);
    if (file.readUInt32LE(end) !== maskedCrc(record)) break;
    records.push(record);
    at = end + TAIL;
  }
  return records;
}

/** CRC-32C (Castagnoli's polynomial, its bits reversed), a byte at a time. */
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = (value >>> 1) ^ (value & 1 ? 0x82f63b78 : 0);
  return value;
});

/** Masked, as TensorFlow does, so that a checksum of checksums stays one. */
function maskedCrc(data: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of data) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ byte) & 255]!;
  crc = ~crc >>> 0;
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}
