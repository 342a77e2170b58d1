/** `wgpu-wish bench`: kernels and whole steps, the median of repeats, beside what they compute and move. */
import { type Device, type Peaks, rates, scope, timeTable } from "../index.ts";
import { BadInput } from "../train/errors.ts";
import { firstStep, Peer } from "./bench-peers.ts";
import { benches } from "./bench-rows.ts";
import { type Bench, kernelsOf, measure, type Profile } from "./bench-work.ts";
import type { Call } from "./command.ts";
import { bytes as size, table } from "./terminal.ts";
import type { PeerName } from "./values.ts";

export interface BenchResult {
  name: string;
  ms: number;
  /** The first call, compiling included. */
  firstMs: number;
  /** Its kernels by the GPU's own clock; null where the adapter has no timestamps. */
  gpuMs: number | null;
  /** Share of `ms` in which the host was not waiting for the GPU. */
  hostShare: number | null;
  /** By the kernels' time where that is known. */
  gflops: number | null;
  gbps: number | null;
  /** Percent of the adapter's measured peak that it comes closer to. */
  ofPeak: number | null;
  note: string;
}

interface Options {
  adapter?: string;
  compare?: PeerName[];
}

const STEP = "wish-step";
const FIRST_STEP = "first-step";
const FIRST = { name: FIRST_STEP, note: "cnn-step's first, in a new process with nothing cached" };
const ROUNDS = 3;
const ROUND_MS = 300;

export async function run(call: Call<Options>): Promise<void> {
  const { args, options, terminal } = call;
  const names = [...benches.map((b) => b.name), FIRST_STEP];
  for (const name of args)
    if (!names.some((known) => known.startsWith(name)))
      throw new BadInput(`bench: there is nothing called ${name}; there are ${names.join(", ")}`);
  const isAsked = (name: string, slow = false): boolean =>
    args.length === 0 ? !slow : args.some((word) => name.startsWith(word));
  const chosen = benches.filter(({ name, slow }) => isAsked(name, slow));
  const gpu = await call.open();
  if (options.compare) {
    // No other engine has those.
    const common = args.length > 0 ? chosen : chosen.filter(({ name }) => !name.startsWith("wish-"));
    return compare(call, gpu, common, options.compare, isAsked(FIRST_STEP));
  }
  const results: BenchResult[] = [];
  if (args.length > 0 && isAsked(FIRST_STEP)) {
    const ms = (await firstStep("ours", options.adapter))!;
    results.push(resultOf(FIRST, { ms, first: ms }));
  }
  const peaks = gpu.profiler.isOffered ? await gpu.peaks() : undefined;
  let composition = "";
  const bar = terminal.progress(chosen.length, "benches");
  for (const bench of chosen) {
    gpu.resetHighWater();
    const { times, profile, plannedBytes } = await scope(async () => {
      const work = await bench.prepare(gpu);
      const times = await measure(gpu, work);
      // Of what takes minutes one repeat by the GPU's clock is enough.
      return {
        times,
        profile: await kernelsOf(gpu, work, bench.slow ? 1 : undefined),
        plannedBytes: work.plannedBytes,
      };
    });
    const planned = plannedBytes === undefined ? "" : `, ${size(plannedBytes)} planned`;
    const memory = bench.slow ? `; at most ${size(gpu.memory.highWaterBytes)} of tensors${planned}` : "";
    const result = resultOf({ ...bench, note: bench.note + memory }, times, profile, peaks);
    results.push(result);
    bar.update(results.length, { ms: times.ms });
    if (bench.name === STEP && profile) composition = describeStep(result, profile, peaks);
  }
  bar.end();
  const figure = (v: number | null, digits = 1): string => (v === null ? "" : v.toFixed(digits));
  const rows = results.map((r) => [
    r.name,
    r.ms.toFixed(2),
    r.firstMs.toFixed(0),
    figure(r.gpuMs, 3),
    figure(r.gflops),
    figure(r.gbps),
    r.ofPeak === null ? "" : `${r.ofPeak.toFixed(0)} %`,
    r.hostShare === null ? "" : `${(100 * r.hostShare).toFixed(0)} %`,
    r.note,
  ]);
  const heads = ["name", "ms", "first ms", "GPU ms", "GFLOP/s", "GB/s", "of peak", "host", "what"];
  terminal.result(results, [table(heads, rows), composition].filter((part) => part !== "").join("\n\n"));
}

/** What a whole step is made of, and whether it costs more than its kernels do. */
function describeStep({ ms, gpuMs, hostShare }: BenchResult, { kernels }: Profile, peaks: Peaks | undefined): string {
  const dispatches = kernels.reduce((sum, { calls }) => sum + calls, 0);
  return [
    timeTable(kernels, peaks),
    `a step takes ${ms.toFixed(1)} ms, ${(ms / gpuMs!).toFixed(2)} times the ${gpuMs!.toFixed(1)} ms of its ${dispatches} kernels; ` +
      `the host works, not waiting for the GPU, in ${(100 * hostShare!).toFixed(0)} % of it`,
  ].join("\n");
}

function resultOf(
  { name, note, flops, bytes }: Omit<Bench, "prepare">,
  times: { ms: number; first: number; hostShare?: number },
  profile?: Profile,
  peaks?: Peaks,
): BenchResult {
  const sum = (of: "flops" | "bytes"): number => profile?.kernels.reduce((total, kernel) => total + kernel[of], 0) ?? 0;
  const work = { ms: profile?.ms ?? times.ms, flops: flops ?? sum("flops"), bytes: bytes ?? sum("bytes") };
  const { gflops, gbps, ofPeak } = rates(work, peaks);
  return {
    name,
    ms: times.ms,
    firstMs: times.first,
    gpuMs: profile?.ms ?? null,
    hostShare: times.hostShare ?? null,
    gflops: gflops ?? null,
    gbps: work.bytes > 0 ? (gbps ?? null) : null,
    ofPeak: ofPeak ?? null,
    note,
  };
}

type Row = BenchResult & { peers: Record<string, number | null> };

/** Everyone in turn, several times over, so that what else the machine does meets all alike; the best of the rounds counts. */
async function inTurn(gpu: Device, bench: Bench, peers: readonly Peer[]): Promise<Row> {
  return scope(async () => {
    const work = await bench.prepare(gpu);
    const best = new Map<string, number>();
    const note = (name: string, ms: number): void => void best.set(name, Math.min(ms, best.get(name) ?? Infinity));
    let first = 0;
    for (let round = 0; round < ROUNDS; round++) {
      const own = await measure(gpu, work, ROUND_MS);
      if (round === 0) first = own.first;
      note("", own.ms);
      for (const peer of peers) {
        const time = await peer.measure(bench.name, ROUND_MS);
        if (time) note(peer.name, time.ms);
      }
    }
    const others = Object.fromEntries(peers.map(({ name }) => [name, best.get(name) ?? null]));
    return { ...resultOf(bench, { ms: best.get("")!, first }), peers: others };
  });
}

async function compare(
  { terminal, options }: Call<Options>,
  gpu: Device,
  chosen: readonly Bench[],
  names: readonly PeerName[],
  withFirstStep: boolean,
): Promise<void> {
  const peers: Peer[] = [];
  const rows: Row[] = [];
  const bar = terminal.progress(chosen.length + (withFirstStep ? 1 : 0), "benches");
  try {
    for (const name of names) peers.push(await Peer.start(name));
    for (const { name, adapter } of peers)
      if (adapter !== "" && adapter !== gpu.name)
        throw new BadInput(
          `bench --compare: ${name} runs on ${adapter}, this engine on ${gpu.name}; leave --adapter out, or let the system offer ${adapter} alone`,
        );
    for (const bench of chosen) {
      rows.push(await inTurn(gpu, bench, peers));
      bar.update(rows.length, { ms: rows.at(-1)!.ms });
    }
  } finally {
    for (const peer of peers) peer.stop();
  }
  if (withFirstStep) {
    const ms = (await firstStep("ours", options.adapter))!;
    const others: Record<string, number | null> = {};
    for (const name of names) others[name] = (await firstStep(name)) ?? null;
    rows.push({ ...resultOf(FIRST, { ms, first: ms }), peers: others });
    bar.update(rows.length, { ms });
  }
  bar.end();
  const cell = (ms: number | null | undefined, own: number): string =>
    ms == null ? "" : `${ms.toFixed(1)} (${(ms / own).toFixed(1)} x)`;
  terminal.result(
    rows,
    table(
      ["name", "ms", ...names, "what"],
      rows.map((r) => [r.name, r.ms.toFixed(2), ...names.map((name) => cell(r.peers[name], r.ms)), r.note]),
    ),
  );
}
