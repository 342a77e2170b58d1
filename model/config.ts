// Sizes of a WISH or Mask2Former model: one plain object, saved with every checkpoint. Presets spell their numbers.
// Where the WISH paper leaves a choice open, the option says which reading is the default and why.
import type { FeatureName, OutputStride } from "./backbone.ts";
import type { MobileNetNorm, MobileNetOrigin } from "./mobilenet.ts";
import type { ResNetDepth, ResNetNorm, ResNetSizes } from "./resnet.ts";
import type { SwinSizes } from "./swin.ts";

export type BackboneConfig =
  | {
      kind: "resnet";
      depth: ResNetDepth;
      norm: ResNetNorm;
      outputStride: OutputStride /** Stem channels, 64. */;
      width: number;
    }
  /** Any residual network, its blocks spelt out. */
  | ({ kind: "residual" } & ResNetSizes)
  | { kind: "mobilenetV2"; width: number; norm: MobileNetNorm; outputStride: OutputStride; origin?: MobileNetOrigin }
  | {
      kind: "swin";
      /** Channels of res2; each stage doubles them. */
      embedDim: number;
      depths: readonly [number, number, number, number];
      heads: readonly [number, number, number, number];
      /** Side of a window in tokens. */
      window: number;
      /** Largest probability that an image skips a block's branch while training. */
      dropPath: number;
    }
  | {
      /** Basic residual blocks with GroupNorm, for small images and training from scratch. */
      kind: "mini";
      widths: readonly [number, number, number, number];
      blocks: readonly [number, number, number, number];
      outputStride: OutputStride;
    };

/**
 * How a query's predicted prompt latents are laid out (the paper gives the vector Z but not its shape):
 * - typed (default): three tokens [point, top left, bottom right]; only those of the image's label kind are supervised. In mixed
 *   training a query cannot know which kind its image has; shared tokens would be pulled to a blend of centre and corner.
 * - sparse: two tokens, exactly SAM's sparse embedding of a point (with its padding token) or a box. For labels of one kind.
 * - mean: one token, a box being the mean of its corners. Smallest; SAM's decoder cannot use it for boxes.
 * - none: no prompt head, that is plain Mask2Former.
 */
export type PromptMode = "none" | "mean" | "sparse" | "typed";

/**
 * What the prompt head is told about places:
 * - query: what the query's content says, as in the paper. Two to four decoder layers say too little: on scenes the head then learned the
 *   mean latent and no more (1,100 steps), for the divergence is flat until a place is known to an eighth of the image.
 * - mask: besides, where the query's own mask lies (its mean sine position).
 */
export type PromptPlace = "query" | "mask";

export interface WishConfig {
  /** K; class K means "no object". */
  classes: number;
  backbone: BackboneConfig;
  /** Width of pixel decoder, mask features and queries. */
  hiddenDim: number;
  /** Feature levels of deformable and of masked attention: 3 are res5, res4, res3. */
  levels: number;
  /** Groups of the pixel decoder's GroupNorms. */
  groups: number;
  encoder: { layers: number; heads: number; points: number; ffn: number };
  /** `layers` 9 give 10 predictions (DEC_LAYERS 10 of the reference). */
  decoder: { layers: number; heads: number; ffn: number };
  queries: number;
  /** `dim`: width of SAM's prompt embedding, 256; a smaller teacher has its own. `place`: default query. */
  prompt: { mode: PromptMode; dim: number; place?: PromptPlace };
  /**
   * CAM branch: a 1x1 convolution without bias on this feature. The paper says "image encoder"; res5 is the usual reading. On small
   * images take a finer feature or a backbone with outputStride 16: at 128 px res5 has 4 x 4 cells.
   */
  cam: { feature: "none" | Exclude<FeatureName, "res2"> };
}

export const PROMPT_TOKENS: Record<PromptMode, number> = { none: 0, mean: 1, sparse: 2, typed: 3 };

/** Overrides of a preset: a given nested object replaces only the members it names. */
export type WishOverrides = { [K in Exclude<keyof WishConfig, "backbone">]?: Partial<WishConfig[K]> } & {
  backbone?: BackboneConfig;
};

/** The paper's and Mask2Former's sizes: ResNet-50 with frozen BatchNorm, 256 wide, 100 queries. */
export function wishResNet50(classes: number, overrides: WishOverrides = {}): WishConfig {
  return paperSizes(classes, resNetConfig(50), overrides);
}

export function wishResNet18(classes: number, overrides: WishOverrides = {}): WishConfig {
  return paperSizes(classes, resNetConfig(18), overrides);
}

export function wishResNet34(classes: number, overrides: WishOverrides = {}): WishConfig {
  return paperSizes(classes, resNetConfig(34), overrides);
}

export function wishResNet101(classes: number, overrides: WishOverrides = {}): WishConfig {
  return paperSizes(classes, resNetConfig(101), overrides);
}

export function wishSwinT(classes: number, overrides: WishOverrides = {}): WishConfig {
  const backbone = swinConfig({ embedDim: 96, depths: [2, 2, 6, 2], heads: [3, 6, 12, 24], window: 7 });
  return paperSizes(classes, backbone, overrides);
}

export function wishSwinS(classes: number, overrides: WishOverrides = {}): WishConfig {
  const backbone = swinConfig({ embedDim: 96, depths: [2, 2, 18, 2], heads: [3, 6, 12, 24], window: 7 });
  return paperSizes(classes, backbone, overrides);
}

export function wishSwinB(classes: number, overrides: WishOverrides = {}): WishConfig {
  const backbone = swinConfig({ embedDim: 128, depths: [2, 2, 18, 2], heads: [4, 8, 16, 32], window: 12 });
  return paperSizes(classes, backbone, overrides);
}

/** With 200 queries. */
export function wishSwinL(classes: number, overrides: WishOverrides = {}): WishConfig {
  const backbone = swinConfig({ embedDim: 192, depths: [2, 2, 18, 2], heads: [6, 12, 24, 48], window: 12 });
  return paperSizes(classes, backbone, { queries: 200, ...overrides });
}

const resNetConfig = (depth: ResNetDepth): BackboneConfig => {
  return { kind: "resnet", depth, norm: "frozenBN", outputStride: 32, width: 64 };
};
const swinConfig = (sizes: SwinSizes): BackboneConfig => ({ kind: "swin", dropPath: 0.3, ...sizes });

/** Mask2Former's sizes beside the backbone. */
function paperSizes(classes: number, backbone: BackboneConfig, overrides: WishOverrides): WishConfig {
  return merge(
    {
      classes,
      backbone,
      hiddenDim: 256,
      levels: 3,
      groups: 32,
      encoder: { layers: 6, heads: 8, points: 4, ffn: 1024 },
      decoder: { layers: 9, heads: 8, ffn: 2048 },
      queries: 100,
      prompt: { mode: "typed", dim: 256 },
      cam: { feature: "res5" },
    },
    overrides,
  );
}

/** MobileNetV2 1.0 (ImageNet weights with folded BatchNorm) under a narrower, shallower decoder: fine-tunes without a GPU. */
export function wishMobileNetV2(classes: number, overrides: WishOverrides = {}): WishConfig {
  return merge(
    {
      classes,
      backbone: { kind: "mobilenetV2", width: 1, norm: "folded", outputStride: 32 },
      hiddenDim: 128,
      levels: 3,
      groups: 16,
      encoder: { layers: 2, heads: 8, points: 4, ffn: 256 },
      decoder: { layers: 3, heads: 8, ffn: 512 },
      queries: 40,
      prompt: { mode: "typed", dim: 256 },
      cam: { feature: "res5" },
    },
    overrides,
  );
}

/** For scenes of about 128 px, from scratch, on a software adapter. The CAM has stride 16: 8 x 8 cells at 128 px. */
export function wishMini(classes: number, overrides: WishOverrides = {}): WishConfig {
  return merge(
    {
      classes,
      backbone: { kind: "mini", widths: [32, 64, 96, 128], blocks: [1, 1, 1, 1], outputStride: 16 },
      hiddenDim: 64,
      levels: 3,
      groups: 8,
      encoder: { layers: 1, heads: 4, points: 4, ffn: 128 },
      decoder: { layers: 3, heads: 4, ffn: 128 },
      queries: 20,
      prompt: { mode: "typed", dim: 64 },
      cam: { feature: "res5" },
    },
    overrides,
  );
}

function merge(preset: WishConfig, overrides: WishOverrides): WishConfig {
  const merged: Record<string, unknown> = { ...preset };
  for (const [key, value] of Object.entries(overrides)) {
    if (value === undefined) continue;
    if (!(key in preset))
      throw new Error(`model: unknown setting "${key}"; there are ${Object.keys(preset).join(", ")}`);
    // A backbone's settings depend on its kind, so that it is replaced as a whole.
    const nested = typeof value === "object" && key !== "backbone";
    merged[key] = nested ? { ...(preset[key as keyof WishConfig] as object), ...value } : value;
  }
  return merged as unknown as WishConfig;
}
