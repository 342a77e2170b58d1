/**
 * Mixed precision. Within `autocast` products round what they multiply to f16, in the backward pass too, and sum in f32: half the memory for
 * what they keep, half the traffic, and matrix units where the adapter has them. All else, parameters included, stays f32.
 */
import { checkOptions, describe } from "./check.ts";
import { Mode } from "./mode.ts";
import { narrowed, widen } from "./ops/strided.ts";
import { scope } from "./scope.ts";
import type { Tensor } from "./tensor.ts";

const casting = new Mode(false);

export const isAutocasting = (): boolean => casting.value;

/**
 * torch.autocast for half precision: while `fn` runs, F.matmul, F.linear, F.conv2d and F.convTranspose2d multiply in f16. Their results and
 * gradients are f32. Gradients below 6e-8 vanish in f16: see optim.GradScaler. Works for async functions too, which must not interleave.
 */
export function autocast<T>(fn: () => T, options: { enabled?: boolean } = {}): T {
  if (typeof fn !== "function") throw new Error(`autocast: a function is wanted; got ${describe(fn)}`);
  checkOptions("autocast", options, { enabled: "boolean" });
  return casting.during(options.enabled ?? true, fn);
}

/** What an operation does to its operands, now and in its gradient: rounds them to f16 within `autocast`. */
export function rounding(): (x: Tensor) => Tensor {
  return casting.value ? rounded : (x) => x;
}

function rounded(x: Tensor): Tensor {
  return x.dtype === "f32" ? narrowed(x) : x;
}

/** For kernels that read f32 alone: `work` on x in f32, of which nothing stays behind. */
export function widened(tensors: readonly Tensor[], work: (...full: Tensor[]) => Tensor): Tensor {
  return tensors.every((x) => x.dtype !== "f16") ? work(...tensors) : scope(() => work(...tensors.map(widen)));
}
