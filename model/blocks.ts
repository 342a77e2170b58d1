// What the backward pass keeps of a network's blocks: all that happened inside, or only what went in (Chen et al. 2016, activation
// checkpointing), in full or half precision. The models say where a block begins and ends, the training loop how it is kept.
import { checkpoint, F, isRecording, scope, type Tensor } from "../engine/index.ts";

export interface BlockMemory {
  /** Keep a block's input alone and compute the block once more in the backward pass: a third more work, for a fraction of the memory. */
  checkpoint: boolean;
  /** Type in which these inputs are stored. */
  activations: "f32" | "f16";
}

const ALL: BlockMemory = { checkpoint: false, activations: "f32" };
let memory = ALL;

/** Runs `fn`, a forward pass, with its blocks kept as told. */
export function keepingBlocks<T>(how: BlockMemory, fn: () => T): T {
  const before = memory;
  memory = how;
  try {
    return fn();
  } finally {
    memory = before;
  }
}

/** fn(inputs), computed once more in the backward pass where blocks are. Inputs that need a gradient and are no parameters must be among `inputs`. */
export function recomputed<I extends Tensor[]>(fn: (...inputs: I) => Tensor, ...inputs: I): Tensor {
  if (!isRecording()) return scope(() => fn(...inputs)); // Without a backward pass nothing inside is needed any more.
  return memory.checkpoint ? checkpoint(fn as (...inputs: Tensor[]) => Tensor, ...inputs) : fn(...inputs);
}

/**
 * The same for a block in a row of blocks, whose input and result are large. The result is stored as `activations` says: `unblocked` gives
 * it to all but another block.
 */
export function block<I extends Tensor[]>(fn: (x: Tensor, ...others: I) => Tensor, x: Tensor, ...others: I): Tensor {
  if (!memory.checkpoint || !isRecording()) return isRecording() ? fn(x, ...others) : scope(() => fn(x, ...others));
  const whole = (input: Tensor, ...rest: I): Tensor => fn(unblocked(input), ...rest);
  const halved = (...inputs: [Tensor, ...I]): Tensor => F.cast(whole(...inputs), "f16");
  return recomputed<[Tensor, ...I]>(memory.activations === "f16" ? halved : whole, x, ...others);
}

/** A block's result in f32. */
export function unblocked(x: Tensor): Tensor {
  return F.cast(x, "f32");
}
