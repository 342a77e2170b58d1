// MobileNetV2 with TensorFlow's conventions: SAME padding (at stride 2 the odd pixel goes to the bottom and right), ReLU6, input -1..1;
// or with those of PyTorch's libraries: as much padding on each side, ImageNet's mean and deviation. Keys count the convolutions in order: `NN.conv` and `NN.dwconv`, 00 to 50; the classifier (51, 52) is not part of a backbone.
import { type Device, F, nn, type Tensor } from "../engine/index.ts";
import {
  Backbone,
  type FeatureName,
  type Features,
  IMAGENET_PIXELS,
  INCEPTION_PIXELS,
  type OutputStride,
  strideOrDilate,
} from "./backbone.ts";
import { block } from "./blocks.ts";
import { type Norm, normed, normGroups } from "./layers.ts";
import { MOBILENET_STAGES } from "./weights/mobilenet-shapes.ts";

/**
 * folded: the BatchNorm of training is inside weight and bias, so there is no norm left (weights of TensorFlow Lite); fine-tunes well.
 * groupNorm: for training from scratch, where 51 layers without a norm would not move.
 */
export type MobileNetNorm = "folded" | "groupNorm";

/** Whose weights it takes: they differ in padding and pixels. pytorch: torchvision and timm; transformers' are tensorflow's. */
export type MobileNetOrigin = "tensorflow" | "pytorch";

export interface MobileNetV2Options {
  /** Multiplies every width, rounded to multiples of 8 as TensorFlow does. Default 1. */
  width?: number;
  norm?: MobileNetNorm;
  outputStride?: OutputStride;
  /** Default tensorflow. */
  origin?: MobileNetOrigin;
}

/** What ends with which stage. */
const FEATURES: readonly (FeatureName | undefined)[] = [
  undefined,
  "res2",
  "res3",
  undefined,
  "res4",
  undefined,
  "res5",
];

/** One step of the chain: a convolution, its activation, and where a residual begins and ends. */
interface Step {
  layer: { conv?: PaddedConv; dwconv?: PaddedConv };
  relu6: boolean;
  opens: boolean;
  adds: boolean;
  feature: FeatureName | undefined;
}

export class MobileNetV2 extends Backbone {
  readonly channels: Record<FeatureName, number>;
  readonly norm: MobileNetNorm;
  readonly origin: MobileNetOrigin;
  readonly #steps: Step[] = [];

  constructor(gpu: Device, options: MobileNetV2Options = {}) {
    const { width = 1, norm = "folded", outputStride = 32, origin = "tensorflow" } = options;
    super(gpu, origin === "pytorch" ? IMAGENET_PIXELS : INCEPTION_PIXELS);
    this.norm = norm;
    this.origin = origin;
    this.channels = {
      res2: scaled(24, width),
      res3: scaled(32, width),
      res4: scaled(96, width),
      res5: scaled(320, width),
    };

    let inChannels = scaled(32, width);
    this.#add({ conv: new PaddedConv(gpu, 3, inChannels, 3, norm, { stride: 2, origin }) }, { relu6: true });
    let [reached, dilation] = [2, 1];
    for (const [i, stage] of MOBILENET_STAGES.entries()) {
      const O = scaled(stage.c, width);
      for (let block = 0; block < stage.n; block++) {
        const before = dilation;
        let stride = 1;
        if (block === 0 && stage.s === 2) ({ stride, dilation } = strideOrDilate(reached, dilation, outputStride));
        reached *= stride;
        const inner = inChannels * stage.t;
        // At small widths the first block of a stage may keep its channels, too.
        const residual = (block > 0 || stage.s === 1) && inChannels === O;
        const expands = stage.t > 1;
        if (expands)
          this.#add({ conv: new PaddedConv(gpu, inChannels, inner, 1, norm) }, { relu6: true, opens: residual });
        // The first block after a stride that was given up sees the old grid: it keeps the old dilation (as in DeepLab).
        const depthwise = { stride, dilation: block === 0 ? before : dilation, groups: inner, origin };
        const opens = residual && !expands;
        this.#add({ dwconv: new PaddedConv(gpu, inner, inner, 3, norm, depthwise) }, { relu6: true, opens });
        const feature = block === stage.n - 1 ? FEATURES[i] : undefined;
        this.#add({ conv: new PaddedConv(gpu, inner, O, 1, norm) }, { adds: residual, feature });
        inChannels = O;
      }
    }
  }

  features(x: Tensor): Features {
    const found: Partial<Features> = {};
    let h = x;
    let first = 0;
    for (const [i, { feature }] of this.#steps.entries()) {
      if (!feature) continue;
      const stage = this.#steps.slice(first, i + 1);
      h = block((input) => run(stage, input), h);
      found[feature] = h;
      first = i + 1;
    }
    return found as Features;
  }

  #add(layer: Step["layer"], { relu6 = false, opens = false, adds = false, feature }: Partial<Step>): void {
    const key = String(this.#steps.length).padStart(2, "0");
    // The checkpoint numbers its layers at the root, so the parameter tree gets one numbered property a layer.
    Object.assign(this, { [key]: layer });
    this.#steps.push({ layer, relu6, opens, adds, feature });
  }
}

function run(steps: readonly Step[], x: Tensor): Tensor {
  let [h, shortcut] = [x, x];
  for (const { layer, relu6, opens, adds } of steps) {
    if (opens) shortcut = h;
    h = (layer.conv ?? layer.dwconv)!.forward(h, {
      activation: relu6 ? "relu6" : undefined,
      residual: adds ? shortcut : undefined,
      forProducts: true,
    });
  }
  return h;
}

/**
 * Convolution whose output has ceil(size / stride) pixels. TensorFlow's SAME padding is as much as that needs, an odd rest at the bottom and
 * right; PyTorch's is half the kernel on every side.
 */
class PaddedConv extends nn.Conv2d {
  norm: Norm | undefined;
  readonly #options: { stride: number; dilation: number; groups: number };
  readonly #origin: MobileNetOrigin;

  constructor(
    gpu: Device,
    I: number,
    O: number,
    kernel: number,
    norm: MobileNetNorm,
    {
      stride = 1,
      dilation = 1,
      groups = 1,
      origin = "tensorflow",
    }: { stride?: number; dilation?: number; groups?: number; origin?: MobileNetOrigin } = {},
  ) {
    super(gpu, I, O, kernel, { groups, bias: norm === "folded" });
    this.#options = { stride, dilation, groups };
    this.#origin = origin;
    if (norm === "groupNorm") this.norm = new nn.GroupNorm(gpu, normGroups(O), O);
    nn.init.kaimingNormal_(this.weight);
  }

  /** With a norm, residual and activation come after it. */
  override forward(x: Tensor, finish: F.FinishOptions = {}): Tensor {
    const [, , H, W] = x.shape as [number, number, number, number];
    const [top, bottom] = this.#padding(H);
    const [left, right] = this.#padding(W);
    const options = { ...this.#options, bias: this.bias, padding: [left, right, top, bottom] } as const;
    if (!this.norm) return F.conv2d(x, this.weight, { ...options, ...finish });
    return normed(this.norm, F.conv2d(x, this.weight, options), finish);
  }

  /** Padding before and after along an axis of the given length. */
  #padding(length: number): [number, number] {
    const { stride, dilation } = this.#options;
    const around = dilation * (this.weight.shape[2]! - 1);
    if (this.#origin === "pytorch") return [around / 2, around / 2];
    const total = Math.max(0, (Math.ceil(length / stride) - 1) * stride + around + 1 - length);
    return [Math.floor(total / 2), Math.ceil(total / 2)];
  }
}

/** Channels times width, to a multiple of 8, never more than a tenth below (TensorFlow slim's make_divisible). */
function scaled(channels: number, width: number): number {
  const wanted = channels * width;
  const rounded = Math.max(8, Math.floor((wanted + 4) / 8) * 8);
  return rounded < 0.9 * wanted ? rounded + 8 : rounded;
}
