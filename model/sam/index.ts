export * from "./config.ts";
export {
  checkSamEncoder,
  isSamEncoder,
  type LoadOptions,
  loadSam,
  loadSamTensors,
  readSam,
  type SamCheckpoint,
  type SamSource,
} from "./load.ts";
export type { DecodedMasks } from "./mask-decoder.ts";
export { bindingExcess, type LargeTensor, largestTensor, type PassSizes } from "./memory.ts";
export { bestRated, MASK_THRESHOLD, maskOfLogits } from "./postprocess.ts";
export {
  longestSide,
  type PreparedImage,
  prepareImage,
  type RgbImage,
  resizeBilinear,
  type Size,
} from "./preprocess.ts";
export type { EncodedPrompts, PointPrompts, Prompts } from "./prompt-encoder.ts";
export { type ImagePrompts, type PromptedMasks, Sam, SamPredictor } from "./sam.ts";
export { samShapes } from "./shapes.ts";
