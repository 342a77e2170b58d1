// PyTorch's checkpoint files: the zip archive that torch.save writes since 1.6, and the legacy stream of pickles before it.
// A tensor is a view of a storage: offset, sizes and strides in elements. Views are checked against their storage; those that are not
// contiguous are copied out, the others stay views of the file's bytes.
import type { FileType } from "../../engine/safetensors.ts";
import { type Known, readPickle } from "./pickle.ts";
import { CheckpointError, type HostTensor, ITEM_BYTES } from "./tensors.ts";
import { ZipArchive } from "./zip.ts";

const STORAGES: Record<string, FileType> = {
  DoubleStorage: "F64",
  FloatStorage: "F32",
  HalfStorage: "F16",
  BFloat16Storage: "BF16",
  LongStorage: "I64",
  IntStorage: "I32",
  ShortStorage: "I16",
  CharStorage: "I8",
  ByteStorage: "U8",
  BoolStorage: "BOOL",
};
const DTYPES: Record<string, FileType> = {
  float64: "F64",
  float32: "F32",
  float16: "F16",
  bfloat16: "BF16",
  int64: "I64",
  int32: "I32",
  int16: "I16",
  int8: "I8",
  uint8: "U8",
  bool: "BOOL",
};

/** A storage that the pickle refers to; its bytes come later. */
class StorageRef {
  readonly key: string;
  readonly dtype: FileType;
  /** Elements. */
  readonly length: number;
  /** Elements into the storage `key` (legacy views of storages). */
  readonly start: number;

  constructor(key: string, dtype: FileType, length: number, start = 0) {
    this.key = key;
    this.dtype = dtype;
    this.length = length;
    this.start = start;
  }
}

class TensorRef {
  readonly storage: StorageRef;
  readonly offset: number;
  readonly shape: number[];
  readonly strides: number[];

  constructor(storage: StorageRef, offset: number, shape: number[], strides: number[]) {
    this.storage = storage;
    this.offset = offset;
    this.shape = shape;
    this.strides = strides;
  }
}

const isCount = (value: unknown): value is number =>
  typeof value === "number" && Number.isSafeInteger(value) && value >= 0;

/** The callables and markers of PyTorch's own checkpoints. */
function torchNames(file: string): Map<string, Known> {
  const known = new Map<string, Known>();
  const rebuild = (args: unknown[]) => {
    const [storage, offset, shape, strides] = args;
    if (
      !(storage instanceof StorageRef && isCount(offset) && Array.isArray(shape) && Array.isArray(strides)) ||
      !shape.every(isCount) ||
      !strides.every(isCount) ||
      shape.length !== strides.length
    ) {
      throw new CheckpointError(`${file}: a tensor's storage, offset, sizes or strides are not what torch writes`);
    }
    return new TensorRef(storage, offset, shape, strides);
  };
  known.set("collections OrderedDict", (args) => {
    const map = new Map<unknown, unknown>();
    if (Array.isArray(args[0])) for (const pair of args[0]) if (Array.isArray(pair)) map.set(pair[0], pair[1]);
    return map;
  });
  known.set("collections defaultdict", () => new Map());
  for (const builtins of ["builtins", "__builtin__"]) {
    known.set(`${builtins} set`, (args) => (Array.isArray(args[0]) ? [...args[0]] : []));
    for (const type of ["int", "float", "bool", "str", "list", "dict", "tuple"])
      known.set(`${builtins} ${type}`, () => null);
  }
  known.set("torch._utils _rebuild_tensor", rebuild);
  known.set("torch._utils _rebuild_tensor_v2", rebuild);
  known.set("torch._utils _rebuild_parameter", ([data]) => data);
  known.set("torch._utils _rebuild_parameter_with_state", ([data]) => data);
  known.set("torch.nn.parameter Parameter", ([data]) => data);
  known.set("torch Size", ([sizes]) => sizes);
  known.set("torch device", (args) => args.join(":"));
  for (const name of Object.keys(STORAGES)) {
    known.set(`torch ${name}`, { marker: name });
    known.set(`torch.cuda ${name}`, { marker: name });
  }
  known.set("torch.storage UntypedStorage", { marker: "UntypedStorage" });
  for (const name of Object.keys(DTYPES)) known.set(`torch ${name}`, { marker: name });
  return known;
}

/** ("storage", type, key, device, elements[, view]) -> StorageRef */
function persistentStorage(id: unknown, file: string): StorageRef {
  if (Array.isArray(id) && id[0] === "storage") {
    const [, type, key, , length, view] = id;
    const marker = typeof type === "object" && type !== null && "marker" in type ? String(type.marker) : "";
    const dtype = marker === "UntypedStorage" ? "U8" : STORAGES[marker];
    if (dtype && isCount(length)) {
      if (!Array.isArray(view)) return new StorageRef(String(key), dtype, length);
      const [, start, size] = view;
      if (isCount(start) && isCount(size)) return new StorageRef(String(key), dtype, size, start);
    }
  }
  throw new CheckpointError(`${file}: a storage's description is not what torch writes`);
}

/** Bytes of a whole storage, from its start. */
type StorageBytes = (storage: StorageRef, tensor: string) => Uint8Array;

export function isZip(bytes: Uint8Array): boolean {
  return bytes.length > 4 && bytes[0] === 0x50 && bytes[1] === 0x4b && bytes[2] === 3 && bytes[3] === 4;
}

/** Every tensor of a .pt or .pth file under its key; the state dict may stand at the root or under `state_dict`, `model` and the like. */
export function readTorch(bytes: Uint8Array, file: string): Map<string, HostTensor> {
  return isZip(bytes) ? readZipFormat(bytes, file) : readLegacyFormat(bytes, file);
}

function readZipFormat(bytes: Uint8Array, file: string): Map<string, HostTensor> {
  const zip = new ZipArchive(bytes, file);
  const pickle = zip.names.find((name) => name === "data.pkl" || name.endsWith("/data.pkl"));
  if (!pickle) {
    const script = zip.names.some((name) => name.endsWith("constants.pkl"));
    throw new CheckpointError(
      `${file}: ${script ? "a TorchScript archive; save its state_dict instead" : "a zip archive without data.pkl, so no torch checkpoint"}`,
    );
  }
  const folder = pickle.slice(0, -"data.pkl".length);
  if (
    zip.sizeOf(`${folder}byteorder`) !== undefined &&
    new TextDecoder().decode(zip.read(`${folder}byteorder`)).trim() !== "little"
  ) {
    throw new CheckpointError(`${file}: the tensors are big-endian; save them on a little-endian machine`);
  }
  const { value } = readPickle(zip.read(pickle), 0, {
    file,
    known: torchNames(file),
    persistent: (id) => persistentStorage(id, file),
  });
  const cache = new Map<string, Uint8Array>();
  return collect(value, file, (storage, tensor) => {
    const name = `${folder}data/${storage.key}`;
    const size = zip.sizeOf(name);
    const expected = storage.length * ITEM_BYTES[storage.dtype];
    if (size === undefined)
      throw new CheckpointError(
        `${file}: tensor ${tensor}: its storage ${name} is missing; the file is truncated or corrupt`,
      );
    if (size < expected) {
      throw new CheckpointError(
        `${file}: tensor ${tensor}: its storage ${name} has ${size} bytes, ${expected} were expected`,
      );
    }
    const data = cache.get(name) ?? zip.read(name);
    cache.set(name, data);
    return data;
  });
}

/** The number that opens a legacy file: 0x1950a86a20f9469cfc6c as a pickled LONG1 of 10 bytes. */
const LEGACY_MAGIC = 0x1950a86a20f9469cfc6cn;
const LEGACY_PROTOCOL = 1001;

function readLegacyFormat(bytes: Uint8Array, file: string): Map<string, HostTensor> {
  const options = { file, known: torchNames(file), persistent: (id: unknown) => persistentStorage(id, file) };
  let at = 0;
  const next = () => {
    const { value, end } = readPickle(bytes, at, options);
    at = end;
    return value;
  };
  const notTorch = `${file}: no torch checkpoint: it starts neither as a zip archive nor as a legacy torch file`;
  if (bytes[0] !== 0x80) throw new CheckpointError(notTorch);
  if (next() !== LEGACY_MAGIC) throw new CheckpointError(notTorch);
  const protocol = next();
  if (protocol !== LEGACY_PROTOCOL)
    throw new CheckpointError(`${file}: legacy torch protocol ${protocol}; ${LEGACY_PROTOCOL} is read`);
  next(); // the writer's byte order and integer sizes: the tensors are little-endian either way
  const root = next();
  const keys = next();
  if (!Array.isArray(keys))
    throw new CheckpointError(`${file}: the list of storages is missing; the file is truncated or corrupt`);

  // Each storage: its number of elements in 8 bytes, then the elements. Their width is known from the tensors that use it.
  const widths = new Map<string, number>();
  for (const tensor of tensorsOf(root)) widths.set(tensor.storage.key, ITEM_BYTES[tensor.storage.dtype]);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const storages = new Map<string, Uint8Array>();
  for (const key of keys) {
    const width = widths.get(String(key));
    const truncated = () =>
      new CheckpointError(`${file}: storage ${key} reaches beyond the end of the file; it is truncated`);
    if (at + 8 > bytes.length) throw truncated();
    const size = Number(view.getBigInt64(at, true)) * (width ?? 0);
    if (width === undefined) throw new CheckpointError(`${file}: storage ${key} belongs to no tensor`);
    at += 8;
    if (size < 0 || at + size > bytes.length) throw truncated();
    storages.set(String(key), bytes.subarray(at, at + size));
    at += size;
  }
  return collect(root, file, (storage, tensor) => {
    const data = storages.get(storage.key);
    if (!data) throw new CheckpointError(`${file}: tensor ${tensor}: its storage ${storage.key} is missing`);
    return data;
  });
}

function* tensorsOf(value: unknown): Generator<TensorRef> {
  if (value instanceof TensorRef) yield value;
  else if (value instanceof Map) for (const item of value.values()) yield* tensorsOf(item);
  else if (Array.isArray(value)) for (const item of value) yield* tensorsOf(item);
}

/** Where training scripts put the weights, in the order of preference. */
const WRAPPERS = ["state_dict", "model_state_dict", "model", "module", "net", "params"];

function collect(root: unknown, file: string, bytesOf: StorageBytes): Map<string, HostTensor> {
  const dict = stateDict(root);
  if (!dict) {
    const keys = root instanceof Map ? `; its keys are ${[...root.keys()].slice(0, 8).join(", ")}` : "";
    throw new CheckpointError(`${file}: holds no state dict of tensors${keys}`);
  }
  const tensors = new Map<string, HostTensor>();
  for (const [key, value] of dict) {
    if (value instanceof TensorRef) tensors.set(String(key), materialise(value, String(key), file, bytesOf));
  }
  return tensors;
}

function stateDict(root: unknown): Map<unknown, unknown> | undefined {
  if (!(root instanceof Map)) return undefined;
  if ([...root.values()].some((value) => value instanceof TensorRef)) return root;
  for (const name of WRAPPERS) {
    const inner = stateDict(root.get(name));
    if (inner) return inner;
  }
  return undefined;
}

/** A view's elements, row-major. */
function materialise(
  { storage, offset, shape, strides }: TensorRef,
  name: string,
  file: string,
  bytesOf: StorageBytes,
): HostTensor {
  const { dtype } = storage;
  const width = ITEM_BYTES[dtype];
  const size = shape.reduce((product, d) => product * d, 1);
  const last = size === 0 ? -1 : shape.reduce((sum, d, i) => sum + (d - 1) * strides[i]!, offset);
  if (last >= storage.length || offset > storage.length) {
    throw new CheckpointError(
      `${file}: tensor ${name}: (${shape.join(", ")}) at offset ${offset} needs element ${last}, its storage ${storage.key} has ${storage.length}`,
    );
  }
  // Overlapping views (expand) would let a small file fill the memory; no module's parameter is one.
  if (size > storage.length) {
    throw new CheckpointError(
      `${file}: tensor ${name}: (${shape.join(", ")}) has more elements than its storage ${storage.key} (${storage.length})`,
    );
  }
  const all = bytesOf(storage, name);
  const from = storage.start * width;
  if (from + storage.length * width > all.length) {
    throw new CheckpointError(
      `${file}: tensor ${name}: its storage ${storage.key} has ${all.length} bytes, ${from + storage.length * width} were expected`,
    );
  }
  const source = all.subarray(from, from + storage.length * width);
  if (size === 0) return { dtype, shape, data: new Uint8Array(0) };
  let step = 1;
  const contiguous = shape.every((_, i) => {
    const dim = shape.length - 1 - i;
    const fits = shape[dim] === 1 || strides[dim] === step;
    step *= shape[dim]!;
    return fits;
  });
  if (contiguous) {
    const view = source.subarray(offset * width, (offset + size) * width);
    // The legacy format does not align storages; numbers are read fast where they are aligned.
    return { dtype, shape, data: view.byteOffset % width === 0 ? view : view.slice() };
  }
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
  return { dtype, shape, data };
}
