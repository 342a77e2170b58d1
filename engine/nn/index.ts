export * as init from "./init.ts";
export {
  BatchNorm2d,
  Conv2d,
  type ConvOptions,
  ConvTranspose2d,
  Embedding,
  GroupNorm,
  LayerNorm,
  LayerNorm2d,
  Linear,
} from "./layers.ts";
export { isParameter, type LoadReport, Module, parameter } from "./module.ts";
