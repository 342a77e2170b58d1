// Which parameters learn how fast (Mask2Former's train_net.py, build_optimizer).
import { nn, type Tensor } from "../engine/index.ts";

/** What learns at a rate of its own. */
export type ModelPart = "backbone" | "cam" | "decoders";

export interface ParameterGroup {
  part: ModelPart;
  params: Tensor[];
  /** Their keys, in the same order. */
  names: string[];
  lr: number;
  weightDecay: number;
}

export interface GroupOptions {
  lr: number;
  weightDecay: number;
  /** Factor on the learning rate of `backbone.*` (0.1 in the reference, for pre-trained weights; 1 from scratch). */
  backboneMultiplier?: number;
  /** Factor on the learning rate of the CAM head (1; IRN lets its new classifier learn ten times as fast as the features below it). */
  camMultiplier?: number;
  /** Weight decay of norm layers (0). */
  normWeightDecay?: number;
  /** Weight decay of nn.Embedding: queries, their positions, the decoder's level embedding; and of Swin's relative positions (0). */
  embeddingWeightDecay?: number;
}

/**
 * Parameters in groups by part of the model and by kind of decay, whatever the rates are: the same groups for every setting, so that an
 * optimizer's saved state fits after a change of rates. Biases decay like weights; so does the pixel decoder's level_embed, which in the
 * reference is a plain parameter and no Embedding. Frozen parameters are left out.
 */
export function parameterGroups(model: nn.Module, options: GroupOptions): ParameterGroup[] {
  const { lr, weightDecay, backboneMultiplier = 0.1, camMultiplier = 1 } = options;
  const { normWeightDecay = 0, embeddingWeightDecay = 0 } = options;
  const rates: Record<ModelPart, number> = { backbone: lr * backboneMultiplier, cam: lr * camMultiplier, decoders: lr };
  const decays = { norm: normWeightDecay, embedding: embeddingWeightDecay, other: weightDecay };
  const kinds = new Map<Tensor, keyof typeof decays>();
  for (const module of model.modules()) {
    const kind = isNorm(module) ? "norm" : module instanceof nn.Embedding ? "embedding" : undefined;
    // A norm has no modules below it, so that these are its own parameters.
    if (kind) for (const parameter of module.parameters()) kinds.set(parameter, kind);
  }
  const groups = new Map<string, ParameterGroup>();
  for (const [name, parameter] of model.namedParameters()) {
    if (!parameter.requiresGrad) continue;
    const part = name.startsWith("backbone.") ? "backbone" : name.startsWith("cam_head.") ? "cam" : "decoders";
    const kind = kinds.get(parameter) ?? (name.endsWith(".relative_position_bias_table") ? "embedding" : "other");
    const key = `${part} ${kind}`;
    const group = groups.get(key) ?? { part, params: [], names: [], lr: rates[part], weightDecay: decays[kind] };
    groups.set(key, group);
    group.params.push(parameter);
    group.names.push(name);
  }
  return [...groups.values()];
}

function isNorm(module: nn.Module): boolean {
  return (
    module instanceof nn.LayerNorm ||
    module instanceof nn.LayerNorm2d ||
    module instanceof nn.GroupNorm ||
    module instanceof nn.BatchNorm2d
  );
}
