/** Reading images at arbitrary positions. */
import { checkFloats, checkOptions } from "../check.ts";
import { linearGroups, run } from "../kernel.ts";
import { show } from "../shape.ts";
import { record } from "../tape.ts";
import { empty, fill, type Tensor } from "../tensor.ts";
import { groupByKey } from "./sort.ts";

export interface GridSampleOptions {
  mode?: "bilinear" | "nearest";
  /** Outside the image: zeros, or the pixel of the edge. */
  paddingMode?: "zeros" | "border";
  /** -1 and 1 are the centres of the corner pixels instead of the image's edges. */
  alignCorners?: boolean;
}

/**
 * torch.nn.functional.grid_sample: x (N, C, H, W) at grid (N, Ho, Wo, 2), coordinates (x, y) from -1 to 1, to (N, C, Ho, Wo). Defaults
 * are torch's: bilinear, zeros, corners not aligned.
 */
export function gridSample(x: Tensor, grid: Tensor, options: GridSampleOptions = {}): Tensor {
  checkFloats("gridSample", { x, grid });
  checkOptions("gridSample", options, {
    mode: ["bilinear", "nearest"],
    paddingMode: ["zeros", "border"],
    alignCorners: "boolean",
  });
  const { mode = "bilinear", paddingMode = "zeros", alignCorners = false } = options;
  if (x.shape.length !== 4) throw new Error(`gridSample: x must be (N, C, H, W); got ${show(x.shape)}`);
  if (grid.shape.length !== 4 || grid.shape[0] !== x.shape[0] || grid.shape[3] !== 2)
    throw new Error(
      `gridSample: x is ${show(x.shape)}, so grid must be (${x.shape[0]}, Ho, Wo, 2); got ${show(grid.shape)}`,
    );
  const [n, c, h, w] = x.shape as [number, number, number, number];
  if (h === 0 || w === 0) throw new Error(`gridSample: x ${show(x.shape)} has no pixels`);
  const [, outH, outW] = grid.shape as [number, number, number];
  const points = outH * outW;
  const cells = n * (h + 1) * (w + 1);
  const samples = n * points;
  // Enough invocations to fill the adapter; beyond that channels share the work of finding the place.
  const each = Math.max(1, Math.min(c, Math.floor((samples * c) / 16384), 16));
  const params = {
    n,
    c,
    h,
    w,
    points,
    c_each: each,
    cells,
    scale: alignCorners ? [(w - 1) / 2, (h - 1) / 2] : [w / 2, h / 2],
    shift: [(w - 1) / 2, (h - 1) / 2],
  };
  const constants = { NEAREST: mode === "nearest" ? 1 : 0, BORDER: paddingMode === "border" ? 1 : 0 };
  const call = (entry: string, bind: Record<string, Tensor>, count: number): void =>
    run(x.device, "grid_sample", entry, { bind, params, constants, groups: linearGroups(Math.ceil(count / 64)) });

  const y = empty(x.device, [n, c, outH, outW]);
  call("forward", { x, grid, y }, samples * Math.ceil(c / each));
  return record("gridSample", [x, grid], y, (g) => {
    let gx: Tensor | null = null;
    if (x.requiresGrad && samples === 0) gx = fill(empty(x.device, x.shape), 0);
    else if (x.requiresGrad) {
      gx = empty(x.device, x.shape);
      const keys = empty(x.device, [samples], "u32");
      call("cells", { grid, keys }, samples);
      const { order, start } = groupByKey(keys, samples, cells);
      const records = empty(x.device, [samples, 4]);
      call("records_of", { grid, order, records_out: records }, samples);
      call("grad_x", { records, start, g, gx }, n * Math.ceil(c / 4) * h * w);
    }
    let gGrid: Tensor | null = null;
    if (grid.requiresGrad) {
      gGrid = empty(x.device, grid.shape);
      call("grad_grid", { x, grid, g, g_grid: gGrid }, samples);
    }
    return [gx, gGrid];
  });
}
