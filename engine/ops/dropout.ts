/** Random omission of elements. */
import { checkFloats, checkOptions, describe } from "../check.ts";
import { linearGroups, run } from "../kernel.ts";
import { record } from "../tape.ts";
import { empty, type Tensor } from "../tensor.ts";

export interface DropoutOptions {
  /**
   * A whole number; the same seed omits the same elements. Default: drawn from the device's generator (`gpu.manualSeed`), anew at every call:
   * inside `checkpoint`, which calls twice, give one.
   */
  seed?: number;
  /** False: x comes back as it is. */
  training?: boolean;
}

/** Sets each element to 0 with probability p and divides the others by 1 - p. */
export function dropout(x: Tensor, p = 0.5, options: DropoutOptions = {}): Tensor {
  checkFloats("dropout", { x });
  checkOptions("dropout", options, { seed: "number", training: "boolean" });
  if (!(typeof p === "number" && p >= 0 && p <= 1))
    throw new Error(`dropout: p must lie in 0..1; got ${typeof p === "number" ? p : describe(p)}`);
  const { training = true } = options;
  if (!training || p === 0) return x;
  const { device } = x;
  let seed = options.seed ?? 0;
  if (!Number.isSafeInteger(seed)) throw new Error(`dropout: seed must be a whole number; got ${seed}`);
  if (options.seed === undefined)
    device.host(() => {
      seed = device.random.bits();
    });
  const params = () => ({
    n: x.size,
    seed_low: seed >>> 0,
    seed_high: Math.floor(seed / 2 ** 32) >>> 0,
    // At p = 1 nothing stays: the threshold cannot say so, the scale can.
    threshold: Math.min(Math.round(p * 2 ** 32), 2 ** 32 - 1),
    scale: p === 1 ? 0 : 1 / (1 - p),
  });
  const apply = (from: Tensor): Tensor => {
    const y = empty(device, x.shape);
    run(device, "dropout", "forward", { bind: { x: from, y }, params, groups: linearGroups(Math.ceil(x.size / 64)) });
    return y;
  };
  return record("dropout", [x], apply(x), (g) => [apply(g)]);
}
