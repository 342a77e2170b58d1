// Non-overlapping square windows of a token grid, as both of SAM's image encoders use them.
import { F, type Tensor } from "../../engine/index.ts";

export interface Windows {
  readonly windows: Tensor; // (B * nH * nW, size * size, C)
  /** The grid after padding to whole windows. */
  readonly padded: readonly [number, number];
}

/** (B, H, W, C) -> windows; what is missing at the bottom and on the right is zero and takes part in attention, as in the reference. */
export function windowPartition(x: Tensor, size: number): Windows {
  const [B, H, W, C] = x.shape as [number, number, number, number];
  const Hp = Math.ceil(H / size) * size;
  const Wp = Math.ceil(W / size) * size;
  let y = x;
  if (Wp > W) y = F.cat([y, x.device.zeros([B, H, Wp - W, C])], 2);
  if (Hp > H) y = F.cat([y, x.device.zeros([B, Hp - H, Wp, C])], 1);
  if (Hp !== size || Wp !== size) {
    y = F.reshape(y, [B, Hp / size, size, Wp / size, size, C]);
    y = F.permute(y, [0, 1, 3, 2, 4, 5]); // (B, nH, nW, size, size, C)
  }
  return { windows: F.reshape(y, [(B * Hp * Wp) / (size * size), size * size, C]), padded: [Hp, Wp] };
}

/** Back to (B, H, W, C), the padding dropped. */
export function windowUnpartition(
  windows: Tensor,
  size: number,
  padded: readonly [number, number],
  H: number,
  W: number,
): Tensor {
  const [Hp, Wp] = padded;
  const C = windows.shape.at(-1)!;
  const B = windows.size / (Hp * Wp * C);
  let x = windows;
  if (Hp !== size || Wp !== size) {
    x = F.reshape(x, [B, Hp / size, Wp / size, size, size, C]);
    x = F.permute(x, [0, 1, 3, 2, 4, 5]); // (B, nH, size, nW, size, C)
  }
  x = F.reshape(x, [B, Hp, Wp, C]);
  if (Hp > H) x = F.slice(x, 1, 0, H);
  if (Wp > W) x = F.slice(x, 2, 0, W);
  return x;
}
