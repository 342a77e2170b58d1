/** How the learning rate moves over a run: the factor on the configured rates at a step, 0 being the first. */
import type { Config } from "./config.ts";

export function rateFactor(optim: Config["optim"], step: number, steps: number): number {
  const rise = step < optim.warmup ? (step + 1) / optim.warmup : 1;
  const share = Math.min(1, step / steps);
  return rise * fall(optim, share);
}

function fall({ schedule, milestones, gamma, power }: Config["optim"], share: number): number {
  switch (schedule) {
    case "constant":
      return 1;
    case "step":
      return gamma ** milestones.filter((m) => share >= m).length;
    case "poly":
      return (1 - share) ** power;
    case "cosine":
      return (1 + Math.cos(Math.PI * share)) / 2;
  }
}
