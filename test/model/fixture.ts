// Recorded outputs of PyTorch (test/parity/make_mask2former.py), how far a tensor is from them, and what is said where something is refused.
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { type Device, F, load, type Tensor } from "../../engine/index.ts";

/** The fixture's tensors; what is stored as float16 comes as f32. */
export async function readFixture(gpu: Device, name: string): Promise<Map<string, Tensor>> {
  const bytes = new Uint8Array(readFileSync(fileURLToPath(new URL(`../parity/${name}.safetensors`, import.meta.url))));
  return load(gpu, bytes);
}

/** Tensors whose names begin with `prefix`, without it. */
export function under(tensors: ReadonlyMap<string, Tensor>, prefix: string): Map<string, Tensor> {
  return new Map(
    [...tensors].filter(([key]) => key.startsWith(prefix)).map(([key, x]) => [key.slice(prefix.length), x]),
  );
}

/** The data handed over beside the checkout ($WGPU_WISH_SHARED or ../shared); undefined where there is none. */
export function sharedFile(path: string): string | undefined {
  const root = process.env.WGPU_WISH_SHARED ?? fileURLToPath(new URL("../../../shared", import.meta.url));
  return existsSync(`${root}/${path}`) ? `${root}/${path}` : undefined;
}

/** max |got - want| over the standard deviation of `want`: both are read back, so the result is awaited. */
export async function distance(got: Tensor, want: Tensor): Promise<number> {
  if (got.shape.join() !== want.shape.join())
    throw new Error(`distance: got shape (${got.shape}), recorded (${want.shape})`);
  const [g, w] = [await got.toArray(), await want.toArray()];
  let worst = 0;
  for (let i = 0; i < w.length; i++)
    worst = Math.max(worst, Math.abs(g[i]! - w[i]!) || (Number.isFinite(g[i]!) ? 0 : Infinity));
  return worst / spread(w);
}

/** Standard deviation. */
export function spread(values: ArrayLike<number>): number {
  let [sum, squares] = [0, 0];
  for (let i = 0; i < values.length; i++) sum += values[i]!;
  const mean = sum / values.length;
  for (let i = 0; i < values.length; i++) squares += (values[i]! - mean) ** 2;
  return Math.sqrt(squares / values.length);
}
/** Moves the rows down by dy and the columns right by dx; what leaves comes in on the other side (torch.roll). */
export function roll(x: Tensor, dy: number, dx: number): Tensor {
  const [H, W] = x.shape.slice(2) as [number, number];
  const rows = F.cat([F.slice(x, 2, H - dy, H), F.slice(x, 2, 0, H - dy)], 2);
  return F.cat([F.slice(rows, 3, W - dx, W), F.slice(rows, 3, 0, W - dx)], 3);
}

/** Of what is thrown. */
export function message(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    return (error as Error).message;
  }
  return "nothing was thrown";
}
