/**
 * Distance between the prompt latents Zhat that queries predict and the latents Z that SAM's prompt encoder gives the labels
 * (paper Eq. 9, 10 and 12). Each distance is written as a bilinear form a(Zhat) . b(Z) + c(Z), so that all pairs for the matching are
 * one matrix product and the loss of the matched pairs is a row-wise one.
 */
import { type Device, F, noGrad, type Tensor } from "../engine/index.ts";
import { PROMPT_TOKENS, type PromptMode } from "../model/config.ts";
import { promptSlots, promptTarget } from "../model/wish.ts";
import { indexTensor, type Prompt, type TargetTensors } from "./targets.ts";

export interface LatentOptions {
  mode: PromptMode;
  distance: "kl" | "l2";
  /** kl: "teacher" is KL(Z || Zhat), "student" is KL(Zhat || Z). */
  direction: "teacher" | "student";
  tau: number;
}

/** SAM's prompt encoder, for k prompts of one kind in pixels of the network's input: (k, 2, D). */
export type EncodePrompts = (kind: Prompt["kind"], coords: Float32Array) => Tensor;

/** The label side of the distance; row T, of zeros, pads. */
export interface LatentTargets {
  /** (T + 1, width) */
  factors: Tensor;
  /** (T + 1) */
  constants: Tensor;
}

/** Prompts of the batch's objects -> their side of the distance. Undefined where there is nothing to compare. */
export function latentTargets(
  gpu: Device,
  targets: TargetTensors,
  encode: EncodePrompts,
  options: LatentOptions,
): LatentTargets | undefined {
  const tokens = PROMPT_TOKENS[options.mode];
  const prompts = targets.images.flatMap((image) => image.targets.map((target) => target.prompt));
  if (tokens === 0 || !prompts.some(Boolean)) return undefined;
  return noGrad(() => {
    const { z, weights } = tokenTable(gpu, prompts, tokens, encode, options.mode); // (T + 1, S, D), (T + 1, S)
    return labelSide(z, weights, options);
  });
}

/** Z (R, S, D) with the weight of each token (R, S) -> factors (R, width) and constants (R). */
export function labelSide(z: Tensor, weights: Tensor, { distance, direction, tau }: LatentOptions): LatentTargets {
  const [R, S, D] = z.shape as [number, number, number];
  const w = F.reshape(weights, [R, S, 1]);
  const flat = (x: Tensor) => F.reshape(x, [R, S * D]);
  if (distance === "l2") {
    return {
      factors: F.cat([flat(F.mul(F.mul(z, w), -2 / D)), weights], 1),
      constants: F.sum(F.mul(F.mul(F.mul(z, z), w), 1 / D), [1, 2]),
    };
  }
  const logP = F.logSoftmax(F.div(z, tau), 2);
  if (direction === "student")
    return { factors: F.cat([flat(F.neg(F.mul(logP, w))), weights], 1), constants: F.mul(F.sum(weights, [1]), 0) };
  const p = F.mul(F.exp(logP), w);
  return { factors: flat(F.neg(p)), constants: F.sum(F.mul(p, logP), [1, 2]) };
}

/** Zhat (…, S, D) -> (…, width), the predicted side. Differentiable. */
export function predictedSide(latents: Tensor, { distance, direction, tau }: LatentOptions): Tensor {
  const lead = latents.shape.slice(0, -2);
  const [S, D] = latents.shape.slice(-2) as [number, number];
  const last = latents.shape.length - 1;
  const flat = (x: Tensor) => F.reshape(x, [...lead, S * D]);
  if (distance === "l2") {
    const squares = F.mul(F.sum(F.mul(latents, latents), [last]), 1 / D); // (…, S)
    return F.cat([flat(latents), squares], last - 1);
  }
  const logQ = F.logSoftmax(F.div(latents, tau), last);
  if (direction === "teacher") return flat(logQ);
  const q = F.exp(logQ);
  return F.cat([flat(q), F.sum(F.mul(q, logQ), [last])], last - 1);
}

/** All pairs: predicted (B, Q, width), rows (B * most) of the targets -> (B, Q, most). */
export function pairwise(predicted: Tensor, targets: LatentTargets, rows: Tensor, most: number): Tensor {
  const [B, , width] = predicted.shape as [number, number, number];
  const b = F.reshape(F.indexSelect(targets.factors, 0, rows), [B, most, width]);
  const c = F.reshape(F.indexSelect(targets.constants, 0, rows), [B, 1, most]);
  return F.add(F.matmul(predicted, F.permute(b, [0, 2, 1])), c);
}

/** Matched pairs: predicted (M, width) and the row of each one's target -> (M). */
export function matched(predicted: Tensor, targets: LatentTargets, rows: Tensor): Tensor {
  const b = F.indexSelect(targets.factors, 0, rows);
  return F.add(F.sum(F.mul(predicted, b), [1]), F.indexSelect(targets.constants, 0, rows));
}

/** SAM's tokens in the slots that each label's kind supervises; each supervised token weighs 1 / (their number). */
function tokenTable(
  gpu: Device,
  prompts: readonly (Prompt | undefined)[],
  tokens: number,
  encode: EncodePrompts,
  mode: PromptMode,
): { z: Tensor; weights: Tensor } {
  const encoded: Tensor[] = []; // each (k * slots, D)
  const slotRow = new Int32Array((prompts.length + 1) * tokens).fill(-1);
  const weights = new Float32Array((prompts.length + 1) * tokens);
  let rows = 0;
  for (const kind of ["point", "box"] as const) {
    const of = prompts.flatMap((prompt, i) => (prompt?.kind === kind ? [i] : []));
    if (of.length === 0) continue;
    const slots = promptSlots(mode, kind);
    const sparse = encode(kind, Float32Array.from(of.flatMap((i) => prompts[i]!.coords)));
    const table = promptTarget(sparse, kind, mode); // (k, slots, D)
    encoded.push(F.reshape(table, [of.length * slots.length, table.shape[2]!]));
    for (const i of of)
      for (const slot of slots) {
        slotRow[i * tokens + slot] = rows++;
        weights[i * tokens + slot] = 1 / slots.length;
      }
  }
  const D = encoded[0]!.shape[1]!;
  const zero = gpu.zeros([1, D]);
  const index = indexTensor(
    gpu,
    slotRow.map((row) => (row < 0 ? rows : row)),
  );
  const z = F.reshape(F.indexSelect(F.cat([...encoded, zero], 0), 0, index), [prompts.length + 1, tokens, D]);
  return { z, weights: gpu.tensor(weights, [prompts.length + 1, tokens]) };
}
