/** What other layers, and users of the library, may use of the engine. */
export { Device, type DeviceOptions } from "./device.ts";
export * as F from "./functional.ts";
export { type Platform, platform, setPlatform } from "./platform.ts";
export { Random, type RandomState } from "./random.ts";
export { scope } from "./scope.ts";
export type { Shape } from "./shape.ts";
export { backward, checkpoint, detach, isRecording, noGrad } from "./tape.ts";
export type { DType, HostArray, HostData, Tensor, TensorOptions } from "./tensor.ts";
