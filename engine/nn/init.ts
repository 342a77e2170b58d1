/** Initial values, in place, drawn from the device's seeded generator (`gpu.manualSeed`). */
import type { Device } from "../device.ts";
import type { Shape } from "../shape.ts";
import { type DType, fill, type Tensor } from "../tensor.ts";

/** What `skip` asks for, while it is at work. */
let skipping: { dtype: DType } | undefined;

/**
 * Runs `make`, whose modules get no drawn values: a checkpoint's will take their place, and drawing hundreds of millions takes a while.
 * The weights that `Module.to` would turn to `dtype` are made of that type, so that memory never holds both.
 */
export function skip<T>(make: () => T, { dtype = "f32" }: { dtype?: "f16" | "f32" } = {}): T {
  const before = skipping;
  skipping = { dtype };
  try {
    return make();
  } finally {
    skipping = before;
  }
}

/** A weight that only products read, to be drawn. */
export function weight(gpu: Device, shape: Shape): Tensor {
  return gpu.empty(shape, skipping);
}

function draw(x: Tensor, next: () => number): Tensor {
  if (skipping) return x;
  x.device.upload(x, Float32Array.from({ length: x.size }, next));
  return x;
}

/** Inputs and outputs of one unit of a weight (out, in, …kernel). */
export function fans(shape: Shape): { fanIn: number; fanOut: number } {
  const field = shape.slice(2).reduce((n, d) => n * d, 1);
  return { fanIn: (shape[1] ?? 1) * field, fanOut: (shape[0] ?? 1) * field };
}

export function normal_(x: Tensor, mean = 0, std = 1): Tensor {
  const { random } = x.device;
  return draw(x, () => mean + std * random.normal());
}

export function uniform_(x: Tensor, low = 0, high = 1): Tensor {
  const { random } = x.device;
  return draw(x, () => random.uniform(low, high));
}

export function constant_(x: Tensor, value: number): Tensor {
  return fill(x, value);
}

export function zeros_(x: Tensor): Tensor {
  return fill(x, 0);
}

export function ones_(x: Tensor): Tensor {
  return fill(x, 1);
}

/** Glorot and Bengio 2010. */
export function xavierUniform_(x: Tensor, gain = 1): Tensor {
  const { fanIn, fanOut } = fans(x.shape);
  const bound = gain * Math.sqrt(6 / (fanIn + fanOut));
  return uniform_(x, -bound, bound);
}

/** He et al. 2015, for ReLU: std = sqrt(2 / fan). */
export function kaimingNormal_(x: Tensor, mode: "fanIn" | "fanOut" = "fanIn"): Tensor {
  return normal_(x, 0, Math.sqrt(2 / fans(x.shape)[mode]));
}

/** PyTorch's default for Linear and Conv: uniform within ±1/sqrt(fan in). */
export function fanInUniform_(x: Tensor, fanIn: number = fans(x.shape).fanIn): Tensor {
  const bound = 1 / Math.sqrt(fanIn);
  return uniform_(x, -bound, bound);
}

/** Normal, redrawn outside [a, b]. */
export function truncNormal_(x: Tensor, mean = 0, std = 1, a = -2, b = 2): Tensor {
  const { random } = x.device;
  return draw(x, () => {
    for (;;) {
      const v = mean + std * random.normal();
      if (v >= a && v <= b) return v;
    }
  });
}
