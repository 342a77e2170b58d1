/** What other layers, and users of the library, may use of the engine. */
export { autocast } from "./autocast.ts";
export { Device, type DeviceOptions } from "./device.ts";
export * as F from "./functional.ts";
export { type CheckResult, gradcheck } from "./gradcheck.ts";
export { firstBeyondHalf, halfBits, halfValue } from "./half.ts";
export * as nn from "./nn/index.ts";
export * as optim from "./optim.ts";
export { type Platform, platform, setPlatform } from "./platform.ts";
export { TooLarge } from "./pool.ts";
export type { KernelTime } from "./profiler.ts";
export { Random, type RandomState } from "./random.ts";
export { type Peaks, rates, timeTable } from "./rates.ts";
export type { Recording } from "./recording.ts";
export {
  encode,
  encodeSafetensors,
  type FileTensor,
  type FileType,
  fileNumbers,
  fileTensor,
  load,
  parseSafetensors,
  type SafetensorsFile,
  save,
} from "./safetensors.ts";
export { free, isTensor, keep, scope } from "./scope.ts";
export type { Shape } from "./shape.ts";
export { backward, checkpoint, detach, isRecording, noGrad } from "./tape.ts";
export { type DType, type HostArray, type HostData, settle, type Tensor, type TensorOptions } from "./tensor.ts";
export { type Measured, tune } from "./tuner.ts";
