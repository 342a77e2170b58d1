/**
 * GPU memory. A Storage is one buffer that tensors share by counting; freed buffers wait in the pool, by size class, for the next
 * tensor that fits. A buffer may be handed out again while earlier kernels still read it: the queue runs commands in order.
 */
export interface Storage {
  readonly id: number;
  readonly buffer: GPUBuffer;
  /** Where it lives. */
  readonly gpu: GPUDevice;
  readonly bytes: number;
  /** Tensors that share the buffer. */
  owners: number;
  /** What has still to read it, and is computed before it is overwritten. */
  readers?: Set<{ settle(): unknown }>;
  /** Batch of commands that used it last: an upload may not overtake a batch that is not submitted yet. */
  lastBatch: number;
  /** Counts writes: whether a tensor still holds what an operation saw of it. */
  version: number;
  /** Counts releases: which buffer has waited longest. */
  freed: number;
}

/** Buffers, waiting ones included, may take this many times what tensors owned at most; and so many bytes may wait in any case. */
const MOST_HELD = 1.5;
const LEAST_KEPT = 48 * 2 ** 20;

/** Rounds a size up to its class: multiples of 256 bytes, then eighths of a power of two, so that at most 1/8 is wasted. */
export function sizeClass(bytes: number): number {
  if (bytes <= 2048) return Math.max(256, Math.ceil(bytes / 256) * 256);
  const step = 2 ** (Math.floor(Math.log2(bytes)) - 3);
  return Math.ceil(bytes / step) * step;
}

/**
 * Keeps the oldest buffer at the end, to be handed out first. Steps that ask for the same sizes in the same order then get the same
 * buffers, whatever the order in which they were given back, and kernel.ts finds every bind group it made in the step before.
 */
function insert(list: Storage[], storage: Storage): void {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle]!.id > storage.id) low = middle + 1;
    else high = middle;
  }
  list.splice(low, 0, storage);
}

/** Computes what still has to read a buffer that is about to be overwritten. */
export function settleReaders(storage: Storage): void {
  if (storage.readers?.size) for (const reader of [...storage.readers]) reader.settle();
}

/** A tensor that the adapter cannot bind. */
export class TooLarge extends Error {
  override readonly name = "TooLarge";
  readonly bytes: number;
  readonly limit: number;

  constructor(bytes: number, limit: number) {
    super(
      `engine: a tensor of ${bytes} bytes is larger than the ${limit} bytes that this adapter can bind; use a smaller batch or image, or split the tensor`,
    );
    this.bytes = bytes;
    this.limit = limit;
  }
}

export class Pool {
  /** Bytes in buffers that tensors own, and the most they were since resetHighWater(). */
  liveBytes = 0;
  highWaterBytes = 0;
  liveBuffers = 0;
  /** Bytes in buffers that wait to be used again. */
  freeBytes = 0;
  #nextId = 1;
  #releases = 0;
  #mostLive = 0;
  readonly #free = new Map<number, Storage[]>();
  readonly #device: GPUDevice;

  constructor(device: GPUDevice) {
    this.#device = device;
  }

  allocate(bytes: number): Storage {
    const limit = this.#device.limits.maxStorageBufferBindingSize;
    const size = Math.min(sizeClass(bytes), limit); // A limit need not be a class: 2^31 - 4 is usual.
    if (bytes > limit) throw new TooLarge(bytes, limit);
    let storage = this.#free.get(size)?.pop();
    if (storage) {
      this.freeBytes -= size;
    } else {
      const buffer = this.#device.createBuffer({
        label: `tensor of ${size} bytes`,
        size,
        usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
      });
      storage = {
        id: this.#nextId++,
        buffer,
        gpu: this.#device,
        bytes: size,
        owners: 0,
        lastBatch: -1,
        version: 0,
        freed: 0,
      };
    }
    storage.owners = 1;
    this.#take(storage);
    return storage;
  }

  resetHighWater(): void {
    this.highWaterBytes = this.liveBytes;
  }

  /** One more owner, also of a buffer that waits in the pool. */
  hold(storage: Storage): void {
    if (storage.owners++ > 0) return;
    const list = this.#free.get(storage.bytes)!;
    list.splice(list.indexOf(storage), 1);
    this.freeBytes -= storage.bytes;
    this.#take(storage);
  }

  #take(storage: Storage): void {
    this.liveBytes += storage.bytes;
    this.liveBuffers++;
    if (this.liveBytes > this.highWaterBytes) this.highWaterBytes = this.liveBytes;
    if (this.liveBytes > this.#mostLive) this.#mostLive = this.liveBytes;
  }

  release(storage: Storage): void {
    if (--storage.owners > 0) return;
    this.liveBytes -= storage.bytes;
    this.liveBuffers--;
    this.freeBytes += storage.bytes;
    storage.freed = ++this.#releases;
    const list = this.#free.get(storage.bytes);
    if (list) insert(list, storage);
    else this.#free.set(storage.bytes, [storage]);
  }

  /**
   * Gives those that have waited longest back to the driver where more waits than work could soon ask for: sizes that change from step to
   * step leave buffers of every size behind. No command that is not submitted may use a waiting buffer.
   */
  relieve(): void {
    const limit = Math.max(MOST_HELD * this.#mostLive - this.liveBytes, LEAST_KEPT);
    if (this.freeBytes <= limit) return;
    const waiting = [...this.#free.values()].flat().sort((a, b) => a.freed - b.freed);
    for (const storage of waiting) {
      // Somewhat below the limit, so that this is not done after every batch.
      if (this.freeBytes <= 0.75 * limit) break;
      const list = this.#free.get(storage.bytes)!;
      list.splice(list.indexOf(storage), 1);
      this.freeBytes -= storage.bytes;
      storage.buffer.destroy();
    }
  }
}
