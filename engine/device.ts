/**
 * A Device owns one adapter's GPU device: the memory pool, the pipelines and the queue of commands. It makes tensors and knows buffers and
 * kernels, not what they compute.
 */
import { checkNumbers, checkOptions, describe as inWords } from "./check.ts";
import { log } from "./debug.ts";
import { dryGpu } from "./dry.ts";
import { type Bound, linearGroups, run } from "./kernel.ts";
import { MATRIX_FEATURE, type MatrixUnits, matrixUnits } from "./matrices.ts";
import { measurePeaks } from "./peaks.ts";
import { platform } from "./platform.ts";
import { Queue } from "./queue.ts";
import { Random } from "./random.ts";
import type { Peaks } from "./rates.ts";
import { type Recording, recordStep } from "./recording.ts";
import { own } from "./scope.ts";
import type { Shape } from "./shape.ts";
import { sizeOf } from "./shape.ts";
import {
  create,
  type DType,
  empty,
  fill,
  fromHost,
  type HostData,
  TENSOR_OPTIONS,
  type Tensor,
  type TensorOptions,
} from "./tensor.ts";
import { endProfiling, startProfiling, type Trace } from "./trace.ts";
import { Tuner } from "./tuner.ts";

export interface DeviceOptions {
  /** "gpu", "software", "lavapipe", "swiftshader" or a part of the adapter's name; default: $WGPU_WISH_ADAPTER, else the best there is. */
  adapter?: string | undefined;
}

export type RandomOptions = TensorOptions & { seed?: number };

/** Dawn crashes the process when these are collected while in use; they stay reachable for its whole life. */
const alive: unknown[] = ((globalThis as Record<string, unknown>).__wgpuWishAlive ??= []) as unknown[];

export class Device extends Queue {
  readonly name: string;
  readonly info: GPUAdapterInfo;
  readonly tuner: Tuner;
  /** What products of f16 matrices are worked out with, where the adapter has it. */
  matrices: MatrixUnits | undefined;
  /** Draws the initial values of `nn` modules. */
  random = new Random(0);
  /** Pipelines and bind groups, kept by kernel.ts. */
  readonly cache = { pipelines: new Map<string, unknown>(), bindGroups: new Map<string, GPUBindGroup>() };
  /** Operations ask for it at every call, and the adapter's own answer comes from native code. */
  #kind: ReturnType<typeof kindOf>;
  #ending: Promise<void> | undefined;
  #trace: Trace | undefined;
  #peaks: Peaks | undefined;
  /** At DEBUG=4: the first dispatch that wrote something not finite, and the names of the dispatches. */
  #found: Tensor | undefined;
  readonly #names: string[] = [];

  private constructor(name: string, info: GPUAdapterInfo, gpu: GPUDevice) {
    super(gpu);
    this.name = name;
    this.info = info;
    this.#kind = kindOf(info, gpu);
    this.tuner = new Tuner(name, info);
    if (this.debug >= 1)
      log(`adapter: ${name} (${info.vendor} ${info.architecture}), subgroups of ${this.subgroupSize}`);
  }

  /** Opens an adapter with all the features and limits that it offers. Rejects where there is none. */
  static async open(options: DeviceOptions = {}): Promise<Device> {
    checkOptions("Device.open", options, { adapter: "any" });
    const host = platform();
    const wish = options.adapter ?? host.environment("WGPU_WISH_ADAPTER");
    const { gpu, adapter, name } = await host.requestAdapter(wish);
    const features = ["timestamp-query", "subgroups", "shader-f16", MATRIX_FEATURE].filter((f) =>
      adapter.features.has(f),
    ) as GPUFeatureName[];
    const limits: Record<string, number> = {};
    for (const key of [
      "maxBufferSize",
      "maxStorageBufferBindingSize",
      "maxComputeInvocationsPerWorkgroup",
      "maxComputeWorkgroupSizeX",
      "maxComputeWorkgroupStorageSize",
      "maxStorageBuffersPerShaderStage",
    ] as const)
      limits[key] = adapter.limits[key];
    const device = await adapter.requestDevice({ requiredFeatures: features, requiredLimits: limits });
    alive.push(gpu, adapter, device);
    const opened = new Device(name, adapter.info, device);
    opened.matrices = await matrixUnits(adapter.info, device, opened.subgroupSize);
    await opened.tuner.load();
    opened.#trace = await startProfiling(opened);
    return opened;
  }

  /**
   * A device like this one that computes nothing: kernels are not run, what is read back is zero, and initial values are not drawn. For
   * asking how much memory work would take, by the same code that will do it.
   */
  dry(): Device {
    const device = new Device(`${this.name} (dry)`, this.info, dryGpu(this.gpu));
    device.#kind = this.#kind;
    device.matrices = this.matrices;
    device.random = new NoRandom(0);
    device.debug = 0;
    return device;
  }

  /** What the adapter can do at most; measured when it is first asked for, by timestamps. */
  async peaks(): Promise<Peaks> {
    return (this.#peaks ??= await measurePeaks(this));
  }

  /** Lanes of a subgroup where every kernel is sure to get that many; 0 where subgroups vary or are not offered. */
  get subgroupSize(): number {
    return this.#kind.subgroup;
  }

  /** Kernels may count with f16 (shader-f16). Every adapter stores them. */
  get hasHalves(): boolean {
    return this.#kind.halves;
  }

  /** A CPU that poses as a GPU: barriers are dear there and loads count more than arithmetic. */
  get isSoftware(): boolean {
    return this.#kind.isSoftware;
  }

  /** Bytes and buffers that tensors own now, the most they owned since resetHighWater(), and what waits in the pool. */
  get memory(): { liveBytes: number; liveBuffers: number; highWaterBytes: number; freeBytes: number } {
    const { liveBytes, liveBuffers, highWaterBytes, freeBytes } = this.pool;
    return { liveBytes, liveBuffers, highWaterBytes, freeBytes };
  }

  /** From here on `memory.highWaterBytes` is the most that tensors own from now, as torch.cuda.reset_peak_memory_stats has it. */
  resetHighWater(): void {
    this.pool.resetHighWater();
  }

  // ---- tensors ----

  /**
   * A tensor from host data. `data` holds as many numbers as `shape` has elements; numbers are converted to `dtype` (default "f32",
   * or that of an Int32Array or Uint32Array).
   */
  tensor(data: HostData, shape?: Shape, options: TensorOptions = {}): Tensor {
    return fromHost(this, data, shape, options);
  }

  /** A tensor whose values are not set. */
  empty(shape: Shape, options: TensorOptions = {}): Tensor {
    return create(this, "empty", shape, options);
  }

  full(shape: Shape, value: number, options: TensorOptions = {}): Tensor {
    if (typeof value !== "number") throw new Error(`full: value must be a number; got ${inWords(value)}`);
    return fill(create(this, "full", shape, options), value);
  }

  zeros(shape: Shape, options: TensorOptions = {}): Tensor {
    return fill(create(this, "zeros", shape, options), 0);
  }

  ones(shape: Shape, options: TensorOptions = {}): Tensor {
    return fill(create(this, "ones", shape, options), 1);
  }

  /** Standard normal numbers; the same seed gives the same numbers on every adapter. */
  randn(shape: Shape, options: RandomOptions = {}): Tensor {
    return this.#draw("randn", shape, options, (random) => random.normal());
  }

  /** Uniform numbers in [0, 1). */
  rand(shape: Shape, options: RandomOptions = {}): Tensor {
    return this.#draw("rand", shape, options, (random) => random.uniform());
  }

  #draw(op: string, shape: Shape, options: RandomOptions, next: (random: Random) => number): Tensor {
    checkNumbers(op, "shape", shape, 0);
    checkOptions(op, options, { ...TENSOR_OPTIONS, seed: "number" });
    const { seed, ...rest } = options;
    const random = seed === undefined ? this.random : new Random(seed);
    return this.tensor(
      Float32Array.from({ length: sizeOf(shape) }, () => next(random)),
      shape,
      rest,
    );
  }

  /** Seeds the initial values of the modules that are made from here on. */
  manualSeed(seed: number): void {
    this.random = new Random(seed);
  }

  // ---- steps ----

  /**
   * Runs a training or inference step of fixed shapes and records it: `replay()` of what is returned runs the same kernels on the same buffers
   * for a small part of the host's time. `step` returns tensors (not promises), which hold the values of the latest replay, and reads its
   * input from tensors that the caller fills with `upload`. Choices that it makes on the host are made once; optimizers and dropout go on
   * as usual.
   */
  record<T>(step: () => T): Recording<T> {
    if (typeof step !== "function") throw new Error(`record: the step must be a function; got ${inWords(step)}`);
    if (this.recorder) throw new Error("record: a step is being recorded already");
    return recordStep(this, step, (recorder) => {
      this.recorder = recorder;
    });
  }

  protected scan(label: string, written: readonly Bound[]): void {
    if (!this.#found) {
      const found = own(empty(this, [1], "u32"), undefined);
      this.unrecorded(() => this.upload(found, new Uint32Array([0xffffffff])));
      this.#found = found;
    }
    const dispatch = this.#names.push(label) - 1;
    for (const x of written)
      if (x.dtype === "f32")
        run(this, "finite", "scan", {
          bind: { x, found: this.#found },
          params: { n: x.size, dispatch },
          groups: linearGroups(Math.ceil(x.size / 64)),
        });
  }

  protected async scanned(read: Tensor): Promise<void> {
    if (!this.#found || read === this.#found) return;
    const [first] = new Uint32Array(await this.download(this.#found));
    if (first !== 0xffffffff)
      throw new Error(
        `engine: ${this.#names[first!]} (dispatch ${first}) was the first kernel to write a NaN or an infinity`,
      );
  }

  /**
   * Gives the adapter back. With DEBUG=2 or PROFILE it first tells where the time went, and is done when the promise settles, which
   * rejects where the trace cannot be written.
   */
  close(): Promise<void> {
    return (this.#ending ??= this.#end());
  }

  async #end(): Promise<void> {
    this.flush();
    try {
      if (this.profiler.enabled) await endProfiling(this, this.#trace, this.failure === undefined);
    } finally {
      this.closed = true;
      this.gpu.destroy();
    }
  }
}

/** Initial values that nobody will see. */
class NoRandom extends Random {
  override normal(): number {
    return 0;
  }

  override uniform(): number {
    return 0;
  }
}

function kindOf(info: GPUAdapterInfo, gpu: GPUDevice): { subgroup: number; isSoftware: boolean; halves: boolean } {
  // @webgpu/types has not heard of them.
  type Newer = { subgroupMinSize?: number; subgroupMaxSize?: number; isFallbackAdapter?: boolean };
  const { subgroupMinSize, subgroupMaxSize = 0, isFallbackAdapter = false } = info as Newer;
  const isFixed = gpu.features.has("subgroups") && subgroupMinSize === subgroupMaxSize;
  return {
    subgroup: isFixed ? subgroupMaxSize : 0,
    isSoftware: isFallbackAdapter,
    halves: gpu.features.has("shader-f16"),
  };
}

export type { DType };
