/** Optimizers and clipping. Their state belongs to no scope: a training step may be one scope. */
import { linearGroups, run } from "./kernel.ts";
import { stridedRead } from "./ops/strided.ts";
import { free, keep } from "./scope.ts";
import { sameShape, show } from "./shape.ts";
import { empty, fill, type Tensor } from "./tensor.ts";

export interface ParamGroup {
  params: Iterable<Tensor>;
  /** Step size; may be set anew before each step. Default 1e-3. */
  lr?: number;
  /** Decoupled weight decay. Default 0.01. */
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

export interface AdamWOptions {
  betas?: readonly [number, number];
  eps?: number;
}

interface Moments {
  m: Tensor;
  v: Tensor;
}

const FLAT = {
  n: 0,
  offset: 0,
  lr: 0,
  beta1: 0,
  beta2: 0,
  eps: 0,
  decay: 0,
  correction1: 0,
  correction2: 0,
  max_norm: 0,
};

/** torch.optim.AdamW (Loshchilov and Hutter 2019). Parameters without a gradient are left as they are, decay included. */
export class AdamW {
  readonly groups: Group[];
  /** Steps taken. */
  steps = 0;
  readonly #beta1: number;
  readonly #beta2: number;
  readonly #eps: number;
  readonly #state = new Map<Tensor, Moments>();

  constructor(groups: Iterable<ParamGroup>, options: AdamWOptions = {}) {
    this.groups = [...groups].map((g, i) => ({
      params: [...g.params],
      lr: g.lr ?? 1e-3,
      weightDecay: g.weightDecay ?? 0.01,
      name: g.name ?? String(i),
    }));
    const all = this.groups.flatMap((g) => g.params);
    if (new Set(all).size !== all.length)
      throw new Error("AdamW: a parameter stands in two groups; each may stand in one");
    [this.#beta1, this.#beta2] = options.betas ?? [0.9, 0.999];
    this.#eps = options.eps ?? 1e-8;
  }

  step(): void {
    this.steps++;
    for (const group of this.groups)
      for (const x of group.params) {
        if (!x.grad) continue;
        const { m, v } = this.#moments(x);
        run(x.device, "adamw", "step", {
          bind: { x, g: x.grad, m, v },
          params: {
            ...FLAT,
            n: x.size,
            lr: group.lr,
            beta1: this.#beta1,
            beta2: this.#beta2,
            eps: this.#eps,
            decay: 1 - group.lr * group.weightDecay,
            correction1: 1 / (1 - this.#beta1 ** this.steps),
            correction2: 1 / (1 - this.#beta2 ** this.steps),
          },
          groups: linearGroups(Math.ceil(x.size / 64)),
        });
      }
  }

  zeroGrad(): void {
    for (const group of this.groups)
      for (const x of group.params) {
        if (x.grad) free(x.grad);
        x.grad = undefined;
      }
  }

  #moments(x: Tensor): Moments {
    let state = this.#state.get(x);
    if (!state) {
      const zeros = (): Tensor => keep(fill(empty(x.device, x.shape), 0));
      state = { m: zeros(), v: zeros() };
      this.#state.set(x, state);
    }
    return state;
  }

  /** Moments by the parameter's place: `group.index.m` and `.v`; the number of steps is `steps`. */
  stateDict(): Map<string, Tensor> {
    const out = new Map<string, Tensor>();
    this.groups.forEach((group, g) => {
      group.params.forEach((x, i) => {
        const { m, v } = this.#moments(x);
        out.set(`${g}.${i}.m`, m);
        out.set(`${g}.${i}.v`, v);
      });
    });
    return out;
  }

  /** Takes over moments saved by `stateDict` of an optimizer with the same groups; `steps` is how many it had taken. */
  loadStateDict(state: ReadonlyMap<string, Tensor>, steps: number): void {
    this.groups.forEach((group, g) => {
      group.params.forEach((x, i) => {
        for (const k of ["m", "v"] as const) {
          const from = state.get(`${g}.${i}.${k}`);
          if (!from || !sameShape(from.shape, x.shape))
            throw new Error(
              `AdamW: saved moment ${g}.${i}.${k} must have shape ${show(x.shape)}; got ${from ? show(from.shape) : "none"}`,
            );
          const before = this.#moments(x);
          free(before[k]);
          before[k] = keep(from);
        }
      });
    });
    this.steps = steps;
  }
}

/** Scales the gradients so that their common L2 norm is at most `maxNorm` (torch.nn.utils.clip_grad_norm_); returns the norm before, (1). */
export function clipGradNorm(params: Iterable<Tensor>, maxNorm: number): Tensor {
  const gradients = [...params].flatMap((x) => (x.grad ? [x.grad] : []));
  const first = gradients[0];
  if (!first) throw new Error("clipGradNorm: no parameter has a gradient; call backward() first");
  const { device } = first;
  const blocks = gradients.map((g) => Math.ceil(g.size / 1024));
  const partial = empty(device, [blocks.reduce((sum, n) => sum + n, 0)]);
  let offset = 0;
  gradients.forEach((g, i) => {
    run(device, "adamw", "square", {
      bind: { g, partial },
      params: { ...FLAT, n: g.size, offset },
      groups: linearGroups(Math.ceil(blocks[i]! / 64)),
    });
    offset += blocks[i]!;
  });
  const norm = empty(device, [2]);
  run(device, "adamw", "clip_factor", {
    bind: { partial, norm },
    params: { ...FLAT, n: partial.size, max_norm: maxNorm },
    groups: [1],
  });
  for (const g of gradients)
    run(device, "adamw", "scale", {
      bind: { clip: norm, g_out: g },
      params: { ...FLAT, n: g.size },
      groups: linearGroups(Math.ceil(g.size / 64)),
    });
  return stridedRead(norm, [1], { strides: [1] });
}
