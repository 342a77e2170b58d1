/** Times every dispatch by GPU timestamps. Off by default: each kernel then runs in a pass of its own. */
const CAPACITY = 1024;

export interface KernelTime {
  name: string;
  calls: number;
  ms: number;
}

export class Profiler {
  enabled = false;
  readonly #gpu: GPUDevice;
  #queries: GPUQuerySet | undefined;
  #resolved: GPUBuffer | undefined;
  #labels: string[] = [];
  #pending: { labels: string[]; buffer: GPUBuffer }[] = [];
  readonly #times = new Map<string, KernelTime>();

  constructor(gpu: GPUDevice) {
    this.#gpu = gpu;
  }

  /** Starts timing. Throws where the adapter has no timestamps. */
  start(): void {
    if (!this.#gpu.features.has("timestamp-query"))
      throw new Error(
        "profiler: this adapter offers no timestamp-query; time whole steps with performance.now() and gpu.sync()",
      );
    this.#queries ??= this.#gpu.createQuerySet({ type: "timestamp", count: CAPACITY });
    this.#resolved ??= this.#gpu.createBuffer({
      size: CAPACITY * 8,
      usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC,
    });
    this.#times.clear();
    this.enabled = true;
  }

  get full(): boolean {
    return this.enabled && this.#labels.length * 2 >= CAPACITY;
  }

  pass(label: string): GPUComputePassDescriptor {
    const index = this.#labels.push(label) - 1;
    return {
      label,
      timestampWrites: {
        querySet: this.#queries!,
        beginningOfPassWriteIndex: index * 2,
        endOfPassWriteIndex: index * 2 + 1,
      },
    };
  }

  resolve(encoder: GPUCommandEncoder): void {
    const count = this.#labels.length * 2;
    if (count === 0) return;
    const buffer = this.#gpu.createBuffer({
      size: count * 8,
      usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
    });
    encoder.resolveQuerySet(this.#queries!, 0, count, this.#resolved!, 0);
    encoder.copyBufferToBuffer(this.#resolved!, 0, buffer, 0, count * 8);
    this.#pending.push({ labels: this.#labels, buffer });
    this.#labels = [];
  }

  /** Stops timing and returns the kernels, the dearest first. Call after `gpu.sync()`. */
  async stop(): Promise<KernelTime[]> {
    for (const { labels, buffer } of this.#pending) {
      await buffer.mapAsync(GPUMapMode.READ);
      const stamps = new BigUint64Array(buffer.getMappedRange());
      labels.forEach((name, i) => {
        const time = this.#times.get(name) ?? { name, calls: 0, ms: 0 };
        time.calls++;
        time.ms += Number(stamps[i * 2 + 1]! - stamps[i * 2]!) / 1e6;
        this.#times.set(name, time);
      });
      buffer.unmap();
      buffer.destroy();
    }
    this.#pending = [];
    this.enabled = false;
    return [...this.#times.values()].sort((a, b) => b.ms - a.ms);
  }
}
