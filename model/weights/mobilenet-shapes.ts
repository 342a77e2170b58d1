// The tensors that a MobileNetV2 has whose widths a checkpoint tells: what it is compared with.
import type { Shapes } from "./compare.ts";
import { mostSaid } from "./counting.ts";
import { backbonePrefixes } from "./wrappers.ts";

/** Sandler et al. 2018, table 2: expansion t, channels c, blocks n, stride s. */
export const MOBILENET_STAGES = [
  { t: 1, c: 16, n: 1, s: 1 },
  { t: 6, c: 24, n: 2, s: 2 },
  { t: 6, c: 32, n: 3, s: 2 },
  { t: 6, c: 64, n: 4, s: 2 },
  { t: 6, c: 96, n: 3, s: 1 },
  { t: 6, c: 160, n: 3, s: 2 },
  { t: 6, c: 320, n: 1, s: 1 },
] as const;

/** Names of a convolution and of its norm; without one the convolution has a bias, which the norm was folded into. */
type Names = readonly [conv: string, norm?: string];

/** Where a repository keeps the convolutions and norms of MobileNetV2; a block's are expansion, depthwise, projection. */
export interface MobileNetNaming {
  readonly stem: Names;
  /** Undefined where it belongs to the classifier. */
  readonly head: Names | undefined;
  /** Without expansion: depthwise, projection. */
  block(stage: number, block: number, index: number, expands: boolean): readonly Names[];
  /** Whose padding and pixels it has: see model/mobilenet.ts. */
  readonly origin: "tensorflow" | "pytorch";
  /** Of its norms. */
  readonly epsilon: number;
}

/** As PyTorch has it where nothing else is said. */
const EPSILON = 1e-5;

export const TORCHVISION_MOBILENET: MobileNetNaming = {
  stem: ["features.0.0", "features.0.1"],
  head: ["features.18.0", "features.18.1"],
  block: (_stage, _block, index, expands) => {
    const at = `features.${index + 1}.conv.`;
    const gated = (i: number) => [`${at}${i}.0`, `${at}${i}.1`] as const;
    return expands ? [gated(0), gated(1), [`${at}2`, `${at}3`]] : [gated(0), [`${at}1`, `${at}2`]];
  },
  origin: "pytorch",
  epsilon: EPSILON,
};

export const TIMM_MOBILENET: MobileNetNaming = {
  stem: ["conv_stem", "bn1"],
  head: ["conv_head", "bn2"],
  block: (stage, block, _index, expands) => {
    const convs = expands ? ["conv_pw", "conv_dw", "conv_pwl"] : ["conv_dw", "conv_pw"];
    return convs.map((conv, i) => [`blocks.${stage}.${block}.${conv}`, `blocks.${stage}.${block}.bn${i + 1}`]);
  },
  origin: "pytorch",
  epsilon: EPSILON,
};

const transformers = (at: string): Names => [`${at}.convolution`, `${at}.normalization`];

/** transformers' MobileNetV2Model, which computes as TensorFlow's does; its first block is part of the stem. */
export const TRANSFORMERS_MOBILENET: MobileNetNaming = {
  stem: transformers("conv_stem.first_conv"),
  head: transformers("conv_1x1"),
  block: (_stage, _block, index, expands) => {
    const at = index === 0 ? "conv_stem" : `layer.${index - 1}`;
    const convs = expands ? ["expand_1x1", "conv_3x3", "reduce_1x1"] : ["conv_3x3", "reduce_1x1"];
    return convs.map((conv) => transformers(`${at}.${conv}`));
  },
  origin: "tensorflow",
  epsilon: 1e-3,
};

/** TensorFlow's order, as the engine's own files have it: the first block has two convolutions, the others three. */
export const NUMBERED_MOBILENET: MobileNetNaming = {
  stem: ["00.conv"],
  head: undefined,
  block: (_stage, _block, index, expands) => {
    const first = expands ? 3 * index : 1;
    const kinds = expands ? ["conv", "dwconv", "conv"] : ["dwconv", "conv"];
    return kinds.map((kind, i) => [`${String(first + i).padStart(2, "0")}.${kind}`]);
  },
  origin: "tensorflow",
  epsilon: EPSILON,
};

/** The convolutions in order, without the head's. */
export function mobileNetParts(naming: MobileNetNaming): Names[] {
  let index = 0;
  const blocks = MOBILENET_STAGES.flatMap(({ t, n }, stage) =>
    Array.from({ length: n }, (_, b) => naming.block(stage, b, index++, t > 1)).flat(),
  );
  return [naming.stem, ...blocks];
}

const NORM = ["weight", "bias", "running_mean", "running_var"];

/** Of width 1; other widths are told by the checkpoint. */
export function mobileNetShapes(tensors: Shapes, naming: MobileNetNaming): Shapes {
  const [prefix] = backbonePrefixes(tensors.keys());
  const expected = new Map<string, { shape: readonly number[] }>();
  const beside = ([conv, norm]: Names) =>
    norm === undefined ? [`${prefix}${conv}.bias`] : NORM.map((part) => `${prefix}${norm}.${part}`);
  const width = (names: Names, usual: number) => {
    const votes = [`${prefix}${names[0]}.weight`, ...beside(names)].map((key) => tensors.get(key)?.shape[0]);
    return mostSaid([...votes, usual], usual);
  };
  const put = (names: Names, ...shape: [number, number, number, number]) => {
    expected.set(`${prefix}${names[0]}.weight`, { shape });
    for (const key of beside(names)) expected.set(key, { shape: [shape[0]] });
  };
  let channels = width(naming.stem, 32);
  put(naming.stem, channels, 3, 3, 3);
  let index = 0;
  for (const [stage, { t, c, n }] of MOBILENET_STAGES.entries()) {
    for (let b = 0; b < n; b++) {
      const parts = naming.block(stage, b, index++, t > 1);
      const hidden = channels * t;
      const out = width(parts.at(-1)!, c);
      if (t > 1) put(parts[0]!, hidden, channels, 1, 1);
      put(parts.at(-2)!, hidden, 1, 3, 3);
      put(parts.at(-1)!, out, hidden, 1, 1);
      channels = out;
    }
  }
  const { head } = naming;
  // Without a classifier there may be none.
  const hasHead = head && [`${prefix}${head[0]}.weight`, ...beside(head)].some((key) => tensors.has(key));
  if (hasHead) put(head, width(head, 1280), channels, 1, 1);
  return expected;
}
