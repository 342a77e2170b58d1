export { type Comparison, compareTensors, describe, type ModelKind, type NamedTensors, nameTensors } from "./names.ts";
export type { Parts } from "./parts.ts";
export { type Checkpoint, checkpointParts, readCheckpoint } from "./read.ts";
export { CheckpointError, type HostTensor } from "./tensors.ts";
