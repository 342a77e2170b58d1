/**
 * Parameter trees. A module's tensors, modules, arrays and plain objects of them are registered by their property names, and those names
 * are the reference checkpoint's keys: `blocks.0.attn.qkv.weight` is `this.blocks[0].attn.qkv.weight`.
 */
import { checkOptions, isPlain } from "../check.ts";
import { stridedWrite } from "../ops/strided.ts";
import { isTensor } from "../scope.ts";
import { sameShape, show, stridesOf } from "../shape.ts";
import type { Tensor } from "../tensor.ts";

const parameters = new WeakSet<Tensor>();

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

  stateDict(): Map<string, Tensor> {
    return new Map(this.namedTensors());
  }

  /**
   * Copies tensors into this module by name. Throws a list of what is missing, unexpected or misshaped; with `strict: false` only a shape
   * that does not fit is an error, and the rest is reported.
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
    for (const [k, x] of own) {
      const from = state.get(k);
      if (!from) continue;
      if (from.dtype !== x.dtype) throw new Error(`loadStateDict: ${k} is ${from.dtype}, the model has ${x.dtype}`);
      stridedWrite(from, x, 0, stridesOf(x.shape));
    }
    return { missing, unexpected };
  }
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
