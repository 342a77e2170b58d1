// detectron2's model zoo files: one pickle, a dict whose `model` maps keys to NumPy arrays.
import type { FileType } from "../../engine/safetensors.ts";
import { type Known, readPickle } from "./pickle.ts";
import { CheckpointError, type HostTensor, ITEM_BYTES } from "./tensors.ts";

const DTYPES: Record<string, FileType> = {
  f8: "F64",
  f4: "F32",
  f2: "F16",
  i8: "I64",
  i4: "I32",
  i2: "I16",
  i1: "I8",
  u1: "U8",
  b1: "BOOL",
};

class ArrayType {
  readonly code: string;
  bigEndian = false;

  constructor(code: string) {
    this.code = code;
  }
}

/** A NumPy array while its state is still to come. */
class ArrayRef {
  tensor: HostTensor | undefined;
}

export function readDetectron(bytes: Uint8Array, file: string): Map<string, HostTensor> {
  const known = new Map<string, Known>();
  for (const core of ["numpy.core", "numpy._core"]) {
    known.set(`${core}.multiarray _reconstruct`, () => new ArrayRef());
    known.set(`${core}.multiarray scalar`, () => null);
  }
  known.set("numpy ndarray", { marker: "ndarray" });
  known.set("numpy dtype", ([code]) => new ArrayType(String(code)));
  // Python 2's strings of bytes, as protocol 2 writes them from Python 3.
  known.set("_codecs encode", ([text]) => Uint8Array.from(String(text), (c) => c.charCodeAt(0)));
  known.set("collections OrderedDict", () => new Map());
  const { value } = readPickle(bytes, 0, { file, known, build: (object, state) => build(object, state, file) });
  const model = value instanceof Map ? (value.get("model") ?? value) : undefined;
  const tensors = new Map<string, HostTensor>();
  if (model instanceof Map) {
    for (const [key, item] of model) if (item instanceof ArrayRef && item.tensor) tensors.set(String(key), item.tensor);
  }
  if (tensors.size === 0) throw new CheckpointError(`${file}: holds no dict of NumPy arrays under "model"`);
  return tensors;
}

/** Gives a dtype its byte order and an array its shape, type and bytes: (version, shape, dtype, Fortran order, bytes). */
function build(object: unknown, state: unknown, file: string): unknown {
  if (object instanceof ArrayType && Array.isArray(state)) object.bigEndian = state[1] === ">";
  if (!(object instanceof ArrayRef)) return object;
  const [, shape, type, fortran, data] = Array.isArray(state) ? state : [];
  const bytes = typeof data === "string" ? Uint8Array.from(data, (c) => c.charCodeAt(0)) : data;
  const dtype = type instanceof ArrayType ? DTYPES[type.code] : undefined;
  if (
    !dtype ||
    !(bytes instanceof Uint8Array) ||
    !Array.isArray(shape) ||
    !shape.every((d) => Number.isSafeInteger(d) && d >= 0)
  ) {
    throw new CheckpointError(`${file}: an array's type, shape or bytes are not what NumPy writes for numbers`);
  }
  const dims = shape as number[];
  if ((type as ArrayType).bigEndian || (fortran === true && dims.length > 1)) {
    throw new CheckpointError(
      `${file}: an array of shape (${dims.join(", ")}) is big-endian or in Fortran order; save it little-endian in C order`,
    );
  }
  const expected = dims.reduce((product, d) => product * d, 1) * ITEM_BYTES[dtype];
  if (bytes.length !== expected) {
    throw new CheckpointError(
      `${file}: an array of shape (${dims.join(", ")}) has ${bytes.length} bytes; ${expected} were expected`,
    );
  }
  object.tensor = { dtype, shape: dims, data: bytes };
  return object;
}
