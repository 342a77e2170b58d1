/**
 * The models: SAM, Mask2Former and WISH on the engine. Images in, predictions out; losses, data and files belong to train/ and cli/.
 * Parameter names are those of the reference checkpoints.
 */
export {
  Backbone,
  type FeatureName,
  type Features,
  IMAGENET_PIXELS,
  type OutputStride,
  type PixelOptions,
} from "./backbone.ts";
export { type BlockMemory, keepingBlocks } from "./blocks.ts";
export {
  type BackboneConfig,
  type PromptMode,
  type WishConfig,
  type WishOverrides,
  wishMini,
  wishMobileNetV2,
  wishResNet18,
  wishResNet34,
  wishResNet50,
  wishResNet101,
  wishSwinB,
  wishSwinL,
  wishSwinS,
  wishSwinT,
} from "./config.ts";
export { loadBackbone } from "./load-backbone.ts";
export { attentionLogits, type Masks, maskLogits, type Prediction } from "./mask2former/decoder.ts";
export { loadMask2Former, mask2FormerConfig } from "./mask2former/load.ts";
export { isMask2Former, mask2FormerNames } from "./mask2former/names.ts";
export { MobileNetV2 } from "./mobilenet.ts";
export { type GroupOptions, type ParameterGroup, parameterGroups } from "./parameters.ts";
export {
  type Instance,
  instancesOf,
  type LatentDecoder,
  type PredictOptions,
  predict,
  predictWithSam,
  type SamPredictOptions,
} from "./predict.ts";
export { miniNet, ResNet, resNet } from "./resnet.ts";
export * from "./sam/index.ts";
export { type SwinSizes, SwinTransformer } from "./swin.ts";
export { type PromptKind, promptSlots, promptTarget, Wish, type WishOutput } from "./wish.ts";
