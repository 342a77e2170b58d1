/** What the numbers of a tensor will be worked out from, until someone needs them: who holds on to what, and for how long. */
import type { Leaf } from "./chain.ts";
import type { Device } from "./device.ts";
import type { Storage } from "./pool.ts";
import type { Shape } from "./shape.ts";
import type { Pending } from "./tensor.ts";

const isBuffer = (input: number | Leaf | Waiting): input is Leaf => typeof input === "object" && "storage" in input;

/** Numbers to come, and the buffers that they will be worked out from. */
export abstract class Waiting implements Pending {
  readonly device: Device;
  readonly shape: Shape;
  /** What was recording when it was made. */
  readonly #recorder: Device["recorder"];
  /** Tensors and others that may still ask for it. */
  #holders = 1;
  #storage: Storage | undefined;

  constructor(device: Device, shape: Shape) {
    this.device = device;
    this.shape = shape;
    this.#recorder = device.recorder;
  }

  /** Made before the step that is being recorded: its numbers are the step's input, not worked out again at every replay. */
  get isOlder(): boolean {
    const { recorder } = this.device;
    return recorder !== undefined && recorder !== this.#recorder;
  }

  /** What it will be worked out from; nothing once that is done. */
  abstract get inputs(): Iterable<number | Leaf | Waiting>;
  abstract get holdsMuch(): boolean;
  protected abstract compute(): Storage;
  protected abstract forget(): void;

  /** To be called when the inputs are known: their buffers are not overwritten before this is computed. */
  protected watch(): void {
    for (const input of this.inputs) if (isBuffer(input)) (input.storage.readers ??= new Set()).add(this);
  }

  get known(): Storage | undefined {
    return this.#storage;
  }

  hold(): void {
    this.#holders++;
  }

  release(): void {
    if (--this.#holders > 0) return;
    if (this.#storage) this.device.pool.release(this.#storage);
    else this.#letGo();
  }

  settle(): Storage {
    if (this.#storage) return this.#storage;
    return this.keep(this.isOlder ? this.device.unrecorded(() => this.compute()) : this.compute());
  }

  /** Takes over its numbers. */
  keep(storage: Storage): Storage {
    this.#storage = storage;
    this.#letGo();
    return storage;
  }

  #letGo(): void {
    for (const input of this.inputs) {
      if (typeof input === "number") continue;
      if (isBuffer(input)) {
        input.storage.readers?.delete(this);
        this.device.pool.release(input.storage);
      } else input.release();
    }
    this.forget();
  }
}
