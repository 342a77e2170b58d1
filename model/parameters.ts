// Which parameters learn how fast (Mask2Former's train_net.py, build_optimizer), and weights of pre-trained backbones.
import { nn, type Tensor } from "../engine/index.ts";
import type { Backbone } from "./backbone.ts";
import { resNetNames } from "./mask2former/names.ts";
import { MobileNetV2 } from "./mobilenet.ts";

export interface ParameterGroup {
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
  /** Weight decay of norm layers (0). */
  normWeightDecay?: number;
  /** Weight decay of nn.Embedding: queries, their positions, the decoder's level embedding (0). */
  embeddingWeightDecay?: number;
}

/**
 * Parameters in groups of equal settings. Biases decay like weights; so does the pixel decoder's level_embed, which in the reference is a
 * plain parameter and no Embedding. Frozen parameters are left out.
 */
export function parameterGroups(model: nn.Module, options: GroupOptions): ParameterGroup[] {
  const { lr, weightDecay, backboneMultiplier = 0.1, normWeightDecay = 0, embeddingWeightDecay = 0 } = options;
  const decay = new Map<Tensor, number>();
  for (const module of model.modules()) {
    const special = isNorm(module)
      ? normWeightDecay
      : module instanceof nn.Embedding
        ? embeddingWeightDecay
        : undefined;
    // A norm has no modules below it, so that these are its own parameters.
    if (special !== undefined) for (const parameter of module.parameters()) decay.set(parameter, special);
  }
  const groups = new Map<string, ParameterGroup>();
  for (const [name, parameter] of model.namedParameters()) {
    if (!parameter.requiresGrad) continue;
    const rate = name.startsWith("backbone.") ? lr * backboneMultiplier : lr;
    const wd = decay.get(parameter) ?? weightDecay;
    const key = `${rate} ${wd}`;
    const group = groups.get(key) ?? { params: [], names: [], lr: rate, weightDecay: wd };
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

/**
 * Loads pre-trained weights into a backbone: detectron2's or torchvision's (timm's) names for ResNet, numbered layers for MobileNetV2;
 * a prefix `backbone.` and classifiers are left out. Throws the list of what is missing, unexpected or misshaped.
 */
export function loadBackbone(backbone: Backbone, state: ReadonlyMap<string, Tensor>): void {
  const plain = new Map([...state].map(([key, tensor]) => [key.replace(/^backbone\./, ""), tensor]));
  const renamed = backbone instanceof MobileNetV2 ? withoutClassifier(plain) : resNetNames(plain);
  backbone.loadStateDict(renamed);
}

/** MobileNetV2's layers 51 (1,280 channels) and 52 (classes) serve the classifier alone. */
function withoutClassifier(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  return new Map([...state].filter(([key]) => !/^5[12]\./.test(key)));
}
