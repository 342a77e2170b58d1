/** Numbers that can be gone on with, and the error for those that cannot. */
import type { FileTensor } from "../engine/index.ts";

/** Something that must be a number is not; the model has not been changed, or not been saved, since. */
export class NotFinite extends Error {
  override readonly name = "NotFinite";
}

/** The square of anything larger is no f32: the next forward pass or gradient would be infinite. */
const LARGEST = Math.sqrt(3.4028234663852886e38);

/** Throws NotFinite where one of the tensors' numbers is NaN, infinite or next to it. */
export function checkFinite(tensors: ReadonlyMap<string, FileTensor>, step: number): void {
  for (const [name, { dtype, data }] of tensors) {
    if (dtype !== "F32") continue;
    const values = new Float32Array(data.buffer, data.byteOffset, data.byteLength / 4);
    for (const v of values)
      if (!(Math.abs(v) < LARGEST)) throw new NotFinite(`the weight "${name}" holds ${v} after step ${step}`);
  }
}
