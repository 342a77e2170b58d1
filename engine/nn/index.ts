export * as init from "./init.ts";
export { BatchNorm2d, type ConvOptions, Conv2d, ConvTranspose2d, Embedding, GroupNorm, LayerNorm, LayerNorm2d, Linear } from "./layers.ts";
export { isParameter, type LoadReport, Module, parameter } from "./module.ts";
