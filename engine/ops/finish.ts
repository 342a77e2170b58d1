/** The residual and the activation that convolution and linear layers add to their product in the same kernel. */
import { checkFloats, checkTensors } from "../check.ts";
import type { Finish } from "../epilogue.ts";
import { pointwise } from "../fusion.ts";
import { type Shape, sameShape, show } from "../shape.ts";
import { isRecording, record } from "../tape.ts";
import type { Tensor } from "../tensor.ts";
import { ACTIVATION_NAMES, type ActivationName, activate, activationRow, add } from "./pointwise.ts";

export interface FinishOptions {
  /** Added to the product, of the result's shape. */
  residual?: Tensor | undefined;
  /** Applied last. */
  activation?: ActivationName | undefined;
}

export const FINISH_OPTIONS = { residual: "tensor", activation: ACTIVATION_NAMES } as const;

/**
 * activation(product + residual). One kernel, unless the gradient of the activation needs the sum itself, which must then be kept.
 * @param compute the product as `Finish` ends it; @param gradients of x, weight and bias, from the sum's
 */
export function finished(
  op: string,
  inputs: { x: Tensor; weight: Tensor; bias: Tensor | undefined },
  shape: Shape,
  { residual, activation }: FinishOptions,
  compute: (finish: Finish) => Tensor,
  gradients: (g: Tensor) => (Tensor | null)[],
): Tensor {
  const { x, weight, bias } = inputs;
  if (residual) {
    checkTensors(op, { x, residual }, ["x"]);
    checkFloats(op, { residual });
    if (!sameShape(residual.shape, shape))
      throw new Error(`${op}: residual must be ${show(shape)}, the result's shape; got ${show(residual.shape)}`);
  }
  const from = bias ? [x, weight, bias] : [x, weight];
  const row = activation && activationRow(activation);
  const own = (g: Tensor): (Tensor | null)[] => gradients(g).slice(0, from.length);
  const kept = [...from, ...(residual ? [residual] : [])];
  if (activation && row!.gradient === undefined && isRecording() && kept.some((t) => t.requiresGrad)) {
    const product = record(op, from, compute({ bias }), own);
    return activate(activation, residual ? add(product, residual) : product);
  }
  const y = compute({ bias, rest: residual, activation: row });
  return record(op, kept, y, (gy) => {
    const expression = row?.gradient;
    const g = expression
      ? pointwise({ name: `${activation}/grad`, expression, dtype: "f32" }, { a: y, g: gy }, shape)
      : gy;
    return residual ? [...own(g), residual.requiresGrad ? g : null] : own(g);
  });
}
