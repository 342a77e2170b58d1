/** `wgpu-wish bench`: kernels and whole steps, the median of repeats, beside what they compute and move. */
import { backward, type Device, F, isTensor, nn, optim, scope, settle, type Tensor } from "../index.ts";
import { BadInput } from "../train/errors.ts";
import { firstStep, Peer } from "./bench-peers.ts";
import { wishStep } from "./bench-step.ts";
import type { Call } from "./command.ts";
import { table } from "./terminal.ts";
import type { PeerName } from "./values.ts";

/** Work whose inputs are made once and whose repeats are timed with a wait for the GPU. */
interface Bench {
  name: string;
  note: string;
  /** Floating-point operations and bytes read and written by one repeat, where they say something. */
  flops?: number;
  bytes?: number;
  prepare: (gpu: Device) => (() => unknown) | Promise<() => unknown>;
}

export interface BenchResult {
  name: string;
  ms: number;
  /** The first call, compiling included. */
  firstMs: number;
  gflops: number | null;
  gbps: number | null;
  note: string;
}

interface Options {
  adapter?: string;
  compare?: PeerName[];
}

const FIRST_STEP = "first-step";
const FIRST = { name: FIRST_STEP, note: "cnn-step's first, in a new process with nothing cached" };
const ROUNDS = 3;
const ROUND_MS = 300;

const matmul = (n: number): Bench => ({
  name: `matmul-${n}`,
  note: `${n} x ${n} x ${n}`,
  flops: 2 * n ** 3,
  prepare: (gpu) => {
    const [a, b] = [gpu.randn([n, n], { seed: 1 }), gpu.randn([n, n], { seed: 2 })];
    return () => F.matmul(a, b);
  },
});

/** Forward and backward through one operation, all inputs requiring gradients. */
const roundTrip = (
  gpu: Device,
  shapes: readonly (readonly number[])[],
  run: (...x: Tensor[]) => Tensor,
): (() => void) => {
  const inputs = shapes.map((shape, i) => gpu.randn(shape, { seed: i }));
  const gy = scope(() => {
    const y = run(...inputs);
    return gpu.randn(y.shape, { seed: 99 });
  });
  return () => {
    // Fresh leaves, so that their gradients go with the scope of the repeat.
    const leaves = inputs.map((x) => {
      const leaf = F.detach(x);
      leaf.requiresGrad = true;
      return leaf;
    });
    backward(run(...leaves), gy);
  };
};

const benches: readonly Bench[] = [
  matmul(512),
  matmul(1024),
  {
    name: "attention",
    note: "8 heads x 1024 x 64",
    flops: 4 * 8 * 1024 * 1024 * 64,
    prepare: (gpu) => {
      const [q, k, v] = [1, 2, 3].map((seed) => gpu.randn([1, 8, 1024, 64], { seed })) as [Tensor, Tensor, Tensor];
      return () => F.scaledDotProductAttention(q, k, v);
    },
  },
  {
    name: "conv3x3",
    note: "64 -> 64 at 128 x 128",
    flops: 2 * 128 * 128 * 64 * 64 * 9,
    prepare: (gpu) => {
      const [x, w] = [gpu.randn([1, 64, 128, 128], { seed: 1 }), gpu.randn([64, 64, 3, 3], { seed: 2 })];
      return () => F.conv2d(x, w, { padding: 1 });
    },
  },
  {
    name: "conv3x3-train",
    note: "the same with its gradients",
    flops: 6 * 128 * 128 * 64 * 64 * 9,
    prepare: (gpu) =>
      roundTrip(
        gpu,
        [
          [1, 64, 128, 128],
          [64, 64, 3, 3],
        ],
        (x, w) => F.conv2d(x!, w!, { padding: 1 }),
      ),
  },
  {
    name: "layernorm",
    note: "4096 x 256",
    bytes: 2 * 4 * 4096 * 256,
    prepare: (gpu) => {
      const [x, w, b] = [gpu.randn([4096, 256], { seed: 1 }), gpu.ones([256]), gpu.zeros([256])];
      return () => F.layerNorm(x, w, b);
    },
  },
  {
    name: "softmax",
    note: "4096 x 1024",
    bytes: 2 * 4 * 4096 * 1024,
    prepare: (gpu) => {
      const x = gpu.randn([4096, 1024], { seed: 1 });
      return () => F.softmax(x, -1);
    },
  },
  {
    name: "pointwise",
    note: "tanh(1.5 x + 0.5) * sigmoid(x) + x on 1 M",
    bytes: 2 * 4 * 2 ** 20,
    prepare: (gpu) => {
      const x = gpu.randn([2 ** 20], { seed: 1 });
      return () => F.add(F.mul(F.tanh(F.add(F.mul(x, 1.5), 0.5)), F.sigmoid(x)), x);
    },
  },
  {
    name: "additions",
    note: "100 dependent ones on 1,024 numbers",
    prepare: (gpu) => {
      const x = gpu.randn([1024], { seed: 1 });
      return () => {
        let y = x;
        for (let i = 0; i < 100; i++) y = F.add(y, x);
        return y;
      };
    },
  },
  {
    name: "deform-attention",
    note: "WISH encoder at 128 px: forward and backward",
    prepare: (gpu) => {
      const shapes: [number, number][] = [
        [4, 4],
        [8, 8],
        [16, 16],
      ];
      const S = 336;
      return roundTrip(
        gpu,
        [
          [8, S, 4, 16],
          [8, S, 4, 3, 4, 2],
          [8, S, 4, 3, 4],
        ],
        (value, at, weights) => F.msDeformAttn(value!, shapes, F.sigmoid(at!), weights!),
      );
    },
  },
  {
    name: "point-sampling",
    note: "32 masks of 32 x 32 at 1,024 points: forward and backward",
    prepare: (gpu) => {
      const grid = gpu.tensor(
        Float32Array.from({ length: 32 * 1024 * 2 }, (_, i) => Math.sin(i * 12.9898)),
        [32, 1, 1024, 2],
      );
      return roundTrip(gpu, [[32, 1, 32, 32]], (x) => F.gridSample(x!, grid));
    },
  },
  {
    name: "mlp-step",
    note: "256-1024-256, batch 256, squared error, SGD, loss read",
    flops: 6 * 256 * (256 * 1024 * 2),
    prepare: (gpu) => {
      const [x, target] = [gpu.randn([256, 256], { seed: 1 }), gpu.randn([256, 256], { seed: 2 })];
      gpu.manualSeed(1);
      const [up, down] = [new nn.Linear(gpu, 256, 1024), new nn.Linear(gpu, 1024, 256)];
      const sgd = new optim.SGD([{ params: [...up.parameters(), ...down.parameters()], lr: 0.01 }]);
      return () => {
        sgd.zeroGrad();
        const loss = F.mean(F.pow(F.sub(down.forward(F.relu(up.forward(x))), target), 2));
        backward(loss);
        sgd.step();
        return loss.item();
      };
    },
  },
  {
    name: "cnn-step",
    note: "conv 3-16-32 with pooling + linear, 16 x 32 x 32, cross entropy, SGD, loss read",
    prepare: (gpu) => {
      gpu.manualSeed(1);
      const x = gpu.randn([16, 3, 32, 32], { seed: 1 });
      const labels = gpu.tensor(Int32Array.from({ length: 16 }, (_, i) => i % 10));
      const [a, b, c] = [
        new nn.Conv2d(gpu, 3, 16, 3, { padding: 1 }),
        new nn.Conv2d(gpu, 16, 32, 3, { padding: 1 }),
        new nn.Linear(gpu, 2048, 10),
      ];
      const params = [...a.parameters(), ...b.parameters(), ...c.parameters()];
      const sgd = new optim.SGD([{ params, lr: 0.01 }]);
      const relu = { activation: "relu" } as const;
      return () => {
        const h = F.maxPool2d(b.forward(F.maxPool2d(a.forward(x, relu), 2), relu), 2);
        sgd.zeroGrad();
        const loss = F.crossEntropy(c.forward(F.reshape(h, [16, -1])), labels);
        backward(loss);
        sgd.step();
        return loss.item();
      };
    },
  },
  {
    name: "wish-step",
    note: "a training step of configs/scenes.yaml: 4 scenes of 96 x 96 with boxes",
    prepare: wishStep,
  },
];

interface Times {
  /** The first call, which compiles. */
  first: number;
  /** Median of the others. */
  ms: number;
}

/** Repeats for about as long as asked, at least 5 and at most 50 times, after one that compiles. */
async function measure(gpu: Device, work: () => unknown, budgetMs = 500): Promise<Times> {
  const once = (): Promise<number> =>
    scope(async () => {
      await gpu.sync();
      const start = performance.now();
      const result = await work();
      // Pointwise operations wait until someone asks.
      if (isTensor(result)) settle(result);
      await gpu.sync();
      return performance.now() - start;
    });
  const first = await once();
  const times: number[] = [];
  for (let total = 0; times.length < 5 || (total < budgetMs && times.length < 50); total += times.at(-1)!)
    times.push(await once());
  return { first, ms: times.sort((a, b) => a - b)[Math.floor(times.length / 2)]! };
}

export async function run(call: Call<Options>): Promise<void> {
  const { args, options, terminal } = call;
  const names = [...benches.map((b) => b.name), FIRST_STEP];
  for (const name of args)
    if (!names.some((known) => known.startsWith(name)))
      throw new BadInput(`bench: there is nothing called ${name}; there are ${names.join(", ")}`);
  const isAsked = (name: string): boolean => args.length === 0 || args.some((word) => name.startsWith(word));
  const chosen = benches.filter(({ name }) => isAsked(name));
  const gpu = await call.open();
  if (options.compare) return compare(call, gpu, chosen, options.compare, isAsked(FIRST_STEP));
  const results: BenchResult[] = [];
  if (args.length > 0 && isAsked(FIRST_STEP)) {
    const ms = (await firstStep("ours", options.adapter))!;
    results.push({ ...resultOf(FIRST, ms, ms) });
  }
  const bar = terminal.progress(chosen.length, "benches");
  for (const bench of chosen) {
    const { first, ms } = await scope(async () => measure(gpu, await bench.prepare(gpu)));
    results.push(resultOf(bench, ms, first));
    bar.update(results.length, { ms });
  }
  bar.end();
  const figure = (v: number | null): string => (v === null ? "" : v.toFixed(1));
  terminal.result(
    results,
    table(
      ["name", "ms", "first ms", "GFLOP/s", "GB/s", "what"],
      results.map((r) => [r.name, r.ms.toFixed(2), r.firstMs.toFixed(0), figure(r.gflops), figure(r.gbps), r.note]),
    ),
  );
}

function resultOf({ name, note, flops, bytes }: Omit<Bench, "prepare">, ms: number, firstMs: number): BenchResult {
  return { name, ms, firstMs, gflops: flops ? flops / ms / 1e6 : null, gbps: bytes ? bytes / ms / 1e6 : null, note };
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
    return { ...resultOf(bench, best.get("")!, first), peers: others };
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
    rows.push({ ...resultOf(FIRST, ms, ms), peers: others });
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
