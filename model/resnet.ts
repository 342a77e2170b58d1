// ResNet with detectron2's layout: stem, res2 … res5, stride in the 3x3 convolution, norm beside each convolution.
// The same code with a light stem and GroupNorm is `miniNet`, which trains from scratch on small images.
import { type Device, F, nn, type Tensor } from "../engine/index.ts";
import {
  Backbone,
  type FeatureName,
  type Features,
  IMAGENET_PIXELS,
  type OutputStride,
  strideOrDilate,
} from "./backbone.ts";
import { block } from "./blocks.ts";
import { ConvNorm, FrozenBatchNorm2d, type Norm, normGroups } from "./layers.ts";

/** frozenBN for pre-trained weights (the reference), groupNorm for training from scratch with few images a step. */
export type ResNetNorm = "frozenBN" | "batchNorm" | "groupNorm";

export interface ResNetSizes {
  /** Residual blocks of res2 … res5. */
  blocks: readonly [number, number, number, number];
  /** Channels that res2 … res5 give out. */
  widths: readonly [number, number, number, number];
  /** Channels of the stem. */
  stem: number;
  /** 7x7 stride 2 and max pooling (stride 4), or one 3x3 stride 2 whose res2 takes the other stride. */
  stemKind: "7x7" | "3x3";
  /** Bottleneck: 1x1, 3x3, 1x1 with a quarter of the width inside. Basic: 3x3, 3x3. */
  block: "basic" | "bottleneck";
  norm: ResNetNorm;
  outputStride: OutputStride;
}

const DEPTHS = {
  18: { blocks: [2, 2, 2, 2], block: "basic" },
  34: { blocks: [3, 4, 6, 3], block: "basic" },
  50: { blocks: [3, 4, 6, 3], block: "bottleneck" },
  101: { blocks: [3, 4, 23, 3], block: "bottleneck" },
} as const;

export type ResNetDepth = keyof typeof DEPTHS;

/** ResNet-18, -34, -50 or -101; `width` is the stem's width (64), from which all others follow. */
export function resNet(
  gpu: Device,
  depth: ResNetDepth,
  options: { norm?: ResNetNorm; outputStride?: OutputStride; width?: number } = {},
): ResNet {
  const { norm = "frozenBN", outputStride = 32, width = 64 } = options;
  const table = DEPTHS[depth];
  if (!table) throw new Error(`resNet: depth must be ${Object.keys(DEPTHS).join(", ")}; got ${depth}`);
  const first = table.block === "basic" ? width : 4 * width;
  const widths = [first, 2 * first, 4 * first, 8 * first] as const;
  return new ResNet(gpu, { ...table, widths, stem: width, stemKind: "7x7", norm, outputStride });
}

/** A compact residual network for small images, with GroupNorm: every statistic comes from one image, so a batch of one trains. */
export function miniNet(
  gpu: Device,
  options: { widths: ResNetSizes["widths"]; blocks: ResNetSizes["blocks"]; outputStride?: OutputStride },
): ResNet {
  const { widths, blocks, outputStride = 32 } = options;
  return new ResNet(gpu, {
    blocks,
    widths,
    stem: widths[0],
    stemKind: "3x3",
    block: "basic",
    norm: "groupNorm",
    outputStride,
  });
}

/** Keys: stem.conv1, resS.B.conv1|conv2|conv3|shortcut, each with .weight and .norm.* */
export class ResNet extends Backbone {
  readonly channels: Record<FeatureName, number>;
  stem: { conv1: ConvNorm };
  res2: Block[];
  res3: Block[];
  res4: Block[];
  res5: Block[];
  readonly #pool: boolean;

  constructor(gpu: Device, sizes: ResNetSizes) {
    super(gpu, IMAGENET_PIXELS);
    const { widths, blocks, outputStride } = sizes;
    const kernel = sizes.stemKind === "7x7" ? 7 : 3;
    this.#pool = sizes.stemKind === "7x7";
    this.channels = { res2: widths[0], res3: widths[1], res4: widths[2], res5: widths[3] };
    this.stem = { conv1: conv(gpu, 3, sizes.stem, kernel, sizes.norm, { stride: 2, padding: (kernel - 1) / 2 }) };

    let [inChannels, reached, dilation] = [sizes.stem, this.#pool ? 4 : 2, 1];
    const stage = (index: 0 | 1 | 2 | 3): Block[] => {
      const first =
        index === 0 && this.#pool ? { stride: 1, dilation } : strideOrDilate(reached, dilation, outputStride);
      reached *= first.stride;
      dilation = first.dilation;
      return Array.from({ length: blocks[index] }, (_, b) => {
        const block = new Block(gpu, sizes, inChannels, widths[index], b === 0 ? first.stride : 1, dilation);
        inChannels = widths[index];
        return block;
      });
    };
    this.res2 = stage(0);
    this.res3 = stage(1);
    this.res4 = stage(2);
    this.res5 = stage(3);
  }

  features(x: Tensor): Features {
    const stem = this.stem.conv1.forward(x, { activation: "relu" }); // (B, C, H / 2, W / 2)
    const pass = (blocks: Block[], h: Tensor): Tensor =>
      blocks.reduce((y, each) => block((input) => each.forward(input), y), h);
    const res2 = pass(this.res2, this.#pool ? F.maxPool2d(stem, 3, { stride: 2, padding: 1 }) : stem);
    const res3 = pass(this.res3, res2);
    const res4 = pass(this.res4, res3);
    const res5 = pass(this.res5, res4);
    return { res2, res3, res4, res5 };
  }
}

/** relu(branch(x) + shortcut(x)): (B, I, H, W) -> (B, O, H / stride, W / stride) */
class Block extends nn.Module {
  conv1: ConvNorm;
  conv2: ConvNorm;
  conv3: ConvNorm | undefined;
  shortcut: ConvNorm | undefined;

  constructor(gpu: Device, { block, norm }: ResNetSizes, I: number, O: number, stride: number, dilation: number) {
    super();
    const strided = { stride, padding: dilation, dilation };
    if (block === "bottleneck") {
      const inner = O / 4;
      this.conv1 = conv(gpu, I, inner, 1, norm);
      this.conv2 = conv(gpu, inner, inner, 3, norm, strided); // the stride stands here, as in torchvision, not in the first 1x1
      this.conv3 = conv(gpu, inner, O, 1, norm);
    } else {
      this.conv1 = conv(gpu, I, O, 3, norm, strided);
      this.conv2 = conv(gpu, O, O, 3, norm, { padding: dilation, dilation });
    }
    if (I !== O || stride !== 1) this.shortcut = conv(gpu, I, O, 1, norm, { stride });
  }

  forward(x: Tensor): Tensor {
    const inner = { activation: "relu", forProducts: true } as const;
    const end = { ...inner, residual: this.shortcut ? this.shortcut.forward(x, { forProducts: true }) : x };
    const y = this.conv1.forward(x, inner);
    return this.conv3 ? this.conv3.forward(this.conv2.forward(y, inner), end) : this.conv2.forward(y, end);
  }
}

function conv(
  gpu: Device,
  I: number,
  O: number,
  kernel: number,
  norm: ResNetNorm,
  options: { stride?: number; padding?: number; dilation?: number } = {},
): ConvNorm {
  const layer = new ConvNorm(gpu, I, O, kernel, resNetNorm(gpu, norm, O), options);
  // He initialisation by fan-out (detectron2's c2_msra_fill): keeps the variance through ReLU in the backward direction.
  nn.init.kaimingNormal_(layer.weight, "fanOut");
  return layer;
}

function resNetNorm(gpu: Device, norm: ResNetNorm, channels: number): Norm {
  if (norm === "frozenBN") return new FrozenBatchNorm2d(gpu, channels);
  if (norm === "batchNorm") return new nn.BatchNorm2d(gpu, channels);
  return new nn.GroupNorm(gpu, normGroups(channels), channels);
}
