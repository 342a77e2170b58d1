/** Convolution and its transpose, which is the same three products in other roles; see correlate.ts. */
import { rounding, widened } from "../autocast.ts";
import { checkFloats, checkOptions } from "../check.ts";
import { sameShape, show } from "../shape.ts";
import { record } from "../tape.ts";
import type { Tensor } from "../tensor.ts";
import { correlate, spread, weigh } from "./correlate.ts";
import { FINISH_OPTIONS, type FinishOptions, finished } from "./finish.ts";
import { sum } from "./reduce.ts";
import { type ConvSizes, outputSize, type Pair, pair } from "./window.ts";

export interface Conv2dOptions extends FinishOptions {
  /** (out). */
  bias?: Tensor | undefined;
  stride?: Pair | undefined;
  /** One number, (y, x), or [left, right, top, bottom] as F.pad counts them. */
  padding?: Pair | readonly [number, number, number, number] | undefined;
  dilation?: Pair | undefined;
  groups?: number | undefined;
}

const isHalf = (x: Tensor): boolean => x.dtype === "f16";

function checkImages(op: string, x: Tensor, weight: Tensor): void {
  checkFloats(op, { x, weight }, ["x", "weight"]);
  if (x.shape.length !== 4) throw new Error(`${op}: x must be (B, C, H, W); got ${show(x.shape)}`);
  if (weight.shape.length !== 4) throw new Error(`${op}: weight must have four dimensions; got ${show(weight.shape)}`);
}

function checkBias(op: string, x: Tensor, bias: Tensor | undefined, channels: number): void {
  if (!bias) return;
  checkFloats(op, { x, bias }, ["x"]);
  if (!sameShape(bias.shape, [channels])) throw new Error(`${op}: bias must be (${channels}); got ${show(bias.shape)}`);
}

const CONV2D_OPTIONS = {
  bias: "tensor",
  stride: "any",
  padding: "any",
  dilation: "any",
  groups: "number",
  ...FINISH_OPTIONS,
} as const;

/**
 * (B, in, H, W), (out, in / groups, kh, kw), (out) -> (B, out, H', W'): torch.nn.functional.conv2d; with `residual` (B, out, H', W') and
 * `activation`, activation(convolution + residual). x, the weight and the residual may be f16; the bias, the gradients and, but for
 * `forProducts`, the result are f32.
 */
export function conv2d(x: Tensor, weight: Tensor, options: Conv2dOptions = {}): Tensor {
  checkOptions("conv2d", options, CONV2D_OPTIONS);
  checkImages("conv2d", x, weight);
  const { bias, padding = 0, groups = 1 } = options;
  const stride = pair("conv2d", "stride", options.stride ?? 1, 1);
  const dilation = pair("conv2d", "dilation", options.dilation ?? 1, 1);
  const [batch, channels, h, w] = x.shape as [number, number, number, number];
  const [out, ci, kh, kw] = weight.shape as [number, number, number, number];
  if (!Number.isInteger(groups) || groups < 1)
    throw new Error(`conv2d: groups must be a whole number from 1 up; got ${groups}`);
  if (out % groups !== 0 || channels !== ci * groups)
    throw new Error(
      `conv2d: x is ${show(x.shape)} in ${groups} groups, so weight must be (a multiple of ${groups}, ${channels / groups}, kh, kw); got ${show(weight.shape)}`,
    );
  checkBias("conv2d", x, bias, out);
  let [left, right, top, bottom] = [0, 0, 0, 0];
  if (Array.isArray(padding) && padding.length === 4) {
    [left, right] = pair("conv2d", "padding", [padding[0], padding[1]], 0);
    [top, bottom] = pair("conv2d", "padding", [padding[2], padding[3]], 0);
  } else {
    const [py, px] = pair("conv2d", "padding", padding as Pair, 0);
    [left, right, top, bottom] = [px, px, py, py];
  }
  const s: ConvSizes = {
    batch,
    groups,
    ci,
    co: out / groups,
    input: [h, w],
    output: [
      outputSize("conv2d", x.shape, h, kh, stride[0], top + bottom, dilation[0]),
      outputSize("conv2d", x.shape, w, kw, stride[1], left + right, dilation[1]),
    ],
    kernel: [kh, kw],
    stride,
    dilation,
    start: [top, left],
  };
  const low = rounding();
  const [X, W] = [low(x), low(weight)];
  return finished(
    "conv2d",
    { x, weight, bias },
    [batch, out, ...s.output],
    options,
    (finish) => widened([X], (full) => correlate(full!, W, s, isHalf(X), finish)),
    (g) => {
      const G = low(g);
      return [
        x.requiresGrad ? widened([G], (gy) => spread(gy!, W, s, isHalf(G))) : null,
        weight.requiresGrad ? widened([X, G], (full, gy) => weigh(full!, gy!, W, s, isHalf(X) && isHalf(G))) : null,
        bias?.requiresGrad ? sum(g, [0, 2, 3]) : null,
      ];
    },
    [X, W],
  );
}

export interface ConvTranspose2dOptions {
  /** (out). */
  bias?: Tensor | undefined;
  stride?: Pair | undefined;
  padding?: Pair | undefined;
}

/** (B, in, H, W), (in, out, kh, kw), (out) -> (B, out, (H - 1) * stride - 2 * padding + kh, …): torch.nn.functional.conv_transpose2d. The weight may be f16. */
export function convTranspose2d(x: Tensor, weight: Tensor, options: ConvTranspose2dOptions = {}): Tensor {
  checkOptions("convTranspose2d", options, { bias: "tensor", stride: "any", padding: "any" });
  checkImages("convTranspose2d", x, weight);
  const { bias } = options;
  const stride = pair("convTranspose2d", "stride", options.stride ?? 1, 1);
  const padding = pair("convTranspose2d", "padding", options.padding ?? 0, 0);
  const [batch, channels, h, w] = x.shape as [number, number, number, number];
  const [ci, out, kh, kw] = weight.shape as [number, number, number, number];
  if (ci !== channels)
    throw new Error(
      `convTranspose2d: x is ${show(x.shape)}, so weight must be (${channels}, out, kh, kw); got ${show(weight.shape)}`,
    );
  checkBias("convTranspose2d", x, bias, out);
  const size = [(h - 1) * stride[0] - 2 * padding[0] + kh, (w - 1) * stride[1] - 2 * padding[1] + kw] as const;
  if (size[0] < 1 || size[1] < 1)
    throw new Error(
      `convTranspose2d: x ${show(x.shape)} with a kernel ${kh} x ${kw} and padding ${padding.join(", ")} leaves nothing`,
    );
  // The convolution whose transpose this is maps the output back onto x.
  const s: ConvSizes = {
    batch,
    groups: 1,
    ci: out,
    co: ci,
    input: size,
    output: [h, w],
    kernel: [kh, kw],
    stride,
    dilation: [1, 1],
    start: padding,
  };
  const low = rounding();
  const [X, W] = [low(x), low(weight)];
  const y = widened([X], (full) => spread(full!, W, s, isHalf(X), bias));
  const gradient = (gy: Tensor): (Tensor | null)[] => {
    const G = low(gy);
    return [
      x.requiresGrad ? widened([G], (full) => correlate(full!, W, s, isHalf(G))) : null,
      weight.requiresGrad ? widened([G, X], (g, full) => weigh(g!, full!, W, s, isHalf(G) && isHalf(X))) : null,
      bias?.requiresGrad ? sum(gy, [0, 2, 3]) : null,
    ];
  };
  return record("convTranspose2d", bias ? [x, weight, bias] : [x, weight], y, gradient, [X, W]);
}
