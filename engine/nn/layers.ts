/** The layers that models are made of, with PyTorch's parameter names and initial values. */
import { checkOptions, describe, type Kinds } from "../check.ts";
import type { Device } from "../device.ts";
import * as F from "../functional.ts";
import { type Pair, pair } from "../ops/window.ts";
import type { Tensor } from "../tensor.ts";
import * as init from "./init.ts";
import { Module, parameter } from "./module.ts";

/** Refuses a layer made without its device, sizes that are none, and options that it does not have. */
function checkLayer<T extends object>(
  name: string,
  gpu: Device,
  sizes: Record<string, number>,
  options: T,
  kinds: Kinds<T>,
): void {
  if (typeof gpu?.empty !== "function")
    throw new Error(`nn.${name}: the device comes first, new nn.${name}(gpu, …); got ${describe(gpu)}`);
  for (const [key, n] of Object.entries(sizes))
    if (!Number.isInteger(n) || n < 1)
      throw new Error(`nn.${name}: ${key} must be a whole number from 1 up; got ${describe(n)}`);
  checkOptions(`nn.${name}`, options, kinds);
}

export interface LinearOptions {
  bias?: boolean;
}

/** (…, in) -> (…, out). */
export class Linear extends Module {
  weight: Tensor; // (out, in)
  bias: Tensor | undefined; // (out)

  constructor(gpu: Device, inFeatures: number, outFeatures: number, options: LinearOptions = {}) {
    super();
    checkLayer("Linear", gpu, { inFeatures, outFeatures }, options, { bias: "boolean" });
    this.weight = parameter(init.fanInUniform_(init.weight(gpu, [outFeatures, inFeatures])));
    if (options.bias !== false) this.bias = parameter(init.fanInUniform_(gpu.empty([outFeatures]), inFeatures));
  }

  protected override get weights(): readonly string[] {
    return ["weight"];
  }

  /** activation(x W^T + b + residual), where they are given, in one kernel. */
  forward(x: Tensor, finish: F.FinishOptions = {}): Tensor {
    return F.linear(x, this.weight, this.bias, finish);
  }
}

export interface ConvOptions {
  stride?: Pair;
  padding?: Pair;
  dilation?: Pair;
  groups?: number;
  bias?: boolean;
}

const CONV_OPTIONS = { stride: "any", padding: "any", dilation: "any", groups: "number", bias: "boolean" } as const;

/** (B, in, H, W) -> (B, out, H', W'). */
export class Conv2d extends Module {
  weight: Tensor; // (out, in / groups, kh, kw)
  bias: Tensor | undefined; // (out)
  /** What F.conv2d is told besides the weights. */
  readonly options: Omit<ConvOptions, "bias">;

  constructor(gpu: Device, inChannels: number, outChannels: number, kernel: Pair, options: ConvOptions = {}) {
    super();
    checkLayer("Conv2d", gpu, { inChannels, outChannels }, options, CONV_OPTIONS);
    const [kh, kw] = pair("nn.Conv2d", "kernel", kernel, 1);
    const { bias, ...others } = options;
    this.options = others;
    const shape = [outChannels, inChannels / (options.groups ?? 1), kh, kw];
    this.weight = parameter(init.fanInUniform_(init.weight(gpu, shape)));
    if (bias !== false)
      this.bias = parameter(init.fanInUniform_(gpu.empty([outChannels]), init.fans(this.weight.shape).fanIn));
  }

  protected override get weights(): readonly string[] {
    return ["weight"];
  }

  /** activation(convolution + residual), where they are given, in one kernel. */
  forward(x: Tensor, finish: F.FinishOptions = {}): Tensor {
    return F.conv2d(x, this.weight, { ...this.options, ...finish, bias: this.bias });
  }
}

/** (B, in, H, W) -> (B, out, H', W'), the transpose of a strided convolution. */
export class ConvTranspose2d extends Module {
  weight: Tensor; // (in, out, kh, kw)
  bias: Tensor | undefined; // (out)
  readonly #options: ConvOptions;

  constructor(
    gpu: Device,
    inChannels: number,
    outChannels: number,
    kernel: Pair,
    options: Pick<ConvOptions, "stride" | "padding" | "bias"> = {},
  ) {
    super();
    const { stride, padding, bias } = CONV_OPTIONS;
    checkLayer("ConvTranspose2d", gpu, { inChannels, outChannels }, options, { stride, padding, bias });
    const [kh, kw] = pair("nn.ConvTranspose2d", "kernel", kernel, 1);
    this.#options = options;
    this.weight = parameter(init.fanInUniform_(init.weight(gpu, [inChannels, outChannels, kh, kw])));
    if (options.bias !== false)
      this.bias = parameter(init.fanInUniform_(gpu.empty([outChannels]), outChannels * kh * kw));
  }

  protected override get weights(): readonly string[] {
    return ["weight"];
  }

  forward(x: Tensor): Tensor {
    const { stride, padding } = this.#options;
    return F.convTranspose2d(x, this.weight, {
      ...(stride === undefined ? {} : { stride }),
      ...(padding === undefined ? {} : { padding }),
      ...(this.bias ? { bias: this.bias } : {}),
    });
  }
}

/** Normalises the last axis. */
export class LayerNorm extends Module {
  weight: Tensor; // (C)
  bias: Tensor; // (C)
  readonly #eps: number;

  constructor(gpu: Device, channels: number, options: { eps?: number } = {}) {
    super();
    checkLayer("LayerNorm", gpu, { channels }, options, { eps: "number" });
    this.#eps = options.eps ?? 1e-5;
    this.weight = parameter(gpu.ones([channels]));
    this.bias = parameter(gpu.zeros([channels]));
  }

  forward(x: Tensor): Tensor {
    return F.layerNorm(x, this.weight, this.bias, { eps: this.#eps });
  }
}

/** Normalises the channels of (B, C, H, W) at each pixel (segment-anything modeling/common.py). */
export class LayerNorm2d extends Module {
  weight: Tensor; // (C)
  bias: Tensor; // (C)
  readonly #eps: number;

  constructor(gpu: Device, channels: number, options: { eps?: number } = {}) {
    super();
    checkLayer("LayerNorm2d", gpu, { channels }, options, { eps: "number" });
    this.#eps = options.eps ?? 1e-6;
    this.weight = parameter(gpu.ones([channels]));
    this.bias = parameter(gpu.zeros([channels]));
  }

  forward(x: Tensor): Tensor {
    return F.layerNorm2d(x, this.weight, this.bias, { eps: this.#eps });
  }
}

/** Normalises groups of channels of (B, C, …). */
export class GroupNorm extends Module {
  weight: Tensor; // (C)
  bias: Tensor; // (C)
  readonly #groups: number;
  readonly #eps: number;

  constructor(gpu: Device, groups: number, channels: number, options: { eps?: number } = {}) {
    super();
    checkLayer("GroupNorm", gpu, { groups, channels }, options, { eps: "number" });
    this.#groups = groups;
    this.#eps = options.eps ?? 1e-5;
    this.weight = parameter(gpu.ones([channels]));
    this.bias = parameter(gpu.zeros([channels]));
  }

  forward(x: Tensor): Tensor {
    return F.groupNorm(x, this.#groups, { weight: this.weight, bias: this.bias, eps: this.#eps });
  }
}

/** Batch statistics while training, running ones in eval mode. */
export class BatchNorm2d extends Module {
  weight: Tensor; // (C)
  bias: Tensor; // (C)
  running_mean: Tensor; // (C)
  running_var: Tensor; // (C)
  readonly #eps: number;
  readonly #momentum: number;

  constructor(gpu: Device, channels: number, options: { eps?: number; momentum?: number } = {}) {
    super();
    checkLayer("BatchNorm2d", gpu, { channels }, options, { eps: "number", momentum: "number" });
    this.#eps = options.eps ?? 1e-5;
    this.#momentum = options.momentum ?? 0.1;
    this.weight = parameter(gpu.ones([channels]));
    this.bias = parameter(gpu.zeros([channels]));
    this.running_mean = gpu.zeros([channels]);
    this.running_var = gpu.ones([channels]);
  }

  forward(x: Tensor): Tensor {
    return F.batchNorm(x, {
      mean: this.running_mean,
      variance: this.running_var,
      weight: this.weight,
      bias: this.bias,
      training: this.training,
      momentum: this.#momentum,
      eps: this.#eps,
    });
  }
}

/** A table of vectors looked up by index. */
export class Embedding extends Module {
  weight: Tensor; // (n, d)

  constructor(gpu: Device, count: number, width: number) {
    super();
    checkLayer("Embedding", gpu, { count, width }, {}, {});
    this.weight = parameter(init.normal_(gpu.empty([count, width])));
  }

  forward(index: Tensor): Tensor {
    return F.embedding(index, this.weight);
  }
}
