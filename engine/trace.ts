/**
 * PROFILE=trace.json: every dispatch on the GPU's own clock as a Chrome trace, for https://ui.perfetto.dev or chrome://tracing. A long run
 * keeps its last dispatches only, and the file says how many went before them.
 */
import { log } from "./debug.ts";
import type { Device } from "./device.ts";
import { platform } from "./platform.ts";
import type { KernelEvent, Listener } from "./profiler.ts";
import { type Peaks, rates, timeTable } from "./rates.ts";

/** About 30 MB of JSON. */
const MOST_EVENTS = 100_000;

/** Devices of this process that have a trace: each has a file of its own. */
let files = 0;

/** The file that PROFILE names: trace.json, for the process's second device trace-2.json and so on; undefined where it names none. */
function nextFile(): string | undefined {
  const path = platform().environment("PROFILE");
  if (!path) return undefined;
  files++;
  return files === 1 ? path : path.replace(/(\.[^./\\]+)?$/, (end) => `-${files}${end}`);
}

/** What DEBUG=2 and PROFILE ask for, from the first dispatch on. Rejects where the trace cannot be written. */
export async function startProfiling(device: Device): Promise<Trace | undefined> {
  const path = nextFile();
  const wantsTable = device.debug >= 2;
  if (!wantsTable && path === undefined) return undefined;
  if (!device.profiler.isOffered) {
    log(`${path ? "PROFILE" : "DEBUG"}: this adapter offers no timestamp-query, so kernels are not timed`);
    return undefined;
  }
  if (wantsTable) device.profiler.start();
  if (path === undefined) return undefined;
  const trace = new Trace(path, device.name);
  // Without events as yet: a path that cannot be written to is refused before any work.
  await trace.write();
  device.profiler.attach(trace);
  platform().atEnd?.(() => device.close());
  return trace;
}

/** Shows the table and writes the trace; all was submitted. A device that was lost measures nothing more, and tells what came before. */
export async function endProfiling(device: Device, trace: Trace | undefined, isSound: boolean): Promise<void> {
  await device.profiler.settled();
  const peaks = isSound ? await device.peaks() : undefined;
  if (device.debug >= 2) log(timeTable(await device.profiler.stop(), peaks));
  await trace?.write(peaks);
}

export class Trace implements Listener {
  readonly path: string;
  readonly #adapter: string;
  readonly #most: number;
  /** A ring once it is full: the oldest stands at #count % #most. */
  readonly #events: KernelEvent[] = [];
  #count = 0;
  readonly #operands = new Map<string, string>();

  constructor(path: string, adapter: string, most = MOST_EVENTS) {
    this.path = path;
    this.#adapter = adapter;
    this.#most = most;
  }

  add(event: KernelEvent): void {
    // Steps repeat the same few hundred texts.
    const known = this.#operands.get(event.operands);
    if (known === undefined && this.#operands.size < this.#most) this.#operands.set(event.operands, event.operands);
    this.#events[this.#count++ % this.#most] = known === undefined ? event : { ...event, operands: known };
  }

  /** Writes the file. Rejects with one line where it cannot be written. */
  async write(peaks?: Peaks): Promise<void> {
    try {
      await platform().writeFile(this.path, new TextEncoder().encode(this.#text(peaks)));
    } catch (cause) {
      const why = (cause as { code?: string }).code ?? (cause as Error).message;
      const error = new Error(
        `PROFILE=${this.path}: the trace cannot be written there (${why}); name a file in a folder that exists`,
      );
      throw Object.assign(error, { code: "BAD_PROFILE" });
    }
  }

  #text(peaks: Peaks | undefined): string {
    const meta = (name: string, value: string): string =>
      JSON.stringify({ name, ph: "M", pid: 1, tid: 1, args: { name: value } });
    const lines = [meta("process_name", "wgpu-wish"), meta("thread_name", `GPU: ${this.#adapter}`)];
    for (const event of this.#events.toSorted((a, b) => a.start - b.start)) lines.push(complete(event, peaks));
    const kept = this.#events.length;
    const about = {
      adapter: this.#adapter,
      dispatches: this.#count,
      kept,
      note: kept < this.#count ? `the last ${kept} of ${this.#count} dispatches` : "all dispatches",
      ...(peaks ? { peakGflops: peaks.gflops, peakGBps: peaks.gbps } : {}),
    };
    return `{"displayTimeUnit":"ms","otherData":${JSON.stringify(about)},"traceEvents":[\n${lines.join(",\n")}\n]}\n`;
  }
}

function complete(event: KernelEvent, peaks: Peaks | undefined): string {
  const { gflops, gbps, ofPeak } = rates(event, peaks);
  const digits = (v: number | undefined): number | undefined =>
    v === undefined ? undefined : Number(v.toPrecision(4));
  // JSON leaves out what is undefined.
  return JSON.stringify({
    name: event.name,
    cat: "gpu",
    ph: "X",
    pid: 1,
    tid: 1,
    ts: Math.round(event.start * 1e6) / 1e3,
    dur: Math.round(event.ms * 1e6) / 1e3,
    args: {
      operands: event.operands,
      bytes: event.bytes,
      flops: event.flops || undefined,
      "GFLOP/s": digits(gflops),
      "GB/s": digits(gbps),
      "% of peak": digits(ofPeak),
    },
  });
}
