// PyTorch's checkpoint files: the zip archive that torch.save writes since 1.6, and the legacy stream of pickles before it.
// Also what plain pickle.dump makes of tensors: each storage is such a legacy stream inside the pickle.
import type { FileType } from "../../engine/safetensors.ts";
import { buildNumpy, numpyNames } from "./numpy.ts";
import { type Known, type PickleOptions, readPickle } from "./pickle.ts";
import { collect, type ElementType, StorageRef, TensorRef } from "./state-dict.ts";
import { CheckpointError, type HostTensor, ITEM_BYTES } from "./tensors.ts";
import { ZipArchive } from "./zip.ts";

/** [storage, dtype, type in safetensors' words] */
const READ: readonly (readonly [string, string, FileType])[] = [
  ["DoubleStorage", "float64", "F64"],
  ["FloatStorage", "float32", "F32"],
  ["HalfStorage", "float16", "F16"],
  ["BFloat16Storage", "bfloat16", "BF16"],
  ["LongStorage", "int64", "I64"],
  ["IntStorage", "int32", "I32"],
  ["ShortStorage", "int16", "I16"],
  ["CharStorage", "int8", "I8"],
  ["ByteStorage", "uint8", "U8"],
  ["BoolStorage", "bool", "BOOL"],
  ["UntypedStorage", "untyped", "U8"],
  // Without storages of their own.
  ["", "uint16", "U16"],
  ["", "uint32", "U32"],
  ["", "uint64", "U64"],
];
/** Known by name, so that a tensor of them is refused as such: [storage, dtype, bytes]. */
const UNREAD: readonly (readonly [string, string, number])[] = [
  ["ComplexFloatStorage", "complex64", 8],
  ["ComplexDoubleStorage", "complex128", 16],
  ["QInt8Storage", "qint8", 1],
  ["QUInt8Storage", "quint8", 1],
  ["QInt32Storage", "qint32", 4],
  ["", "float8_e4m3fn", 1],
  ["", "float8_e5m2", 1],
  ["", "float8_e4m3fnuz", 1],
  ["", "float8_e5m2fnuz", 1],
];
/** Under both names. */
const TYPES = new Map<string, ElementType>();
for (const [storage, name, dtype] of READ)
  for (const key of [storage, name]) TYPES.set(key, { name, dtype, bytes: ITEM_BYTES[dtype] });
for (const [storage, name, bytes] of UNREAD)
  for (const key of [storage, name]) TYPES.set(key, { name, dtype: undefined, bytes });
TYPES.delete("");

/** As many as torch has. */
const MOST_DIMS = 64;

const isCount = (value: unknown): value is number =>
  typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
const areCounts = (value: unknown): value is number[] =>
  Array.isArray(value) && value.length <= MOST_DIMS && value.every(isCount);

function typeOf(marker: unknown): ElementType | undefined {
  return typeof marker === "object" && marker !== null && "marker" in marker
    ? TYPES.get(String(marker.marker))
    : undefined;
}

/** The callables and markers of PyTorch's own checkpoints; what is no tensor and no container becomes null. */
function torchNames(file: string): Map<string, Known> {
  const known = new Map<string, Known>();
  const tensor = (storage: unknown, type: unknown, view: readonly unknown[], lazy: unknown): TensorRef => {
    const [offset, shape, strides] = view;
    if (
      !(storage instanceof StorageRef && isCount(offset) && areCounts(shape) && areCounts(strides)) ||
      shape.length !== strides.length
    )
      throw new CheckpointError(`${file}: a tensor's storage, offset, sizes or strides are not what torch writes`);
    const put = lazy instanceof Map && (lazy.get("neg") === true || lazy.get("conj") === true);
    const element =
      type === undefined ? storage.type : (typeOf(type) ?? { name: "unknown", dtype: undefined, bytes: 1 });
    return new TensorRef(storage, element, offset, shape, strides, put);
  };
  known.set("torch._utils _rebuild_tensor", ([storage, ...view]) => tensor(storage, undefined, view, undefined));
  known.set("torch._utils _rebuild_tensor_v2", (args) => tensor(args[0], undefined, args.slice(1), args[6]));
  known.set("torch._utils _rebuild_tensor_v3", (args) => tensor(args[0], args[6], args.slice(1), args[7]));
  for (const name of ["torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state"])
    known.set(name, ([data]) => data);
  known.set("torch.nn.parameter Parameter", ([data]) => data);
  known.set("torch Size", ([sizes]) => sizes);
  known.set("torch device", () => null);
  known.set("torch.serialization _get_layout", () => null);
  for (const name of TYPES.keys()) {
    known.set(`torch ${name}`, { marker: name });
    known.set(`torch.cuda ${name}`, { marker: name });
  }
  known.set("torch.storage UntypedStorage", { marker: "UntypedStorage" });
  containers(known);
  numpyNames(known);
  return known;
}

function containers(known: Map<string, Known>): void {
  known.set("collections OrderedDict", ([pairs]) => {
    const map = new Map<unknown, unknown>();
    if (Array.isArray(pairs)) for (const pair of pairs) if (Array.isArray(pair)) map.set(pair[0], pair[1]);
    return map;
  });
  for (const name of ["defaultdict", "Counter"]) known.set(`collections ${name}`, () => new Map());
  for (const builtins of ["builtins", "__builtin__"]) {
    for (const type of ["set", "frozenset"])
      known.set(`${builtins} ${type}`, ([items]) => (Array.isArray(items) ? items : []));
    known.set(`${builtins} bytes`, () => new Uint8Array(0)); // only empty ones are called for
    for (const type of ["int", "float", "complex", "bool", "str", "list", "dict", "tuple", "slice", "bytearray"])
      known.set(`${builtins} ${type}`, () => null);
  }
}

/** ("storage", type, key, device, elements[, view]) -> StorageRef */
function persistentStorage(id: unknown, file: string): StorageRef {
  if (Array.isArray(id) && id[0] === "storage") {
    const [, marker, key, , length, view] = id;
    const type = typeOf(marker);
    if (type && typeof key === "string" && isCount(length)) {
      if (!Array.isArray(view)) return new StorageRef(key, type, length);
      const [, start, size] = view;
      if (isCount(start) && isCount(size)) return new StorageRef(key, type, size, start);
    }
  }
  throw new CheckpointError(`${file}: a storage's description is not what torch writes`);
}

export function isZip(bytes: Uint8Array): boolean {
  return bytes.length > 4 && bytes[0] === 0x50 && bytes[1] === 0x4b && bytes[2] === 3 && bytes[3] === 4;
}

/** Reads the zip format of .pt and .pth files. */
export function readTorchZip(bytes: Uint8Array, file: string): Map<string, HostTensor> {
  const zip = new ZipArchive(bytes, file);
  const isPart = (part: string) => (name: string) => name === part || name.endsWith(`/${part}`);
  const pickle = zip.names.find(isPart("data.pkl"));
  if (zip.names.some(isPart("constants.pkl")))
    throw new CheckpointError(`${file}: a TorchScript archive; save its state_dict instead`);
  if (!pickle) throw new CheckpointError(`${file}: a zip archive without data.pkl, so no torch checkpoint`);
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
    build: buildNumpy,
  });
  const cache = new Map<string, Uint8Array>();
  return collect(value, bytes.length, file, (storage, tensor) => {
    const name = `${folder}data/${storage.key}`;
    const size = zip.sizeOf(name);
    const expected = storage.length * storage.type.bytes;
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

/** The number that opens a legacy file, 0x1950a86a20f9469cfc6c, as LONG1 of 10 bytes; before it the protocol, and a frame since the fourth. */
const LEGACY_OPENING = [0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const LEGACY_PROTOCOL = 1001;

export function isLegacyTorch(bytes: Uint8Array): boolean {
  return bytes[0] === 0x80 && [2, 11].some((at) => LEGACY_OPENING.every((byte, i) => bytes[at + i] === byte));
}

const BEYOND = "reaches beyond the end of the file; it is truncated";

interface Legacy {
  root: unknown;
  storages: Map<string, Uint8Array>;
  /** Of the first storage that is not there as a whole, and with which all that follow are missing. */
  cut?: string;
}

/** Reads the format that torch.save wrote before 1.6. */
export function readTorchLegacy(bytes: Uint8Array, file: string): Map<string, HostTensor> {
  const { root, storages, cut } = readLegacy(bytes, { file, known: torchNames(file), build: buildNumpy });
  const tensors = collect(root, bytes.length, file, (storage, tensor) => {
    const data = storages.get(storage.key);
    if (data) return data;
    const what = cut ? `its storage ${BEYOND}` : `its storage ${storage.key} is missing`;
    throw new CheckpointError(`${file}: tensor ${tensor}: ${what}`);
  });
  if (cut) throw new CheckpointError(`${file}: ${cut}`);
  return tensors;
}

/** Magic number, protocol, sizes of the writer's integers, what was saved, keys of its storages, storages. */
function readLegacy(bytes: Uint8Array, options: PickleOptions): Legacy {
  const { file } = options;
  // A storage begins with its number of elements; how wide these are is known from the pickle.
  const widths = new Map<string, number>();
  const persistent = (id: unknown) => {
    const storage = persistentStorage(id, file);
    widths.set(storage.key, storage.type.bytes);
    return storage;
  };
  let at = 0;
  const next = () => {
    const { value, end } = readPickle(bytes, at, { ...options, persistent });
    at = end;
    return value;
  };
  next();
  const protocol = next();
  if (protocol !== LEGACY_PROTOCOL)
    throw new CheckpointError(`${file}: the legacy torch protocol is not ${LEGACY_PROTOCOL}, the only one there was`);
  next(); // the writer's byte order and integer sizes: the tensors are little-endian either way
  const root = next();
  const keys = next();
  if (!Array.isArray(keys))
    throw new CheckpointError(`${file}: the list of storages is missing; the file is truncated or corrupt`);

  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const storages = new Map<string, Uint8Array>();
  for (const key of keys) {
    const width = typeof key === "string" ? widths.get(key) : undefined;
    if (width === undefined) throw new CheckpointError(`${file}: a storage at byte ${at} belongs to no tensor`);
    const size = at + 8 > bytes.length ? -1 : Number(view.getBigInt64(at, true)) * width;
    at += 8;
    if (size < 0 || at + size > bytes.length) return { root, storages, cut: `storage ${key} ${BEYOND}` };
    storages.set(key, bytes.subarray(at, at + size));
    at += size;
  }
  return { root, storages };
}

/** Reads a plain pickle: detectron2's model zoo (a dict whose `model` maps keys to NumPy arrays), or tensors that pickle.dump wrote. */
export function readPlainPickle(bytes: Uint8Array, file: string): Map<string, HostTensor> {
  const known = torchNames(file);
  const inner = torchNames(file);
  known.set("torch.storage _load_from_bytes", ([stream]) => {
    if (!(stream instanceof Uint8Array && isLegacyTorch(stream)))
      throw new CheckpointError(`${file}: a tensor's storage is not what torch pickles`);
    const { root, storages, cut } = readLegacy(stream, { file, known: inner });
    if (cut) throw new CheckpointError(`${file}: ${cut}`);
    if (root instanceof StorageRef) root.bytes = storages.get(root.key);
    return root;
  });
  const { value } = readPickle(bytes, 0, { file, known, build: buildNumpy });
  return collect(value, bytes.length, file, (storage, tensor) => {
    throw new CheckpointError(`${file}: tensor ${tensor}: its storage ${storage.key} is missing`);
  });
}
