export { type Comparison, checkTensors, compareTensors, describeDifference, listKeys } from "./compare.ts";
export type { Family } from "./kinds.ts";
export { type NamedTensors, nameTensors } from "./names.ts";
export { checkOnnx } from "./onnx.ts";
export type { Parts } from "./parts.ts";
export { type Checkpoint, checkpointParts, readCheckpoint } from "./read.ts";
export { CheckpointError, type HostTensor } from "./tensors.ts";
