/** Optimizers. Their state belongs to no scope: a training step may be one scope. */
import { checkFloats, checkOptions, describe } from "./check.ts";
import { linearGroups, run } from "./kernel.ts";
import { stridedRead } from "./ops/strided.ts";
import { PACK_BLOCK, Pack } from "./pack.ts";
import { free, isTensor, keep, scope } from "./scope.ts";
import { sameShape, show, stridesOf } from "./shape.ts";
import { empty, fill, type Tensor } from "./tensor.ts";

export { clipGradNorm } from "./clip.ts";
export { GradScaler, type GradScalerOptions, type ScalerState } from "./scaler.ts";

export interface ParamGroup {
  params: Iterable<Tensor>;
  /** Step size; may be set anew before each step. Default 1e-3. */
  lr?: number;
  /** AdamW: decoupled weight decay, default 0.01. SGD: weight of the L2 penalty's gradient, default 0. */
  weightDecay?: number;
  /** Any name, for schedules that treat groups apart. */
  name?: string;
}

interface Group {
  params: Tensor[];
  lr: number;
  weightDecay: number;
  name: string;
}

/** A kernel's uniforms but for `n`, which is the number of elements. */
type Uniforms = Record<string, number>;

/**
 * What optimizers share: groups of parameters, running means beside each of them, and that small parameters are gathered and stepped
 * together. Parameters without a gradient are left as they are.
 */
abstract class Optimizer {
  readonly groups: Group[];
  /** Steps taken. */
  steps = 0;
  readonly #name: string;
  /** Names of the running means. */
  readonly #kept: readonly string[];
  readonly #large: readonly Tensor[];
  readonly #pack: Pack | undefined;
  readonly #means = new Map<Tensor | Pack, Record<string, Tensor>>();

  constructor(name: string, kept: readonly string[], groups: Iterable<ParamGroup>, weightDecay: number) {
    if (isTensor(groups) || typeof groups?.[Symbol.iterator] !== "function")
      throw new Error(`${name}: groups come as an array, [{ params: [x, y], lr: 1e-3 }]; got ${describe(groups)}`);
    this.#name = name;
    this.#kept = kept;
    this.groups = [...groups].map((g, i) => ({
      params: parametersOf(name, g),
      lr: checkNumber(name, "lr", g.lr ?? 1e-3),
      weightDecay: checkNumber(name, "weightDecay", g.weightDecay ?? weightDecay),
      name: g.name ?? String(i),
    }));
    const all = this.groups.flatMap((g) => g.params);
    if (new Set(all).size !== all.length)
      throw new Error(`${name}: a parameter stands in two groups; each may stand in one`);
    const { small, large } = Pack.split(all);
    this.#large = large;
    if (small.length > 0) this.#pack = new Pack(small);
  }

  /** Shader and uniforms of step `this.steps`; each of its entries `step` and `step_pack` binds x, g and the running means. */
  protected abstract kernel(): { shader: string; uniforms: Uniforms };
  /** Two numbers a group, for the kernel. */
  protected abstract rates(group: Group): [number, number];

  step(): void {
    for (const group of this.groups) for (const [i, x] of group.params.entries()) this.#checkAlive(x, i, group.name);
    // What changes from step to step is asked for by functions, for steps that are recorded and replayed.
    const count = (): void => {
      this.steps++;
    };
    const any = this.groups.flatMap((g) => g.params)[0];
    if (any) any.device.host(count);
    else count();
    for (const x of this.groups.flatMap((g) => g.params))
      if (x.grad && !sameShape(x.grad.shape, x.shape))
        throw new Error(
          `${this.#name}: the gradient of a parameter of shape ${show(x.shape)} must have its shape; got ${show(x.grad.shape)}`,
        );
    const { shader } = this.kernel();
    const groupOf = new Map(this.groups.flatMap((group) => group.params.map((x) => [x, group] as const)));
    for (const x of this.#large) {
      if (!x.grad) continue;
      const uniforms = (): Uniforms => {
        const [rate, decay] = this.rates(groupOf.get(x)!);
        return { ...this.kernel().uniforms, n: x.size, rate, decay };
      };
      run(x.device, shader, "step", {
        bind: { x, g: x.grad, ...this.#meansOf(x) },
        params: uniforms,
        groups: linearGroups(Math.ceil(x.size / 64)),
      });
    }
    const pack = this.#pack;
    if (!pack?.places.some(({ x }) => x.grad)) return;
    const { device } = pack.places[0]!.x;
    const stepped = new Set(pack.places.flatMap(({ x }) => (x.grad ? [x] : [])));
    scope(() => {
      // The rates of each block, and 1 where it is to be stepped at all.
      const table = (): Float32Array => {
        const entries = new Float32Array((pack.size / PACK_BLOCK) * 4);
        for (const { x, at } of pack.places) {
          if (!stepped.has(x)) continue;
          const entry = [...this.rates(groupOf.get(x)!), 1];
          for (let i = at; i < at + x.size; i += PACK_BLOCK) entries.set(entry, (i / PACK_BLOCK) * 4);
        }
        return entries;
      };
      const rates = empty(device, [(pack.size / PACK_BLOCK) * 4]);
      device.upload(rates, table);
      const g = pack.gather((x) => x.grad);
      const x = pack.gather((parameter) => parameter);
      run(device, shader, "step_pack", {
        bind: { x, g, ...this.#meansOf(pack), rates },
        params: () => ({ ...this.kernel().uniforms, n: pack.size, rate: 0, decay: 0 }),
        groups: linearGroups(pack.size / PACK_BLOCK),
      });
      pack.scatter(x, (parameter) => (stepped.has(parameter) ? parameter : undefined));
    });
  }

  zeroGrad(): void {
    for (const group of this.groups)
      for (const x of group.params) {
        if (x.grad) free(x.grad);
        x.grad = undefined;
      }
  }

  #checkAlive(x: Tensor, i: number, group: string): void {
    if (!x.freed) return;
    throw new Error(
      `${this.#name}: step: parameter ${i} of group "${group}", of shape ${show(x.shape)}, was freed, as module.to("f16") does with ` +
        'weights that it replaces; call module.to("f32"), then make a new optimizer of module.parameters()',
    );
  }

  #meansOf(of: Tensor | Pack): Record<string, Tensor> {
    let means = this.#means.get(of);
    if (!means) {
      const { device, shape } = of instanceof Pack ? { device: of.places[0]!.x.device, shape: [of.size] } : of;
      means = device.unrecorded(() =>
        Object.fromEntries(this.#kept.map((k) => [k, keep(fill(empty(device, shape), 0))])),
      );
      this.#means.set(of, means);
    }
    return means;
  }

  /** Running means by the parameter's place: `group.index.m` and so on; the number of steps is `steps`. */
  stateDict(): Map<string, Tensor> {
    const out = new Map<string, Tensor>();
    for (const { x, name, means, at } of this.#named())
      for (const k of this.#kept)
        out.set(
          `${name}.${k}`,
          at === undefined ? means[k]! : stridedRead(means[k]!, x.shape, { offset: at, strides: stridesOf(x.shape) }),
        );
    return out;
  }

  /** Takes over what `stateDict` of an optimizer with the same groups saved; `steps` is how many it had taken. */
  loadStateDict(state: ReadonlyMap<string, Tensor>, steps: number): void {
    const named = this.#named();
    for (const { x, name } of named)
      for (const k of this.#kept) {
        const from = state.get(`${name}.${k}`);
        if (!from || !sameShape(from.shape, x.shape))
          throw new Error(
            `${this.#name}: saved moment ${name}.${k} must have shape ${show(x.shape)}; got ${from ? show(from.shape) : "none"}`,
          );
      }
    for (const { x, name, means, at } of named)
      for (const k of this.#kept) x.device.copy(state.get(`${name}.${k}`)!, 0, means[k]!, at ?? 0, x.size);
    this.steps = steps;
  }

  /** Every parameter with its name, its running means and, where these are packed, its place in them. */
  #named(): { x: Tensor; name: string; means: Record<string, Tensor>; at: number | undefined }[] {
    const places = new Map(this.#pack?.places.map(({ x, at }) => [x, at]));
    return this.groups.flatMap((group, g) =>
      group.params.map((x, i) => {
        const at = places.get(x);
        return { x, name: `${g}.${i}`, means: this.#meansOf(at === undefined ? x : this.#pack!), at };
      }),
    );
  }
}

function parametersOf(op: string, group: ParamGroup): Tensor[] {
  if (isTensor(group) || typeof group?.params?.[Symbol.iterator] !== "function")
    throw new Error(`${op}: groups are objects such as { params: [x, y], lr: 1e-3 }; got ${describe(group)}`);
  const params = [...group.params];
  const half = params.findIndex((x) => isTensor(x) && x.dtype === "f16");
  if (half >= 0)
    throw new Error(
      `${op}: parameter ${half} is f16, which is storage only; module.to("f32") before making an optimizer`,
    );
  checkFloats(op, Object.fromEntries(params.map((x, i) => [`parameter ${i}`, x])));
  return params;
}

/** A finite number from 0 up, below `below` where that is given. */
function checkNumber(op: string, what: string, value: number, below = Number.POSITIVE_INFINITY): number {
  if (typeof value === "number" && value >= 0 && value < below) return value;
  const wanted =
    below === Number.POSITIVE_INFINITY ? "a finite number from 0 up" : `a number from 0 up and below ${below}`;
  throw new Error(`${op}: ${what} must be ${wanted}; got ${describe(value)}`);
}

export interface AdamWOptions {
  betas?: readonly [number, number];
  eps?: number;
}

/** torch.optim.AdamW (Loshchilov and Hutter 2019). */
export class AdamW extends Optimizer {
  readonly #betas: readonly [number, number];
  readonly #eps: number;

  constructor(groups: Iterable<ParamGroup>, options: AdamWOptions = {}) {
    checkOptions("AdamW", options, { betas: "any", eps: "number" });
    super("AdamW", ["m", "v"], groups, 0.01);
    const [beta1, beta2] = options.betas ?? [0.9, 0.999];
    this.#betas = [checkNumber("AdamW", "betas[0]", beta1, 1), checkNumber("AdamW", "betas[1]", beta2, 1)];
    this.#eps = checkNumber("AdamW", "eps", options.eps ?? 1e-8);
  }

  protected kernel(): { shader: string; uniforms: Uniforms } {
    const [beta1, beta2] = this.#betas;
    const uniforms = {
      beta1,
      beta2,
      eps: this.#eps,
      correction1: 1 / (1 - beta1 ** this.steps),
      correction2: 1 / (1 - beta2 ** this.steps),
    };
    return { shader: "adamw", uniforms };
  }

  protected rates({ lr, weightDecay }: Group): [number, number] {
    return [lr, 1 - lr * weightDecay];
  }
}

export interface SGDOptions {
  /** Default 0. */
  momentum?: number;
}

/** torch.optim.SGD, dampening 0, without Nesterov's variant. */
export class SGD extends Optimizer {
  readonly #momentum: number;

  constructor(groups: Iterable<ParamGroup>, options: SGDOptions = {}) {
    checkOptions("SGD", options, { momentum: "number" });
    const { momentum = 0 } = options;
    checkNumber("SGD", "momentum", momentum);
    super("SGD", momentum > 0 ? ["m"] : [], groups, 0);
    this.#momentum = momentum;
  }

  protected kernel(): { shader: string; uniforms: Uniforms } {
    return { shader: this.#momentum > 0 ? "sgd_momentum" : "sgd", uniforms: { momentum: this.#momentum } };
  }

  protected rates({ lr, weightDecay }: Group): [number, number] {
    return [lr, weightDecay];
  }
}
