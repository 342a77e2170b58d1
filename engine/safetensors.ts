/**
 * The safetensors format: 8 bytes with the length N of the header (little endian), N bytes of JSON, then the tensors' bytes.
 * The header maps each name to { dtype, shape, data_offsets: [begin, end] } and may hold `__metadata__`, strings by strings.
 * Refused: a header beyond 100 MB or the file, a name twice, an unknown type, offsets that overlap, leave gaps, pass the end or do not fit the shape.
 */
import type { Device } from "./device.ts";
import { halfBits, halfValue } from "./half.ts";
import { platform } from "./platform.ts";
import { type Shape, show, sizeOf } from "./shape.ts";
import { fromHost, type Tensor } from "./tensor.ts";

export type FileType =
  | "F64"
  | "F32"
  | "F16"
  | "BF16"
  | "I64"
  | "I32"
  | "I16"
  | "I8"
  | "U64"
  | "U32"
  | "U16"
  | "U8"
  | "BOOL";

const BYTES: Record<FileType, number> = {
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
const MAX_HEADER = 100e6;

/** A tensor as a file holds it: little-endian bytes. */
export interface FileTensor {
  dtype: FileType;
  shape: Shape;
  data: Uint8Array;
}

export interface SafetensorsFile {
  tensors: Map<string, FileTensor>;
  metadata: Record<string, string>;
}

/** Reads a whole file. `name` stands in the errors. */
export function parseSafetensors(bytes: Uint8Array, name = "safetensors"): SafetensorsFile {
  const fail = (what: string): never => {
    throw new Error(`${name}: ${what}`);
  };
  if (bytes.length < 8) fail(`a safetensors file has at least 8 bytes; got ${bytes.length}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = Number(view.getBigUint64(0, true));
  if (length > MAX_HEADER || length > bytes.length - 8)
    fail(
      `the header claims ${length} bytes, the file has ${bytes.length - 8} after its length: not a safetensors file, or truncated`,
    );
  let header: unknown;
  let text = "";
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, 8 + length));
    header = JSON.parse(text);
  } catch (cause) {
    fail(`the header is not JSON (${(cause as Error).message})`);
  }
  if (typeof header !== "object" || header === null || Array.isArray(header)) fail("the header is not an object");
  const twice = repeatedKey(text);
  if (twice !== undefined) fail(`the header has "${twice}" twice`);
  const body = bytes.subarray(8 + length);
  const tensors = new Map<string, FileTensor>();
  let metadata: Record<string, string> = {};
  const spans: { key: string; begin: number; end: number }[] = [];
  for (const [key, value] of Object.entries(header as Record<string, unknown>)) {
    if (key === "__metadata__") {
      metadata = strings(value) ? value : fail("__metadata__ must hold text by text");
      continue;
    }
    const { dtype, shape, data_offsets } = (value ?? {}) as { dtype?: string; shape?: unknown; data_offsets?: unknown };
    if (typeof dtype !== "string" || !Object.hasOwn(BYTES, dtype))
      fail(`tensor "${key}" is of type ${dtype}; known are ${Object.keys(BYTES).join(", ")}`);
    const whole = (v: unknown): v is number[] => Array.isArray(v) && v.every((n) => Number.isSafeInteger(n) && n >= 0);
    if (!whole(shape)) return fail(`tensor "${key}": the shape must be whole numbers`);
    if (!whole(data_offsets) || data_offsets.length !== 2)
      return fail(`tensor "${key}": data_offsets must be two whole numbers`);
    const [begin, end] = data_offsets as [number, number];
    if (begin > end || end > body.length)
      fail(`tensor "${key}" lies at ${begin}..${end}, beyond the ${body.length} bytes of data: truncated file?`);
    const need = sizeOf(shape) * BYTES[dtype as FileType];
    if (end - begin !== need)
      fail(
        `tensor "${key}" of shape ${show(shape)} and type ${dtype} takes ${need} bytes; its offsets give ${end - begin}`,
      );
    spans.push({ key, begin, end });
    tensors.set(key, { dtype: dtype as FileType, shape, data: body.subarray(begin, end) });
  }
  spans.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let at = 0;
  for (const { key, begin, end } of spans) {
    if (begin !== at)
      fail(`tensor "${key}" begins at ${begin} where ${at} was expected: offsets overlap or leave a gap`);
    at = end;
  }
  if (at !== body.length) fail(`${body.length - at} bytes follow the last tensor`);
  return { tensors, metadata };
}

/** A key that stands twice in an object of a JSON text, of which JSON.parse keeps the last. */
function repeatedKey(json: string): string | undefined {
  const open: Set<string>[] = [];
  for (const [token, written, colon] of json.matchAll(/[{}]|("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?/g)) {
    if (token === "{") open.push(new Set());
    else if (token === "}") open.pop();
    if (!colon) continue;
    const key = JSON.parse(written!) as string; // "\u0061" is "a"
    const keys = open.at(-1)!;
    if (keys.has(key)) return key;
    keys.add(key);
  }
  return undefined;
}

function strings(value: unknown): value is Record<string, string> {
  const isObject = typeof value === "object" && value !== null && !Array.isArray(value);
  return isObject && Object.values(value).every((text) => typeof text === "string");
}

/** The bytes of a file; data is aligned to 8 bytes, names come in the order given. */
export function encodeSafetensors(
  tensors: ReadonlyMap<string, FileTensor>,
  metadata: Record<string, string> = {},
): Uint8Array {
  if (tensors.has("__metadata__")) throw new Error('safetensors: no tensor can be named "__metadata__"');
  const header: Record<string, unknown> = Object.create(null); // a tensor may be named __proto__
  if (Object.keys(metadata).length > 0) header.__metadata__ = metadata;
  let at = 0;
  for (const [key, t] of tensors) {
    header[key] = { dtype: t.dtype, shape: t.shape, data_offsets: [at, at + t.data.length] };
    at += t.data.length;
  }
  let text = JSON.stringify(header);
  text += " ".repeat((8 - (new TextEncoder().encode(text).length % 8)) % 8);
  const json = new TextEncoder().encode(text);
  const out = new Uint8Array(8 + json.length + at);
  new DataView(out.buffer).setBigUint64(0, BigInt(json.length), true);
  out.set(json, 8);
  let position = 8 + json.length;
  for (const t of tensors.values()) {
    out.set(t.data, position);
    position += t.data.length;
  }
  return out;
}

/** The numbers of a file's tensor on the host, widened to f32 (floating types) or narrowed to i32 (whole numbers, refused where they do not fit). */
export function fileNumbers(t: FileTensor, name = "tensor"): Float32Array | Int32Array {
  const n = sizeOf(t.shape);
  const view = new DataView(t.data.buffer, t.data.byteOffset, t.data.byteLength);
  // Loops: from() with a function takes ten times as long.
  const floats = (read: (i: number) => number): Float32Array => {
    const out = new Float32Array(n);
    for (let i = 0; i < n; i++) out[i] = read(i);
    return out;
  };
  const whole = (read: (i: number) => number): Int32Array =>
    Int32Array.from({ length: n }, (_, i) => {
      const v = read(i);
      if (v > 2147483647 || v < -2147483648) throw new Error(`${name}: ${v} does not fit 32 bits`);
      return v;
    });
  switch (t.dtype) {
    case "F32":
      return new Float32Array(new Uint8Array(t.data).buffer); // a copy, and aligned
    case "F64":
      return floats((i) => view.getFloat64(i * 8, true));
    case "F16":
      return floats((i) => halfValue(view.getUint16(i * 2, true)));
    case "BF16": {
      const wide = new DataView(new ArrayBuffer(4));
      return floats((i) => {
        wide.setUint32(0, view.getUint16(i * 2, true) << 16, true);
        return wide.getFloat32(0, true);
      });
    }
    case "I64":
      return whole((i) => Number(view.getBigInt64(i * 8, true)));
    case "U64":
      return whole((i) => Number(view.getBigUint64(i * 8, true)));
    case "I32":
      return whole((i) => view.getInt32(i * 4, true));
    case "U32":
      return whole((i) => view.getUint32(i * 4, true));
    case "I16":
      return whole((i) => view.getInt16(i * 2, true));
    case "U16":
      return whole((i) => view.getUint16(i * 2, true));
    case "I8":
      return whole((i) => view.getInt8(i));
    default:
      return whole((i) => view.getUint8(i));
  }
}

/** Host numbers as a file's tensor; "F16" rounds to nearest even. */
export function fileTensor(
  data: ArrayLike<number>,
  shape: Shape,
  dtype: "F32" | "F16" | "I32" | "U32" | "U8" | "BOOL" = "F32",
): FileTensor {
  const array =
    dtype === "F32"
      ? Float32Array.from(data)
      : dtype === "F16"
        ? Uint16Array.from(data, halfBits)
        : dtype === "I32"
          ? Int32Array.from(data)
          : dtype === "U32"
            ? Uint32Array.from(data)
            : Uint8Array.from(data);
  return { dtype, shape, data: new Uint8Array(array.buffer) };
}

/** Reads a safetensors file (a path, or its bytes) into tensors: floating types become f32, whole numbers i32, BOOL bool. */
export async function load(gpu: Device, source: string | Uint8Array): Promise<Map<string, Tensor>> {
  const name = typeof source === "string" ? source : "safetensors";
  const bytes = typeof source === "string" ? await platform().readFile(source) : source;
  const out = new Map<string, Tensor>();
  for (const [key, t] of parseSafetensors(bytes, name).tensors)
    out.set(
      key,
      fromHost(gpu, fileNumbers(t, `${name}: tensor "${key}"`), t.shape, t.dtype === "BOOL" ? { dtype: "bool" } : {}),
    );
  return out;
}

/** Reads tensors back and encodes them under their names. */
export async function encode(
  tensors: ReadonlyMap<string, Tensor>,
  metadata: Record<string, string> = {},
): Promise<Uint8Array> {
  const files = new Map<string, FileTensor>();
  const types = { f32: "F32", f16: "F16", i32: "I32", u32: "U32", bool: "BOOL" } as const;
  for (const [key, x] of tensors) files.set(key, fileTensor(await x.toArray(), x.shape, types[x.dtype]));
  return encodeSafetensors(files, metadata);
}

/** Writes tensors to a safetensors file, atomically. */
export async function save(
  path: string,
  tensors: ReadonlyMap<string, Tensor>,
  metadata: Record<string, string> = {},
): Promise<void> {
  await platform().writeFile(path, await encode(tensors, metadata));
}
