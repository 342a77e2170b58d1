/** Small tensors laid side by side in one buffer, so that one dispatch does what would take one for each of them. */
import { empty, fill, type Tensor } from "./tensor.ts";

/** A tensor of more elements than this is worth a dispatch of its own. */
const SMALL = 16384;
/** Tensors begin at multiples of this many elements: a workgroup sees one tensor. */
export const PACK_BLOCK = 64;

export class Pack {
  /** Each tensor with its first element's place. */
  readonly places: readonly { readonly x: Tensor; readonly at: number }[];
  /** Elements of the buffer, a multiple of PACK_BLOCK. */
  readonly size: number;

  /** All of one device and one four-byte type. */
  constructor(xs: readonly Tensor[]) {
    let size = 0;
    this.places = xs.map((x) => {
      const at = size;
      size += Math.ceil(x.size / PACK_BLOCK) * PACK_BLOCK;
      return { x, at };
    });
    this.size = size;
  }

  /** Parts tensors into those worth packing, of one device, and the rest. */
  static split(xs: readonly Tensor[]): { small: Tensor[]; large: Tensor[] } {
    const device = xs[0]?.device;
    const fits = (x: Tensor): boolean => x.size <= SMALL && x.device === device;
    return { small: xs.filter(fits), large: xs.filter((x) => !fits(x)) };
  }

  /** The buffer with what `of` gives for each tensor, 0 where it gives nothing and between them. */
  gather(of: (x: Tensor) => Tensor | undefined): Tensor {
    const { device } = this.places[0]!.x;
    const flat = fill(empty(device, [this.size]), 0);
    for (const { x, at } of this.places) {
      const from = of(x);
      if (from) device.copy(from, 0, flat, at, x.size);
    }
    return flat;
  }

  /** Writes the buffer's parts to where `to` says, nowhere where it says nothing. */
  scatter(flat: Tensor, to: (x: Tensor) => Tensor | undefined): void {
    for (const { x, at } of this.places) {
      const target = to(x);
      if (target) flat.device.copy(flat, at, target, 0, x.size);
    }
  }
}
