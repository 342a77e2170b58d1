/** Other engines beside ours, in one run on one adapter: each is a process of its own (bench/peer.mjs) that is told what to measure and when. */
import { type ChildProcess, execFile, fork } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { packageRoot } from "../platform/root.ts";
import { BadInput } from "../train/errors.ts";
import type { PeerName } from "./values.ts";

/** Milliseconds of a row's first call, and the median of the others. */
export interface PeerTime {
  first: number;
  ms: number;
}

const FOLDER = join(packageRoot, "bench");
/** An engine that compiles for the first time may take half a minute. */
const PATIENCE_MS = 180_000;

export class Peer {
  readonly name: PeerName;
  readonly adapter: string;
  readonly #child: ChildProcess;

  private constructor(name: PeerName, child: ChildProcess, adapter: string) {
    this.name = name;
    this.#child = child;
    this.adapter = adapter;
  }

  static async start(name: PeerName, environment: Record<string, string> = {}): Promise<Peer> {
    if (!existsSync(join(FOLDER, "peer.mjs")))
      throw new BadInput(
        "bench --compare: works in a checkout of the repository; the package does not carry the peers",
      );
    if (!existsSync(join(FOLDER, "node_modules")))
      throw new BadInput(
        "bench --compare: the other engines are not installed; run: npm ci --prefix bench --ignore-scripts",
      );
    const child = fork(join(FOLDER, "peer.mjs"), [name], {
      cwd: FOLDER,
      env: { ...process.env, ...environment },
      stdio: ["ignore", "ignore", "ignore", "ipc"],
      execArgv: [],
    });
    const { adapter } = await answer<{ adapter: string }>(name, child);
    return new Peer(name, child, adapter);
  }

  /** Undefined where the peer has no such row. */
  async measure(row: string, budgetMs: number): Promise<PeerTime | undefined> {
    const waiting = answer<PeerTime & { error?: string; missing?: boolean }>(this.name, this.#child);
    this.#child.send({ row, budgetMs });
    const { error, missing, ...time } = await waiting;
    if (error) throw new Error(`bench: ${this.name} failed at ${row}: ${error}`);
    return missing ? undefined : time;
  }

  stop(): void {
    this.#child.kill();
  }
}

function answer<T>(name: string, child: ChildProcess): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => settle(() => reject(new Error(`bench: ${name} did not answer`))), PATIENCE_MS);
    const onMessage = (message: unknown): void => settle(() => resolve(message as T));
    const onExit = (code: number | null): void =>
      settle(() => reject(new Error(`bench: the process of ${name} ended with ${code}`)));
    const settle = (done: () => void): void => {
      clearTimeout(timer);
      child.off("message", onMessage).off("exit", onExit);
      done();
    };
    child.on("message", onMessage).on("exit", onExit);
  });
}

/** A driver that keeps compiled shaders is told not to, so that a first step is one. */
const NOTHING_CACHED = { MESA_SHADER_CACHE_DISABLE: "true" };
const FIRST = "cnn-step";

/** Milliseconds of the first training step in a new process with nothing cached; undefined where the peer does not train. */
export async function firstStep(name: PeerName | "ours", adapter?: string): Promise<number | undefined> {
  if (name !== "ours") {
    const peer = await Peer.start(name, NOTHING_CACHED);
    try {
      return (await peer.measure(FIRST, 0))?.first;
    } finally {
      peer.stop();
    }
  }
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [
      join(packageRoot, "bin", "wgpu-wish.mjs"),
      "bench",
      FIRST,
      "--json",
      ...(adapter === undefined ? [] : ["--adapter", adapter]),
    ],
    { env: { ...process.env, ...NOTHING_CACHED } },
  );
  return (JSON.parse(stdout) as { firstMs: number }[])[0]!.firstMs;
}
