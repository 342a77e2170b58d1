/** Multi-scale deformable attention. */
import { checkFloats, describe } from "../check.ts";
import { linearGroups, run } from "../kernel.ts";
import { sameShape, show } from "../shape.ts";
import { record } from "../tape.ts";
import { empty, fill, type Tensor } from "../tensor.ts";
import { pad, reshape, slice } from "./movement.ts";
import { groupByKey } from "./sort.ts";

const MAX_LEVELS = 8;

/**
 * value (B, S, M, D) holds the maps of all levels behind one another, S = sum of H W over `shapes` [[H, W], …]. Every query and head reads
 * each level at P `locations` (B, Q, M, L, P, 2), (x, y) in 0..1 of the map's extent, bilinearly with zeros outside, and adds what it finds
 * by `weights` (B, Q, M, L, P): (B, Q, M D). As ms_deform_attn of Deformable DETR (Zhu et al. 2021).
 */
export function msDeformAttn(
  value: Tensor,
  shapes: readonly (readonly number[])[],
  locations: Tensor,
  weights: Tensor,
): Tensor {
  checkFloats("msDeformAttn", { value, locations, weights });
  for (const [name, x, rank] of [
    ["value", value, 4],
    ["locations", locations, 6],
    ["weights", weights, 5],
  ] as const)
    if (x.shape.length !== rank)
      throw new Error(`msDeformAttn: ${name} must have ${rank} dimensions; got ${show(x.shape)}`);
  if (!Array.isArray(shapes as unknown))
    throw new Error(`msDeformAttn: shapes must be an array of pairs [H, W]; got ${describe(shapes)}`);
  const [b, s, m, width] = value.shape as [number, number, number, number];
  const [, q, , l, p] = weights.shape as [number, number, number, number, number];
  const total = shapes.reduce((sum, [h, w]) => sum + h! * w!, 0);
  if (
    total !== s ||
    shapes.length === 0 ||
    shapes.length > MAX_LEVELS ||
    shapes.some((hw) => hw.length !== 2 || hw.some((n) => !(n > 0)))
  )
    throw new Error(
      `msDeformAttn: shapes must be 1 to ${MAX_LEVELS} pairs [H, W] whose areas add up to S = ${s}; got ${JSON.stringify(shapes)} with ${total}`,
    );
  if (!sameShape(weights.shape, [b, q, m, shapes.length, p]) || !sameShape(locations.shape, [...weights.shape, 2]))
    throw new Error(
      `msDeformAttn: value is ${show(value.shape)} on ${shapes.length} levels, so weights must be (${b}, Q, ${m}, ${shapes.length}, P) and locations (…, 2); got ${show(weights.shape)} and ${show(locations.shape)}`,
    );
  if (width % 4 !== 0) {
    const extra = 4 - (width % 4);
    const wide = reshape(msDeformAttn(pad(value, [0, extra]), shapes, locations, weights), [b, q, m, width + extra]);
    return reshape(slice(wide, 3, 0, width), [b, q, m * width]);
  }

  let pixel = 0;
  let cells = 0;
  const levels = shapes.flatMap(([h, w]) => {
    const row = [h!, w!, pixel, cells];
    pixel += h! * w!;
    cells += (h! + 1) * (w! + 1);
    return row;
  });
  const { device } = value;
  const params = { b, s, q, m, d: width / 4, l, p, cells, levels };
  const samples = weights.size;
  // Two vectors of channels an invocation where they come in pairs.
  const pair = params.d % 2 === 0;
  const call = (entry: string, bind: Record<string, Tensor>, count: number): void =>
    run(device, "deform", entry, { bind, params, groups: linearGroups(Math.ceil(count / 64)) });
  const callChannels = (entry: string, bind: Record<string, Tensor>, vectors: number): void =>
    run(device, "deform", entry, {
      bind,
      params,
      constants: { PAIR: pair ? 1 : 0 },
      groups: linearGroups(Math.ceil(vectors / (pair ? 128 : 64))),
    });

  const y = empty(device, [b, q, m * width]);
  callChannels("forward", { value, locations, weights, y }, y.size / 4);
  return record("msDeformAttn", [value, locations, weights], y, (g) => {
    let gValue: Tensor | null = null;
    if (value.requiresGrad && samples === 0) gValue = fill(empty(device, value.shape), 0);
    else if (value.requiresGrad) {
      gValue = empty(device, value.shape);
      const keys = empty(device, [samples], "u32");
      call("cells", { locations, keys }, samples);
      const { order, start } = groupByKey(keys, samples, b * m * cells);
      const records = empty(device, [samples, 4]);
      call("records_of", { locations, weights, order, records_out: records }, samples);
      callChannels("grad_value", { records, start, g, g_value: gValue }, gValue.size / 4);
    }
    if (!locations.requiresGrad && !weights.requiresGrad) return [gValue, null, null];
    const gLocations = empty(device, locations.shape);
    const gWeights = empty(device, weights.shape);
    call("grad_sample", { value, locations, weights, g, g_locations: gLocations, g_weights: gWeights }, samples);
    return [gValue, gLocations, gWeights];
  });
}
