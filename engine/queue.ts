/**
 * The commands that a device is given: they gather in one encoder and are submitted in batches; only reading back waits for them. What the
 * GPU refuses is kept and thrown at the next read.
 */
import { describe } from "./check.ts";
import { debugLevel, describeRun, log } from "./debug.ts";
import type { Bound, Dispatch } from "./kernel.ts";
import { platform } from "./platform.ts";
import { Pool, settleReaders } from "./pool.ts";
import { Profiler } from "./profiler.ts";
import type { Recorder } from "./recording.ts";
import { show } from "./shape.ts";
import { BYTES, checkAlive, type DType, type Tensor } from "./tensor.ts";

/** Dispatches that may gather before they are submitted: enough to hide the cost of a submit, few enough that the GPU starts early. */
const BATCH = 96;
const UNIFORM_SLOT = 256;
const UNIFORM_SLOTS = 512;
/** Batches the host may run ahead of the GPU; more only holds memory. */
const MAX_IN_FLIGHT = 16;

export abstract class Queue {
  readonly gpu: GPUDevice;
  readonly pool: Pool;
  readonly profiler: Profiler;
  /** Number of the batch of commands that is being gathered. */
  batch = 0;
  /** Kernels dispatched so far. */
  dispatches = 0;
  /** Milliseconds that the host has waited for the GPU. */
  waitedMs = 0;
  readonly uniformSlot = UNIFORM_SLOT;
  readonly uniforms: GPUBuffer;
  /** Where `Device.record` is at work. */
  recorder: Recorder | undefined;
  /** DEBUG, see debug.ts. */
  debug = debugLevel();
  protected failure: Error | undefined;
  /** The adapter has gone: nothing that is asked of the device will be done. */
  isLost = false;
  /** The batches that a refused command may have taken with it: what they wrote is not to be read. */
  #doubtful: { from: number; to: number; error: Error } | undefined;
  /** Batches below this one were done without a refusal. */
  #sound = 0;
  protected closed = false;
  #uniformBytes = new ArrayBuffer(UNIFORM_SLOT * UNIFORM_SLOTS);
  #uniformView = new DataView(this.#uniformBytes);
  #slots = 0;
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  #inBatch = 0;
  #unawaited = 0;

  constructor(gpu: GPUDevice) {
    this.gpu = gpu;
    this.pool = new Pool(gpu);
    this.profiler = new Profiler(gpu);
    this.uniforms = gpu.createBuffer({
      label: "uniforms",
      size: UNIFORM_SLOT * UNIFORM_SLOTS,
      usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
    });
    gpu.addEventListener("uncapturederror", (event) => {
      event.preventDefault(); // Else Dawn prints it on stdout.
      const message = (event as GPUUncapturedErrorEvent).error.message;
      this.failure ??= new Error(`engine: the GPU refused a command: ${message.split("\n").slice(0, 4).join(" ")}`);
    });
    void gpu.lost.then((info) => {
      if (this.closed) return;
      this.isLost = true;
      this.failure = new Error(
        `engine: the GPU device was lost (${info.reason}: ${info.message}); open a new Device and resume from the last checkpoint`,
      );
    });
  }

  /** Whether the adapter is a CPU that poses as a GPU. */
  abstract get isSoftware(): boolean;
  /** At DEBUG=4: looks through what a dispatch wrote. */
  protected abstract scan(label: string, written: readonly Bound[]): void;
  /** At DEBUG=4, after a read: rejects where a kernel wrote something not finite. */
  protected abstract scanned(read: Tensor): Promise<void>;

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
    if (this.debug >= 3) log(describeRun(label, bind, this.pool.liveBytes));
    if (this.debug >= 4 && label !== "finite/scan") this.scan(label, written());
    if (++this.#inBatch >= BATCH || this.profiler.full) this.flush();
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
    // A step that is being recorded will hold buffers that wait now.
    if (!this.recorder) this.pool.relieve();
  }

  /**
   * Writes host bytes (a multiple of 4) into a tensor's buffer, after everything that was dispatched before. Given as a function they are asked
   * for again at every replay of a recorded step.
   */
  upload(y: Tensor, bytes: ArrayBufferView | (() => ArrayBufferView)): void {
    checkAlive("upload", y);
    const first = typeof bytes === "function" ? bytes() : bytes;
    checkBytes(y, first);
    const { storage } = y;
    settleReaders(storage);
    if (storage.lastBatch === this.batch) this.flush();
    storage.version++;
    const write = (view: ArrayBufferView): void =>
      this.gpu.queue.writeBuffer(storage.buffer, 0, view.buffer as ArrayBuffer, view.byteOffset, view.byteLength);
    write(first);
    if (!this.recorder) return;
    const kept = new Uint8Array(first.buffer, first.byteOffset, first.byteLength).slice();
    this.recorder.command([storage], () => {
      this.flush();
      write(typeof bytes === "function" ? bytes() : kept);
    });
  }

  /** Runs `fn` now and, while a step is recorded, again before the commands of every replay: for what the host counts. */
  host(fn: () => void): void {
    fn();
    this.recorder?.host(fn);
  }

  /** Runs `fn` as no part of what is recorded: for state that is made once. */
  unrecorded<T>(fn: () => T): T {
    const { recorder } = this;
    this.recorder = undefined;
    try {
      return fn();
    } finally {
      this.recorder = recorder;
    }
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
    for (const x of [from, to]) checkAlive("copy", x);
    // Both before the pass is ended: asking for a buffer may run kernels.
    const [source, target] = [from.storage, to.storage];
    if (source.gpu !== this.gpu || target.gpu !== this.gpu)
      throw new Error("copy: a tensor lives on another device than the one that copies");
    settleReaders(target);
    const give = (): void =>
      this.#outsidePass().copyBufferToBuffer(source.buffer, fromAt * 4, target.buffer, toAt * 4, n * 4);
    give();
    this.recorder?.command([source, target], give);
    source.lastBatch = this.batch;
    target.lastBatch = this.batch;
    target.version++;
  }

  /** Sets a tensor's whole buffer to zero. */
  clear(x: Tensor): void {
    checkAlive("clear", x);
    const { storage } = x;
    settleReaders(storage);
    const give = (): void => this.#outsidePass().clearBuffer(storage.buffer);
    give();
    this.recorder?.command([storage], give);
    storage.lastBatch = this.batch;
    storage.version++;
  }

  /** Bytes of a tensor's elements. Rejects with the kernel's name where a command before it was refused or the device is lost. */
  async download(x: Tensor): Promise<ArrayBuffer> {
    if (this.closed) this.check();
    if (this.recorder)
      throw new Error("record: values cannot be read while a step is recorded; return the tensors and read them after");
    const bytes = Math.ceil((x.size * BYTES[x.dtype]) / 4) * 4;
    if (bytes === 0) return new ArrayBuffer(0);
    const { storage } = x;
    const doubtful = this.#doubtful;
    if (doubtful && storage.lastBatch >= doubtful.from && storage.lastBatch < doubtful.to) throw doubtful.error;
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
    await this.scanned(x);
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
    // A software adapter computes on the very processors that waiting would keep busy.
    if (this.isSoftware) await platform().doze?.(done);
    await done.finally(() => (this.waitedMs += performance.now() - began));
  }

  /** Waits only where the host has run far ahead, so that memory stays flat however fast it asks. */
  async throttle(): Promise<void> {
    if (this.#unawaited > MAX_IN_FLIGHT) await this.sync();
  }

  /** Throws what the GPU reported since the last check. */
  check(): void {
    if (this.closed) throw new Error("engine: the device is closed");
    const { failure } = this;
    if (!failure) {
      this.#sound = this.batch;
      return;
    }
    if (!this.isLost) {
      this.#doubtful = { from: this.#doubtful?.from ?? this.#sound, to: this.batch, error: failure };
      this.failure = undefined;
    }
    throw failure;
  }
}

/** Host arrays whose bits a tensor of the type takes as they are. */
const ARRAYS: Record<DType, readonly string[]> = {
  f32: ["Float32Array"],
  f16: ["Uint16Array", "Float16Array"],
  i32: ["Int32Array"],
  u32: ["Uint32Array"],
  bool: ["Uint32Array"],
};

function checkBytes(y: Tensor, bytes: ArrayBufferView): void {
  const kind = Object.prototype.toString.call(bytes).slice(8, -1);
  const wanted = Math.ceil((y.size * BYTES[y.dtype]) / 4) * 4;
  if (!ARRAYS[y.dtype].includes(kind) || bytes.byteLength !== wanted)
    throw new Error(
      `upload: a ${y.dtype} tensor of shape ${show(y.shape)} takes a ${ARRAYS[y.dtype][0]} of ${wanted} bytes; got ${
        ArrayBuffer.isView(bytes) ? `${kind} of ${bytes.byteLength}` : describe(bytes)
      }`,
    );
}
