/**
 * Class activation maps: their loss on tags, the peaks that become pseudo points, and the loss that lets predicted masks sharpen them
 * (paper Eq. 16, 17 and 19). Everything counts only the cells that are image, not padding.
 */
import { type Device, F, noGrad, type Tensor } from "../engine/index.ts";
import { type LayerStack, masksOfRows, type Pair } from "./matching.ts";
import { type ImageTargets, indexTensor, type TargetTensors } from "./targets.ts";

const TINY = 1e-5;

/** Cells of a (h, w) map of a W x H input that hold some image. */
export function validCells(
  valid: readonly [number, number],
  input: readonly [width: number, height: number],
  w: number,
  h: number,
): [number, number] {
  const cells = (part: number, whole: number, n: number): number =>
    Math.max(1, Math.min(n, Math.ceil((part * n) / whole - 1e-9)));
  return [cells(valid[0], input[0], w), cells(valid[1], input[1], h)];
}

/** L_cam: binary cross entropy of the tag logits, the CAM's mean over its valid cells. cam (B, K, h, w), inputSize [H, W]. */
export function camLoss(
  gpu: Device,
  cam: Tensor,
  images: readonly Pick<ImageTargets, "tags" | "valid">[],
  inputSize: readonly [number, number],
): Tensor {
  const [B, K, h, w] = cam.shape as [number, number, number, number];
  const share = new Float32Array(B * h * w);
  const tags = new Float32Array(B * K);
  for (const [b, image] of images.entries()) {
    const [vw, vh] = validCells(image.valid, [inputSize[1], inputSize[0]], w, h);
    for (let y = 0; y < vh; y++) share.fill(1 / (vw * vh), (b * h + y) * w, (b * h + y) * w + vw);
    for (const tag of image.tags) tags[b * K + tag] = 1;
  }
  const logits = F.sum(F.mul(cam, gpu.tensor(share, [B, 1, h, w])), [2, 3]); // (B, K)
  return F.binaryCrossEntropyWithLogits(logits, gpu.tensor(tags, [B, K]));
}

/**
 * L_self: the CAM of a class is pulled to the union of the masks that matched queries of the class predict (last layer, detached). Only
 * classes with such a query count. `raw` compares the logits themselves in place of the map normalised by its maximum; `clamp` keeps that
 * map away from 0 and 1, where the logarithm's slope is up to 1 / clamp and would drown the other losses. Cross entropy with soft masks stays
 * at their own entropy, which rises and falls as they form; `divergence` takes that off, so that the loss tells how far the maps are from
 * the masks. The gradient is the same.
 */
export function selfLoss(
  gpu: Device,
  cam: Tensor,
  stack: LayerStack,
  targets: TargetTensors,
  last: readonly Pair[],
  inputSize: readonly [number, number],
  { raw, clamp, divergence }: { raw: boolean; clamp: number; divergence: boolean },
): Tensor | undefined {
  if (last.length === 0) return undefined;
  const [, K, h, w] = cam.shape as [number, number, number, number];
  // Rows of (image, class) that are present, and the matched queries of each.
  const groups = new Map<number, { image: number; row: number }[]>();
  for (const { image, query, target } of last) {
    const key = image * K + targets.images[image]!.targets[target]!.classIndex;
    const row = (stack.layers - 1) * stack.queries + query;
    groups.set(key, [...(groups.get(key) ?? []), { image, row }]);
  }
  const keys = [...groups.keys()];
  const widest = Math.max(...[...groups.values()].map((rows) => rows.length));
  const [G, hw] = [keys.length, h * w];

  const inside = new Float32Array(G * hw);
  for (const [g, key] of keys.entries()) {
    const [vw, vh] = validCells(targets.images[Math.floor(key / K)]!.valid, [inputSize[1], inputSize[0]], w, h);
    for (let y = 0; y < vh; y++) inside.fill(1, g * hw + y * w, g * hw + y * w + vw);
  }
  const valid = gpu.tensor(inside, [G, hw]);
  const cells = inside.reduce((sum, v) => sum + v, 0);

  const union = noGrad(() => {
    // A class with fewer queries than the widest repeats one of its own: the maximum stays.
    const rows = [...groups.values()].flatMap((list) =>
      Array.from({ length: widest }, (_, i) => list[i % list.length]!),
    );
    const masks = F.sigmoid(masksOfRows(gpu, stack, rows));
    const small = F.interpolate(masks, { size: [h, w], mode: "bilinear", alignCorners: false });
    return F.max(F.reshape(small, [G, widest, hw]), [1]);
  });
  const maps = F.indexSelect(F.reshape(cam, [cam.size / hw, hw]), 0, indexTensor(gpu, keys)); // (G, hw)
  if (raw) {
    const each = F.binaryCrossEntropyWithLogits(maps, union, { reduction: "none" });
    return F.div(F.sum(F.mul(each, valid)), cells);
  }
  const active = F.mul(F.relu(maps), valid);
  const peak = noGrad(() => F.add(F.max(active, [1], { keepdim: true }), TINY));
  const likelihood = (map: Tensor): Tensor => {
    const a = F.clamp(map, { min: clamp, max: 1 - clamp });
    return F.add(F.mul(union, F.log(a)), F.mul(F.sub(1, union), F.log(F.sub(1, a))));
  };
  const found = likelihood(F.div(active, peak));
  const lacking = divergence ? F.sub(likelihood(union), found) : F.neg(found);
  return F.div(F.sum(F.mul(lacking, valid)), cells);
}

export interface PeakOptions {
  /** Least normalised activation. */
  tau: number;
  /** Distance that peaks keep, as a share of the input's long side. */
  radius: number;
  maxPeaks: number;
  upsample: number;
}

export interface Peak {
  classIndex: number;
  /** Continuous coordinates in the network's input. */
  x: number;
  y: number;
  /** Normalised activation, 0 to 1. */
  value: number;
}

/**
 * Local maxima of each tagged class's map (paper Eq. 18), strongest first: the ReLU of the map over its maximum, enlarged; the global
 * maximum always counts, the others from `tau` up and `radius` away from stronger ones. A map without any activation has none.
 * @param cam (K, h, w) of one image; input [width, height]
 */
export function findPeaks(
  cam: Float32Array,
  [K, h, w]: readonly [number, number, number],
  tags: readonly number[],
  valid: readonly [number, number],
  input: readonly [number, number],
  options: PeakOptions,
): Peak[] {
  if (cam.length !== K * h * w)
    throw new Error(`findPeaks: a CAM of ${K} x ${h} x ${w} expected; got ${cam.length} values`);
  const [vw, vh] = validCells(valid, input, w, h);
  const u = options.upsample;
  const [W, H] = [vw * u, vh * u];
  const reach = options.radius * Math.max(input[0], input[1]);
  const [cellW, cellH] = [input[0] / (w * u), input[1] / (h * u)]; // pixels of an enlarged cell
  return tags.flatMap((classIndex) => {
    const map = enlarge(cam.subarray(classIndex * h * w, (classIndex + 1) * h * w), w, vw, vh, u);
    const order = [...map.keys()]
      .filter((i) => isLocalMaximum(map, W, H, i))
      .sort((a, b) => map[b]! - map[a]! || a - b);
    const highest = order.length > 0 ? map[order[0]!]! : 0;
    if (highest <= 0) return [];
    const peaks: Peak[] = [];
    for (const i of order) {
      const value = map[i]! / (highest + TINY);
      if (peaks.length >= options.maxPeaks || (peaks.length > 0 && value < options.tau)) break;
      const x = Math.min(((i % W) + 0.5) * cellW, valid[0] - 0.5);
      const y = Math.min((Math.floor(i / W) + 0.5) * cellH, valid[1] - 0.5);
      if (peaks.every((p) => Math.hypot(p.x - x, p.y - y) > reach)) peaks.push({ classIndex, x, y, value });
    }
    return peaks;
  });
}

/** ReLU of the valid part (vw x vh of rows of w), bilinear, `u` times as large. */
function enlarge(map: Float32Array, w: number, vw: number, vh: number, u: number): Float32Array {
  const out = new Float32Array(vw * u * vh * u);
  const at = (x: number, y: number): number =>
    Math.max(0, map[Math.min(vh - 1, Math.max(0, y)) * w + Math.min(vw - 1, Math.max(0, x))]!);
  for (let y = 0; y < vh * u; y++)
    for (let x = 0; x < vw * u; x++) {
      const [sx, sy] = [(x + 0.5) / u - 0.5, (y + 0.5) / u - 0.5];
      const [x0, y0] = [Math.floor(sx), Math.floor(sy)];
      const [fx, fy] = [sx - x0, sy - y0];
      const top = at(x0, y0) * (1 - fx) + at(x0 + 1, y0) * fx;
      out[y * vw * u + x] = top * (1 - fy) + (at(x0, y0 + 1) * (1 - fx) + at(x0 + 1, y0 + 1) * fx) * fy;
    }
  return out;
}

function isLocalMaximum(map: Float32Array, W: number, H: number, i: number): boolean {
  const [x, y] = [i % W, Math.floor(i / W)];
  for (let dy = -1; dy <= 1; dy++)
    for (let dx = -1; dx <= 1; dx++) {
      const [nx, ny] = [x + dx, y + dy];
      if (nx >= 0 && nx < W && ny >= 0 && ny < H && map[ny * W + nx]! > map[i]!) return false;
    }
  return true;
}
