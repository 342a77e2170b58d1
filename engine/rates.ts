/** What kernels achieve beside the most that their adapter can do. */
import type { KernelTime } from "./profiler.ts";

/** See peaks.ts. */
export interface Peaks {
  /** Floating-point operations of a large matrix product, in thousand millions a second. */
  gflops: number;
  /** Bytes read and written by a copy of a large array, in thousand millions a second. */
  gbps: number;
}

interface Rates {
  gflops: number | undefined;
  gbps: number | undefined;
  /**
   * Percent of the peak to which it comes closer, its arithmetic's or its memory's: that one bounds it. Above 100 where the buffers lie in a
   * cache, or where less than the whole of them is read.
   */
  ofPeak: number | undefined;
}

export function rates(work: { ms: number; flops: number; bytes: number }, peaks: Peaks | undefined): Rates {
  const { ms, flops, bytes } = work;
  if (ms <= 0) return { gflops: undefined, gbps: undefined, ofPeak: undefined };
  const gflops = flops > 0 ? flops / ms / 1e6 : undefined;
  const gbps = bytes / ms / 1e6;
  const ofPeak = peaks && 100 * Math.max((gflops ?? 0) / peaks.gflops, gbps / peaks.gbps);
  return { gflops, gbps, ofPeak };
}

/** Kernels by time: milliseconds, share, calls, and their speed beside the adapter's. */
export function timeTable(times: readonly KernelTime[], peaks?: Peaks, most = 20): string {
  const total = times.reduce((sum, t) => sum + t.ms, 0);
  const dispatches = times.reduce((sum, t) => sum + t.calls, 0);
  const measured = peaks
    ? `; of this adapter were measured ${peaks.gflops.toFixed(1)} GFLOP/s and ${peaks.gbps.toFixed(1)} GB/s`
    : "";
  const line = (ms: string, share: string, calls: string, gflops: string, gbps: string, ofPeak: string, name: string) =>
    [ms.padStart(10), share.padStart(6), calls.padStart(8), gflops.padStart(8), gbps.padStart(7), ofPeak.padStart(7)]
      .concat(name)
      .join("  ");
  const figure = (v: number | undefined, digits: number): string => (v === undefined ? "" : v.toFixed(digits));
  const rows = times.slice(0, most).map((t) => {
    const { gflops, gbps, ofPeak } = rates(t, peaks);
    const share = `${((100 * t.ms) / (total || 1)).toFixed(1)} %`;
    const peak = ofPeak === undefined ? "" : `${ofPeak.toFixed(0)} %`;
    return line(t.ms.toFixed(2), share, String(t.calls), figure(gflops, 1), figure(gbps, 1), peak, t.name);
  });
  return [
    `${total.toFixed(2)} ms in ${dispatches} dispatches${measured}`,
    line("ms", "share", "calls", "GFLOP/s", "GB/s", "of peak", "kernel"),
    ...rows,
  ].join("\n");
}
