export { compareTensors, type Comparison, describe, type ModelKind, type NamedTensors, nameTensors } from "./names.ts";
export { type Checkpoint, readCheckpoint } from "./read.ts";
export { CheckpointError, type HostTensor } from "./tensors.ts";
