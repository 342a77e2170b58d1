/** `wgpu-wish doctor`: which adapter there is, whether it computes right, how fast it is, and what would make it better. */
import { existsSync } from "node:fs";
import { availableParallelism, freemem, release, totalmem } from "node:os";
import { type Device, F, Random, scope, settle } from "../index.ts";
import type { Call } from "./command.ts";
import { bytes, short } from "./terminal.ts";

const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
] as const;

/** An adapter whose f32 products are worse than this would not train; f32 sums of 33 products are good to about 1e-6. */
const TOLERANCE = 1e-5;

interface Report {
  ok: boolean;
  adapter: { name: string; vendor: string; architecture: string; driver: string; kind: "gpu" | "software" } | null;
  system: { platform: string; release: string; arch: string; node: string; cores: number };
  features: string[];
  limits: Record<string, number>;
  memory: { systemBytes: number; freeBytes: number; processBytes: number };
  correctness: { maxRelError: number; pass: boolean } | null;
  speed: { matmulGflops: number; bandwidthGBps: number } | null;
  advice: string[];
}

export async function run({ options, terminal, open }: Call<{ fast?: boolean; adapter?: string }>): Promise<number> {
  const report: Report = {
    ok: false,
    adapter: null,
    system: {
      platform: process.platform,
      release: release(),
      arch: process.arch,
      node: process.versions.node,
      cores: availableParallelism(),
    },
    features: [],
    limits: {},
    memory: { systemBytes: totalmem(), freeBytes: freemem(), processBytes: process.memoryUsage().rss },
    correctness: null,
    speed: null,
    advice: [],
  };
  let gpu: Device;
  try {
    gpu = await open();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "NO_ADAPTER") throw error;
    report.advice = [(error as Error).message, ...(options.adapter ? [] : withoutAdapter())];
    terminal.result(report, describe(report));
    return 3;
  }
  const { vendor, architecture, description } = gpu.info;
  report.adapter = {
    name: gpu.name,
    vendor,
    architecture,
    driver: description,
    kind: gpu.isSoftware ? "software" : "gpu",
  };
  report.features = [...gpu.gpu.features].sort();
  for (const name of LIMITS) report.limits[name] = gpu.gpu.limits[name];
  report.correctness = await checkMatmul(gpu);
  report.ok = report.correctness.pass;
  if (options.fast !== true) {
    terminal.log("measuring speed");
    report.speed = { matmulGflops: await matmulSpeed(gpu), bandwidthGBps: await bandwidth(gpu) };
  }
  report.memory.processBytes = process.memoryUsage().rss;
  report.advice = [...advise(report, options.adapter ?? process.env.WGPU_WISH_ADAPTER)];
  terminal.result(report, describe(report));
  return report.ok ? 0 : 1;
}

/** A product with odd sizes against float64: error max|got - want| / max(1, max|want|). */
async function checkMatmul(gpu: Device): Promise<{ maxRelError: number; pass: boolean }> {
  const [rows, inner, columns] = [65, 33, 47];
  const random = new Random(7);
  const a = Float32Array.from({ length: rows * inner }, () => random.normal());
  const b = Float32Array.from({ length: inner * columns }, () => random.normal());
  const got = await scope(() => F.matmul(gpu.tensor(a, [rows, inner]), gpu.tensor(b, [inner, columns])).toArray());
  let worst = 0;
  let largest = 1;
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      let want = 0;
      for (let k = 0; k < inner; k++) want += (a[i * inner + k] ?? 0) * (b[k * columns + j] ?? 0);
      const error = Math.abs((got[i * columns + j] ?? Number.NaN) - want);
      worst = Number.isNaN(error) ? Number.POSITIVE_INFINITY : Math.max(worst, error);
      largest = Math.max(largest, Math.abs(want));
    }
  }
  const maxRelError = worst / largest;
  return { maxRelError, pass: maxRelError <= TOLERANCE };
}

async function matmulSpeed(gpu: Device): Promise<number> {
  const size = gpu.isSoftware ? 512 : 2048;
  const a = gpu.rand([size, size], { seed: 1 });
  const b = gpu.rand([size, size], { seed: 2 });
  const seconds = await fastest(gpu, gpu.isSoftware ? 1 : 20, () => F.matmul(a, b));
  return (2 * size ** 3) / seconds / 1e9;
}

/** Bytes read and written by x + 1, whose arithmetic costs nothing beside them. */
async function bandwidth(gpu: Device): Promise<number> {
  const length = gpu.isSoftware ? 2 ** 22 : 2 ** 25;
  const x = gpu.zeros([length]);
  const seconds = await fastest(gpu, gpu.isSoftware ? 1 : 20, () => settle(F.add(x, 1)));
  return (2 * 4 * length) / seconds / 1e9;
}

/** Seconds of one call, the best of several rounds; the first round compiles the kernel and does not count. */
async function fastest(gpu: Device, calls: number, work: () => unknown): Promise<number> {
  let best = Number.POSITIVE_INFINITY;
  for (let round = 0; round < 6; round++) {
    const started = performance.now();
    await scope(async () => {
      for (let i = 0; i < calls; i++) work();
      await gpu.sync();
    });
    if (round > 0) best = Math.min(best, (performance.now() - started) / 1000 / calls);
  }
  return best;
}

function* advise({ adapter, correctness, features }: Report, wish: string | undefined): Generator<string> {
  if (correctness?.pass === false) {
    yield "this adapter computes wrong values: update its driver, or choose another with --adapter";
  }
  if (adapter?.kind === "software" && !wish) {
    if (process.platform === "linux") yield* onLinux(adapter.name);
    if (process.platform === "win32") {
      yield "Windows offers only its software renderer: install the graphics card's own driver; a remote desktop may hide the card";
    }
    yield "a software adapter is enough for quickstart, the tests and small models; train on photographs with a GPU";
  }
  if (!features.includes("timestamp-query")) yield "the adapter has no timestamps: DEBUG=2 cannot time single kernels";
}

function* onLinux(name: string): Generator<string> {
  if (existsSync("/dev/nvidiactl")) {
    yield "an NVIDIA card is present, but its Vulkan driver is not: install the driver's graphics part (libnvidia-gl or nvidia-utils); in a container set NVIDIA_DRIVER_CAPABILITIES=all";
  } else if (existsSync("/dev/dri/renderD128")) {
    yield "a graphics card is present, but no Vulkan driver answers for it: install mesa-vulkan-drivers, and add the user to the group render";
  }
  if (existsSync("/dev/dxg"))
    yield "under WSL the card answers through mesa-vulkan-drivers (dzn); try its newest version";
  if (/swiftshader/i.test(name)) {
    yield "Mesa's lavapipe is 4 to 9 times faster than SwiftShader: as root, `npm run setup` installs it on Debian and Ubuntu (mesa-vulkan-drivers 24 or newer)";
  }
}

function withoutAdapter(): string[] {
  if (process.platform === "darwin")
    return ["Dawn needs Metal: macOS 12 or newer, outside of a virtual machine without a GPU"];
  if (process.platform === "win32")
    return ["Dawn needs Direct3D 12: Windows 10 or newer with a current graphics driver"];
  return [
    "with x64 and glibc 2.34 or newer, `npm ci` brings SwiftShader; on other machines install mesa-vulkan-drivers 24 or newer",
  ];
}

function describe({ ok, adapter, system, features, limits, memory, correctness, speed, advice }: Report): string {
  const lines: [string, string][] = [];
  if (adapter === null) lines.push(["adapter", "none"]);
  else {
    lines.push(["adapter", `${adapter.name} (${adapter.kind === "gpu" ? "GPU" : "software"})`]);
    lines.push(["driver", [adapter.vendor, adapter.architecture, adapter.driver].filter(Boolean).join(", ")]);
  }
  lines.push([
    "system",
    `${system.platform} ${system.release}, ${system.arch}, Node ${system.node}, ${system.cores} cores`,
  ]);
  lines.push(["memory", `${bytes(memory.freeBytes)} free of ${bytes(memory.systemBytes)}`]);
  if (adapter !== null) {
    lines.push(["features", ["timestamp-query", "subgroups", "shader-f16"].map((f) => mark(features, f)).join(", ")]);
    for (const [name, value] of Object.entries(limits))
      lines.push([name, /Size$/.test(name) ? bytes(value) : String(value)]);
  }
  if (correctness !== null) {
    const verdict = correctness.pass ? "right" : "WRONG";
    lines.push(["correctness", `${verdict}: matmul is within ${short(correctness.maxRelError)} of float64`]);
  }
  if (speed !== null) {
    lines.push(["speed", `matmul ${short(speed.matmulGflops)} GFLOP/s, memory ${short(speed.bandwidthGBps)} GB/s`]);
  }
  const width = Math.max(...lines.map(([name]) => name.length));
  const text = lines.map(([name, value]) => `${name.padEnd(width)}  ${value}`);
  return [...text, ...advice.map((line) => `advice: ${line}`), ok ? "ready" : "not ready"].join("\n");
}

function mark(features: string[], name: string): string {
  return features.includes(name) ? name : `no ${name}`;
}
