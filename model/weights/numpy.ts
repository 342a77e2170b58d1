// NumPy's arrays and scalars in a pickle: what their callables are given, as data. An array is checked when it is wanted, under its key.
import type { FileType } from "../../engine/safetensors.ts";
import type { Known } from "./pickle.ts";
import { CheckpointError, denseBytes, type HostTensor, ITEM_BYTES } from "./tensors.ts";

const DTYPES: Record<string, FileType> = {
  f8: "F64",
  f4: "F32",
  f2: "F16",
  i8: "I64",
  i4: "I32",
  i2: "I16",
  i1: "I8",
  u8: "U64",
  u4: "U32",
  u2: "U16",
  u1: "U8",
  b1: "BOOL",
};
/** As many as NumPy has. */
const MOST_DIMS = 64;

class ArrayType {
  readonly code: string;
  bigEndian = false;

  constructor(code: unknown) {
    this.code = typeof code === "string" ? code.replace(/^[<|]/, "") : "unknown";
  }
}

/** An array as it was pickled; nothing is checked yet. */
export class ArrayRef {
  type: unknown;
  shape: unknown;
  data: unknown;
  /** "C", "F", or the axes of what lies in C order. */
  order: unknown = "C";
}

/** The callables of NumPy 1 and 2. */
export function numpyNames(known: Map<string, Known>): void {
  for (const core of ["numpy.core", "numpy._core"]) {
    known.set(`${core}.multiarray _reconstruct`, () => new ArrayRef());
    known.set(`${core}.multiarray scalar`, () => null);
    known.set(`${core}.numeric _frombuffer`, ([data, type, shape, order, axes]) =>
      Object.assign(new ArrayRef(), { data, type, shape, order: order === "K" ? axes : order }),
    );
  }
  known.set("numpy ndarray", { marker: "ndarray" });
  known.set("numpy dtype", ([code]) => new ArrayType(code));
  // Bytes, as protocol 2 writes them from Python 3.
  known.set("_codecs encode", ([text]) => (typeof text === "string" ? bytesOf(text) : null));
}

/** Gives a dtype its byte order and an array its shape, type, order and bytes. */
export function buildNumpy(object: unknown, state: unknown): unknown {
  if (object instanceof ArrayType && Array.isArray(state)) object.bigEndian = state[1] === ">";
  if (object instanceof ArrayRef && Array.isArray(state)) {
    const [, shape, type, fortran, data] = state; // (version, shape, dtype, Fortran order, bytes)
    Object.assign(object, { shape, type, data, order: fortran === true ? "F" : "C" });
  }
  return object;
}

/** Undefined where a character is none of Latin-1. */
function bytesOf(text: string): Uint8Array | undefined {
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code > 255) return undefined;
    bytes[i] = code;
  }
  return bytes;
}

/** `where` names the file and the key. */
export function arrayTensor({ type, shape, data, order }: ArrayRef, where: string): HostTensor {
  const fail = (text: string): never => {
    throw new CheckpointError(`${where}: ${text}`);
  };
  const code = type instanceof ArrayType ? type.code : "unknown";
  const dtype = Object.hasOwn(DTYPES, code) ? DTYPES[code]! : fail(`is of NumPy type ${code}, which is not read here`);
  if ((type as ArrayType).bigEndian) fail("is big-endian; save it on a little-endian machine");
  // Python 2's strings are bytes.
  const bytes = typeof data === "string" ? bytesOf(data) : data;
  const isShape = Array.isArray(shape) && shape.length <= MOST_DIMS;
  if (!(bytes instanceof Uint8Array && isShape && shape.every((d) => Number.isSafeInteger(d) && d >= 0)))
    return fail("its shape or its bytes are not what NumPy writes");
  const size = shape.reduce((product: number, d: number) => product * d, ITEM_BYTES[dtype]);
  if (bytes.length !== size)
    fail(`of shape (${shape.join(", ")}) and type ${dtype} takes ${size} bytes; it has ${bytes.length}`);
  // The bytes lie in the order of their axes; which axis of these an axis of the array is.
  const own = shape.map((_, i) => i);
  const axes = order === "F" ? own.toReversed() : order === "C" ? own : order;
  if (!Array.isArray(axes) || axes.length !== shape.length || own.some((axis) => !axes.includes(axis)))
    return fail("its order of axes is not what NumPy writes");
  const lying: number[] = order === "F" ? shape.toReversed() : shape;
  const steps = lying.map((_, i) => lying.slice(i + 1).reduce((product, d) => product * d, 1));
  const dims = axes.map((axis) => lying[axis]!);
  const strides = axes.map((axis) => steps[axis]!);
  return { dtype, shape: dims, data: denseBytes(bytes, ITEM_BYTES[dtype], 0, dims, strides) };
}
