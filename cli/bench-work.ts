/** How work is measured: by the host's clock with a wait for the GPU, and by the GPU's own. */
import { backward, type Device, F, isTensor, type KernelTime, scope, settle, type Tensor } from "../index.ts";

/** What is repeated: its inputs are made once. */
export interface Work {
  /** Done before each repeat and not measured, as the forward pass where the gradient is what counts. */
  before?: () => unknown;
  run: () => unknown;
  /** The most bytes that tensors should own at any moment of it, where that is known beforehand. */
  plannedBytes?: number;
}

export interface Bench {
  name: string;
  note: string;
  /** Floating-point operations and bytes read and written by one repeat, where they say more than what its kernels tell. */
  flops?: number;
  bytes?: number;
  /** Takes minutes on a software adapter: measured only when it is named, and its memory is told. */
  slow?: boolean;
  prepare: (gpu: Device) => Work | Promise<Work>;
}

type Operation = (...inputs: Tensor[]) => Tensor;

/** One operation and the gradients of its inputs (those whose places are in `of`; default: all), with the forward pass or without. */
export function gradients(
  gpu: Device,
  inputs: readonly Tensor[],
  operation: Operation,
  options: { of?: readonly number[]; withForward?: boolean } = {},
): Work {
  const { of = [...inputs.keys()], withForward = false } = options;
  const gy = scope(() => gpu.randn(operation(...inputs).shape, { seed: 99 }));
  let leaves: Tensor[] = [];
  const forward = (): Tensor => {
    // Fresh leaves, so that their gradients go with the scope of the repeat.
    leaves = inputs.map((x, i) => {
      const leaf = F.detach(x);
      if (of.includes(i)) leaf.requiresGrad = true;
      return leaf;
    });
    return operation(...leaves);
  };
  const back = (y: Tensor): void => {
    backward(y, gy);
    for (const { grad } of leaves) if (grad) settle(grad);
  };
  if (withForward) return { run: () => back(forward()) };
  let y: Tensor;
  return { before: () => (y = forward()), run: () => back(y) };
}

interface Times {
  /** The first call, which compiles. */
  first: number;
  /** Median of the others. */
  ms: number;
  /** Share of a repeat in which the host was not waiting for the GPU, mean of the others. */
  hostShare: number;
}

/** More repeats of what takes this long would try the patience of whoever waits. */
const LONG_MS = 10_000;

/** Repeats for about as long as asked, at least 5 (of what takes long: 1) and at most 50 times, after one that compiles. */
export async function measure(gpu: Device, work: Work, budgetMs = 500): Promise<Times> {
  let [waited, taken] = [0, 0];
  const once = async (): Promise<number> => {
    let ms = 0;
    await repeat(gpu, work, async (act) => {
      const [start, before] = [performance.now(), gpu.waitedMs];
      await act();
      ms = performance.now() - start;
      waited += gpu.waitedMs - before;
      taken += ms;
    });
    return ms;
  };
  const first = await once();
  [waited, taken] = [0, 0];
  const times: number[] = [];
  for (let total = 0; total < (times.length < 5 ? LONG_MS : budgetMs) && times.length < 50; total += times.at(-1)!)
    times.push(await once());
  return { first, ms: median(times), hostShare: Math.max(0, 1 - waited / taken) };
}

/** The kernels of a repeat by the GPU's clock; undefined where the adapter has no timestamps. Call it when all is compiled. */
export async function kernelsOf(gpu: Device, work: Work, repeats = 5): Promise<Profile | undefined> {
  if (!gpu.profiler.isOffered) return undefined;
  const totals: number[] = [];
  let kernels: KernelTime[] = [];
  for (let i = 0; i < repeats; i++)
    await repeat(gpu, work, async (act) => {
      gpu.profiler.start();
      await act();
      kernels = await gpu.profiler.stop();
      totals.push(kernels.reduce((sum, { ms }) => sum + ms, 0));
    });
  return { ms: median(totals), kernels };
}

export interface Profile {
  /** All kernels of a repeat together, median of repeats. */
  ms: number;
  /** Those of the last one. */
  kernels: KernelTime[];
}

/** One repeat; `act` does the part that counts, to the end of the GPU's work. */
async function repeat(gpu: Device, work: Work, around: (act: () => Promise<void>) => Promise<void>): Promise<void> {
  await scope(async () => {
    const given = work.before?.();
    if (isTensor(given)) settle(given);
    await gpu.sync();
    await around(async () => {
      const result = await work.run();
      // Pointwise operations wait until someone asks.
      if (isTensor(result)) settle(result);
      await gpu.sync();
    });
  });
}

function median(times: readonly number[]): number {
  return times.toSorted((a, b) => a - b)[Math.floor(times.length / 2)]!;
}
