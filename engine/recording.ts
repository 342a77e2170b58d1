/**
 * A step with fixed shapes, recorded once and replayed: the same kernels on the same buffers, without the host's share of finding out which.
 * What the host works out while it records (a learning rate, a dropout's seed, data from host arrays) is repeated as it was, but for what is
 * given as a function, which is asked again at every replay: so optimizers count their steps and follow their groups' `lr`.
 */
import { isPlain } from "./check.ts";
import type { Device } from "./device.ts";
import type { Dispatch } from "./kernel.ts";
import { type Storage, settleReaders } from "./pool.ts";
import { isTensor, scope } from "./scope.ts";
import { latestId } from "./tensor.ts";

/** What kernel.ts tells of a dispatch. */
export interface RecordedDispatch {
  label: string;
  call: Dispatch;
  pipeline: GPUComputePipeline;
  /** Its bindings with uniforms out of another buffer. */
  group(uniforms: GPUBuffer): GPUBindGroup;
  /** Writes its uniforms; undefined where it has none. */
  write: ((view: DataView, at: number) => void) | undefined;
}

/** Collects commands while a step runs for the first time. */
export class Recorder {
  readonly #device: Device;
  /** What the host does before the commands of a replay are given. */
  readonly prepare: ((view: DataView) => void)[] = [];
  readonly commands: ((uniforms: GPUBuffer) => () => void)[] = [];
  readonly storages = new Set<Storage>();
  /** The uniforms' first values. */
  readonly writes: ((view: DataView) => void)[] = [];
  slots = 0;
  /** Tensors of lower ids, and this one, were there before. */
  readonly since = latestId();

  constructor(device: Device) {
    this.#device = device;
  }

  dispatch(dispatch: RecordedDispatch): void {
    const device = this.#device;
    const { label, call, pipeline, write } = dispatch;
    const { bind, groups } = call;
    for (const x of Object.values(bind)) this.storages.add(x.storage);
    const at = write ? this.slots++ * device.uniformSlot : 0;
    if (write) (typeof call.params === "function" ? this.prepare : this.writes).push((view) => write(view, at));
    this.commands.push((uniforms) => {
      const group = dispatch.group(uniforms);
      const offsets = write ? [at] : [];
      return () => {
        const pass = device.pass(label, call);
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, group, offsets);
        pass.dispatchWorkgroups(groups[0]!, groups[1] ?? 1, groups[2] ?? 1);
        device.dispatched(label, bind, () => []);
      };
    });
  }

  /** A command on buffers that needs no pipeline. */
  command(storages: readonly Storage[], run: () => void): void {
    for (const storage of storages) this.storages.add(storage);
    this.commands.push(() => run);
  }

  host(fn: () => void): void {
    this.prepare.push(fn);
  }
}

/** Recordings that nobody can replay any more give their memory back as well. */
const dropped = new FinalizationRegistry<Held>(giveBack);

interface Held {
  device: Device;
  storages: readonly Storage[];
  uniforms: GPUBuffer;
}

function giveBack({ device, storages, uniforms }: Held): void {
  device.flush();
  for (const storage of storages) device.pool.release(storage);
  uniforms.destroy();
}

/** A recorded step; made by `Device.record`. */
export class Recording<T> {
  /** What the step returned. Its tensors hold the latest replay's values. */
  readonly result: T;
  readonly #device: Device;
  readonly #prepare: readonly ((view: DataView) => void)[];
  readonly #commands: readonly (() => void)[];
  readonly #storages: readonly Storage[];
  readonly #bytes: ArrayBuffer;
  readonly #uniforms: GPUBuffer;
  #freed = false;

  constructor(device: Device, recorder: Recorder, result: T) {
    this.result = result;
    this.#device = device;
    this.#prepare = recorder.prepare;
    this.#storages = [...recorder.storages];
    // Held from here on: no other tensor may get a buffer that a replay writes.
    for (const storage of this.#storages) device.pool.hold(storage);
    this.#bytes = new ArrayBuffer(Math.max(1, recorder.slots) * device.uniformSlot);
    this.#uniforms = device.gpu.createBuffer({
      label: "uniforms of a recording",
      size: this.#bytes.byteLength,
      usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
    });
    const view = new DataView(this.#bytes);
    for (const write of recorder.writes) write(view);
    device.gpu.queue.writeBuffer(this.#uniforms, 0, this.#bytes);
    this.#commands = recorder.commands.map((command) => command(this.#uniforms));
    dropped.register(this, { device, storages: this.#storages, uniforms: this.#uniforms }, this);
  }

  /** Runs the step again, on what its inputs hold now. */
  replay(): T {
    if (this.#freed) throw new Error("replay: the recording was freed; record the step again");
    const device = this.#device;
    if (device.recorder) throw new Error("replay: a step is being recorded; call the steps in turn, outside of record");
    for (const storage of this.#storages) settleReaders(storage);
    if (this.#prepare.length > 0) {
      // Commands that were given before still need the uniforms as they are.
      device.flush();
      const view = new DataView(this.#bytes);
      for (const prepare of this.#prepare) prepare(view);
      device.gpu.queue.writeBuffer(this.#uniforms, 0, this.#bytes);
    }
    for (const command of this.#commands) command();
    for (const storage of this.#storages) storage.lastBatch = device.batch;
    return this.result;
  }

  /** Gives its memory back: that of the step's temporary tensors, which stays reserved between replays. */
  free(): void {
    if (this.#freed) return;
    this.#freed = true;
    dropped.unregister(this);
    giveBack({ device: this.#device, storages: this.#storages, uniforms: this.#uniforms });
  }
}

/** What would be worked out later would be no part of the replays. */
function settleAll(value: unknown): void {
  if (isTensor(value)) void value.storage;
  else if (Array.isArray(value)) for (const item of value) settleAll(item);
  else if (isPlain(value)) for (const item of Object.values(value)) settleAll(item);
}

/** Runs `step` and records what it gives the GPU to do; see `Device.record`. */
export function recordStep<T>(
  device: Device,
  step: () => T,
  begin: (recorder: Recorder | undefined) => void,
): Recording<T> {
  const recorder = new Recorder(device);
  begin(recorder);
  try {
    const result = scope(() => {
      const made = step();
      if (!(made instanceof Promise)) return made;
      made.catch(() => {}); // What it comes to is of no interest any more.
      throw new Error("record: the step must not be async; return tensors and read them after each replay");
    });
    settleAll(result);
    return new Recording(device, recorder, result);
  } finally {
    begin(undefined);
  }
}
