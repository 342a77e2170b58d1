/** `wgpu-wish tune`: measures the kernels that may stand in for each other and keeps the fastest of each class of sizes. */
import { backward, type Device, F, scope, tune } from "../index.ts";
import { wishStep } from "./bench-step.ts";
import type { Call } from "./command.ts";
import { type Progress, table } from "./terminal.ts";

export async function run({ terminal, open }: Call): Promise<void> {
  const gpu = await open();
  let bar: Progress | undefined;
  const results = await tune(
    gpu,
    () => usualWork(gpu),
    (done, all) => {
      bar ??= terminal.progress(all, "classes");
      bar.update(done);
    },
  );
  bar?.end();
  const replaced = results.filter(({ rule, chosen }) => rule !== chosen);
  const cell = (ms: number | null | undefined): string => (ms == null ? "out" : ms.toFixed(3));
  terminal.result(
    results,
    [
      table(
        ["work", "chosen", "rule", "ms", "others"],
        results.map(({ key, rule, chosen, ms }) => [
          key.split(":")[0]!,
          chosen,
          rule === chosen ? "" : rule,
          cell(ms[chosen]),
          Object.entries(ms)
            .filter(([variant]) => variant !== chosen)
            .map(([variant, time]) => `${variant} ${cell(time)}`)
            .join(", "),
        ]),
      ),
      `${replaced.length} of ${results.length} classes now use another kernel than the rule's on ${gpu.name}`,
    ].join("\n"),
  );
}

/** Products and convolutions of models of all sizes with their gradients, and a whole training step. */
async function usualWork(gpu: Device): Promise<void> {
  const [large, long] = gpu.isSoftware ? [512, 1024] : [2048, 8192];
  for (const [batch, m, k, n] of [
    [1, 256, 256, large],
    [1, large, large, large],
    [1, long, 256, 256],
    [8, 100, 32, 1024],
    [12, 196, 64, 196],
  ] as const)
    scope(() => {
      const a = gpu.randn([batch, m, k], { seed: 1, requiresGrad: true });
      const b = gpu.randn([batch, k, n], { seed: 2, requiresGrad: true });
      backward(F.sum(F.matmul(a, b)));
      const w = gpu.randn([n, k], { seed: 3, requiresGrad: true });
      backward(F.sum(F.linear(a, w)));
    });
  const [images, side] = gpu.isSoftware ? [1, 32] : [8, 128];
  for (const [ci, co, size, kernel, stride] of [
    [3, 64, 2 * side, 7, 2],
    [64, 64, side, 3, 1],
    [256, 64, side, 1, 1],
    [256, 256, side / 4, 3, 1],
  ] as const)
    scope(() => {
      const x = gpu.randn([images, ci, size, size], { seed: 1, requiresGrad: true });
      const w = gpu.randn([co, ci, kernel, kernel], { seed: 2, requiresGrad: true });
      backward(F.sum(F.conv2d(x, w, { stride, padding: (kernel - 1) / 2 })));
    });
  await scope(async () => {
    const { run } = await wishStep(gpu);
    await run();
  });
}
