/** IEEE half precision on the host, rounding to nearest even. */

/** From here on the nearest half is an infinity; the largest that is none is 65504. */
const END = 65520;

const f32 = new Float32Array(1);
const bits = new Uint32Array(f32.buffer);

/** Index of the first finite number that would become an infinity, -1 where there is none. A loop: findIndex takes many times as long. */
export function firstBeyondHalf(values: ArrayLike<number>): number {
  for (let i = 0; i < values.length; i++) {
    const size = Math.abs(values[i]!);
    if (size >= END && size !== Number.POSITIVE_INFINITY) return i;
  }
  return -1;
}

export function halfBits(value: number): number {
  f32[0] = value;
  const b = bits[0]!;
  const sign = (b >>> 16) & 0x8000;
  const exponent = (b >>> 23) & 0xff;
  const mantissa = b & 0x7fffff;
  if (exponent === 0xff) return sign | 0x7c00 | (mantissa ? 0x200 : 0);
  const e = exponent - 112;
  if (e >= 0x1f) return sign | 0x7c00;
  if (e <= 0) {
    if (e < -10) return sign;
    const full = mantissa | 0x800000;
    const shift = 14 - e;
    const half = full >>> shift;
    const rest = full & ((1 << shift) - 1);
    const middle = 1 << (shift - 1);
    return sign | (half + (rest > middle || (rest === middle && (half & 1) === 1) ? 1 : 0));
  }
  const half = (e << 10) | (mantissa >>> 13);
  const rest = mantissa & 0x1fff;
  return sign | (half + (rest > 0x1000 || (rest === 0x1000 && (half & 1) === 1) ? 1 : 0));
}

export function halfValue(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >>> 10) & 0x1f;
  const mantissa = half & 0x3ff;
  if (exponent === 0x1f) return mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  return sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
}
