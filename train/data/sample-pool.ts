/** Threads that make samples beside the GPU. The order of what comes out is the caller's: each job has its own promise. */
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { BadInput } from "../errors.ts";
import type { Sample, SampleJob } from "./sample.ts";

export type ToThread = { id: number; job: SampleJob } | "end";
export type FromThread = { id: number } & ({ sample: Sample } | { message: string; badInput: boolean });

/** Jobs that a thread holds at once: while one is decoded (libvips has threads of its own) another is augmented. */
const HELD = 2;
const MOST_THREADS = 8;
/** Below, a frame is filled about as fast as it is handed over: it needs cores to spare. */
const SMALL_PIXELS = 160 * 160;

/** How many threads pay for frames of this size; 0: none. */
export function threadsFor({ width, height }: { width: number; height: number }): number {
  const spare = availableParallelism() - 1;
  return width * height < SMALL_PIXELS && spare < 2 ? 0 : Math.min(MOST_THREADS, Math.max(1, spare));
}

interface Pending {
  job: SampleJob;
  resolve(sample: Sample): void;
  reject(error: Error): void;
}

interface Thread {
  worker: Worker;
  held: Map<number, Pending>;
}

export class SamplePool {
  readonly #threads: Thread[] = [];
  readonly #waiting: Pending[] = [];
  readonly #most: number;
  #next = 0;
  #closed = false;

  constructor(threads: number) {
    this.#most = threads;
  }

  run(job: SampleJob): Promise<Sample> {
    if (this.#closed) return Promise.reject(new Error("SamplePool: is closed"));
    return new Promise((resolve, reject) => {
      this.#waiting.push({ job, resolve, reject });
      this.#hand();
    });
  }

  /** Ends the threads once they have finished what they hold; what waits is dropped. */
  close(): void {
    this.#closed = true;
    for (const { reject } of this.#waiting.splice(0)) reject(new Error("SamplePool: was closed"));
    for (const thread of this.#threads) if (thread.held.size === 0) end(thread);
  }

  /** Gives waiting jobs to the threads that hold least, which are started as they are needed. */
  #hand(): void {
    while (this.#waiting.length > 0) {
      const idle = this.#threads.find(({ held }) => held.size === 0);
      const free =
        idle ??
        (this.#threads.length < this.#most ? this.#start() : this.#threads.find(({ held }) => held.size < HELD));
      if (free === undefined) return;
      const pending = this.#waiting.shift()!;
      const id = this.#next++;
      free.held.set(id, pending);
      // A thread keeps the process alive only as long as somebody waits for it.
      free.worker.ref();
      free.worker.postMessage({ id, job: pending.job } satisfies ToThread);
    }
  }

  #start(): Thread {
    const thread: Thread = { worker: startWorker(), held: new Map() };
    const { worker, held } = thread;
    worker.on("message", (message: FromThread) => {
      const pending = held.get(message.id)!;
      held.delete(message.id);
      if ("sample" in message) pending.resolve(message.sample);
      else pending.reject(message.badInput ? new BadInput(message.message) : new Error(message.message));
      this.#hand();
      if (held.size > 0) return;
      worker.unref();
      if (this.#closed) end(thread);
    });
    const lost = (reason: string) => {
      const place = this.#threads.indexOf(thread);
      if (place >= 0) this.#threads.splice(place, 1);
      for (const { reject } of held.values()) reject(new Error(`a thread that reads images ended: ${reason}`));
      held.clear();
    };
    worker.on("error", (error) => lost(error.message));
    worker.on("exit", (code) => lost(`exit code ${code}`));
    this.#threads.push(thread);
    return thread;
  }
}

/** Asked, not forced: a thread that is torn down while libvips works for it could take the process along. */
function end({ worker }: Thread): void {
  worker.postMessage("end" satisfies ToThread);
}

/** The sources run through tsx, which a thread has to start for itself; the published package holds JavaScript. */
function startWorker(): Worker {
  const isSource = import.meta.url.endsWith(".ts");
  const file = new URL(`./sample-thread.${isSource ? "ts" : "js"}`, import.meta.url);
  if (!isSource) return new Worker(file, { execArgv: [] });
  const [tsx, source] = [import.meta.resolve("tsx/esm/api"), file.href].map((url) => JSON.stringify(url));
  const start = `import(${tsx}).then(({ register }) => { register(); return import(${source}); });`;
  return new Worker(start, { eval: true, execArgv: [] });
}
