/** Convolution of each channel by itself: the three products of correlate.ts without a sum over channels. */
import { type Finish, finishing } from "../epilogue.ts";
import { linearGroups, run } from "../kernel.ts";
import { alias, empty, type Tensor } from "../tensor.ts";
import { sumTo } from "./reduce.ts";
import { widen } from "./strided.ts";
import { area, type ConvSizes, planeGroups } from "./window.ts";

export function isDepthwise(s: ConvSizes): boolean {
  return s.ci === 1 && s.groups > 1;
}

/** Parameters of conv_depthwise.wgsl for writing planes of `size`, and the workgroups that do so, `each` numbers an invocation. */
function depthwise(s: ConvSizes, size: readonly [number, number], planes: number, each: number) {
  const gcd = (a: number, b: number): number => (b === 0 ? a : gcd(b, a % b));
  // Every tapStep-th tap meets the same outputs' phase; the output moves by outStep between two of them.
  const tapStep = (d: 0 | 1): number => s.stride[d] / gcd(s.stride[d], s.dilation[d]);
  const outStep = (d: 0 | 1): number => (s.dilation[d] * tapStep(d)) / s.stride[d];
  const params = {
    planes,
    c: s.groups,
    multiplier: s.co,
    in_h: s.input[0],
    in_w: s.input[1],
    out_h: s.output[0],
    out_w: s.output[1],
    kh: s.kernel[0],
    kw: s.kernel[1],
    step_y: s.stride[0],
    step_x: s.stride[1],
    reach_y: s.dilation[0],
    reach_x: s.dilation[1],
    top: s.start[0],
    left: s.start[1],
    has_bias: 0,
    flipped: 0,
    tap_step_y: tapStep(0),
    tap_step_x: tapStep(1),
    out_step_y: outStep(0),
    out_step_x: outStep(1),
    batch: s.batch,
    block: 0,
    blocks: 0,
  };
  return { params, groups: planeGroups(planes, Math.ceil((size[0] * Math.ceil(size[1] / each)) / 64)) };
}

/** y = activation(windows of x times weight + bias + rest). An f16 weight is made f32 before: it is small, and read for every pixel. */
export function depthwiseForward(x: Tensor, stored: Tensor, s: ConvSizes, y: Tensor, finish: Finish): void {
  const { device } = x;
  const weight = widen(stored);
  const { bias, rest, activation } = finish;
  const { params, groups } = depthwise(s, s.output, s.batch * s.groups * s.co, 4);
  run(device, finishing("conv_depthwise", activation), "forward", {
    bind: { x, weight, bias: bias ?? weight, rest: rest ?? weight, y },
    params: { ...params, has_bias: bias ? 1 : 0 },
    constants: { REST: rest ? 1 : 0 },
    groups,
  });
}

/** gx from gy. */
export function depthwiseSpread(gy: Tensor, stored: Tensor, s: ConvSizes, gx: Tensor): void {
  const { device } = gy;
  const weight = widen(stored);
  const planes = s.batch * s.groups;
  if (s.co === 1 && area(s.stride) === 1) {
    // The same convolution with its taps in reverse order, of gy.
    const start = [0, 1].map((d) => s.dilation[d]! * (s.kernel[d]! - 1) - s.start[d]!) as [number, number];
    const { params, groups } = depthwise({ ...s, input: s.output, output: s.input, start }, s.input, planes, 4);
    run(device, "conv_depthwise", "forward", {
      bind: { x: gy, weight, bias: weight, rest: weight, y: gx },
      params: { ...params, flipped: 1 },
      groups,
    });
  } else run(device, "conv_depthwise", "grad_x", { bind: { gy, weight, gx }, ...depthwise(s, s.input, planes, 1) });
}

/** Gradient of the weights. */
export function depthwiseWeigh(x: Tensor, gy: Tensor, weight: Tensor, s: ConvSizes): Tensor {
  const { device } = x;
  const rows = s.batch * s.output[0];
  // An invocation owns four taps of a row.
  const pieces = (weight.size / s.kernel[1]) * Math.ceil(s.kernel[1] / 4);
  const block = Math.max(1, Math.ceil(rows / Math.max(1, Math.ceil(4096 / pieces))));
  const parts = empty(device, [Math.ceil(rows / block), weight.size]);
  run(device, "conv_depthwise", "grad_weight", {
    bind: { x, gy, parts },
    params: { ...depthwise(s, s.input, 0, 1).params, block, blocks: parts.shape[0]! },
    groups: linearGroups(Math.ceil((pieces * parts.shape[0]!) / 64)),
  });
  return alias(sumTo(parts, [1, weight.size]), weight.shape);
}
