/** Which kernel works out a convolution's products, and how it wants the channels and the sums laid out. */
import type { Device } from "../device.ts";
import type { Lanes } from "../kernel.ts";
import type { ConvSizes } from "./window.ts";

/**
 * The kernels of correlate.ts. All add the same products in the same order, so that they give the same bits and may stand in for each other:
 *   plain     every adapter
 *   subgroup  subgroups of 4 or 8 lanes
 *   tiled     workgroup memory, for GPUs
 */
export type Variant = "plain" | "subgroup" | "tiled";

/** Shader, and its entries. */
export const KERNELS: Record<Variant, { shader: string; forward: string; weight: string }> = {
  plain: { shader: "conv2d", forward: "forward", weight: "weight" },
  subgroup: { shader: "conv2d_subgroup", forward: "forward", weight: "weight" },
  tiled: { shader: "conv2d", forward: "tiled_forward", weight: "tiled_weight" },
};

/** What the choice depends on. */
type Adapter = Pick<Device, "subgroupSize" | "isSoftware">;

// Constants, since every call asks: the rule's first.
const WITH_LANES: readonly Variant[] = ["subgroup", "plain", "tiled"];
const ON_GPUS: readonly Variant[] = ["tiled", "plain"];
const ELSEWHERE: readonly Variant[] = ["plain", "tiled"];
const FOUR: Lanes = { lanes: 4, tiles: 1 };
const TWICE_FOUR: Lanes = { lanes: 4, tiles: 2 };
const EIGHT: Lanes = { lanes: 8, tiles: 1 };

/** Half of a tile's pixels (or k) and the least panel's channels in conv2d.wgsl's tiled entries: below, most of a workgroup would work for nothing. */
const LEAST = { gathered: 32, channels: 16 };
/** Pixels (of forward) and k (of weight) that a workgroup of these entries owns. */
export const TILED = 64;
/** Numbers that the parts of a weight's gradient may have together: 32 MiB. */
const MAX_PARTS = 2 ** 23;

/**
 * How conv2d_subgroup.wgsl lays `co` channels on this adapter's subgroups: panels of 4 channels a lane, of all lanes or of a quad's, whichever
 * leaves fewer of them empty. Undefined where there is no kernel for such subgroups, or the channels do not fill half of the least panel.
 */
export function lanesFor({ subgroupSize }: Adapter, co: number): Lanes | undefined {
  if ((subgroupSize !== 4 && subgroupSize !== 8) || co < 8) return undefined;
  if (subgroupSize === 4) return FOUR;
  return Math.ceil(co / 16) * 16 < Math.ceil(co / 32) * 32 ? TWICE_FOUR : EIGHT;
}

/**
 * The variants for `co` channels of `gathered` pixels (k where the sum runs over pixels), the rule's first: subgroups of few lanes where there
 * are such, else workgroup memory on GPUs where `LEAST` is reached.
 */
export function variantsFor(device: Adapter, gathered: number, co: number): readonly Variant[] {
  if (lanesFor(device, co)) return WITH_LANES;
  const large = gathered >= LEAST.gathered && co >= LEAST.channels;
  return large && !device.isSoftware ? ON_GPUS : ELSEWHERE;
}

/** Vectors of four channels in a panel. */
export function panelWidth(device: Adapter, variant: Variant, co: number): number {
  if (variant === "plain") return 1;
  if (variant === "subgroup") return lanesFor(device, co)!.lanes;
  if (co <= 32) return co <= 16 ? 4 : 8;
  return Math.ceil(co / 64) * 64 > Math.ceil(co / 32) * 32 ? 8 : 16;
}

/**
 * Pixels of each split of the sum for the weights' gradient, `rows` k long. Splits of about 1024 pixels keep the gradient's panel in the cache
 * and rounding small; more of them where few tiles are to be had, fewer where their parts would fill the memory. Where to cut decides the bits,
 * so it follows from the sizes and the rule's variant alone, whichever variant runs.
 */
export function splitOf(device: Adapter, s: ConvSizes, rows: number, pixels: number): number {
  const rule = variantsFor(device, rows, s.co)[0]!;
  const width = panelWidth(device, rule, s.co);
  const panels = s.groups * Math.ceil(s.co / (4 * width));
  const [tiles, enough] = device.isSoftware
    ? [panels * (rows / 8), 128]
    : [s.groups * Math.ceil(s.co / TILED) * Math.ceil(rows / TILED), 256];
  const most = Math.max(1, Math.min(Math.ceil(pixels / 64), Math.floor(MAX_PARTS / (panels * rows * width * 4))));
  const wanted = Math.min(most, Math.max(Math.ceil(enough / tiles), Math.ceil(pixels / 1024)));
  return Math.ceil(pixels / wanted / 8) * 8;
}
