/**
 * What the kernels of products do to a number before they write it: an activation out of the table of pointwise operations stands in the
 * place of the identity that the shader has there, so that the sum is neither stored nor read again.
 */
import { defineSource } from "./kernel.ts";
import { platform } from "./platform.ts";
import type { Tensor } from "./tensor.ts";

/** A row of one operand, `a`. */
export interface Activation {
  name: string;
  expression: string;
}

/** What follows a product: activation(product + bias + rest). `rest` has the shape of the result. */
export interface Finish {
  bias?: Tensor | undefined;
  rest?: Tensor | undefined;
  activation?: Activation | undefined;
}

/** The name of `shader` with `activation` in it. */
export function finishing(shader: string, activation: Activation | undefined): string {
  if (!activation) return shader;
  const name = `${shader}+${activation.name}`;
  defineSource(name, () => {
    const functions = platform()
      .shader("pointwise")
      .match(/\/\/ <functions>\n([\s\S]*?)\/\/ <\/functions>/)![1]!;
    const value = activation.expression.replace(/\ba\b/g, "v");
    return `${platform()
      .shader(shader)
      .replace(/\/\/ <finish>[\s\S]*?\/\/ <\/finish>/, `return ${value};`)}\n${functions}`;
  });
  return name;
}
