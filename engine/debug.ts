/**
 * What DEBUG shows, on stderr. 1: the adapter and every pipeline that is made · 2: also the time of each kernel, as a table when the device
 * is closed · 3: also each dispatch with its shapes and the bytes alive · 4: also stops at the first kernel that writes a NaN or an infinity.
 */
import type { Bound } from "./kernel.ts";
import { platform } from "./platform.ts";
import type { KernelTime } from "./profiler.ts";
import { show } from "./shape.ts";

export function debugLevel(): number {
  const text = platform().environment("DEBUG") ?? "";
  return /^[0-4]$/.test(text) ? Number(text) : 0;
}

export function log(line: string): void {
  console.error(line);
}

export function describe(label: string, bind: Record<string, Bound>, liveBytes: number): string {
  const operands = Object.entries(bind).map(([name, x]) => `${name} ${x.dtype}${show(x.shape)}`);
  return `${label}: ${operands.join(", ")} · ${(liveBytes / 2 ** 20).toFixed(1)} MiB alive`;
}

/** Kernels by time: calls, milliseconds, share. */
export function timeTable(times: readonly KernelTime[], most = 20): string {
  const total = times.reduce((sum, t) => sum + t.ms, 0);
  const rows = times
    .slice(0, most)
    .map(
      (t) =>
        `${t.ms.toFixed(2).padStart(10)} ms ${((100 * t.ms) / total).toFixed(1).padStart(5)} % ${String(t.calls).padStart(7)} x  ${t.name}`,
    );
  return [
    `${total.toFixed(2).padStart(10)} ms in ${times.reduce((sum, t) => sum + t.calls, 0)} dispatches`,
    ...rows,
  ].join("\n");
}
