// The tensors that a ResNet or MobileNetV2 has whose block counts and widths a checkpoint tells: what it is compared with.

type Shape = readonly number[];
export type Shapes = ReadonlyMap<string, { readonly shape: Shape }>;

/** Where a repository keeps the parts of a ResNet. */
export interface ResNetNaming {
  readonly stem: string;
  readonly stemNorm: string;
  block(stage: number, block: number): string;
  norm(conv: number): string;
  readonly shortcut: string;
  readonly shortcutNorm: string;
}

export const TORCHVISION_RESNET: ResNetNaming = {
  stem: "conv1",
  stemNorm: "bn1",
  block: (stage, block) => `layer${stage + 1}.${block}`,
  norm: (conv) => `bn${conv}`,
  shortcut: "downsample.0",
  shortcutNorm: "downsample.1",
};

export const DETECTRON_RESNET: ResNetNaming = {
  stem: "stem.conv1",
  stemNorm: "stem.conv1.norm",
  block: (stage, block) => `res${stage + 2}.${block}`,
  norm: (conv) => `conv${conv}.norm`,
  shortcut: "shortcut",
  shortcutNorm: "shortcut.norm",
};

/** Collects expected tensors under a prefix. */
class Expected {
  readonly shapes = new Map<string, { shape: Shape }>();
  readonly #prefix: string;

  constructor(prefix: string) {
    this.#prefix = prefix;
  }

  conv(key: string, ...shape: number[]): void {
    this.shapes.set(`${this.#prefix}${key}.weight`, { shape });
  }

  norm(key: string, channels: number): void {
    for (const part of ["weight", "bias", "running_mean", "running_var"])
      this.shapes.set(`${this.#prefix}${key}.${part}`, { shape: [channels] });
  }
}

/** A prefix `backbone.` stays. */
const prefixOf = (tensors: Shapes): string =>
  [...tensors.keys()].every((key) => key.startsWith("backbone.")) ? "backbone." : "";

/** Blocks of each of the four stages, and whether they are bottlenecks. */
export function resNetBlocks(tensors: Shapes, naming: ResNetNaming): { blocks: number[]; bottleneck: boolean } {
  const prefix = prefixOf(tensors);
  const starts = new Set<string>();
  for (const key of tensors.keys())
    if (key.startsWith(prefix)) starts.add(key.slice(prefix.length).split(".", 2).join("."));
  const blocks = [0, 1, 2, 3].map((stage) => {
    let n = 0;
    while (starts.has(naming.block(stage, n))) n++;
    return n;
  });
  const bottleneck = [0, 1, 2, 3].some((stage) => tensors.has(`${prefix}${naming.block(stage, 0)}.conv3.weight`));
  return { blocks, bottleneck };
}

export function resNetShapes(tensors: Shapes, naming: ResNetNaming): Shapes {
  const prefix = prefixOf(tensors);
  const { blocks, bottleneck } = resNetBlocks(tensors, naming);
  const width = tensors.get(`${prefix}${naming.stem}.weight`)?.shape[0] ?? 64;
  const expected = new Expected(prefix);
  expected.conv(naming.stem, width, 3, 7, 7);
  expected.norm(naming.stemNorm, width);
  let channels = width;
  for (const [stage, count] of blocks.entries()) {
    const mid = width * 2 ** stage;
    const out = bottleneck ? 4 * mid : mid;
    for (let b = 0; b < count; b++) {
      const at = `${naming.block(stage, b)}.`;
      const kernels = bottleneck ? [1, 3, 1] : [3, 3];
      kernels.forEach((kernel, i) => {
        const to = bottleneck && i === 2 ? out : mid;
        expected.conv(`${at}conv${i + 1}`, to, i === 0 ? channels : mid, kernel, kernel);
        expected.norm(`${at}${naming.norm(i + 1)}`, to);
      });
      if (channels !== out) {
        expected.conv(`${at}${naming.shortcut}`, out, channels, 1, 1);
        expected.norm(`${at}${naming.shortcutNorm}`, out);
      }
      channels = out;
    }
  }
  return expected.shapes;
}

/** Sandler et al. 2018, table 2: expansion, channels, blocks. */
const STAGES = [
  [1, 16, 1],
  [6, 24, 2],
  [6, 32, 3],
  [6, 64, 4],
  [6, 96, 3],
  [6, 160, 3],
  [6, 320, 1],
] as const;

/** Where a repository keeps the convolutions and norms of MobileNetV2; a block's are expansion, depthwise, projection. */
export interface MobileNetNaming {
  readonly stem: readonly [conv: string, norm: string];
  readonly head: readonly [conv: string, norm: string];
  /** Without expansion: depthwise, projection. */
  block(
    stage: number,
    block: number,
    index: number,
    expands: boolean,
  ): readonly (readonly [conv: string, norm: string])[];
}

export const TORCHVISION_MOBILENET: MobileNetNaming = {
  stem: ["features.0.0", "features.0.1"],
  head: ["features.18.0", "features.18.1"],
  block: (_stage, _block, index, expands) => {
    const at = `features.${index + 1}.conv.`;
    const gated = (i: number) => [`${at}${i}.0`, `${at}${i}.1`] as const;
    return expands ? [gated(0), gated(1), [`${at}2`, `${at}3`]] : [gated(0), [`${at}1`, `${at}2`]];
  },
};

export const TIMM_MOBILENET: MobileNetNaming = {
  stem: ["conv_stem", "bn1"],
  head: ["conv_head", "bn2"],
  block: (stage, block, _index, expands) => {
    const convs = expands ? ["conv_pw", "conv_dw", "conv_pwl"] : ["conv_dw", "conv_pw"];
    return convs.map((conv, i) => [`blocks.${stage}.${block}.${conv}`, `blocks.${stage}.${block}.bn${i + 1}`]);
  },
};

/** The engine's numbered layers and the convolution and norm that a repository's file has for each, in its names. */
export function mobileNetLayers(naming: MobileNetNaming): [layer: string, conv: string, norm: string][] {
  const layers: [string, string, string][] = [];
  const put = (kind: "conv" | "dwconv", [conv, norm]: readonly [string, string]) =>
    layers.push([`${String(layers.length).padStart(2, "0")}.${kind}`, conv, norm]);
  put("conv", naming.stem);
  let index = 0;
  for (const [stage, [expansion, , count]] of STAGES.entries())
    for (let b = 0; b < count; b++) {
      const parts = naming.block(stage, b, index++, expansion > 1);
      for (const [i, part] of parts.entries()) put(i === parts.length - 2 ? "dwconv" : "conv", part);
    }
  return layers;
}

/** Of width 1; other widths are told by the checkpoint. */
export function mobileNetShapes(tensors: Shapes, naming: MobileNetNaming): Shapes {
  const expected = new Expected("");
  const width = (conv: string, usual: number) => tensors.get(`${conv}.weight`)?.shape[0] ?? usual;
  const put = ([conv, norm]: readonly [string, string], ...shape: [number, number, number, number]) => {
    expected.conv(conv, ...shape);
    expected.norm(norm, shape[0]);
  };
  let channels = width(naming.stem[0], 32);
  put(naming.stem, channels, 3, 3, 3);
  let index = 0;
  for (const [stage, [expansion, usual, count]] of STAGES.entries()) {
    for (let b = 0; b < count; b++) {
      const parts = naming.block(stage, b, index++, expansion > 1);
      const hidden = channels * expansion;
      const out = width(parts.at(-1)![0], usual);
      if (expansion > 1) put(parts[0]!, hidden, channels, 1, 1);
      put(parts.at(-2)!, hidden, 1, 3, 3);
      put(parts.at(-1)!, out, hidden, 1, 1);
      channels = out;
    }
  }
  put(naming.head, width(naming.head[0], 1280), channels, 1, 1);
  return expected.shapes;
}
