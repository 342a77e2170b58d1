export { type Comparison, compareTensors, describe, type ModelKind, type NamedTensors, nameTensors } from "./names.ts";
export { type Checkpoint, readCheckpoint } from "./read.ts";
export { CheckpointError, type HostTensor } from "./tensors.ts";
