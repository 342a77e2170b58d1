export * from "./config.ts";
export { loadSam, loadSamTensors, readSam, type SamCheckpoint } from "./load.ts";
export type { DecodedMasks } from "./mask-decoder.ts";
export {
  longestSide,
  type PreparedImage,
  prepareImage,
  type RgbImage,
  resizeBilinear,
  type Size,
} from "./preprocess.ts";
export type { EncodedPrompts, PointPrompts, Prompts } from "./prompt-encoder.ts";
export { type ImagePrompts, MASK_THRESHOLD, type PromptedMasks, Sam, SamPredictor } from "./sam.ts";
export { samShapes } from "./shapes.ts";
