/** Keeps the small gradients of mixed precision from vanishing in f16: torch.amp.GradScaler. */
import { checkFloats, checkOptions, describe } from "./check.ts";
import { clipGradNorm } from "./clip.ts";
import { mul } from "./ops/pointwise.ts";
import { free, keep } from "./scope.ts";
import type { Tensor } from "./tensor.ts";

export interface GradScalerOptions {
  /** Without it losses and gradients stay as they are, and every step is taken. Default true. */
  enabled?: boolean;
  /** Default 65536. */
  initScale?: number;
  /** The scale grows by this after `growthInterval` good steps. Default 2. */
  growthFactor?: number;
  /** It shrinks by this when a gradient is not finite. Default 0.5. */
  backoffFactor?: number;
  /** Default 2000. */
  growthInterval?: number;
}

type Settings = Required<Omit<GradScalerOptions, "enabled" | "initScale">>;

const SETTINGS = { growthFactor: "number", backoffFactor: "number", growthInterval: "number" } as const;

/** What a checkpoint keeps of it. */
export interface ScalerState extends Partial<Settings> {
  scale: number;
  /** Good steps since the scale last changed. */
  good: number;
}

/** What it asks of an optimizer. */
interface Stepping {
  readonly groups: readonly { readonly params: readonly Tensor[] }[];
  step(): void;
}

/** Beyond it a scaled loss is hardly finite in f32. */
const MOST = 2 ** 40;
/** As a limit of a norm it clips nothing: squares of numbers that f32 holds do not add up to it. */
const NO_LIMIT = 1e30;

/**
 * Multiplies the loss by a scale as large as the gradients in f16 bear. A step reads:
 *
 *     backward(scaler.scale(loss));
 *     scaler.unscale(optimizer); // before clipping; `step` does it where this was left out
 *     optim.clipGradNorm(params, 1);
 *     await scaler.step(optimizer);
 *     scaler.update();
 *
 * or, with one pass over the gradients and one reading, which may bring other numbers along:
 *
 *     backward(scaler.scale(loss));
 *     const norm = optim.clipGradNorm(params, 1, { scale: scaler.getScale() });
 *     if (scaler.update(Number.isFinite(await norm.item()))) optimizer.step();
 *
 * Whether gradients are finite is told by their norm, so scaled ones beyond 1e19 count as infinite: the scale falls before they are.
 */
export class GradScaler {
  readonly enabled: boolean;
  #scale: number;
  #good = 0;
  #settings: Settings;
  /** The optimizers that were unscaled since the last update, with their gradients' norm and, once known, whether that is finite. */
  readonly #seen = new Map<Stepping, { norm: Tensor; stepped: boolean; finite: boolean | undefined }>();

  constructor(options: GradScalerOptions = {}) {
    checkOptions("GradScaler", options, { enabled: "boolean", initScale: "number", ...SETTINGS });
    const { enabled = true, initScale = 65536, growthFactor = 2, backoffFactor = 0.5, growthInterval = 2000 } = options;
    this.enabled = enabled;
    this.#scale = checkScale("initScale", initScale);
    this.#settings = checkSettings({ growthFactor, backoffFactor, growthInterval });
  }

  /** What losses are multiplied by now. */
  getScale(): number {
    return this.enabled ? this.#scale : 1;
  }

  scale(loss: Tensor): Tensor {
    checkFloats("GradScaler: scale", { loss });
    if (!this.enabled) return loss;
    if (loss.device.recorder)
      throw new Error("GradScaler: a recorded step would keep the scale of now; call it outside of Device.record");
    return mul(loss, this.#scale);
  }

  /** Divides the gradients of an optimizer's parameters by the scale, once between two updates. */
  unscale(optimizer: Stepping): void {
    checkOptimizer("unscale", optimizer);
    if (this.enabled) this.#unscale("unscale", optimizer);
  }

  #unscale(call: string, optimizer: Stepping): void {
    if (this.#seen.has(optimizer))
      throw new Error(
        "GradScaler: unscale: the gradients of this optimizer were unscaled since the last update; call update() after each step",
      );
    const params = optimizer.groups.flatMap((group) => group.params);
    if (!params.some((x) => x.grad))
      throw new Error(`GradScaler: ${call}: no parameter has a gradient; call backward(scaler.scale(loss)) first`);
    const norm = keep(clipGradNorm(params, NO_LIMIT, { scale: this.#scale }));
    this.#seen.set(optimizer, { norm, stepped: false, finite: undefined });
  }

  /** Lets an optimizer step, unless one of its gradients is not finite; unscales them first where that was not done. Returns whether it stepped. */
  async step(optimizer: Stepping): Promise<boolean> {
    checkOptimizer("step", optimizer);
    if (!this.enabled) {
      optimizer.step();
      return true;
    }
    if (!this.#seen.has(optimizer)) this.#unscale("step", optimizer);
    const seen = this.#seen.get(optimizer)!;
    if (seen.stepped)
      throw new Error(
        "GradScaler: step: this optimizer has stepped since the last update; call update() after each step",
      );
    seen.stepped = true;
    try {
      const finite = Number.isFinite(await seen.norm.item());
      if (finite) optimizer.step();
      seen.finite = finite;
      return finite;
    } catch (cause) {
      // No step was taken, so none is to be counted.
      seen.stepped = false;
      throw cause;
    }
  }

  /**
   * Adapts the scale: to whether all gradients that `step` saw were finite, or all that the caller looked at itself. Returns that, which is
   * whether a step is taken: one whose gradients are not finite is left out, and the next is tried with a smaller scale.
   */
  update(finite: boolean = !this.enabled || this.#judged()): boolean {
    if (typeof finite !== "boolean")
      throw new Error(`GradScaler: update wants to know whether all gradients were finite; got ${describe(finite)}`);
    if (!this.enabled) return finite;
    const { growthFactor, backoffFactor, growthInterval } = this.#settings;
    if (!finite) {
      this.#scale *= backoffFactor;
      this.#good = 0;
    } else if (++this.#good >= growthInterval) {
      this.#scale = Math.min(MOST, this.#scale * growthFactor);
      this.#good = 0;
    }
    for (const { norm } of this.#seen.values()) free(norm);
    this.#seen.clear();
    return finite;
  }

  #judged(): boolean {
    const found = [...this.#seen.values()].map(({ finite }) => finite);
    if (found.length === 0 || found.includes(undefined))
      throw new Error(
        "GradScaler: update wants to know whether all gradients were finite; await step(optimizer) before it, or give a boolean",
      );
    return !found.includes(false);
  }

  stateDict(): ScalerState {
    return { scale: this.#scale, good: this.#good, ...this.#settings };
  }

  /** One that is not enabled takes a state over, too, and hands it on. */
  loadStateDict(state: ScalerState): void {
    checkOptions("GradScaler: loadStateDict", state, { scale: "number", good: "number", ...SETTINGS });
    const { scale, good, ...settings } = state;
    checkScale("the state's scale", scale);
    if (!(Number.isInteger(good) && good >= 0))
      throw new Error(`GradScaler: the state's good must be a whole number from 0 up; got ${describe(good)}`);
    this.#settings = checkSettings({ ...this.#settings, ...settings });
    this.#scale = scale;
    this.#good = good;
  }
}

function checkScale(what: string, scale: number): number {
  if (scale > 0 && scale <= MOST) return scale;
  throw new Error(`GradScaler: ${what} must be above 0 and at most 2^40; got ${describe(scale)}`);
}

function checkSettings(settings: Settings): Settings {
  const { growthFactor, backoffFactor, growthInterval } = settings;
  if (!(growthFactor > 1 && growthFactor < Number.POSITIVE_INFINITY))
    throw new Error(`GradScaler: growthFactor must be above 1 and finite; got ${growthFactor}`);
  if (!(backoffFactor > 0 && backoffFactor < 1))
    throw new Error(`GradScaler: backoffFactor must lie between 0 and 1; got ${backoffFactor}`);
  if (!(Number.isInteger(growthInterval) && growthInterval >= 1))
    throw new Error(`GradScaler: growthInterval must be a whole number from 1 up; got ${growthInterval}`);
  return settings;
}

function checkOptimizer(call: string, optimizer: Stepping): void {
  if (!Array.isArray(optimizer?.groups) || typeof optimizer.step !== "function")
    throw new Error(`GradScaler: ${call}: an optimizer is wanted, such as optim.AdamW; got ${describe(optimizer)}`);
}
