/** Pooling over windows of (B, C, H, W) or (C, H, W). */
import { checkFloats, checkOptions } from "../check.ts";
import { linearGroups, run } from "../kernel.ts";
import { show, sizeOf } from "../shape.ts";
import { record } from "../tape.ts";
import { empty, fill, type Tensor } from "../tensor.ts";
import { outputSize, type Pair, pair, planeGroups } from "./window.ts";

export interface PoolOptions {
  /** Default: the window's size. */
  stride?: Pair | undefined;
  /** At most half the window's size. */
  padding?: Pair | undefined;
}

function pool(op: "maxPool2d" | "avgPool2d", x: Tensor, size: Pair, options: PoolOptions): Tensor {
  checkFloats(op, { x });
  checkOptions(op, options, { stride: "any", padding: "any" });
  if (x.shape.length < 3) throw new Error(`${op}: x must be (B, C, H, W) or (C, H, W); got ${show(x.shape)}`);
  const kernel = pair(op, "size", size, 1);
  const step = pair(op, "stride", options.stride ?? size, 1);
  const pad = pair(op, "padding", options.padding ?? 0, 0);
  if (pad.some((p, d) => p * 2 > kernel[d]!))
    throw new Error(`${op}: padding may be at most half the window ${kernel.join(" x ")}; got ${pad.join(", ")}`);
  const lead = x.shape.slice(0, -2);
  const input = x.shape.slice(-2);
  const out = input.map((n, d) => outputSize(op, x.shape, n, kernel[d]!, step[d]!, 2 * pad[d]!, 1));
  const { device } = x;
  const y = empty(device, [...lead, ...out]);
  const params = {
    planes: sizeOf(lead),
    in_h: input[0]!,
    in_w: input[1]!,
    out_h: out[0]!,
    out_w: out[1]!,
    kh: kernel[0],
    kw: kernel[1],
    step_y: step[0],
    step_x: step[1],
    top: pad[0],
    left: pad[1],
  };
  const isMax = op === "maxPool2d";
  const place = isMax ? empty(device, y.shape, "u32") : undefined;
  // The windows of most networks.
  const twos = isMax && [...kernel, ...step].every((n) => n === 2) && pad.every((n) => n === 0);
  if (twos && place && input[1]! % 8 === 0 && input[0]! % 2 === 0) {
    const groups = linearGroups(Math.ceil(y.size / 256));
    run(device, "pool", "max_twos", { bind: { x4: x, y4: y, place4_out: place }, params, groups });
    return record(op, [x], y, (gy) => {
      const gx = empty(device, x.shape);
      run(device, "pool", "grad_twos", { bind: { gy4: gy, place4: place, gx4: gx }, params, groups });
      return [gx];
    });
  }
  run(device, "pool", isMax ? "max_forward" : "mean_forward", {
    bind: place ? { x, y, place_out: place } : { x, y },
    params,
    groups: planeGroups(sizeOf(lead), Math.ceil(sizeOf(out) / 64)),
  });
  return record(op, [x], y, (gy) => {
    const gx = empty(device, x.shape);
    // Windows apart from each other write what is theirs; overlapping ones are gathered from each cell, so that none is added to in turn.
    const apart = kernel.every((n, d) => n <= step[d]!);
    if (apart) fill(gx, 0);
    run(device, "pool", apart ? "grad_windows" : "grad_x", {
      bind: { gy, gx, place: place ?? gy },
      params,
      constants: { MAX: isMax ? 1 : 0 },
      groups: planeGroups(sizeOf(lead), Math.ceil(sizeOf(apart ? out : input) / 64)),
    });
    return [gx];
  });
}

/** Largest value of each window, NaN where it holds one; the padding never wins. */
export function maxPool2d(x: Tensor, size: Pair, options: PoolOptions = {}): Tensor {
  return pool("maxPool2d", x, size, options);
}

/** Mean of each window; the padding counts as zeros, as PyTorch's default has it. */
export function avgPool2d(x: Tensor, size: Pair, options: PoolOptions = {}): Tensor {
  return pool("avgPool2d", x, size, options);
}
