/** Optimizers and clipping. Their state belongs to no scope: a training step may be one scope. */
import { linearGroups, run } from "./kernel.ts";
import { stridedRead } from "./ops/strided.ts";
import { PACK_BLOCK, Pack } from "./pack.ts";
import { free, keep, scope } from "./scope.ts";
import { type Shape, sameShape, show, stridesOf } from "./shape.ts";
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

/**
 * torch.optim.AdamW (Loshchilov and Hutter 2019). Parameters without a gradient are left as they are, decay included. Small parameters
 * are gathered and stepped together.
 */
export class AdamW {
  readonly groups: Group[];
  /** Steps taken. */
  steps = 0;
  readonly #beta1: number;
  readonly #beta2: number;
  readonly #eps: number;
  readonly #large: readonly Tensor[];
  readonly #moments = new Map<Tensor, Moments>();
  readonly #pack: Pack | undefined;
  #packMoments: Moments | undefined;

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
    const { small, large } = Pack.split(all);
    this.#large = large;
    if (small.length > 0) this.#pack = new Pack(small);
  }

  step(): void {
    this.steps++;
    const common = {
      ...FLAT,
      beta1: this.#beta1,
      beta2: this.#beta2,
      eps: this.#eps,
      correction1: 1 / (1 - this.#beta1 ** this.steps),
      correction2: 1 / (1 - this.#beta2 ** this.steps),
    };
    const groupOf = new Map(this.groups.flatMap((group) => group.params.map((x) => [x, group] as const)));
    for (const x of this.#large) {
      if (!x.grad) continue;
      const { lr, weightDecay } = groupOf.get(x)!;
      const { m, v } = this.#momentsOf(x);
      run(x.device, "adamw", "step", {
        bind: { x, g: x.grad, m, v },
        params: { ...common, n: x.size, lr, decay: 1 - lr * weightDecay },
        groups: linearGroups(Math.ceil(x.size / 64)),
      });
    }
    const pack = this.#pack;
    if (!pack?.places.some(({ x }) => x.grad)) return;
    const device = pack.places[0]!.x.device;
    scope(() => {
      // Two numbers a block: the rate and the decay, negative where nothing is to be done.
      const rates = new Float32Array((pack.size / PACK_BLOCK) * 2);
      for (const { x, at } of pack.places) {
        const { lr, weightDecay } = groupOf.get(x)!;
        for (let i = at; i < at + x.size; i += PACK_BLOCK)
          rates.set(x.grad ? [lr, 1 - lr * weightDecay] : [0, -1], (i / PACK_BLOCK) * 2);
      }
      const g = pack.gather((x) => x.grad);
      const xs = pack.gather((x) => x);
      const { m, v } = this.#packed();
      run(device, "adamw", "step_pack", {
        bind: { x: xs, g, m, v, rates: device.tensor(rates) },
        params: { ...common, n: pack.size },
        groups: linearGroups(pack.size / PACK_BLOCK),
      });
      pack.scatter(xs, (x) => (x.grad ? x : undefined));
    });
  }

  zeroGrad(): void {
    for (const group of this.groups)
      for (const x of group.params) {
        if (x.grad) free(x.grad);
        x.grad = undefined;
      }
  }

  #packed(): Moments {
    this.#packMoments ??= zeroMoments(this.#pack!.places[0]!.x, [this.#pack!.size]);
    return this.#packMoments;
  }

  #momentsOf(x: Tensor): Moments {
    let moments = this.#moments.get(x);
    if (!moments) {
      moments = zeroMoments(x, x.shape);
      this.#moments.set(x, moments);
    }
    return moments;
  }

  /** Moments by the parameter's place: `group.index.m` and `.v`; the number of steps is `steps`. */
  stateDict(): Map<string, Tensor> {
    const out = new Map<string, Tensor>();
    const places = new Map(this.#pack?.places.map(({ x, at }) => [x, at]));
    this.groups.forEach((group, g) => {
      group.params.forEach((x, i) => {
        const at = places.get(x);
        for (const k of ["m", "v"] as const) {
          const moment =
            at === undefined
              ? this.#momentsOf(x)[k]
              : stridedRead(this.#packed()[k], x.shape, { offset: at, strides: stridesOf(x.shape) });
          out.set(`${g}.${i}.${k}`, moment);
        }
      });
    });
    return out;
  }

  /** Takes over moments saved by `stateDict` of an optimizer with the same groups; `steps` is how many it had taken. */
  loadStateDict(state: ReadonlyMap<string, Tensor>, steps: number): void {
    const places = new Map(this.#pack?.places.map(({ x, at }) => [x, at]));
    const named = this.groups.flatMap((group, g) => group.params.map((x, i) => ({ x, name: `${g}.${i}` })));
    for (const { x, name } of named)
      for (const k of ["m", "v"]) {
        const from = state.get(`${name}.${k}`);
        if (!from || !sameShape(from.shape, x.shape))
          throw new Error(
            `AdamW: saved moment ${name}.${k} must have shape ${show(x.shape)}; got ${from ? show(from.shape) : "none"}`,
          );
      }
    for (const { x, name } of named)
      for (const k of ["m", "v"] as const) {
        const at = places.get(x);
        const target = at === undefined ? this.#momentsOf(x)[k] : this.#packed()[k];
        x.device.copy(state.get(`${name}.${k}`)!, 0, target, at ?? 0, x.size);
      }
    this.steps = steps;
  }
}

function zeroMoments(x: Tensor, shape: Shape): Moments {
  const zeros = (): Tensor => keep(fill(empty(x.device, shape), 0));
  return { m: zeros(), v: zeros() };
}

/** Scales the gradients so that their common L2 norm is at most `maxNorm` (torch.nn.utils.clip_grad_norm_); returns the norm before, (1). */
export function clipGradNorm(params: Iterable<Tensor>, maxNorm: number): Tensor {
  const gradients = [...params].flatMap((x) => (x.grad ? [x.grad] : []));
  const first = gradients[0];
  if (!first) throw new Error("clipGradNorm: no parameter has a gradient; call backward() first");
  const { device } = first;
  return scope(() => {
    const { small, large } = Pack.split(gradients);
    const pack = new Pack(small);
    const flat = small.length > 0 ? [pack.gather((g) => g)] : [];
    const all = [...large, ...flat];
    const blocks = all.map((g) => Math.ceil(g.size / 1024));
    const partial = empty(device, [blocks.reduce((sum, n) => sum + n, 0)]);
    let offset = 0;
    all.forEach((g, i) => {
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
    for (const g of all)
      run(device, "adamw", "scale", {
        bind: { clip: norm, g_out: g },
        params: { ...FLAT, n: g.size },
        groups: linearGroups(Math.ceil(g.size / 64)),
      });
    for (const packed of flat) pack.scatter(packed, (g) => g);
    return stridedRead(norm, [1], { strides: [1] });
  });
}
