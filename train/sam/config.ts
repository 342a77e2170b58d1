/** Settings of sam-train: a YAML file, changed by key=value on the command line. Unknown keys are errors. */
import { z } from "zod";
import { mobileSam, type SamConfig, samMini, samVitB, samVitH, samVitL } from "../../model/sam/index.ts";
import { option, section } from "../options.ts";
import { readSettings } from "../settings.ts";

const whole = z.number().int().min(1);
const amount = z.number().min(0);
const share = z.number().min(0).max(1);

const decoder = z.strictObject({
  depth: option(whole.optional(), "reference", "two-way blocks of the mask decoder"),
  heads: option(whole.optional(), "reference", "their attention heads"),
  mlp: option(whole.optional(), "reference", "width between the two linear layers of a block"),
  iouHidden: option(whole.optional(), "reference", "width of the head that rates the masks"),
  iouDepth: option(whole.optional(), "reference", "its layers"),
  candidates: option(whole.optional(), "reference", "masks beside the single one"),
});
const encoder = z.discriminatedUnion("kind", [
  z.strictObject({
    kind: z.literal("vit"),
    dim: option(whole, "reference", "width of the tokens"),
    depth: option(whole, "reference", "blocks"),
    heads: option(whole, "reference", "attention heads"),
    patch: option(whole, "reference", "side of a token's patch in pixels"),
    mlp: option(whole, "reference", "width between the two linear layers of a block"),
    window: option(amount, "reference", "side of a block's window in tokens; 0: none"),
    globalBlocks: option(
      z.array(z.number().int().min(0)),
      "reference",
      "blocks that attend to the whole grid, from 0 on",
    ),
  }),
  z.strictObject({
    kind: z.literal("tiny-vit"),
    dims: option(z.array(whole).min(2), "reference", "widths of the stages, the first of which is convolutional"),
    depths: option(z.array(whole), "reference", "their blocks"),
    heads: option(z.array(whole), "reference", "their attention heads"),
    windows: option(z.array(whole), "reference", "sides of their windows in tokens"),
    strides: option(
      z.array(z.union([z.literal(1), z.literal(2)])),
      "reference",
      "from stage to stage, one fewer than stages: 2, or 1 where the grid keeps its size",
    ),
  }),
]);

const PRESETS = { mini: samMini, mobileSam, vitB: samVitB, vitL: samVitL, vitH: samVitH };

export const PARTS = ["image_encoder", "prompt_encoder", "mask_decoder"] as const;

export const samTrainSchema = z.strictObject({
  run: option(z.string().min(1).default("runs/sam"), "ours", "folder of the run"),
  seed: option(z.number().int().min(0).max(0xffffffff).default(0), "ours", "seeds weights, images and prompts"),
  steps: option(whole.default(2000), "ours", "optimizer steps"),
  batch: option(whole.default(8), "ours", "images of a step"),
  prompts: option(whole.default(8), "ours", "prompts for each of them: an image is encoded once"),
  boxSteps: option(
    z.number().int().min(0).default(0),
    "ours",
    "the first steps have box prompts only, which say more about the object than a point",
  ),
  weights: option(
    z.string().default(""),
    "ours",
    "weights to start from, whose sizes take the place of model; empty: random",
  ),
  model: section({
    preset: option(
      z.enum(["mini", "mobileSam", "vitB", "vitL", "vitH"]).default("mini"),
      "ours",
      "sizes to start from; the settings below change single ones",
    ),
    imageSize: option(whole.optional(), "reference", "side of the square input in pixels"),
    promptDim: option(whole.optional(), "reference", "width of image and prompt embeddings"),
    maskChannels: option(whole.optional(), "reference", "channels of the mask prompt's convolutions"),
    encoder: option(
      encoder.optional(),
      "reference",
      "the image encoder, in place of the preset's: {kind: vit or tiny-vit} with all settings of its kind, which follow",
    ),
    decoder: decoder.optional(),
  }),
  freeze: option(
    z.array(z.enum(PARTS)).default([]),
    "ours",
    "parts whose weights stay as they are: image_encoder, prompt_encoder, mask_decoder; a frozen image encoder needs neither gradients nor their memory",
  ),
  init: section({
    frequency: option(
      z.number().positive().default(1),
      "reference",
      "spread of the positional frequencies in cycles over half the image; lower is smoother and learned faster at a small size",
    ),
    sharpness: option(
      amount.default(0),
      "reference",
      "cross attentions start with equal query and key projections times this, so that tokens look at their own place; 0: independent",
    ),
  }),
  data: section({
    scenes: option(
      share.default(1),
      "ours",
      "share of the images that are procedural scenes; the rest are photographs",
    ),
    sceneSeed: option(z.number().int().min(0).max(0xffffffff).default(1), "ours", "seeds the scenes"),
    annotations: option(z.string().default(""), "ours", "COCO instances JSON of the photographs"),
    images: option(z.string().default(""), "ours", "their folder"),
    boxNoise: option(
      amount.default(0.05),
      "ours",
      "spread by which a box prompt's edges move, as a share of its sides",
    ),
    smallestCrop: option(
      z.number().positive().max(1).default(0.5),
      "ours",
      "least share of a photograph's side that is cut out",
    ),
  }),
  optim: section({
    lr: option(z.number().positive().default(1e-3), "ours", "learning rate"),
    weightDecay: option(amount.default(0.01), "ours", "decoupled decay"),
    warmup: option(z.number().int().min(0).default(30), "ours", "steps over which the rate rises from 0"),
    clip: option(amount.default(1), "ours", "limit of the gradient's global norm; 0: none"),
    floor: option(share.default(0.01), "ours", "the rate falls along a cosine to this share"),
  }),
  loss: section({
    focal: option(amount.default(20), "reference", "weight of the focal loss"),
    bce: option(amount.default(0), "reference", "weight of the cross entropy"),
    dice: option(amount.default(1), "reference", "weight of the dice loss"),
    iou: option(amount.default(1), "reference", "weight of the error of the rated overlap"),
  }),
  eval: section({
    sceneSeed: option(z.number().int().min(0).max(0xffffffff).default(990001), "ours", "seeds the unseen scenes"),
    scenes: option(z.number().int().min(0).default(64), "ours", "number of unseen scenes"),
    annotations: option(
      z.string().default(""),
      "ours",
      "COCO instances JSON of photographs to evaluate on; empty: none",
    ),
    images: option(z.string().default(""), "ours", "their folder"),
    limit: option(z.number().int().min(0).default(0), "ours", "evaluate the first so many photographs only; 0: all"),
    every: option(z.number().int().min(0).default(0), "ours", "steps between evaluations; 0: at the end only"),
  }),
  log: option(whole.default(20), "ours", "steps between lines of metrics.jsonl"),
  save: option(whole.default(200), "ours", "steps between checkpoints"),
});

export type SamTrainConfig = Readonly<z.infer<typeof samTrainSchema>>;

export function readSamTrainConfig(path: string, settings: readonly string[]): SamTrainConfig {
  return readSettings(samTrainSchema, path, settings);
}

/** The model's sizes: the preset, changed where the config says so. */
export function modelOf({ model }: SamTrainConfig): SamConfig {
  const { preset, decoder: changes, ...rest } = model;
  const base = PRESETS[preset]();
  const given = Object.fromEntries(
    Object.entries(rest).filter(([, value]) => value !== undefined),
  ) as Partial<SamConfig>;
  const inner = Object.fromEntries(Object.entries(changes ?? {}).filter(([, value]) => value !== undefined)) as Partial<
    SamConfig["decoder"]
  >;
  return { ...base, ...given, decoder: { ...base.decoder, ...inner } };
}
