/**
 * What DEBUG shows, on stderr. 1: the adapter and every pipeline that is made · 2: also the time of each kernel, as a table when the device
 * is closed · 3: also each dispatch with its shapes and the bytes alive · 4: also stops at the first kernel that writes a NaN or an infinity.
 */
import type { Bound } from "./kernel.ts";
import { platform } from "./platform.ts";
import { show } from "./shape.ts";

export function debugLevel(): number {
  const text = platform().environment("DEBUG") ?? "";
  return /^[0-4]$/.test(text) ? Number(text) : 0;
}

export function log(line: string): void {
  console.error(line);
}

export function operandsOf(bind: Record<string, Bound>): string {
  return Object.entries(bind)
    .map(([name, x]) => `${name} ${x.dtype}${show(x.shape)}`)
    .join(", ");
}

export function describeRun(label: string, bind: Record<string, Bound>, liveBytes: number): string {
  return `${label}: ${operandsOf(bind)} · ${(liveBytes / 2 ** 20).toFixed(1)} MiB alive`;
}
