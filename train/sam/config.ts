/** Settings of sam-train: a YAML file, changed by key=value on the command line. Unknown keys are errors. */
import { z } from "zod";
import { mobileSam, type SamConfig, samMini, samVitB, samVitH, samVitL } from "../../model/sam/index.ts";
import { readSettings } from "../settings.ts";

const whole = z.number().int().min(1);
const amount = z.number().min(0);
const share = z.number().min(0).max(1);

const decoder = z.strictObject({
  depth: whole,
  heads: whole,
  mlp: whole,
  iouHidden: whole,
  iouDepth: whole,
  candidates: whole,
});
const encoder = z.discriminatedUnion("kind", [
  z.strictObject({
    kind: z.literal("vit"),
    dim: whole,
    depth: whole,
    heads: whole,
    patch: whole,
    mlp: whole,
    window: amount,
    globalBlocks: z.array(z.number().int().min(0)),
  }),
  z.strictObject({
    kind: z.literal("tiny-vit"),
    dims: z.array(whole).min(2),
    depths: z.array(whole),
    heads: z.array(whole),
    windows: z.array(whole),
    strides: z.array(z.union([z.literal(1), z.literal(2)])),
  }),
]);

const PRESETS = { mini: samMini, mobileSam, vitB: samVitB, vitL: samVitL, vitH: samVitH };

export const PARTS = ["image_encoder", "prompt_encoder", "mask_decoder"] as const;

export const samTrainSchema = z.strictObject({
  /** Folder of the run. */
  run: z.string().min(1).default("runs/sam"),
  seed: z.number().int().min(0).max(0xffffffff).default(0),
  steps: whole.default(2000),
  /** Images a step, and prompts for each: an image is encoded once. */
  batch: whole.default(8),
  prompts: whole.default(8),
  /** The first steps have box prompts only, which say more about the object than a point. */
  boxSteps: z.number().int().min(0).default(0),
  /** Weights to start from; empty: random. Their sizes replace `model`. */
  weights: z.string().default(""),
  model: z
    .strictObject({
      preset: z.enum(["mini", "mobileSam", "vitB", "vitL", "vitH"]).default("mini"),
      imageSize: whole.optional(),
      promptDim: whole.optional(),
      maskChannels: whole.optional(),
      encoder: encoder.optional(),
      decoder: decoder.partial().optional(),
    })
    .prefault({}),
  /** Parts whose weights stay as they are, for fine-tuning: a frozen image encoder needs neither gradients nor their memory. */
  freeze: z.array(z.enum(PARTS)).default([]),
  init: z
    .strictObject({
      /** Spread of the positional frequencies in cycles over half the image: 1 in SAM; lower is smoother and learned faster at a small size. */
      frequency: z.number().positive().default(1),
      /** Cross attentions start with equal query and key projections times this, so that tokens look at their own place; 0: independent, as SAM. */
      sharpness: amount.default(0),
    })
    .prefault({}),
  data: z
    .strictObject({
      /** Share of the images that are procedural scenes; the rest are photographs. */
      scenes: share.default(1),
      sceneSeed: z.number().int().min(0).max(0xffffffff).default(1),
      annotations: z.string().default(""),
      images: z.string().default(""),
      boxNoise: amount.default(0.05),
      smallestCrop: z.number().positive().max(1).default(0.5),
    })
    .prefault({}),
  optim: z
    .strictObject({
      lr: z.number().positive().default(1e-3),
      weightDecay: amount.default(0.01),
      warmup: z.number().int().min(0).default(30),
      /** Largest norm of all gradients together; 0: no limit. */
      clip: amount.default(1),
      /** The learning rate falls along a cosine to this share. */
      floor: share.default(0.01),
    })
    .prefault({}),
  loss: z
    .strictObject({
      focal: amount.default(20),
      bce: amount.default(0),
      dice: amount.default(1),
      iou: amount.default(1),
    })
    .prefault({}),
  eval: z
    .strictObject({
      /** Unseen scenes: their seed and number. */
      sceneSeed: z.number().int().min(0).max(0xffffffff).default(990001),
      scenes: z.number().int().min(0).default(64),
      annotations: z.string().default(""),
      images: z.string().default(""),
      limit: z.number().int().min(0).default(0),
      every: z.number().int().min(0).default(0),
    })
    .prefault({}),
  log: whole.default(20),
  save: whole.default(200),
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
