/** The residual and the activation that convolution and linear layers add to their product in the same kernel. */
import { isAutocasting } from "../autocast.ts";
import { checkFloats, checkTensors } from "../check.ts";
import type { Finish } from "../epilogue.ts";
import { pointwise } from "../fusion.ts";
import { scope } from "../scope.ts";
import { type Shape, sameShape, show } from "../shape.ts";
import { checkpoint, isRecording, record } from "../tape.ts";
import type { Tensor } from "../tensor.ts";
import { ACTIVATION_NAMES, type ActivationName, activate, activationRow, add, cast } from "./pointwise.ts";
import { narrowed, widen } from "./strided.ts";

export interface FinishOptions {
  /** Added to the product, of the result's shape; may be f16. */
  residual?: Tensor | undefined;
  /** Applied last. */
  activation?: ActivationName | undefined;
  /** Only products will read the result, or take it for their residual: within `autocast` it is rounded here, once, and stored as f16. */
  forProducts?: boolean | undefined;
}

export const FINISH_OPTIONS = { residual: "tensor", activation: ACTIVATION_NAMES, forProducts: "boolean" } as const;

/** Their gradients ask on which side of a bound the result lies: of the rounded one, as PyTorch's do, which differs next to the bound alone. */
const STEPS: readonly ActivationName[] = ["relu", "relu6"];

/**
 * activation(product + residual). One kernel, unless the gradient of the activation needs the sum itself, which must then be kept.
 * @param compute the product as `Finish` ends it; @param gradients of x, weight and bias, from the sum's;
 * @param saved what they need besides
 */
export function finished(
  op: string,
  inputs: { x: Tensor; weight: Tensor; bias: Tensor | undefined },
  shape: Shape,
  { residual, activation, forProducts }: FinishOptions,
  compute: (finish: Finish) => Tensor,
  gradients: (g: Tensor) => (Tensor | null)[],
  saved: readonly Tensor[],
): Tensor {
  const { x, weight, bias } = inputs;
  if (residual) {
    checkTensors(op, { x, residual }, true);
    checkFloats(op, { residual }, ["residual"]);
    if (!sameShape(residual.shape, shape))
      throw new Error(`${op}: residual must be ${show(shape)}, the result's shape; got ${show(residual.shape)}`);
  }
  const from = bias ? [x, weight, bias] : [x, weight];
  const row = activation && activationRow(activation);
  const own = (g: Tensor): (Tensor | null)[] => gradients(g).slice(0, from.length);
  const kept = [...from, ...(residual ? [residual] : [])];
  const halved = forProducts === true && isAutocasting();
  const needsSum = row !== undefined && (row.gradient === undefined || (halved && !STEPS.includes(activation!)));
  if (activation && needsSum && isRecording() && kept.some((t) => t.requiresGrad)) {
    const product = record(op, from, compute({ bias }), own, saved);
    const all = residual ? add(product, cast(residual, "f32")) : product;
    // In full precision for a moment only: the gradient asks the sum for it once more.
    return halved ? checkpoint((x) => cast(activate(activation, x), "f16"), all) : activate(activation, all);
  }
  const y = stored(halved, residual, (rest) => compute({ bias, rest, activation: row }));
  const gradient = (gy: Tensor): (Tensor | null)[] => {
    const expression = row?.gradient;
    const g = expression
      ? pointwise({ name: `${activation}/grad`, expression, dtype: "f32" }, { a: widen(y), g: gy }, shape)
      : gy;
    return residual ? [...own(g), residual.requiresGrad ? g : null] : own(g);
  };
  return record(op, kept, y, gradient, saved);
}

/** What `compute` makes with the residual in f32, as f16 where that is wanted. */
function stored(halved: boolean, residual: Tensor | undefined, compute: (rest: Tensor | undefined) => Tensor): Tensor {
  if (!halved && residual?.dtype !== "f16") return compute(residual);
  return scope(() => {
    const full = compute(residual && widen(residual));
    return halved ? narrowed(full) : full;
  });
}
