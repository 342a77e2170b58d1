/** Keeps the small gradients of mixed precision from vanishing in f16: torch.amp.GradScaler. */
import { checkOptions, describe } from "./check.ts";
import { mul } from "./ops/pointwise.ts";
import type { Tensor } from "./tensor.ts";

export interface GradScalerOptions {
  /** Default 65536. */
  initScale?: number;
  /** The scale grows by this after `growthInterval` good steps. Default 2. */
  growthFactor?: number;
  /** It shrinks by this when a gradient is not finite. Default 0.5. */
  backoffFactor?: number;
  /** Default 2000. */
  growthInterval?: number;
}

/** What a checkpoint keeps of it. */
export interface ScalerState {
  scale: number;
  /** Good steps since the scale last changed. */
  good: number;
}

/** Beyond it a scaled loss is hardly finite in f32. */
const MOST = 2 ** 40;

/**
 * Multiplies the loss by a scale as large as the gradients in f16 bear. A step reads:
 *
 *     backward(scaler.scale(loss));
 *     const norm = optim.clipGradNorm(params, 1, { scale: scaler.factor });
 *     if (scaler.update(Number.isFinite(await norm.item()))) optimizer.step();
 */
export class GradScaler {
  #scale: number;
  #good = 0;
  readonly #growth: number;
  readonly #backoff: number;
  readonly #interval: number;

  constructor(options: GradScalerOptions = {}) {
    const numbers = {
      initScale: "number",
      growthFactor: "number",
      backoffFactor: "number",
      growthInterval: "number",
    } as const;
    checkOptions("GradScaler", options, numbers);
    const { initScale = 65536, growthFactor = 2, backoffFactor = 0.5, growthInterval = 2000 } = options;
    if (!(initScale > 0 && initScale <= MOST))
      throw new Error(`GradScaler: initScale must be above 0 and at most 2^40; got ${initScale}`);
    if (!(growthFactor > 1)) throw new Error(`GradScaler: growthFactor must be above 1; got ${growthFactor}`);
    if (!(backoffFactor > 0 && backoffFactor < 1))
      throw new Error(`GradScaler: backoffFactor must lie between 0 and 1; got ${backoffFactor}`);
    if (!(growthInterval >= 1)) throw new Error(`GradScaler: growthInterval must be from 1 up; got ${growthInterval}`);
    this.#scale = initScale;
    this.#growth = growthFactor;
    this.#backoff = backoffFactor;
    this.#interval = growthInterval;
  }

  /** What losses are multiplied by now. */
  get factor(): number {
    return this.#scale;
  }

  scale(loss: Tensor): Tensor {
    if (loss.device.recorder)
      throw new Error("GradScaler: a recorded step would keep the scale of now; call it outside of Device.record");
    return mul(loss, this.#scale);
  }

  /**
   * After the backward pass: whether all gradients were finite. Returns whether to take the step: a step whose gradients are not is left
   * out, and the next is tried with a smaller scale.
   */
  update(finite: boolean): boolean {
    if (typeof finite !== "boolean")
      throw new Error(`GradScaler: update wants to know whether all gradients were finite; got ${describe(finite)}`);
    if (!finite) {
      this.#scale *= this.#backoff;
      this.#good = 0;
    } else if (++this.#good >= this.#interval) {
      this.#scale = Math.min(MOST, this.#scale * this.#growth);
      this.#good = 0;
    }
    return finite;
  }

  get state(): ScalerState {
    return { scale: this.#scale, good: this.#good };
  }

  restore({ scale, good }: ScalerState): void {
    if (!(scale > 0) || !(good >= 0))
      throw new Error(`GradScaler: a state has a scale above 0 and a count from 0; got ${scale} and ${good}`);
    this.#scale = scale;
    this.#good = good;
  }
}
