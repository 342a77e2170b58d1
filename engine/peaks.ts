/** Measures what an adapter can do at most. */
import type { Device } from "./device.ts";
import { gemm } from "./ops/matmul.ts";
import { abs } from "./ops/pointwise.ts";
import type { Peaks } from "./rates.ts";
import { scope } from "./scope.ts";
import { empty, fill, settle } from "./tensor.ts";

const REPEATS = 6;

/** Two small measurements by the same timestamps as the kernels; the best of their repeats, for the first ones compile and warm up. */
export async function measurePeaks(device: Device): Promise<Peaks> {
  const [side, length] = device.isSoftware ? [512, 2 ** 22] : [2048, 2 ** 25];
  const times = await device.profiler.apart(() =>
    scope(async () => {
      const a = { x: fill(empty(device, [side, side]), 0.5), flipped: false };
      const x = fill(empty(device, [length]), 0.5);
      for (let i = 0; i < REPEATS; i++)
        scope(() => {
          gemm(a, a, 1, side, side, side);
          settle(abs(x));
        });
      await device.sync();
    }),
  );
  const best = (kernel: RegExp): number =>
    Math.min(...times.filter(({ name, ms }) => kernel.test(name) && ms > 0).map(({ ms }) => ms));
  return { gflops: (2 * side ** 3) / best(/^matmul/) / 1e6, gbps: (8 * length) / best(/abs/) / 1e6 };
}
