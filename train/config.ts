/**
 * A run's configuration: one flat table of settings in a YAML file, changed by key=value on the command line, frozen and saved with the
 * run. Each setting says where its default comes from: "paper" (as far as it is known), "reference" (Mask2Former, SAM, detectron2) or
 * "ours" (a choice that the paper leaves open).
 */
import { z } from "zod";
import { LARGEST_SIDE } from "./limits.ts";
import { type Origin, option, type SettingDoc, section, settingsOf } from "./options.ts";
import { readSettings, resolveSettings } from "./settings.ts";

export type { SettingDoc } from "./options.ts";
export { configText } from "./settings.ts";

export const whole = z.number().int().min(1);
/** Of images, in pixels. */
const side = whole.max(LARGEST_SIDE);
const amount = z.number().min(0);
const share = z.number().min(0).max(1);
/** Below 1: at 1 AdamW would divide by 1 - beta = 0. */
const beta = z.number().min(0).lt(1);
const weight = (value: number, origin: Origin, help: string) => option(amount.default(value), origin, help);
const span = z
  .tuple([z.number().positive(), z.number().positive()])
  .refine(([low, high]) => low <= high, "the first must not exceed the second");

const four = z.tuple([whole, whole, whole, whole]);
const outputStride = z.union([z.literal(32), z.literal(16), z.literal(8)]);
const STRIDE = "pixels to a cell of res5: 32, 16 or 8; less keeps finer maps of small images";

/** By their kind. */
export const backbones = [
  z.strictObject({
    kind: z.literal("mini"),
    widths: option(four, "ours", "channels of the stages"),
    blocks: option(four, "ours", "residual blocks of the stages"),
    outputStride: option(outputStride.default(16), "ours", STRIDE),
  }),
  z.strictObject({
    kind: z.literal("mobilenetV2"),
    width: option(z.number().positive().default(1), "reference", "factor on the channels"),
    norm: option(
      z.enum(["folded", "groupNorm"]).default("folded"),
      "ours",
      "folded: the BatchNorms of trained weights, folded into the convolutions; groupNorm: for training from scratch",
    ),
    outputStride: option(outputStride.default(32), "reference", STRIDE),
    origin: option(
      z.enum(["tensorflow", "pytorch"]).default("tensorflow"),
      "ours",
      "whose weights: pytorch pads, normalises and scales the image as torchvision and timm",
    ),
  }),
  z.strictObject({
    kind: z.literal("resnet"),
    depth: option(
      z.union([z.literal(18), z.literal(34), z.literal(50), z.literal(101)]).default(50),
      "paper",
      "layers: 18, 34, 50 or 101",
    ),
    norm: option(
      z.enum(["frozenBN", "batchNorm", "groupNorm"]).default("frozenBN"),
      "reference",
      "frozenBN: the statistics of the pretrained weights; batchNorm: learned; groupNorm: for training from scratch",
    ),
    outputStride: option(outputStride.default(32), "reference", STRIDE),
    width: option(whole.default(64), "reference", "channels of the stem; the stages have multiples of it"),
  }),
  z.strictObject({
    kind: z.literal("swin"),
    embedDim: option(whole, "reference", "channels of the first stage; each further one doubles them"),
    depths: option(four, "reference", "blocks of the stages"),
    heads: option(four, "reference", "attention heads of the stages"),
    window: option(whole, "reference", "side of a window in tokens"),
    dropPath: option(
      share.default(0.3),
      "reference",
      "largest probability that an image skips a block's branch while training",
    ),
  }),
] as const;
const backbone = z.discriminatedUnion(
  "kind",
  backbones,
  "a backbone is {kind: mini, mobilenetV2, resnet or swin} with the settings of its kind",
);

/** Of images at test time. */
export const testSize = {
  short: option(side.default(800), "reference", "short side of an image at test time"),
  long: option(side.default(1333), "reference", "limit of its long side"),
  topk: option(whole.default(100), "reference", "instances kept for an image"),
};

export const configSchema = z.strictObject({
  run: option(z.string().min(1).default("runs/wish"), "ours", "folder of the run"),
  seed: option(
    z.number().int().min(0).max(0xffffffff).default(0),
    "ours",
    "seeds weights, sample order, augmentation and points",
  ),
  mode: option(
    z.enum(["wish", "supervised"]).default("wish"),
    "ours",
    "wish: from weak labels; supervised: Mask2Former from masks",
  ),
  steps: option(whole.default(368750), "reference", "optimizer steps"),
  batch: option(whole.default(16), "paper", "images of a forward pass"),
  accumulate: option(
    whole.default(1),
    "ours",
    "forward passes of a step, whose losses together are those of one batch (of loss.pairwise their mean)",
  ),
  precision: option(
    z.enum(["f32", "mixed"]).default("f32"),
    "ours",
    "mixed: products in f16, summed in f32, with a scaled loss (the reference trains so); weights stay f32",
  ),
  memory: section({
    checkpoint: option(
      z.boolean().default(false),
      "ours",
      "keep only what goes into the network's blocks and compute them again in the backward pass: half the memory or less",
    ),
    activations: option(z.enum(["f32", "f16"]).default("f32"), "ours", "memory.checkpoint: how that is stored"),
  }),
  data: section({
    images: option(z.string().default(""), "ours", "folder of the training images"),
    labels: option(
      z.string().default(""),
      "ours",
      "weak labels JSON (mode wish) or COCO instances JSON (mode supervised)",
    ),
    supercategories: option(z.boolean().default(false), "ours", "take COCO's supercategories as the classes"),
    width: option(side.default(1024), "reference", "width of the network's input while training"),
    height: option(side.default(1024), "reference", "height of the network's input while training"),
    flip: option(z.boolean().default(true), "reference", "mirror half of the images"),
    scale: option(
      span.default([0.1, 2]),
      "reference",
      "large-scale jitter: factor on the size that just fits the input",
    ),
    tagScale: option(
      span.default([0.5, 2]),
      "ours",
      "the same for images with tags: a narrow crop may have lost what its tags name",
    ),
    colour: option(share.default(0), "ours", "strength of the colour jitter"),
    balance: option(
      share.default(0),
      "ours",
      "makes up for rarer kinds of labels: an image stands (most / own)^balance times in an epoch; 0: once, 1: every kind as often",
    ),
    maskStride: option(
      whole.default(4),
      "ours",
      "masks are warped to the input's size divided by this; SAM's own have a quarter of the input's",
    ),
    threads: option(
      z.union([z.literal("auto"), z.number().int().min(0).max(64)]).default("auto"),
      "ours",
      "threads that decode and augment images beside the GPU; 0: none; auto: by the input's size and the processor's cores. Results are the same",
    ),
  }),
  val: section({
    images: option(z.string().default(""), "ours", "folder of the evaluation images"),
    annotations: option(z.string().default(""), "ours", "COCO instances JSON to evaluate on; empty: no evaluation"),
    every: option(whole.default(5000), "reference", "steps between evaluations"),
    limit: option(z.number().int().min(0).default(0), "ours", "evaluate the first so many images only; 0: all"),
    ...testSize,
    pictures: option(z.number().int().min(0).default(8), "ours", "overlays drawn at each evaluation"),
    stages: option(
      z.number().int().min(0).default(3),
      "ours",
      "best, worst and training images of which the report shows label, CAM, SAM's answer and prediction",
    ),
  }),
  model: section({
    preset: option(
      z
        .enum([
          "mini",
          "mobilenetV2",
          "resnet18",
          "resnet34",
          "resnet50",
          "resnet101",
          "swinT",
          "swinS",
          "swinB",
          "swinL",
        ])
        .default("resnet50"),
      "paper",
      "sizes to start from; the settings below change single ones",
    ),
    backbone: option(
      backbone.optional(),
      "ours",
      "the backbone, in place of the preset's: {kind: mini, mobilenetV2, resnet or swin} with the settings of its kind, which follow; {kind: mobilenetV2, origin: pytorch} takes torchvision's and timm's weights",
    ),
    hiddenDim: option(whole.optional(), "reference", "width of pixel decoder, mask features and queries"),
    levels: option(z.number().int().min(1).max(3).optional(), "reference", "feature levels of both attentions"),
    groups: option(whole.optional(), "reference", "groups of the pixel decoder's GroupNorms"),
    encoder: z
      .strictObject({
        layers: option(
          z.number().int().min(0).optional(),
          "reference",
          "layers of the pixel decoder's deformable encoder; 0: none",
        ),
        heads: option(whole.optional(), "reference", "its attention heads"),
        points: option(whole.optional(), "reference", "places that a head looks at in each level"),
        ffn: option(whole.optional(), "reference", "width between the two linear layers of a block"),
      })
      .optional(),
    decoder: z
      .strictObject({
        layers: option(whole.optional(), "reference", "layers of the masked-attention decoder"),
        heads: option(whole.optional(), "reference", "its attention heads"),
        ffn: option(whole.optional(), "reference", "width between the two linear layers of a block"),
      })
      .optional(),
    queries: option(whole.optional(), "reference", "objects that can be told in one image"),
    backboneWeights: option(
      z.string().default(""),
      "reference",
      "pretrained weights of the backbone (ImageNet), of torchvision, timm, transformers, detectron2 or Microsoft",
    ),
    weights: option(
      z.string().default(""),
      "ours",
      "weights of a whole model to start from; a head of another shape stays as drawn",
    ),
  }),
  sam: section({
    checkpoint: option(
      z.string().default("assets/sam-mini.safetensors"),
      "ours",
      "the teacher: an original SAM or MobileSAM checkpoint, or a converted one",
    ),
    cache: option(z.string().default(""), "ours", "folder of the teacher's masks and embeddings; empty: <run>/cache"),
    memory: option(amount.default(512), "ours", "MiB of image embeddings kept in memory"),
  }),
  prompt: section({
    mode: option(
      z.enum(["none", "mean", "sparse", "typed"]).default("typed"),
      "ours",
      "tokens of the predicted latents: see model/config.ts",
    ),
    place: option(
      z.enum(["query", "mask"]).default("query"),
      "ours",
      "what tells the prompt head about places: the query alone (the paper), or where its mask lies besides",
    ),
    distance: option(
      z.enum(["kl", "l2"]).default("kl"),
      "paper",
      "kl: Kullback-Leibler divergence of softmaxes; l2: mean square, which SAM's decoder can use",
    ),
    direction: option(
      z.enum(["teacher", "student"]).default("teacher"),
      "ours",
      "teacher: KL(Z||Zhat); student: KL(Zhat||Z)",
    ),
    tau: option(z.number().positive().default(1), "ours", "temperature of both softmaxes"),
  }),
  match: section({
    class: weight(2, "paper", "weight of the class cost (alpha)"),
    prompt: weight(5, "paper", "weight of the prompt cost (beta)"),
    bce: weight(5, "paper", "weight of the mask cost's cross entropy (gamma)"),
    dice: weight(5, "paper", "weight of the mask cost's dice (gamma)"),
    points: option(whole.default(12544), "reference", "random points at which masks are compared"),
    candidate: option(
      z.enum(["adaptive", "iou"]).default("adaptive"),
      "paper",
      "which of SAM's three masks counts: the one nearest to the prediction, or the one SAM rates best",
    ),
  }),
  proxy: section({
    source: option(
      z.enum(["sam", "box"]).default("sam"),
      "paper",
      "what stands in for the masks: SAM's answers, or, for labels that are boxes, the filled box (for comparisons)",
    ),
    soft: option(z.boolean().default(false), "ours", "use SAM's probabilities instead of its binary masks"),
    clipToBox: option(z.boolean().default(true), "ours", "cut a box's masks at the box"),
  }),
  loss: section({
    class: weight(2, "reference", "weight of the classification loss"),
    prompt: weight(5, "ours", "weight of the prompt loss"),
    bce: weight(5, "reference", "weight of the mask's cross entropy"),
    dice: weight(5, "reference", "weight of the mask's dice"),
    projection: weight(
      0,
      "ours",
      "weight of BoxInst's projection term, for proxy.source=box with loss.bce=0 and loss.dice=0",
    ),
    pairwise: weight(0, "ours", "weight of BoxInst's term on neighbours of like colour"),
    pairwiseWarmup: option(
      z.number().int().min(0).default(10000),
      "reference",
      "steps over which the pairwise term comes in (BoxInst's)",
    ),
    cam: weight(1, "paper", "weight of L_cam"),
    self: weight(1, "paper", "weight of L_self"),
    noObject: weight(0.1, "reference", 'weight of the class "no object"'),
    points: option(whole.default(12544), "reference", "points at which the mask losses are taken"),
    oversample: option(z.number().min(1).default(3), "reference", "candidates drawn for each point kept"),
    importance: option(
      share.default(0.75),
      "reference",
      "share of the points taken where the prediction is least sure",
    ),
    deepSupervision: option(z.boolean().default(true), "reference", "supervise every decoder layer"),
  }),
  cam: section({
    feature: option(z.enum(["none", "res3", "res4", "res5"]).optional(), "ours", "backbone feature of the CAM branch"),
    warmup: option(
      z.number().int().min(0).default(30000),
      "paper",
      "first steps train L_cam alone; only where there are tags",
    ),
    tau: option(share.default(0.5), "ours", "least normalised activation of a peak"),
    radius: option(share.default(20 / 256), "ours", "peaks keep this distance, as a share of the image's long side"),
    maxPeaks: option(whole.default(32), "ours", "peaks of a class at most"),
    dedupIou: option(share.default(0.5), "ours", "of two peaks whose SAM masks overlap more, the worse goes"),
    upsample: option(whole.default(4), "ours", "factor by which the CAM is enlarged before its peaks are sought"),
    clamp: option(
      z.number().positive().max(0.49).default(1e-4),
      "ours",
      "L_self keeps the normalised CAM this far from 0 and 1; larger: gentler gradients",
    ),
    divergence: option(
      z.boolean().default(false),
      "ours",
      "L_self less the masks' own entropy: the same gradient, and 0 where maps and masks agree",
    ),
    raw: option(z.boolean().default(false), "ours", "L_self on raw logits instead of the normalised CAM"),
  }),
  optim: section({
    lr: option(z.number().positive().default(1e-4), "paper", "learning rate"),
    weightDecay: option(amount.default(0.05), "reference", "decoupled decay; none on norms and embeddings"),
    backbone: option(amount.default(0.1), "reference", "factor on the backbone's learning rate"),
    cam: option(
      amount.default(1),
      "ours",
      "factor on the CAM head's learning rate; IRN lets its new classifier learn ten times as fast as the features below",
    ),
    clip: option(amount.default(0.01), "reference", "limit of the gradient's global norm; 0: none"),
    betas: option(z.tuple([beta, beta]).default([0.9, 0.999]), "reference", "AdamW's decay of its moments"),
    schedule: option(
      z.enum(["constant", "step", "poly", "cosine"]).default("step"),
      "reference",
      "how the learning rate falls",
    ),
    milestones: option(
      z.array(share).default([0.88889, 0.96296]),
      "reference",
      "schedule step: shares of the steps at which it drops",
    ),
    gamma: option(share.default(0.1), "reference", "schedule step: factor of a drop"),
    power: option(z.number().positive().default(0.9), "reference", "schedule poly: exponent"),
    warmup: option(z.number().int().min(0).default(0), "reference", "steps over which it rises from 0"),
  }),
  log: section({
    every: option(whole.default(20), "reference", "steps between lines of metrics.jsonl"),
    checkpoint: option(whole.default(5000), "reference", "steps between checkpoints"),
    keep: option(whole.default(2), "ours", "newest checkpoints kept, besides the best"),
    tensorboard: option(
      z.boolean().default(false),
      "ours",
      "write TensorBoard's event files, too: losses, rate, speed, memory, AP, pictures; in <run>/tensorboard",
    ),
  }),
});

export type Config = z.infer<typeof configSchema>;
export type ConfigInput = z.input<typeof configSchema>;

/** Reads a YAML file, applies `key=value` settings, checks everything. Throws BadInput naming what brings a problem in. */
export function readConfig(path: string, settings: readonly string[] = []): Config {
  return readSettings(configSchema, path, settings);
}

/** Checks a configuration given as an object. `name` stands in the errors about it; those about a setting name that. */
export function resolveConfig(input: unknown, settings: readonly string[] = [], name = "config"): Config {
  return resolveSettings(configSchema, input, settings, name);
}

/** Every setting with its default, in the schema's order. */
export function settings(): SettingDoc[] {
  return settingsOf(configSchema);
}
