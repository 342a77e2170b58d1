/** config.json, which transformers writes beside weights: what tensors do not show. */
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { readJson } from "./data/json.ts";
import { BadInput } from "./errors.ts";

export const CONFIG_FILE = "config.json";

/** Weights that were read, and the file that was named. */
interface Weights {
  readonly file: string;
  readonly tensors: ReadonlyMap<string, unknown>;
}

/** Names that only transformers' SamModel and Mask2Formers have: beside weights of other names the file is somebody else's. */
const HUB_KEY = /(^|\.)(vision_encoder|pixel_level_module|transformer_module)\./;

type Json = { readonly [key: string]: unknown };

/** The published models': the one makes no difference to the other that would be seen. */
const EPSILONS = [1e-5, 1e-6];

/** What there is one way to compute here, by its place in config.json: the value, or the first of those that come to the same. */
const SAM_SETTINGS = {
  "vision_config.hidden_act": "gelu",
  "vision_config.layer_norm_eps": EPSILONS,
  "prompt_encoder_config.hidden_act": "gelu",
  "prompt_encoder_config.layer_norm_eps": EPSILONS,
  "mask_decoder_config.hidden_act": "relu",
  "mask_decoder_config.layer_norm_eps": EPSILONS,
};
const MASK2FORMER_SETTINGS = {
  activation_function: "relu",
  pre_norm: false,
  common_stride: 4,
};
const BACKBONE_ACTIVATION = { resnet: "relu", swin: "gelu" } as const;

/** Of a SamModel: its decoder's heads, undefined where nothing is said. Throws BadInput where it computes otherwise than SAM does. */
export function samHeadsBeside(weights: Weights): number | undefined {
  const config = configBeside(weights);
  if (!config) return undefined;
  checkSettings(config, SAM_SETTINGS);
  const at = "mask_decoder_config.num_attention_heads";
  const heads = config.at(at);
  if (heads === undefined || (Number.isSafeInteger(heads) && (heads as number) > 0)) return heads as number | undefined;
  throw new BadInput(`${config.path}: ${at} must be a whole number from 1; got ${JSON.stringify(heads)}`);
}

/** Of a Mask2Former. Throws BadInput where it computes otherwise than the published ones do. */
export function checkMask2FormerBeside(weights: Weights): void {
  const config = configBeside(weights);
  if (!config) return;
  const kind = config.at("backbone_config.model_type");
  const activation = BACKBONE_ACTIVATION[kind as keyof typeof BACKBONE_ACTIVATION];
  checkSettings(config, {
    ...MASK2FORMER_SETTINGS,
    ...(activation && { "backbone_config.hidden_act": activation }),
    ...(kind === "swin" && { "backbone_config.layer_norm_eps": EPSILONS }),
    ...(kind === "resnet" && {
      "backbone_config.downsample_in_bottleneck": false,
      "backbone_config.downsample_in_first_stage": false,
    }),
  });
}

/** id2label, where it names each of these classes and is not the placeholder LABEL_0 …. */
export function labelsBeside(weights: Weights, classes: number): string[] | undefined {
  const id2label = configBeside(weights)?.at("id2label") as Json | undefined;
  const names = Array.from({ length: classes }, (_, i) => id2label?.[i]);
  const given = names.filter((name): name is string => typeof name === "string" && !/^(LABEL_\d+|\s*)$/.test(name));
  return given.length === classes && Object.keys(id2label!).length === classes ? given : undefined;
}

interface HubConfig {
  readonly path: string;
  /** What stands at keys joined by dots. */
  at(place: string): unknown;
}

function configBeside({ file, tensors }: Weights): HubConfig | undefined {
  if (![...tensors.keys()].some((key) => HUB_KEY.test(key))) return undefined;
  const path = join(dirname(file), CONFIG_FILE);
  if (!existsSync(path)) return undefined;
  const root = readJson(path, "the model's configuration");
  return { path, at: (place) => place.split(".").reduce((value, key) => (value as Json | null)?.[key], root) };
}

function checkSettings({ path, at }: HubConfig, wanted: { readonly [place: string]: unknown }): void {
  for (const [place, only] of Object.entries(wanted)) {
    const value = at(place);
    const taken: readonly unknown[] = Array.isArray(only) ? only : [only];
    if (value === undefined || value === null || taken.includes(value)) continue;
    const always = JSON.stringify(taken[0]);
    throw new BadInput(
      `${path}: ${place} is ${JSON.stringify(value)}; here it is always ${always}: this model cannot be built`,
    );
  }
}
