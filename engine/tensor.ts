/**
 * A tensor is data: a contiguous array of one type in a GPU buffer, with a place for its gradient. What is done with tensors stands in
 * `ops/`. Memory belongs to scopes: see `scope`.
 */
import type { Device } from "./device.ts";
import { halfBits, halfValue } from "./half.ts";
import { linearGroups, run } from "./kernel.ts";
import type { Storage } from "./pool.ts";
import { currentScope, own, type Scope } from "./scope.ts";
import { type Shape, show, sizeOf } from "./shape.ts";
import type { Node } from "./tape.ts";

/** "bool" is stored as u32 (0 or 1); "f16" is packed storage, to be cast to "f32" before computing. */
export type DType = "f32" | "f16" | "i32" | "u32" | "bool";
export type HostArray = Float32Array | Int32Array | Uint32Array | Uint8Array;
export type HostData = ArrayLike<number> | ArrayLike<boolean>;

export interface TensorOptions {
  dtype?: DType | undefined;
  requiresGrad?: boolean | undefined;
}

export const BYTES: Record<DType, number> = { f32: 4, f16: 2, i32: 4, u32: 4, bool: 4 };

let nextId = 1;

export class Tensor {
  readonly id = nextId++;
  readonly device: Device;
  readonly storage: Storage;
  readonly shape: Shape;
  readonly dtype: DType;
  /** Number of elements. */
  readonly size: number;
  requiresGrad = false;
  /** Gradient of the last `backward`s, summed, for leaves that require one. */
  grad: Tensor | undefined;
  /** How it came about, while the tape records. */
  node: Node | undefined;
  /** The scope that frees it; undefined: freed when collected. */
  scope: Scope | undefined;
  /** Its buffer went back to the pool: any further use is an error. */
  freed = false;

  constructor(device: Device, storage: Storage, shape: Shape, dtype: DType) {
    this.device = device;
    this.storage = storage;
    this.shape = shape;
    this.dtype = dtype;
    this.size = sizeOf(shape);
    own(this, currentScope());
  }

  /** Reads the elements back: Float32Array for f32 and f16, Int32Array, Uint32Array, Uint8Array for bool. */
  async toArray(): Promise<HostArray> {
    if (this.freed) throw new Error(freedMessage("toArray", this));
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

function freedMessage(op: string, x: Tensor): string {
  return `${op}: the tensor of shape ${show(x.shape)} was freed when its scope ended; return it from the scope to keep it`;
}

export function empty(device: Device, shape: Shape, dtype: DType = "f32"): Tensor {
  if (shape.some((d) => !Number.isInteger(d) || d < 0))
    throw new Error(`empty: a shape holds whole numbers from 0 up; got ${show(shape)}`);
  return new Tensor(device, device.pool.allocate(Math.max(sizeOf(shape) * BYTES[dtype], 4)), [...shape], dtype);
}

/** Another tensor on the same buffer. */
export function alias(x: Tensor, shape: Shape = x.shape): Tensor {
  if (x.freed) throw new Error(freedMessage("reshape", x));
  x.storage.owners++;
  return new Tensor(x.device, x.storage, [...shape], x.dtype);
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

export function fromHost(device: Device, data: HostData, shape: Shape, options: TensorOptions): Tensor {
  const n = sizeOf(shape);
  if (data.length !== n) throw new Error(`tensor: shape ${show(shape)} takes ${n} numbers; got ${data.length}`);
  const dtype = options.dtype ?? (data instanceof Int32Array ? "i32" : data instanceof Uint32Array ? "u32" : "f32");
  const y = empty(device, shape, dtype);
  if (n > 0) {
    const numbers = data as ArrayLike<number>;
    let bytes: ArrayBufferView;
    if (dtype === "f16") {
      const packed = new Uint16Array(Math.ceil(n / 2) * 2);
      for (let i = 0; i < n; i++) packed[i] = halfBits(numbers[i]!);
      bytes = packed;
    } else if (dtype === "bool") bytes = Uint32Array.from(numbers, (v) => (v ? 1 : 0));
    else if (dtype === "f32") bytes = hostCopy(numbers, Float32Array);
    else bytes = dtype === "i32" ? hostCopy(numbers, Int32Array) : hostCopy(numbers, Uint32Array);
    device.upload(y, bytes);
  }
  y.requiresGrad = options.requiresGrad ?? false;
  return y;
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
