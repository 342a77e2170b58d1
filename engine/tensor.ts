/**
 * A tensor is data: a contiguous array of one type in a GPU buffer, with a place for its gradient. What is done with tensors stands in
 * `ops/`. Memory belongs to scopes: see `scope`.
 */
import { checkNumbers, checkOptions, DTYPES, describe, isPlain } from "./check.ts";
import type { Device } from "./device.ts";
import { halfBits, halfValue } from "./half.ts";
import { linearGroups, run } from "./kernel.ts";
import type { Storage } from "./pool.ts";
import { currentScope, free, own, type Scope } from "./scope.ts";
import { type Shape, show, sizeOf } from "./shape.ts";
import type { Node } from "./tape.ts";

/** "bool" is stored as u32 (0 or 1); "f16" is storage, which products read as it is (F.matmul, F.linear, weights of convolutions); all else takes "f32". */
export type DType = "f32" | "f16" | "i32" | "u32" | "bool";
export type HostArray = Float32Array | Int32Array | Uint32Array | Uint8Array;
export type HostData = ArrayLike<number> | ArrayLike<boolean>;

export interface TensorOptions {
  dtype?: DType | undefined;
  requiresGrad?: boolean | undefined;
}
export const TENSOR_OPTIONS = { dtype: DTYPES, requiresGrad: "boolean" } as const;

export const BYTES: Record<DType, number> = { f32: 4, f16: 2, i32: 4, u32: 4, bool: 4 };

/** Numbers that are still to be worked out; engine/fusion.ts makes it. */
export interface Pending {
  /** Works them out, once, and gives the buffer. */
  settle(): Storage;
  /** One more, one less that may ask. */
  hold(): void;
  release(): void;
  /** It holds on to far more memory than it will fill. */
  readonly holdsMuch: boolean;
}

/** A tensor's buffer, or what will fill it. Apart from the tensor, so that it can be given back when the tensor is collected. */
export interface Memory {
  readonly device: Device;
  storage: Storage | undefined;
  pending: Pending | undefined;
}

let nextId = 1;

/** The id of the tensor that was made last. */
export const latestId = (): number => nextId - 1;

export class Tensor {
  readonly id = nextId++;
  readonly device: Device;
  readonly memory: Memory;
  readonly shape: Shape;
  readonly dtype: DType;
  /** Number of elements. */
  readonly size: number;
  #requiresGrad = false;
  /** Gradient of the last `backward`s, summed, for leaves that require one. */
  grad: Tensor | undefined;
  /** How it came about, while the tape records. */
  node: Node | undefined;
  /** A backward pass went through it: what it came from is no longer known. */
  spent = false;
  /** The scope that frees it; undefined: freed when collected. */
  scope: Scope | undefined;
  /** Its buffer went back to the pool: any further use is an error. */
  freed = false;

  constructor(device: Device, memory: Omit<Memory, "device">, shape: Shape, dtype: DType) {
    this.device = device;
    this.memory = { device, ...memory };
    this.shape = shape;
    this.dtype = dtype;
    this.size = sizeOf(shape);
    own(this, currentScope());
  }

  /** Its buffer. Where the numbers are not there yet this runs the kernels that work them out. */
  get storage(): Storage {
    const { memory } = this;
    if (!memory.storage) {
      const pending = memory.pending!;
      memory.storage = pending.settle();
      memory.storage.owners++;
      memory.pending = undefined;
      pending.release();
    }
    return memory.storage;
  }

  /** What its numbers will be worked out from; undefined where they are there. */
  get pending(): Pending | undefined {
    return this.memory.pending;
  }

  /** Whether `backward` goes on to it. Whole numbers and truth values have no gradient. */
  get requiresGrad(): boolean {
    return this.#requiresGrad;
  }

  set requiresGrad(on: boolean) {
    if (on && this.dtype !== "f32" && this.dtype !== "f16")
      throw new Error(`requiresGrad: only f32 and f16 tensors can have a gradient; this one is ${this.dtype}`);
    this.#requiresGrad = on;
  }

  /** Reads the elements back: Float32Array for f32 and f16, Int32Array, Uint32Array, Uint8Array for bool. */
  async toArray(): Promise<HostArray> {
    checkAlive("toArray", this);
    const bytes = await this.device.download(this);
    switch (this.dtype) {
      case "f32":
        return new Float32Array(bytes);
      case "i32":
        return new Int32Array(bytes);
      case "u32":
        return new Uint32Array(bytes);
      case "bool":
        return Uint8Array.from(new Uint32Array(bytes));
      case "f16":
        return Float32Array.from(new Uint16Array(bytes, 0, this.size), halfValue);
    }
  }

  /** The single element of a tensor that has just one. */
  async item(): Promise<number> {
    if (this.size !== 1) throw new Error(`item: the tensor must have one element; got shape ${show(this.shape)}`);
    return (await this.toArray())[0]!;
  }
}

/** Refuses a tensor whose buffer went back to the pool. */
export function checkAlive(op: string, x: Tensor): void {
  if (x.freed)
    throw new Error(
      `${op}: the tensor of shape ${show(x.shape)} was freed, by free or when its scope ended; return it from the scope to keep it`,
    );
}

export function empty(device: Device, shape: Shape, dtype: DType = "f32"): Tensor {
  const storage = device.pool.allocate(Math.max(sizeOf(shape) * BYTES[dtype], 4));
  return new Tensor(device, { storage, pending: undefined }, [...shape], dtype);
}

/** A tensor that takes over one hold of `pending`. */
export function pendingTensor(device: Device, pending: Pending, shape: Shape, dtype: DType): Tensor {
  return new Tensor(device, { storage: undefined, pending }, [...shape], dtype);
}

/** Works out a tensor's numbers now, where pointwise operations have put that off: for measurements. */
export function settle(x: Tensor): Tensor {
  void x.storage;
  return x;
}

/** Another tensor on the same buffer, whose bits may be taken for another type of the same size. */
export function alias(x: Tensor, shape: Shape = x.shape, dtype: DType = x.dtype): Tensor {
  checkAlive("reshape", x);
  const { pending } = x;
  if (pending && dtype === x.dtype) {
    pending.hold();
    return pendingTensor(x.device, pending, shape, dtype);
  }
  const { storage } = x;
  storage.owners++;
  return new Tensor(x.device, { storage, pending: undefined }, [...shape], dtype);
}

/** The same in another shape; x itself is given up. */
export function reshaped(x: Tensor, shape: Shape): Tensor {
  const y = alias(x, shape);
  free(x);
  return y;
}

/** A tensor whose values are not set, as a user asks for it; `op` names the function that was called. */
export function create(device: Device, op: string, shape: Shape, options: TensorOptions): Tensor {
  checkNumbers(op, "shape", shape, 0);
  checkOptions(op, options, TENSOR_OPTIONS);
  const y = empty(device, shape, options.dtype);
  y.requiresGrad = options.requiresGrad ?? false;
  return y;
}

export function fill(y: Tensor, value: number): Tensor {
  if (value === 0 && !Object.is(value, -0)) {
    y.device.clear(y);
    return y;
  }
  const n = Math.ceil((y.size * BYTES[y.dtype]) / 4);
  const bits = new DataView(new ArrayBuffer(4));
  if (y.dtype === "f32") bits.setFloat32(0, value, true);
  else if (y.dtype === "f16") bits.setUint32(0, halfBits(value) * 0x10001, true);
  else bits.setInt32(0, y.dtype === "bool" ? (value ? 1 : 0) : value, true);
  const vectors = Math.ceil(n / 4);
  run(y.device, "fill", "forward", {
    bind: { y },
    params: { n: vectors, bits: bits.getUint32(0, true) },
    groups: linearGroups(Math.ceil(vectors / 64)),
  });
  return y;
}

export function fromHost(device: Device, data: HostData, shape: Shape | undefined, options: TensorOptions): Tensor {
  checkData(data);
  const given =
    data instanceof Int32Array
      ? { dtype: "i32" as const }
      : data instanceof Uint32Array
        ? { dtype: "u32" as const }
        : {};
  const y = create(device, "tensor", shape ?? [data.length], isPlain(options) ? { ...given, ...options } : options);
  const { dtype, size } = y;
  if (data.length !== size) throw new Error(`tensor: shape ${show(y.shape)} takes ${size} numbers; got ${data.length}`);
  if (size === 0) return y;
  const numbers = data as ArrayLike<number>;
  let bytes: ArrayBufferView;
  if (dtype === "f16") {
    const packed = new Uint16Array(Math.ceil(size / 2) * 2);
    for (let i = 0; i < size; i++) packed[i] = halfBits(numbers[i]!);
    bytes = packed;
  } else if (dtype === "bool") bytes = Uint32Array.from(numbers, (v) => (v ? 1 : 0));
  else if (dtype === "f32") bytes = hostCopy(numbers, Float32Array);
  else bytes = dtype === "i32" ? hostCopy(numbers, Int32Array) : hostCopy(numbers, Uint32Array);
  device.upload(y, bytes);
  return y;
}

/** Numbers or truth values, one after the other. */
function checkData(data: HostData): void {
  if (typeof data === "number")
    throw new Error(`tensor: data must be an array of numbers; got one, ${data}: gpu.full([], ${data}) holds it`);
  if (typeof data !== "object" || data === null || !Number.isInteger(data.length))
    throw new Error(`tensor: data must be an array of numbers; got ${describe(data)}`);
  if (ArrayBuffer.isView(data) && typeof data[0] !== "bigint") return;
  for (let i = 0; i < data.length; i++) {
    const kind = typeof data[i];
    if (kind === "number" || kind === "boolean") continue;
    const nested = Array.isArray(data[i]) || ArrayBuffer.isView(data[i]);
    throw new Error(
      nested
        ? "tensor: nested arrays are not taken; pass a flat array and a shape: gpu.tensor([1, 2, 3, 4], [2, 2])"
        : `tensor: data must hold numbers; got ${describe(data[i])} at ${i}`,
    );
  }
}

/** The data itself where it already is an array of that kind; Dawn segfaults on shared memory, which is therefore copied. */
function hostCopy<T extends Float32Array | Int32Array | Uint32Array>(
  data: ArrayLike<number>,
  kind: { new (data: ArrayLike<number>): T },
): T {
  if (data instanceof kind && !(typeof SharedArrayBuffer !== "undefined" && data.buffer instanceof SharedArrayBuffer))
    return data;
  return new kind(data);
}
