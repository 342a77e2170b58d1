// From what a pickle holds to named tensors: finds the state dict, and copies each view's elements out of its storage.
import type { FileType } from "../../engine/safetensors.ts";
import { ArrayRef, arrayTensor } from "./numpy.ts";
import { Budget, CheckpointError, denseBytes, type HostTensor, ITEM_BYTES } from "./tensors.ts";

/** Elements as torch names them; `dtype` is undefined where no tensor of them is read. */
export interface ElementType {
  readonly name: string;
  readonly dtype: FileType | undefined;
  readonly bytes: number;
}

/** A storage that the pickle refers to; its bytes may come later. */
export class StorageRef {
  readonly key: string;
  readonly type: ElementType;
  /** Elements. */
  readonly length: number;
  /** Elements into the storage `key` (legacy views of storages). */
  readonly start: number;
  /** Of a storage that was pickled inside. */
  bytes: Uint8Array | undefined;

  constructor(key: string, type: ElementType, length: number, start = 0) {
    this.key = key;
    this.type = type;
    this.length = length;
    this.start = start;
  }
}

/** A view of a storage: offset, sizes and strides in elements. */
export class TensorRef {
  readonly storage: StorageRef;
  readonly type: ElementType;
  readonly offset: number;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  /** Negation or conjugation that was put off. */
  readonly lazy: boolean;

  constructor(
    storage: StorageRef,
    type: ElementType,
    offset: number,
    shape: readonly number[],
    strides: readonly number[],
    lazy: boolean,
  ) {
    this.storage = storage;
    this.type = type;
    this.offset = offset;
    this.shape = shape;
    this.strides = strides;
    this.lazy = lazy;
  }
}

/** Bytes of a whole storage, from its start. */
export type StorageBytes = (storage: StorageRef, tensor: string) => Uint8Array;

/** Where training scripts put the weights, in the order of preference. */
const WRAPPERS = ["state_dict", "model_state_dict", "model", "module", "net", "params", "weights", "model_ema"];
const MOST_WRAPPED = 4;

/** Every tensor under its key; the state dict may stand at the root or under `state_dict`, `model` and the like. */
export function collect(
  root: unknown,
  fileBytes: number,
  file: string,
  bytesOf: StorageBytes,
): Map<string, HostTensor> {
  const dict = stateDict(root, MOST_WRAPPED);
  if (!dict) {
    const keys = root instanceof Map ? [...root.keys()].filter((key) => typeof key === "string").slice(0, 8) : [];
    const there = keys.length > 0 ? `; its keys are ${keys.join(", ")}` : "";
    throw new CheckpointError(`${file}: holds no state dict of tensors${there}`);
  }
  const budget = new Budget(fileBytes, file);
  const tensors = new Map<string, HostTensor>();
  for (const [key, value] of dict) {
    if (!isTensor(value)) continue;
    if (typeof key !== "string" && typeof key !== "number")
      throw new CheckpointError(`${file}: a key of the state dict is no text`);
    const where = `${file}: tensor ${key}`;
    tensors.set(
      String(key),
      value instanceof ArrayRef ? arrayTensor(value, where) : viewed(value, `${key}`, where, budget, bytesOf),
    );
  }
  return tensors;
}

const isTensor = (value: unknown): value is TensorRef | ArrayRef =>
  value instanceof TensorRef || value instanceof ArrayRef;

/** The outermost dict of which most tensors are; beside a wrapped one there may be a few of training. */
function stateDict(root: unknown, depth: number): Map<unknown, unknown> | undefined {
  if (!(root instanceof Map) || depth === 0) return undefined;
  const inner = WRAPPERS.map((name) => stateDict(root.get(name), depth - 1)).find((found) => found !== undefined);
  const own = count(root);
  return own > 0 && own >= (inner ? count(inner) : 0) ? root : inner;
}

function count(dict: ReadonlyMap<unknown, unknown>): number {
  let n = 0;
  for (const value of dict.values()) if (isTensor(value)) n++;
  return n;
}

/** A view's elements, row-major. */
function viewed(ref: TensorRef, key: string, where: string, budget: Budget, bytesOf: StorageBytes): HostTensor {
  const { storage, type, offset, shape, strides } = ref;
  const fail = (text: string): never => {
    throw new CheckpointError(`${where}: ${text}`);
  };
  const dtype = type.dtype ?? fail(`is of type ${type.name}, which is not read here`);
  if (ref.lazy) fail("is a negated or conjugated view; save the result of resolve_neg() or resolve_conj()");
  const width = ITEM_BYTES[dtype];
  // Elements of the tensor's type: an untyped storage counts bytes.
  const length = Math.floor((storage.length * storage.type.bytes) / width);
  const size = shape.reduce((product, d) => product * d, 1);
  const last = size === 0 ? -1 : shape.reduce((sum, d, i) => sum + (d - 1) * strides[i]!, offset);
  const named = `(${shape.join(", ")}) at offset ${offset}`;
  if (last >= length || offset > length)
    fail(`${named} needs element ${last}, its storage ${storage.key} has ${length}`);
  // Overlapping views (expand) would let a small file fill the memory; no module's parameter is one.
  if (size > length) fail(`(${shape.join(", ")}) has more elements than its storage ${storage.key} (${length})`);
  budget.take(size * width, `tensor ${key}`);
  const all = storage.bytes ?? bytesOf(storage, key);
  const from = storage.start * storage.type.bytes;
  const to = from + storage.length * storage.type.bytes;
  if (to > all.length) fail(`its storage ${storage.key} has ${all.length} bytes, ${to} were expected`);
  return { dtype, shape, data: denseBytes(all.subarray(from, to), width, offset, shape, strides) };
}
