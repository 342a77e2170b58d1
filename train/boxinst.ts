/**
 * Box supervision without masks, what WISH is compared with: projections of the predicted mask against the box, and neighbours of like colour
 * in like segments (Tian et al. 2021, BoxInst, Eq. 1 to 7; AdelaiDet condinst/dynamic_mask_head.py).
 */
import { type Device, F, type Tensor } from "../engine/index.ts";

/** Half of a cell's eight neighbours, two cells away; the other half is the same pairs seen from the other end. */
const NEIGHBOURS = [
  [0, 2],
  [2, 0],
  [2, 2],
  [2, -2],
] as const;
/** exp(-distance / 2) of two colours in CIELAB from which on they count as like (the reference's 0.3). */
const LIKE = 0.3;

export interface BoxLosses {
  /** Both summed, or meaned, over the masks; 0 where they agree. */
  projection: Tensor;
  pairwise: Tensor;
}

/**
 * @param logits (M, 1, h, w) @param boxes (M, 1, h, w), 1 inside @param pairs (M, 4, h, w), see colourPairs
 * The projection term is summed over the masks, the pairwise term is the mean over all pairs that count.
 */
export function boxLosses(logits: Tensor, boxes: Tensor, pairs: Tensor): BoxLosses {
  const probability = F.sigmoid(logits);
  const [down, across] = [projectionLoss(probability, boxes, 2), projectionLoss(probability, boxes, 3)];
  const size = logits.shape.slice(2) as [number, number];
  const inside = logSigmoid(logits);
  const outside = logSigmoid(F.neg(logits));
  // log(p q + (1 - p) (1 - q)) for each pair
  const same = NEIGHBOURS.map(([dy, dx]) => {
    const [both, neither] = [inside, outside].map((x) => F.add(x, shifted(x, dy, dx, size))) as [Tensor, Tensor];
    const most = F.maximum(both, neither);
    return F.add(most, F.log(F.add(1, F.exp(F.neg(F.abs(F.sub(both, neither)))))));
  });
  const counted = F.mul(pairs, boxes); // (M, 4, h, w)
  const total = F.clamp(F.sum(counted), { min: 1 });
  const pairwise = F.neg(F.div(F.sum(F.mul(F.cat(same, 1), counted)), total));
  return { projection: F.add(down, across), pairwise };
}

/** Dice of the maxima along one axis, with squares in its denominator as the reference has them. */
function projectionLoss(probability: Tensor, boxes: Tensor, dim: number): Tensor {
  const [p, t] = [F.max(probability, [dim]), F.max(boxes, [dim])];
  const last = [p.shape.length - 1];
  const overlap = F.sum(F.mul(p, t), last);
  const extent = F.add(F.add(F.sum(F.mul(p, p), last), F.sum(F.mul(t, t), last)), 1e-5);
  return F.sum(F.sub(1, F.div(F.mul(overlap, 2), extent)));
}

function logSigmoid(x: Tensor): Tensor {
  return F.sub(F.clamp(x, { max: 0 }), F.log(F.add(1, F.exp(F.neg(F.abs(x))))));
}

/** y[row, column] = x[row + dy, column + dx], 0 beyond the edges: (M, 1, h, w). */
function shifted(x: Tensor, dy: number, dx: number, [h, w]: readonly [number, number]): Tensor {
  const [left, right] = [Math.max(0, -dx), Math.max(0, dx)];
  const padded = F.pad(x, [left, right, 0, dy]);
  const column = dx > 0 ? dx : 0;
  return F.slice(F.slice(padded, 2, dy, dy + h), 3, column, column + w);
}

interface Picture {
  /** (height, width, 3) */
  rgb: Uint8Array;
  width: number;
  height: number;
  valid: readonly [width: number, height: number];
}

/** Which neighbours look alike: (B, 4, h, w), 1 or 0, of images averaged over the masks' cells. */
export function colourPairs(gpu: Device, images: readonly Picture[], [h, w]: readonly [number, number]): Tensor {
  const out = new Float32Array(images.length * NEIGHBOURS.length * h * w);
  for (const [b, image] of images.entries()) {
    const lab = labCells(image, h, w);
    const [vw, vh] = [Math.ceil((image.valid[0] * w) / image.width), Math.ceil((image.valid[1] * h) / image.height)];
    for (const [n, [dy, dx]] of NEIGHBOURS.entries())
      for (let y = 0; y + dy < vh; y++)
        for (let x = Math.max(0, -dx); x < vw && x + dx < vw; x++) {
          const [i, j] = [(y * w + x) * 3, ((y + dy) * w + x + dx) * 3];
          const apart = Math.hypot(lab[i]! - lab[j]!, lab[i + 1]! - lab[j + 1]!, lab[i + 2]! - lab[j + 2]!);
          if (Math.exp(-apart / 2) >= LIKE) out[((b * NEIGHBOURS.length + n) * h + y) * w + x] = 1;
        }
  }
  return gpu.tensor(out, [images.length, NEIGHBOURS.length, h, w]);
}

/** Mean colours of h x w cells in CIELAB (D65). */
function labCells({ rgb, width, height }: Picture, h: number, w: number): Float64Array {
  const lab = new Float64Array(h * w * 3);
  for (let y = 0; y < h; y++)
    for (let x = 0; x < w; x++) {
      const [y0, y1] = [Math.floor((y * height) / h), Math.max(1, Math.floor(((y + 1) * height) / h))];
      const [x0, x1] = [Math.floor((x * width) / w), Math.max(1, Math.floor(((x + 1) * width) / w))];
      const sum = [0, 0, 0];
      for (let py = y0; py < y1; py++)
        for (let px = x0; px < x1; px++) for (let c = 0; c < 3; c++) sum[c]! += rgb[(py * width + px) * 3 + c]!;
      const area = (y1 - y0) * (x1 - x0);
      lab.set(cielab(sum[0]! / area / 255, sum[1]! / area / 255, sum[2]! / area / 255), (y * w + x) * 3);
    }
  return lab;
}

/** sRGB, 0 to 1, -> L, a, b. */
function cielab(...srgb: [number, number, number]): [number, number, number] {
  const [r, g, b] = srgb.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)) as [
    number,
    number,
    number,
  ];
  const curve = (t: number): number => (t > (6 / 29) ** 3 ? Math.cbrt(t) : t / (3 * (6 / 29) ** 2) + 4 / 29);
  const x = curve((0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.95047);
  const y = curve(0.2126 * r + 0.7152 * g + 0.0722 * b);
  const z = curve((0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.08883);
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}
