/**
 * Reverse-mode differentiation. Every recorded operation hangs a node on its output; `backward` walks the nodes from the newest to the
 * oldest and adds up what arrives at each tensor.
 */
import { autocast, isAutocasting } from "./autocast.ts";
import { checkTensors, describe } from "./check.ts";
import { pointwise } from "./fusion.ts";
import { Mode } from "./mode.ts";
import type { RandomState } from "./random.ts";
import { free, isTensor, keep, scope } from "./scope.ts";
import { sameShape, show } from "./shape.ts";
import { alias, empty, fill, type Tensor } from "./tensor.ts";

export type Gradients = readonly (Tensor | null | undefined)[];

export interface Node {
  readonly op: string;
  readonly order: number;
  readonly inputs: readonly Tensor[];
  readonly grad: (gy: Tensor) => Gradients;
  /** How often each input had been written; undefined where it had still to be worked out. */
  readonly versions?: readonly (number | undefined)[];
  /** What the operation made for its gradient alone. */
  readonly saved?: readonly Tensor[];
}

const recording = new Mode(true);
const recomputing = new Mode(false);
let order = 0;

export function isRecording(): boolean {
  return recording.value;
}

/** Within `checkpoint`'s second run, in which what remembers more than its result, such as running statistics, leaves that as it is. */
export function isRecomputing(): boolean {
  return recomputing.value;
}

/**
 * Hangs the gradient of an operation on its output: `grad` maps the gradient of `y` to those of `inputs`, null where there is none.
 * @param saved what `grad` alone will need, freed as soon as it does not; inputs among it stay
 */
export function record(
  op: string,
  inputs: readonly Tensor[],
  y: Tensor,
  grad: (gy: Tensor) => Gradients,
  saved: readonly Tensor[] = [],
): Tensor {
  const own = saved.filter((x) => !inputs.includes(x));
  if (recording.value && inputs.some((x) => x.requiresGrad)) {
    y.requiresGrad = true;
    y.node = { op, order: order++, inputs, grad, versions: inputs.map((x) => x.memory.storage?.version), saved: own };
  } else own.forEach(free);
  return y;
}

/** Runs `fn` without recording. Works for async functions too. */
export function noGrad<T>(fn: () => T): T {
  return recording.during(false, fn);
}

/** Runs `fn` with recording on, also inside `noGrad`. */
export function withGrad<T>(fn: () => T): T {
  return recording.during(true, fn);
}

/** The same values, cut off from the tape. */
export function detach(x: Tensor): Tensor {
  checkTensors("detach", { x }, true);
  return alias(x);
}

/**
 * Adds d loss / d x to `x.grad` of every leaf that requires it. `gy` is the gradient of a `loss` that is not a single number. The tape is
 * used up: a second call needs a second forward pass, and throws without it.
 */
export function backward(loss: Tensor, gy?: Tensor): void {
  checkTensors("backward", gy === undefined ? { loss } : { loss, gy }, ["loss"]);
  if (loss.freed)
    throw new Error(`backward: the loss of shape ${show(loss.shape)} was freed, by free or when its scope ended`);
  if (!loss.requiresGrad) throw new Error("backward: the loss does not depend on any tensor that requires a gradient");
  if (!gy && loss.size !== 1)
    throw new Error(`backward: a loss of shape ${show(loss.shape)} is not one number; pass its gradient`);
  if (gy && !sameShape(gy.shape, loss.shape))
    throw new Error(`backward: the gradient must have the loss's shape ${show(loss.shape)}; got ${show(gy.shape)}`);
  noGrad(() => scope(() => walk(loss, gy ? alias(gy) : fill(empty(loss.device, loss.shape), 1))));
}

const SUM = { name: "sum of gradients", expression: "a + b", dtype: "f32" } as const;

/** a + b. Both are given up. */
function accumulate(a: Tensor, b: Tensor): Tensor {
  const y = pointwise(SUM, { a, b }, a.shape);
  free(a);
  free(b);
  return y;
}

function walk(loss: Tensor, first: Tensor): void {
  const nodes = new Map<Node, Tensor>();
  /** How many operations have still to add to the gradient of each leaf. */
  const awaited = new Map<Tensor, number>();
  const stack = [loss];
  while (stack.length > 0) {
    const y = stack.pop()!;
    if (y.spent)
      throw new Error(
        `backward: an earlier backward went through the tensor of shape ${show(y.shape)} and used up what it came from; run the forward pass again, or add the losses up and call backward once`,
      );
    if (!y.node || nodes.has(y.node)) continue;
    nodes.set(y.node, y);
    for (const [i, x] of y.node.inputs.entries()) {
      if (x.freed) {
        if (!x.requiresGrad) continue;
        throw new Error(
          `backward: ${y.node.op} was made from a tensor of shape ${show(x.shape)} that was freed, by free or when its scope ended; call backward inside that scope`,
        );
      }
      const version = y.node.versions?.[i];
      if (version !== undefined && x.memory.storage?.version !== version)
        throw new Error(
          `backward: ${y.node.op} was made from a tensor of shape ${show(x.shape)} that has been written since (by upload, copy or an optimizer's step); call backward before that, or run the forward pass again`,
        );
      if (!x.requiresGrad) continue;
      if (!x.node) awaited.set(x, (awaited.get(x) ?? 0) + 1);
      stack.push(x);
    }
  }
  const arrived = new Map<Tensor, Tensor>([[loss, first]]);
  const add1 = (x: Tensor, g: Tensor): void => {
    const before = arrived.get(x);
    arrived.set(x, before ? accumulate(before, g) : g);
  };
  // As soon as nothing more arrives: of a second pass's gradients no more than one stands beside the first's.
  const settleLeaves = ({ inputs }: Node): void => {
    for (const x of inputs) {
      const left = (awaited.get(x) ?? 0) - 1;
      awaited.set(x, left);
      const g = left === 0 ? arrived.get(x) : undefined;
      if (!g) continue;
      arrived.delete(x);
      giveTo(x, g);
    }
  };
  for (const [node, y] of [...nodes].sort((a, b) => b[0].order - a[0].order)) {
    const gy = arrived.get(y);
    if (!gy) {
      settleLeaves(node);
      continue;
    }
    arrived.delete(y);
    y.node = undefined;
    y.spent = true;
    // An inner scope frees the closure's temporaries at once; what it passes on is made its own buffer's owner.
    const gradients = scope(() => {
      const seen = new Set<Tensor>([gy]);
      return node.grad(gy).map((g, i) => {
        const x = node.inputs[i]!;
        if (!g || !x.requiresGrad) return null;
        if (!sameShape(g.shape, x.shape))
          throw new Error(`${node.op}: gradient ${i} has shape ${show(g.shape)}, its input has ${show(x.shape)}`);
        // Made before this call (gy itself, or a tensor of the forward pass), or handed to two inputs: share the buffer, not the tensor.
        const fresh = g.id > gy.id && !seen.has(g) && g.scope !== gy.scope;
        seen.add(g);
        return fresh ? g : alias(g);
      });
    });
    free(gy);
    node.saved?.forEach(free);
    gradients.forEach((g, i) => {
      if (g) add1(node.inputs[i]!, g);
    });
    settleLeaves(node);
  }
  for (const [x, g] of arrived) if (!x.node) giveTo(x, g);
}

/** Adds what has arrived at a leaf to its gradient. */
function giveTo(x: Tensor, g: Tensor): void {
  if (x.grad && x.device.recorder && x.grad.id <= x.device.recorder.since)
    throw new Error(
      "record: a replay would not add to the gradients that were there; call zeroGrad in the step, before backward",
    );
  x.grad = keep(x.grad ? accumulate(x.grad, g) : g, x);
  void x.grad.storage; // Worked out now: it would hold the memory of the whole pass.
}

/**
 * Activation checkpointing (torch.utils.checkpoint): runs `fn` without keeping its intermediate values and runs it once more in the
 * backward pass, with the device's random numbers and the precision of the first time. `fn` must be a pure function of the inputs and of
 * parameters; running statistics of norms move the first time alone. The result always requires a gradient: which parameters `fn` uses is
 * not known before.
 */
export function checkpoint(fn: (...inputs: Tensor[]) => Tensor, ...inputs: Tensor[]): Tensor {
  if (typeof fn !== "function") throw new Error(`checkpoint: the function comes first; got ${describe(fn)}`);
  checkTensors("checkpoint", Object.fromEntries(inputs.map((x, i) => [`input ${i}`, x])), true);
  const device = inputs[0]?.device;
  if (!device) throw new Error("checkpoint: the function's inputs follow it, at least one tensor");
  const enabled = isAutocasting();
  let state: RandomState | undefined;
  device.host(() => {
    state = device.random.state;
  });
  const made = scope(() => noGrad(() => fn(...inputs)));
  if (!isTensor(made)) throw new Error(`checkpoint: the function must return one tensor; got ${describe(made)}`);
  if (!recording.value) return made;
  // What is handed through, an input or a parameter, keeps its own place on the tape.
  const y = alias(made);
  y.requiresGrad = true;
  y.node = {
    op: "checkpoint",
    order: order++,
    inputs,
    grad: (gy) => {
      const leaves = inputs.map((x) => {
        const leaf = alias(x);
        leaf.requiresGrad = x.requiresGrad;
        return leaf;
      });
      let now: RandomState | undefined;
      device.host(() => {
        now = device.random.state;
        device.random.restore(state!);
      });
      let again: Tensor;
      try {
        again = recomputing.during(true, () => autocast(() => withGrad(() => fn(...leaves)), { enabled }));
      } finally {
        device.host(() => device.random.restore(now!));
      }
      // Parameters that fn uses collect their gradients here; those of the inputs travel on.
      if (again.requiresGrad) backward(again, gy);
      return leaves.map((leaf) => leaf.grad ?? null);
    },
  };
  return y;
}
