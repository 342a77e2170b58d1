/**
 * Times every dispatch by GPU timestamps and tells those who listen. Off while no one does: each kernel runs in a pass of its own otherwise.
 * The stamps are read as the batches end, so that a long run keeps no more of them than the listeners do.
 */
import { operandsOf } from "./debug.ts";
import type { Bound, Dispatch } from "./kernel.ts";

const CAPACITY = 1024;

/** One dispatch, as it ran. */
export interface KernelEvent {
  name: string;
  /** Milliseconds since the first dispatch that was timed. */
  start: number;
  ms: number;
  /** Bytes of the buffers that it had, each counted once. */
  bytes: number;
  /** 0 where it is not known. */
  flops: number;
  /** Names, types and shapes of what it read and wrote. */
  operands: string;
}

export interface KernelTime {
  name: string;
  calls: number;
  ms: number;
  bytes: number;
  flops: number;
}

export interface Listener {
  add(event: KernelEvent): void;
}

/** A dispatch that waits for its stamps. */
type Timed = Omit<KernelEvent, "start" | "ms"> & { listeners: readonly Listener[] };

/** Adds up a kernel's dispatches. */
class Tally implements Listener {
  readonly #times = new Map<string, KernelTime>();

  add({ name, ms, bytes, flops }: KernelEvent): void {
    const time = this.#times.get(name) ?? { name, calls: 0, ms: 0, bytes: 0, flops: 0 };
    time.calls++;
    time.ms += ms;
    time.bytes += bytes;
    time.flops += flops;
    this.#times.set(name, time);
  }

  get times(): KernelTime[] {
    return [...this.#times.values()].sort((a, b) => b.ms - a.ms);
  }
}

export class Profiler {
  readonly #gpu: GPUDevice;
  #queries: GPUQuerySet | undefined;
  #resolved: GPUBuffer | undefined;
  /** Never changed in place: dispatches keep the list that was there when they were made. */
  #listeners: readonly Listener[] = [];
  readonly #tallies: Tally[] = [];
  #timed: Timed[] = [];
  #submitted: { timed: Timed[]; buffer: GPUBuffer } | undefined;
  readonly #reading = new Set<Promise<void>>();
  /** Buffers whose stamps have been read. */
  readonly #spare: GPUBuffer[] = [];
  #origin: bigint | undefined;

  constructor(gpu: GPUDevice) {
    this.#gpu = gpu;
  }

  /** Whether the adapter has timestamps. */
  get isOffered(): boolean {
    return this.#gpu.features.has("timestamp-query");
  }

  get enabled(): boolean {
    return this.#listeners.length > 0;
  }

  get full(): boolean {
    return this.#timed.length * 2 >= CAPACITY;
  }

  /** From the next dispatch on. Throws where the adapter has no timestamps. */
  attach(listener: Listener): void {
    if (!this.isOffered)
      throw new Error(
        "profiler: this adapter offers no timestamp-query; time whole steps with performance.now() and gpu.sync()",
      );
    this.#queries ??= this.#gpu.createQuerySet({ type: "timestamp", count: CAPACITY });
    this.#resolved ??= this.#gpu.createBuffer({
      size: CAPACITY * 8,
      usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC,
    });
    this.#listeners = [...this.#listeners, listener];
  }

  /** When it is done the listener has heard of all that was submitted before. Call after `gpu.sync()`. */
  async detach(listener: Listener): Promise<void> {
    this.#listeners = this.#listeners.filter((other) => other !== listener);
    await this.settled();
  }

  /** Waits for the stamps of all that was submitted. */
  async settled(): Promise<void> {
    while (this.#reading.size > 0) await Promise.all(this.#reading);
  }

  /** Starts a table of kernels; there may be several, one inside the other. Throws where the adapter has no timestamps. */
  start(): void {
    const tally = new Tally();
    this.attach(tally);
    this.#tallies.push(tally);
  }

  /** Ends the table that was started last and returns its kernels, the dearest first. Call after `gpu.sync()`. */
  async stop(): Promise<KernelTime[]> {
    const tally = this.#tallies.pop();
    if (!tally) throw new Error("profiler: stop() without start()");
    await this.detach(tally);
    return tally.times;
  }

  /** The dispatches of `work`, which ends with `gpu.sync()`; no other listener hears of them. */
  async apart(work: () => Promise<void>): Promise<KernelEvent[]> {
    const events: KernelEvent[] = [];
    const others = this.#listeners;
    this.#listeners = [];
    try {
      this.attach({ add: (event) => events.push(event) });
      await work();
      await this.settled();
    } finally {
      this.#listeners = others;
    }
    return events;
  }

  /** For the device: how to begin the pass of one dispatch. */
  pass(name: string, { bind, flops = 0 }: Dispatch): GPUComputePassDescriptor {
    const index = this.#timed.push({
      name,
      bytes: bytesMoved(bind),
      flops,
      operands: operandsOf(bind),
      listeners: this.#listeners,
    });
    return {
      label: name,
      timestampWrites: {
        querySet: this.#queries!,
        beginningOfPassWriteIndex: index * 2 - 2,
        endOfPassWriteIndex: index * 2 - 1,
      },
    };
  }

  /** For the device, at the end of a batch. */
  resolve(encoder: GPUCommandEncoder): void {
    const count = this.#timed.length * 2;
    if (count === 0) return;
    const buffer =
      this.#spare.pop() ??
      this.#gpu.createBuffer({
        label: "timestamps",
        size: CAPACITY * 8,
        usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
      });
    encoder.resolveQuerySet(this.#queries!, 0, count, this.#resolved!, 0);
    encoder.copyBufferToBuffer(this.#resolved!, 0, buffer, 0, count * 8);
    this.#submitted = { timed: this.#timed, buffer };
    this.#timed = [];
  }

  /** For the device, after the batch went to the queue. */
  submitted(): void {
    const batch = this.#submitted;
    if (!batch) return;
    this.#submitted = undefined;
    const reading = this.#read(batch.timed, batch.buffer).finally(() => this.#reading.delete(reading));
    this.#reading.add(reading);
  }

  async #read(timed: readonly Timed[], buffer: GPUBuffer): Promise<void> {
    try {
      await buffer.mapAsync(GPUMapMode.READ, 0, timed.length * 16);
    } catch {
      return; // The device was lost or closed: whoever waits for results hears of it.
    }
    const stamps = new BigUint64Array(buffer.getMappedRange(0, timed.length * 16));
    this.#origin ??= stamps[0]!;
    for (const [i, { listeners, ...work }] of timed.entries()) {
      const [from, to] = [stamps[i * 2]!, stamps[i * 2 + 1]!];
      // Differences first: absolute nanoseconds may be more than a double holds.
      const event = { ...work, start: Number(from - this.#origin) / 1e6, ms: Math.max(0, Number(to - from) / 1e6) };
      for (const listener of listeners) listener.add(event);
    }
    buffer.unmap();
    this.#spare.push(buffer);
  }
}

/** A buffer that is bound twice counts once. */
function bytesMoved(bind: Record<string, Bound>): number {
  const sizes = new Map(Object.values(bind).map((x) => [x.storage, x.size * (x.dtype === "f16" ? 2 : 4)]));
  let bytes = 0;
  for (const size of sizes.values()) bytes += size;
  return bytes;
}
