/**
 * From samples to the objects that matching and losses see. Points and boxes bring SAM's cached masks; images with tags get pseudo points
 * at the CAM's peaks, prompted at every step because the CAM changes (paper Eq. 18).
 */
import { noGrad, type Tensor } from "../engine/index.ts";
import { bestRated } from "../model/sam/index.ts";
import { findPeaks } from "./cam.ts";
import type { Config } from "./config.ts";
import { toOriginal } from "./data/augment.ts";
import { readImage } from "./data/image.ts";
import type { Item, Sample } from "./data/loader.ts";
import type { SamProxy } from "./proxies.ts";
import type { ImageTargets, Target } from "./targets.ts";
import type { PointMasks, Teacher } from "./teacher.ts";

/** [width, height] of the masks of a sample's objects. */
export function maskSizeOf({ width, height }: Pick<Sample, "width" | "height">, { data }: Config): [number, number] {
  return [width / data.maskStride, height / data.maskStride];
}

/** The objects of a sample with masks, points or boxes. An object whose masks are all empty in this crop is left out. */
export function labelled(
  sample: Sample,
  config: Config,
  maskSize: readonly [number, number],
  proxies?: readonly SamProxy[],
): ImageTargets {
  const targets = sample.classes.map((classIndex, t): Target => {
    if (sample.kind === "masks") return { classIndex, candidates: [sample.masks![t]!], iou: [1] };
    const proxy = sample.proxies?.[t];
    if (!proxy) throw new Error(`image ${sample.imageId}: SAM's masks of object ${t} are missing`);
    const soft = proxies?.[sample.source[t]!]?.soft;
    const candidates = soft ? soft.maps.map((map) => probabilities(map, soft.side, sample, maskSize)) : proxy.masks;
    const prompt =
      sample.kind === "points"
        ? ({ kind: "point", coords: sample.points[t]! } as const)
        : ({ kind: "box", coords: sample.boxes[t]! } as const);
    return { classIndex, candidates, iou: proxy.iou, ...(config.prompt.mode === "none" ? {} : { prompt }) };
  });
  const visible = targets.filter(({ candidates }) => candidates.some((mask) => mask.some((v) => v > 0)));
  return { targets: visible, supervised: sample.kind !== "tags", tags: sample.tags, valid: sample.valid };
}

interface Context {
  config: Config;
  teacher: Pick<Teacher, "promptPoints">;
  items: readonly Item[];
}

/** Adds pseudo objects to the images of a batch that have tags; reads the CAM (B, K, h, w) back where there are any. */
export async function pseudoLabelled(
  targets: readonly ImageTargets[],
  samples: readonly Sample[],
  cam: Tensor,
  { config, teacher, items }: Context,
  maskSize: readonly [number, number],
): Promise<ImageTargets[]> {
  if (!samples.some((sample) => sample.kind === "tags")) return [...targets];
  const [, K, h, w] = cam.shape as [number, number, number, number];
  const maps = (await noGrad(() => cam).toArray()) as Float32Array;
  const out: ImageTargets[] = [];
  for (const [b, sample] of samples.entries()) {
    if (sample.kind !== "tags") {
      out.push(targets[b]!);
      continue;
    }
    const map = maps.subarray(b * K * h * w, (b + 1) * K * h * w);
    const peaks = findPeaks(map, [K, h, w], sample.tags, sample.valid, [sample.width, sample.height], config.cam);
    if (peaks.length === 0) {
      out.push({ ...targets[b]!, targets: [], supervised: false });
      continue;
    }
    const size = [sample.originalWidth, sample.originalHeight] as const;
    const originals = peaks.map(({ x, y }): [number, number] => {
      const [ox, oy] = toOriginal(sample.affine, x, y);
      return [clamp(ox - 0.5, size[0] - 1), clamp(oy - 0.5, size[1] - 1)];
    });
    const masks = await teacher.promptPoints(
      sample.imageId,
      size,
      () => readImage(items[sample.item]!.path),
      originals,
    );
    const kept = distinct(
      peaks.map((peak) => peak.classIndex),
      masks,
      config.cam.dedupIou,
    );
    const found = kept.map((i): Target => {
      const { classIndex, x, y } = peaks[i]!;
      const candidates = masks.logits[i]!.map((logits) =>
        inNetwork(logits, masks.side, sample, maskSize, config.proxy.soft),
      );
      const prompt = { kind: "point", coords: [x - 0.5, y - 0.5] } as const;
      return { classIndex, candidates, iou: masks.iou[i]!, ...(config.prompt.mode === "none" ? {} : { prompt }) };
    });
    const visible = found.filter(({ candidates }) => candidates.some((mask) => mask.some((v) => v > 0)));
    out.push({ ...targets[b]!, targets: visible, supervised: visible.length > 0 });
  }
  return out;
}

/** Greedy: by SAM's best rating, a peak goes when its mask overlaps that of a better one of its class by more than `limit`. */
export function distinct(classes: readonly number[], { logits, iou }: PointMasks, limit: number): number[] {
  const best = iou.map(bestRated);
  const order = classes.map((_, i) => i).sort((a, b) => iou[b]![best[b]!]! - iou[a]![best[a]!]! || a - b);
  const kept: number[] = [];
  for (const i of order) {
    const mine = logits[i]![best[i]!]!;
    if (kept.every((k) => classes[k] !== classes[i] || overlap(mine, logits[k]![best[k]!]!) <= limit)) kept.push(i);
  }
  return kept.sort((a, b) => a - b);
}

function overlap(a: Float32Array, b: Float32Array): number {
  let [both, either] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    const [inA, inB] = [a[i]! > 0, b[i]! > 0];
    if (inA && inB) both++;
    if (inA || inB) either++;
  }
  return either > 0 ? both / either : 1;
}

type Frame = Pick<Sample, "affine" | "originalWidth" | "originalHeight" | "width" | "height">;

/** SAM's low-resolution logits, seen from the network's frame: 0 or 1, or probabilities. */
function inNetwork(
  logits: Float32Array,
  side: number,
  frame: Frame,
  size: readonly [number, number],
  soft: boolean,
): Uint8Array | Float32Array {
  const value = soft ? (v: number) => 1 / (1 + Math.exp(-v)) : (v: number) => (v > 0 ? 1 : 0);
  const out = soft ? new Float32Array(size[0] * size[1]) : new Uint8Array(size[0] * size[1]);
  return resample(logits, side, frame, size, out, value);
}

/** Cached probabilities times 255, seen from the network's frame. */
function probabilities(map: Uint8Array, side: number, frame: Frame, size: readonly [number, number]): Float32Array {
  return resample(map, side, frame, size, new Float32Array(size[0] * size[1]), (v) => v / 255);
}

/** Bilinear values of a map over SAM's square input at the pixel centres of the network's frame; 0 outside the image. */
function resample<T extends Uint8Array | Float32Array>(
  map: ArrayLike<number>,
  side: number,
  { affine, originalWidth, originalHeight, width, height }: Frame,
  [w, h]: readonly [number, number],
  out: T,
  value: (v: number) => number,
): T {
  // SAM's square shows the image's longer side in full.
  const scale = side / Math.max(originalWidth, originalHeight);
  for (let row = 0; row < h; row++)
    for (let column = 0; column < w; column++) {
      const [x, y] = toOriginal(affine, ((column + 0.5) * width) / w, ((row + 0.5) * height) / h);
      if (x < 0 || y < 0 || x >= originalWidth || y >= originalHeight) continue;
      const [u, v] = [clamp(x * scale - 0.5, side - 1), clamp(y * scale - 0.5, side - 1)];
      const [x0, y0] = [Math.floor(u), Math.floor(v)];
      const [x1, y1] = [Math.min(side - 1, x0 + 1), Math.min(side - 1, y0 + 1)];
      const [fx, fy] = [u - x0, v - y0];
      const top = map[y0 * side + x0]! * (1 - fx) + map[y0 * side + x1]! * fx;
      const bottom = map[y1 * side + x0]! * (1 - fx) + map[y1 * side + x1]! * fx;
      out[row * w + column] = value(top * (1 - fy) + bottom * fy);
    }
  return out;
}

function clamp(v: number, most: number): number {
  return Math.min(most, Math.max(0, v));
}
