/**
 * A Device owns one adapter's GPU device: the queue, the memory pool, the pipelines and the pending commands. It knows buffers and
 * kernels, not what they compute. Commands gather in one encoder and are submitted in batches; only reading back waits for them.
 */
import { checkNumbers, checkOptions, describe as inWords } from "./check.ts";
import { debugLevel, describe, log } from "./debug.ts";
import { type Bound, type Dispatch, linearGroups, run } from "./kernel.ts";
import { measurePeaks } from "./peaks.ts";
import { platform } from "./platform.ts";
import { Pool, settleReaders } from "./pool.ts";
import { Profiler } from "./profiler.ts";
import { Random } from "./random.ts";
import type { Peaks } from "./rates.ts";
import { own } from "./scope.ts";
import type { Shape } from "./shape.ts";
import { show, sizeOf } from "./shape.ts";
import {
  BYTES,
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

export interface DeviceOptions {
  /** "gpu", "software", "lavapipe", "swiftshader" or a part of the adapter's name; default: $WGPU_WISH_ADAPTER, else the best there is. */
  adapter?: string | undefined;
}

export type RandomOptions = TensorOptions & { seed?: number };

/** Dispatches that may gather before they are submitted: enough to hide the cost of a submit, few enough that the GPU starts early. */
const BATCH = 96;
const UNIFORM_SLOT = 256;
const UNIFORM_SLOTS = 512;
/** Batches the host may run ahead of the GPU; more only holds memory. */
const MAX_IN_FLIGHT = 16;

/** Dawn crashes the process when these are collected while in use; they stay reachable for its whole life. */
const alive: unknown[] = ((globalThis as Record<string, unknown>).__wgpuWishAlive ??= []) as unknown[];

export class Device {
  readonly name: string;
  readonly info: GPUAdapterInfo;
  readonly gpu: GPUDevice;
  readonly pool: Pool;
  readonly profiler: Profiler;
  /** Draws the initial values of `nn` modules. */
  random = new Random(0);
  /** Number of the batch of commands that is being gathered. */
  batch = 0;
  /** Kernels dispatched so far. */
  dispatches = 0;
  /** Milliseconds that the host has waited for the GPU. */
  waitedMs = 0;
  readonly uniformSlot = UNIFORM_SLOT;
  readonly uniforms: GPUBuffer;
  /** Pipelines and bind groups, kept by kernel.ts. */
  readonly cache = { pipelines: new Map<string, unknown>(), bindGroups: new Map<string, GPUBindGroup>() };
  /** Operations ask for it at every call, and the adapter's own answer comes from native code. */
  readonly #kind: ReturnType<typeof kindOf>;
  #uniformBytes = new ArrayBuffer(UNIFORM_SLOT * UNIFORM_SLOTS);
  #uniformView = new DataView(this.#uniformBytes);
  #slots = 0;
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  #inBatch = 0;
  #unawaited = 0;
  #failure: Error | undefined;
  #closed = false;
  #ending: Promise<void> | undefined;
  #trace: Trace | undefined;
  #peaks: Peaks | undefined;
  /** DEBUG, see debug.ts. */
  readonly debug = debugLevel();
  /** At DEBUG=4: the first dispatch that wrote something not finite, and the names of the dispatches. */
  #found: Tensor | undefined;
  readonly #names: string[] = [];

  private constructor(name: string, adapter: GPUAdapter, gpu: GPUDevice) {
    this.name = name;
    this.info = adapter.info;
    this.#kind = kindOf(adapter.info, gpu);
    this.gpu = gpu;
    this.pool = new Pool(gpu);
    this.uniforms = gpu.createBuffer({
      label: "uniforms",
      size: UNIFORM_SLOT * UNIFORM_SLOTS,
      usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
    });
    this.profiler = new Profiler(gpu);
    if (this.debug >= 1)
      log(`adapter: ${name} (${adapter.info.vendor} ${adapter.info.architecture}), subgroups of ${this.subgroupSize}`);
    gpu.addEventListener("uncapturederror", (event) => {
      const message = (event as GPUUncapturedErrorEvent).error.message;
      this.#failure ??= new Error(`engine: the GPU refused a command: ${message.split("\n").slice(0, 4).join(" ")}`);
    });
    void gpu.lost.then((info) => {
      if (this.#closed) return;
      this.#failure = new Error(
        `engine: the GPU device was lost (${info.reason}: ${info.message}); open a new Device and resume from the last checkpoint`,
      );
    });
  }

  /** Opens an adapter with all the features and limits that it offers. Rejects where there is none. */
  static async open(options: DeviceOptions = {}): Promise<Device> {
    checkOptions("Device.open", options, { adapter: "any" });
    const host = platform();
    const wish = options.adapter ?? host.environment("WGPU_WISH_ADAPTER");
    const { gpu, adapter, name } = await host.requestAdapter(wish);
    const features = ["timestamp-query", "subgroups", "shader-f16"].filter((f) =>
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
    const opened = new Device(name, adapter, device);
    opened.#trace = await startProfiling(opened);
    return opened;
  }

  /** What the adapter can do at most; measured when it is first asked for, by timestamps. */
  async peaks(): Promise<Peaks> {
    return (this.#peaks ??= await measurePeaks(this));
  }

  /** Lanes of a subgroup where every kernel is sure to get that many; 0 where subgroups vary or are not offered. */
  get subgroupSize(): number {
    return this.#kind.subgroup;
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

  // ---- commands ----

  /** The compute pass that gathers dispatches; `label` and `call` are for the profiler, which times each on its own. */
  pass(label: string, call: Dispatch): GPUComputePassEncoder {
    this.#encoder ??= this.gpu.createCommandEncoder({ label: `batch from ${label}` });
    if (this.profiler.enabled) {
      this.#pass?.end();
      this.#pass = this.#encoder.beginComputePass(this.profiler.pass(label, call));
    }
    this.#pass ??= this.#encoder.beginComputePass();
    return this.#pass;
  }

  /** Reserves a slot of uniforms; the caller writes it through the view, from the offset returned, before the next call. */
  uniformOffset(): { view: DataView; offset: number } {
    if (this.#slots === UNIFORM_SLOTS) this.flush();
    return { view: this.#uniformView, offset: this.#slots++ * UNIFORM_SLOT };
  }

  /** Called after each dispatch with the tensors that it wrote. */
  dispatched(label: string, bind: Record<string, Bound>, written: () => Bound[]): void {
    this.dispatches++;
    if (this.debug >= 3) log(describe(label, bind, this.pool.liveBytes));
    if (this.debug >= 4 && label !== "finite/scan") this.#watch(label, written());
    if (++this.#inBatch >= BATCH || this.profiler.full) this.flush();
  }

  #watch(label: string, written: Bound[]): void {
    if (!this.#found) {
      this.#found = own(empty(this, [1], "u32"), undefined);
      this.upload(this.#found, new Uint32Array([0xffffffff]));
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

  /** Submits what has gathered. */
  flush(): void {
    if (!this.#encoder) return;
    this.#pass?.end();
    this.#pass = undefined;
    this.profiler.resolve(this.#encoder);
    if (this.#slots > 0)
      this.gpu.queue.writeBuffer(this.uniforms, 0, this.#uniformBytes, 0, this.#slots * UNIFORM_SLOT);
    this.gpu.queue.submit([this.#encoder.finish()]);
    this.profiler.submitted();
    this.#encoder = undefined;
    this.#slots = 0;
    this.#inBatch = 0;
    this.batch++;
    this.#unawaited++;
  }

  /** Writes host bytes (a multiple of 4) into a tensor's buffer, after everything that was dispatched before. */
  upload(y: Tensor, bytes: ArrayBufferView): void {
    const { storage } = y;
    settleReaders(storage);
    if (storage.lastBatch === this.batch) this.flush();
    this.gpu.queue.writeBuffer(storage.buffer, 0, bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.byteLength);
  }

  /** The encoder outside any compute pass, for copies; in order with the dispatches, and a tenth of what one costs. */
  #outsidePass(): GPUCommandEncoder {
    this.#pass?.end();
    this.#pass = undefined;
    this.#encoder ??= this.gpu.createCommandEncoder({ label: "batch from a copy" });
    return this.#encoder;
  }

  /** Copies `n` elements of four bytes from one tensor's buffer to another's. */
  copy(from: Tensor, fromAt: number, to: Tensor, toAt: number, n: number): void {
    if (n === 0) return;
    for (const x of [from, to])
      if (x.freed)
        throw new Error(
          `copy: the tensor of shape ${show(x.shape)} was freed when its scope ended; return it from the scope to keep it`,
        );
    // Both before the pass is ended: asking for a buffer may run kernels.
    const [source, target] = [from.storage, to.storage];
    settleReaders(target);
    this.#outsidePass().copyBufferToBuffer(source.buffer, fromAt * 4, target.buffer, toAt * 4, n * 4);
    source.lastBatch = this.batch;
    target.lastBatch = this.batch;
  }

  /** Sets a tensor's whole buffer to zero. */
  clear(x: Tensor): void {
    const { storage } = x;
    settleReaders(storage);
    this.#outsidePass().clearBuffer(storage.buffer);
    storage.lastBatch = this.batch;
  }

  /** Bytes of a tensor's elements. Rejects with the kernel's name where a command before it was refused or the device is lost. */
  async download(x: Tensor): Promise<ArrayBuffer> {
    if (this.#closed) this.check();
    const bytes = Math.ceil((x.size * BYTES[x.dtype]) / 4) * 4;
    if (bytes === 0) return new ArrayBuffer(0);
    const { storage } = x;
    const staging = this.gpu.createBuffer({
      label: "read",
      size: bytes,
      usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
    });
    this.#outsidePass().copyBufferToBuffer(storage.buffer, 0, staging, 0, bytes);
    this.flush();
    try {
      await this.#wait(staging.mapAsync(GPUMapMode.READ));
    } catch (cause) {
      this.check();
      throw new Error(`engine: reading a tensor of shape ${show(x.shape)} failed: ${(cause as Error).message}`);
    }
    this.#unawaited = 0;
    this.check();
    const out = staging.getMappedRange().slice(0);
    staging.unmap();
    staging.destroy();
    if (this.#found && x !== this.#found) {
      const [first] = new Uint32Array(await this.download(this.#found));
      if (first !== 0xffffffff)
        throw new Error(
          `engine: ${this.#names[first!]} (dispatch ${first}) was the first kernel to write a NaN or an infinity`,
        );
    }
    return out;
  }

  /** Waits until the GPU has done all that was asked of it. */
  async sync(): Promise<void> {
    this.flush();
    await this.#wait(this.gpu.queue.onSubmittedWorkDone());
    this.#unawaited = 0;
    this.check();
  }

  async #wait(done: Promise<undefined>): Promise<void> {
    const began = performance.now();
    await done.finally(() => (this.waitedMs += performance.now() - began));
  }

  /** Waits only where the host has run far ahead, so that memory stays flat however fast it asks. */
  async throttle(): Promise<void> {
    if (this.#unawaited > MAX_IN_FLIGHT) await this.sync();
  }

  /** Throws what the GPU reported since the last check. */
  check(): void {
    if (this.#closed) throw new Error("engine: the device is closed");
    const failure = this.#failure;
    if (!failure) return;
    if (!failure.message.includes("lost")) this.#failure = undefined;
    throw failure;
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
      if (this.profiler.enabled) await endProfiling(this, this.#trace, this.#failure === undefined);
    } finally {
      this.#closed = true;
      this.gpu.destroy();
    }
  }
}

function kindOf(info: GPUAdapterInfo, gpu: GPUDevice): { subgroup: number; isSoftware: boolean } {
  // @webgpu/types has not heard of them.
  type Newer = { subgroupMinSize?: number; subgroupMaxSize?: number; isFallbackAdapter?: boolean };
  const { subgroupMinSize, subgroupMaxSize = 0, isFallbackAdapter = false } = info as Newer;
  const isFixed = gpu.features.has("subgroups") && subgroupMinSize === subgroupMaxSize;
  return { subgroup: isFixed ? subgroupMaxSize : 0, isSoftware: isFallbackAdapter };
}

export type { DType };
