/**
 * Parameter trees. A module's tensors, modules, arrays and plain objects of them are registered by their property names, and those names
 * are the reference checkpoint's keys: `blocks.0.attn.qkv.weight` is `this.blocks[0].attn.qkv.weight`.
 */
import { checkOptions, describe, isPlain } from "../check.ts";
import { narrow, narrowed, stridedWrite, widen } from "../ops/strided.ts";
import { free, isTensor, keep, scope } from "../scope.ts";
import { sameShape, show, stridesOf } from "../shape.ts";
import type { DType, Tensor } from "../tensor.ts";

const parameters = new WeakSet<Tensor>();
/** Types that `Module.to` takes. */
const FLOATS: readonly DType[] = ["f32", "f16"];

/** Marks a tensor as trainable: optimizers and `freeze` see it. Other tensors of a module are buffers. */
export function parameter(x: Tensor): Tensor {
  parameters.add(x);
  x.requiresGrad = true;
  return x;
}

export function isParameter(x: Tensor): boolean {
  return parameters.has(x);
}

export interface LoadReport {
  missing: string[];
  unexpected: string[];
}

export abstract class Module {
  training = true;

  *#children(): Generator<[string, unknown]> {
    for (const key of Object.keys(this)) yield [key, this[key as keyof this]];
  }

  /** Every tensor under its dotted path, parameters and buffers alike. */
  *namedTensors(prefix = ""): Generator<[string, Tensor]> {
    for (const [key, value] of this.#children()) yield* tensorsIn(prefix + key, value);
  }

  *namedParameters(prefix = ""): Generator<[string, Tensor]> {
    for (const [name, x] of this.namedTensors(prefix)) if (parameters.has(x)) yield [name, x];
  }

  parameters(): Tensor[] {
    return [...this.namedParameters()].map(([, x]) => x);
  }

  *modules(): Generator<Module> {
    yield this;
    for (const [, value] of this.#children()) yield* modulesIn(value);
  }

  /** Sets training mode here and below: dropout and batch statistics. */
  train(on = true): this {
    for (const m of this.modules()) m.training = on;
    return this;
  }

  eval(): this {
    return this.train(false);
  }

  /** Stops (or lets) every parameter here and below collect gradients. */
  freeze(on = true): this {
    for (const x of this.parameters()) x.requiresGrad = !on;
    return this;
  }

  /** Those of its own tensors, by property name, that only products read, which take f16. */
  protected get weights(): readonly string[] {
    return [];
  }

  /**
   * Stores the weights of Linear, Conv2d and ConvTranspose2d here and below as f16, in half the memory, or as f32 again. All else stays f32:
   * biases, norms, embeddings and what passes through. Weights are new tensors then and the old ones freed: optimizers, which take f32 alone,
   * are made afterwards.
   */
  to(dtype: "f16" | "f32"): this {
    if (!FLOATS.includes(dtype)) throw new Error(`to: dtype must be "f16" or "f32"; got ${describe(dtype)}`);
    const made = new Map<Tensor, Tensor>(); // A weight that two modules share stays shared.
    for (const m of this.modules()) {
      const own = m as unknown as Record<string, Tensor>;
      for (const name of m.weights) {
        const x = own[name]!;
        if (x.dtype === dtype) continue;
        let y = made.get(x);
        if (!y) made.set(x, (y = converted(x, dtype)));
        own[name] = y;
      }
    }
    for (const x of made.keys()) free(x);
    return this;
  }

  stateDict(): Map<string, Tensor> {
    return new Map(this.namedTensors());
  }

  /**
   * Copies tensors into this module by name. Throws a list of what is missing, unexpected or misshaped; with `strict: false` only a shape
   * that does not fit is an error, and the rest is reported. Between f32 and f16 numbers become what the module has; other types must agree.
   */
  loadStateDict(state: ReadonlyMap<string, Tensor>, options: { strict?: boolean } = {}): LoadReport {
    checkOptions("loadStateDict", options, { strict: "boolean" });
    const own = this.stateDict();
    const missing = [...own.keys()].filter((k) => !state.has(k));
    const unexpected = [...state.keys()].filter((k) => !own.has(k));
    const wrong = [...own].filter(([k, x]) => state.has(k) && !sameShape(state.get(k)!.shape, x.shape));
    const faults: string[] = [];
    const list = (keys: string[]): string =>
      keys.slice(0, 8).join(", ") + (keys.length > 8 ? ` and ${keys.length - 8} more` : "");
    if (wrong.length > 0)
      faults.push(
        `shapes differ: ${list(wrong.map(([k, x]) => `${k} is ${show(state.get(k)!.shape)}, the model has ${show(x.shape)}`))}`,
      );
    if (options.strict !== false && missing.length > 0) faults.push(`missing: ${list(missing)}`);
    if (options.strict !== false && unexpected.length > 0) faults.push(`unexpected: ${list(unexpected)}`);
    if (faults.length > 0) throw new Error(`loadStateDict: ${faults.join("; ")}`);
    const fits = (a: DType, b: DType): boolean => a === b || (FLOATS.includes(a) && FLOATS.includes(b));
    for (const [k, x] of own) {
      const from = state.get(k) ?? x;
      if (!fits(from.dtype, x.dtype)) throw new Error(`loadStateDict: ${k} is ${from.dtype}, the model has ${x.dtype}`);
    }
    for (const [k, x] of own) {
      const from = state.get(k);
      if (!from || from.memory === x.memory) continue;
      scope(() => {
        const full = widen(from);
        if (x.dtype === "f16") narrow(full, x);
        else stridedWrite(full, x, 0, stridesOf(x.shape));
      });
    }
    return { missing, unexpected };
  }
}

/** A parameter or buffer as x is, with x's numbers in another type. */
function converted(x: Tensor, dtype: DType): Tensor {
  const y = dtype === "f16" ? narrowed(x) : widen(x);
  keep(y, x);
  y.requiresGrad = x.requiresGrad;
  if (parameters.has(x)) parameters.add(y);
  return y;
}

function* tensorsIn(path: string, value: unknown): Generator<[string, Tensor]> {
  if (isTensor(value)) yield [path, value];
  else if (value instanceof Module) yield* value.namedTensors(`${path}.`);
  else if (Array.isArray(value)) for (const [i, item] of value.entries()) yield* tensorsIn(`${path}.${i}`, item);
  else if (isPlain(value)) for (const [key, item] of Object.entries(value)) yield* tensorsIn(`${path}.${key}`, item);
}

function* modulesIn(value: unknown): Generator<Module> {
  if (value instanceof Module) yield* value.modules();
  else if (Array.isArray(value)) for (const item of value) yield* modulesIn(item);
  else if (isPlain(value)) for (const item of Object.values(value)) yield* modulesIn(item);
}
