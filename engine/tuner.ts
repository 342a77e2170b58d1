/**
 * Chooses among kernels that compute the same thing. Each operation has a rule of its own; where the kernels were measured on this adapter
 * (`tune`), the fastest takes the rule's place. Kernels that a choice is made among add in the same order and so give the same bits, and one
 * that does not is never chosen: a measurement changes how long work takes, not its outcome. Measuring waits for the GPU, so it never
 * happens inside an operation: operations only look up what is known.
 *
 * The choices are kept by the platform, one file an adapter. WGPU_WISH_TUNE=0 leaves them unread: the rules alone.
 *
 * For an operation to be tuned it names its variants and calls `pick` with them, the rule's first, and a trial that can run each.
 */
import type { Device } from "./device.ts";
import { platform } from "./platform.ts";
import { scope } from "./scope.ts";
import type { Tensor } from "./tensor.ts";

/** Runs one variant on inputs that stay the same from call to call. */
type Trial = (variant: string) => Tensor;

/** What was measured for one key. */
export interface Measured {
  key: string;
  /** The variant that the rule takes, and the one that is taken from now on. */
  rule: string;
  chosen: string;
  /** Milliseconds of each variant; null: it gave other bits than the rule's or failed, and is out. */
  ms: Record<string, number | null>;
}

interface Asked {
  variants: readonly string[];
  trial: () => Trial;
}

interface CacheFile {
  version: number;
  adapter: string;
  choices: Record<string, string>;
}

/** Raised when the kernels change so much that old measurements mislead; what is unknown or older is measured anew. */
const VERSION = 1;
const ROUNDS = 7;
const ROUND_MS = 6;
/** Work that takes longer is looked at less often: interruptions weigh less in it. */
const LONG_MS = 20;
const LONG_ROUNDS = 3;
/** Calls in a round: what they dispatch has to fit one batch of commands. */
const MOST_CALLS = 24;
/** A variant so many times slower than the best in the first looks is not looked at again. */
const HOPELESS = 3;
const LOOKS = 3;
/** So much faster than the rule's variant must another one be: less is noise. */
const MARGIN = 0.93;

export class Tuner {
  /** This variant is taken wherever it can do the work: for tests and comparisons. */
  prefer: string | undefined;
  readonly #adapter: string;
  readonly #choices = new Map<string, string>();
  /** While work is watched: what it asked for, by key. */
  #asked: Map<string, Asked> | undefined;

  constructor(name: string, info: GPUAdapterInfo) {
    this.#adapter = [name, info.vendor, info.architecture, info.description].join("|");
  }

  /** Reads what was measured before. Never fails: without a file the rules hold. */
  async load(): Promise<void> {
    if (/^(0|off|false)$/i.test(platform().environment("WGPU_WISH_TUNE") ?? "")) return;
    for (const [key, variant] of Object.entries(await this.#read())) this.#choices.set(key, variant);
  }

  /**
   * The variant for a problem of these sizes: the fastest where its class was measured, else `variants[0]`, the rule's. `flags` tells
   * what else the time depends on. `trial` makes inputs of just these sizes for a measurement.
   */
  pick(op: string, sizes: readonly number[], flags: string, variants: readonly string[], trial: () => Trial): string {
    const rule = variants[0]!;
    if (this.prefer !== undefined) return variants.includes(this.prefer) ? this.prefer : rule;
    if (variants.length === 1 || (this.#choices.size === 0 && !this.#asked)) return rule;
    const classes = sizes.map((n) => 2 ** Math.ceil(Math.log2(Math.max(n, 1))));
    const key = `${op} ${classes.join("x")} ${flags}: ${variants.toSorted().join(" ")}`;
    if (this.#asked && !this.#asked.has(key)) this.#asked.set(key, { variants, trial });
    const chosen = this.#choices.get(key);
    return chosen !== undefined && variants.includes(chosen) ? chosen : rule;
  }

  /** Notes what `work` asks for, measures each class of it, and keeps the choices here and on disk. */
  async tune(device: Device, work: () => unknown, progress?: (done: number, all: number) => void): Promise<Measured[]> {
    const asked = new Map<string, Asked>();
    this.#asked = asked;
    try {
      await work();
      await device.sync();
    } finally {
      this.#asked = undefined;
    }
    const results: Measured[] = [];
    for (const [key, { variants, trial }] of asked) {
      const measured = await scope(() => measure(device, key, variants, trial()));
      this.#choices.set(key, measured.chosen);
      results.push(measured);
      await this.#keep(key, measured.chosen);
      progress?.(results.length, asked.size);
    }
    return results;
  }

  get #file(): string {
    return `tuned-${this.#adapter.toLowerCase().replace(/[^a-z0-9]+/g, "-")}.json`;
  }

  async #read(): Promise<Record<string, string>> {
    try {
      const file = JSON.parse((await platform().readCache(this.#file)) ?? "{}") as Partial<CacheFile>;
      if (file.version !== VERSION || file.adapter !== this.#adapter) return {};
      if (typeof file.choices !== "object" || file.choices === null) return {};
      const entries = Object.entries(file.choices).filter(([, variant]) => typeof variant === "string");
      return Object.fromEntries(entries);
    } catch {
      return {}; // Damaged: measured and written anew when someone asks for it.
    }
  }

  /** Written one by one, so that what is interrupted keeps what it has; read before, since other processes may write, too. */
  async #keep(key: string, chosen: string): Promise<void> {
    const choices = { ...(await this.#read()), [key]: chosen };
    const sorted = Object.fromEntries(Object.entries(choices).toSorted(([a], [b]) => (a < b ? -1 : 1)));
    const file: CacheFile = { version: VERSION, adapter: this.#adapter, choices: sorted };
    await platform().writeCache(this.#file, `${JSON.stringify(file, undefined, 1)}\n`);
  }
}

/** Measures the kernels that `work` uses and lets the fastest do its work from now on; see `wgpu-wish tune`. */
export function tune(
  device: Device,
  work: () => unknown,
  progress?: (done: number, all: number) => void,
): Promise<Measured[]> {
  return device.tuner.tune(device, work, progress);
}

async function measure(device: Device, key: string, variants: readonly string[], trial: Trial): Promise<Measured> {
  const rule = variants[0]!;
  const ms: Record<string, number | null> = {};
  const repeats = new Map<string, number>();
  const note = async (variant: string, count: number): Promise<void> => {
    ms[variant] = Math.min(ms[variant] ?? Number.POSITIVE_INFINITY, await time(device, () => trial(variant), count));
  };
  let want: Uint32Array | undefined;
  for (const variant of variants) {
    const got = await bitsOf(() => trial(variant));
    want ??= got;
    ms[variant] = null;
    if (!got || !want || got.some((bits, i) => bits !== want![i])) continue;
    for (let look = 0; look < LOOKS; look++) {
      await note(variant, 1);
      const ahead = Math.min(...Object.values(ms).map((time) => time ?? Number.POSITIVE_INFINITY));
      if (ms[variant]! > LONG_MS && ms[variant]! > HOPELESS * ahead) break;
    }
  }
  const best = Math.min(...Object.values(ms).map((time) => time ?? Number.POSITIVE_INFINITY));
  for (const [variant, once] of Object.entries(ms))
    if (once !== null && once < best * HOPELESS)
      repeats.set(variant, Math.max(1, Math.min(MOST_CALLS, Math.ceil(ROUND_MS / once))));
  // In turn, so that what else the machine does meets all alike; the best of the rounds counts.
  const rounds = best > LONG_MS ? LONG_ROUNDS : ROUNDS;
  for (let round = 0; round < rounds; round++) for (const [variant, count] of repeats) await note(variant, count);
  let chosen = rule;
  for (const [variant, time] of Object.entries(ms))
    if (time !== null && time < (ms[chosen] ?? 0) * (chosen === rule ? MARGIN : 1)) chosen = variant;
  return { key, rule, chosen, ms };
}

/** The result's bits; undefined where the adapter refuses the kernel. */
async function bitsOf(work: () => Tensor): Promise<Uint32Array | undefined> {
  try {
    return await scope(async () => {
      const y = work();
      return new Uint32Array(await y.device.download(y));
    });
  } catch {
    return undefined;
  }
}

/** Milliseconds of one call: by the GPU's clock where it has one, else from the wait for all of them. */
async function time(device: Device, work: () => Tensor, count: number): Promise<number> {
  await device.sync();
  const clock = device.gpu.features.has("timestamp-query") ? new Clock(device.gpu) : undefined;
  // So few calls gather in one batch, which the clock's first reading overtakes: what the host takes to record them does not count.
  const start = performance.now();
  scope(() => {
    for (let i = 0; i < count; i++) work();
  });
  clock?.read(0);
  device.flush();
  if (clock) return (await clock.elapsed()) / count;
  await device.sync();
  return (performance.now() - start) / count;
}

/** Readings of the GPU's clock before and after a batch: of single kernels they would be too coarse, since it is told in steps of 0.07 ms. */
class Clock {
  readonly #gpu: GPUDevice;
  readonly #queries: GPUQuerySet;

  constructor(gpu: GPUDevice) {
    this.#gpu = gpu;
    this.#queries = gpu.createQuerySet({ type: "timestamp", count: 2 });
  }

  read(index: 0 | 1, then?: (encoder: GPUCommandEncoder) => void): void {
    const encoder = this.#gpu.createCommandEncoder({ label: "clock" });
    encoder.beginComputePass({ timestampWrites: { querySet: this.#queries, endOfPassWriteIndex: index } }).end();
    then?.(encoder);
    this.#gpu.queue.submit([encoder.finish()]);
  }

  async elapsed(): Promise<number> {
    const resolved = this.#gpu.createBuffer({
      size: 16,
      usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC,
    });
    const buffer = this.#gpu.createBuffer({ size: 16, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    this.read(1, (encoder) => {
      encoder.resolveQuerySet(this.#queries, 0, 2, resolved, 0);
      encoder.copyBufferToBuffer(resolved, 0, buffer, 0, 16);
    });
    await buffer.mapAsync(GPUMapMode.READ);
    const [from, to] = new BigUint64Array(buffer.getMappedRange());
    for (const used of [buffer, resolved, this.#queries]) used.destroy();
    return Number(to! - from!) / 1e6;
  }
}
