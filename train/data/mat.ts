/**
 * MATLAB's MAT-files of level 5, as far as SBD needs them: the numbers of some fields of one struct. A file is a header of 128 bytes and
 * elements of a type, a length and data padded to 8 bytes; arrays are elements made of elements, and may be compressed as a whole.
 * Format: "MAT-File Format", The MathWorks. What is not asked for is stepped over and never interpreted.
 */
import { inflateSync } from "node:zlib";

export interface Matrix {
  readonly rows: number;
  readonly columns: number;
  /** Column by column. */
  readonly values: ArrayLike<number>;
}

interface Element {
  type: number;
  data: DataView;
}

const HEADER = 128;
const MATRIX = 14;
const COMPRESSED = 15;
const STRUCT = 2;
/** Classes double to uint64 hold numbers. */
const NUMERIC = { first: 6, last: 15 };
/** In an array's flags: an imaginary part follows. */
const COMPLEX = 0x800;
/** An element of a file that is no bomb inflates to less. */
const MOST_BYTES = 2 ** 28;

/** Bytes and reader of a number of each type. */
const NUMBERS: Record<number, [bytes: number, read: (view: DataView, at: number) => number]> = {
  1: [1, (view, at) => view.getInt8(at)],
  2: [1, (view, at) => view.getUint8(at)],
  3: [2, (view, at) => view.getInt16(at, true)],
  4: [2, (view, at) => view.getUint16(at, true)],
  5: [4, (view, at) => view.getInt32(at, true)],
  6: [4, (view, at) => view.getUint32(at, true)],
  7: [4, (view, at) => view.getFloat32(at, true)],
  9: [8, (view, at) => view.getFloat64(at, true)],
  12: [8, (view, at) => Number(view.getBigInt64(at, true))],
  13: [8, (view, at) => Number(view.getBigUint64(at, true))],
};

/** The named fields of a 1x1 struct. Throws an Error that says what is wrong. */
export function readMatStruct(bytes: Uint8Array, variable: string, fields: readonly string[]): Map<string, Matrix> {
  const file = viewOf(bytes);
  if (bytes.length < HEADER + 8) throw new Error("the file is truncated");
  if (String.fromCharCode(...bytes.subarray(0, 10)) !== "MATLAB 5.0")
    throw new Error("is no MAT-file of level 5 (HDF5 files of MATLAB's -v7.3 are not read)");
  if (String.fromCharCode(bytes[126]!, bytes[127]!) !== "IM")
    throw new Error("its header is damaged, or it comes from a big-endian machine");
  for (const element of elements(part(file, HEADER))) {
    const array = element.type === COMPRESSED ? inflated(element.data) : element;
    if (array.type !== MATRIX) continue;
    const head = headOf(array.data);
    if (head.name !== variable) continue;
    if (head.kind !== STRUCT || head.size.some((n) => n !== 1)) throw new Error(`${variable} is no struct of 1x1`);
    return fieldsOf(head.rest, variable, fields);
  }
  throw new Error(`holds no variable ${variable}`);
}

function fieldsOf(rest: Generator<Element>, variable: string, fields: readonly string[]): Map<string, Matrix> {
  const lengthElement = take(rest);
  const width = lengthElement.data.byteLength >= 4 ? lengthElement.data.getInt32(0, true) : 0;
  const list = textOf(take(rest).data);
  if (width < 1 || list.length % width !== 0) throw new Error(`the field names of ${variable} are damaged`);
  const found = new Map<string, Matrix>();
  for (let at = 0; at < list.length; at += width) {
    const name = list.slice(at, at + width).split("\0", 1)[0]!;
    const { type, data } = take(rest);
    if (!fields.includes(name)) continue;
    if (type !== MATRIX) throw new Error(`${variable}.${name} is no array`);
    found.set(name, numbersOf(data, `${variable}.${name}`));
  }
  for (const name of fields) if (!found.has(name)) throw new Error(`${variable} has no field ${name}`);
  return found;
}

function numbersOf(data: DataView, name: string): Matrix {
  const { kind, complex, size, rest } = headOf(data);
  const [rows = 0, columns = 0, ...more] = size;
  if (kind < NUMERIC.first || kind > NUMERIC.last || more.length > 0)
    throw new Error(`${name} is no matrix of numbers`);
  if (complex) throw new Error(`${name} holds complex numbers; real ones are expected`);
  const { type, data: raw } = take(rest);
  const number = NUMBERS[type];
  if (number === undefined) throw new Error(`${name} holds numbers of a type that is not known (${type})`);
  const [bytes, read] = number;
  if (raw.byteLength !== rows * columns * bytes)
    throw new Error(`${name} is ${rows}x${columns}, but ${raw.byteLength / bytes} numbers are stored`);
  return {
    rows,
    columns,
    values: Float64Array.from({ length: rows * columns }, (_, i) => read(raw, i * bytes)),
  };
}

interface Head {
  kind: number;
  complex: boolean;
  size: number[];
  name: string;
  /** The elements that follow. */
  rest: Generator<Element>;
}

function headOf(data: DataView): Head {
  const rest = elements(data);
  const flags = take(rest).data;
  if (flags.byteLength < 8) throw new Error("an array's flags are damaged");
  const dimensions = take(rest).data;
  const size = Array.from({ length: dimensions.byteLength >> 2 }, (_, i) => dimensions.getInt32(4 * i, true));
  if (size.length < 2 || size.some((n) => n < 0)) throw new Error("an array's size is damaged");
  const bits = flags.getUint32(0, true);
  return { kind: bits & 0xff, complex: (bits & COMPLEX) !== 0, size, name: textOf(take(rest).data), rest };
}

function take(elements: Generator<Element>): Element {
  const { value, done } = elements.next();
  if (done) throw new Error("an array ends early");
  return value;
}

function* elements(data: DataView): Generator<Element> {
  for (let at = 0; at + 8 <= data.byteLength; ) {
    const first = data.getUint32(at, true);
    // Up to four bytes of data may share the eight bytes with their type and length.
    const small = first >>> 16;
    const [type, length, start] =
      small > 0 ? [first & 0xffff, small, at + 4] : [first, data.getUint32(at + 4, true), at + 8];
    if (start + length > data.byteLength || (small > 0 && length > 4))
      throw new Error("the file is truncated or damaged");
    yield { type, data: part(data, start, length) };
    at = small > 0 ? at + 8 : type === COMPRESSED ? start + length : start + Math.ceil(length / 8) * 8;
  }
}

function inflated(data: DataView): Element {
  let bytes: Uint8Array;
  try {
    bytes = inflateSync(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), { maxOutputLength: MOST_BYTES });
  } catch (error) {
    throw new Error(`an array cannot be inflated (${(error as Error).message})`);
  }
  return take(elements(viewOf(bytes)));
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function part(data: DataView, start: number, length = data.byteLength - start): DataView {
  return new DataView(data.buffer, data.byteOffset + start, length);
}

function textOf(data: DataView): string {
  return String.fromCharCode(...new Uint8Array(data.buffer, data.byteOffset, Math.min(data.byteLength, 4096)));
}
