/** Pure arithmetic on shapes: no GPU, no tensors. */
export type Shape = readonly number[];

export function sizeOf(shape: Shape): number {
  let n = 1;
  for (const d of shape) n *= d;
  return n;
}

/** Strides of a contiguous row-major array of this shape. */
export function stridesOf(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let d = shape.length - 1; d >= 0; d--) {
    strides[d] = step;
    step *= shape[d]!;
  }
  return strides;
}

export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((d, i) => d === b[i]);
}

/** `(2, 3)`: the form in which errors write a shape. */
export function show(shape: Shape): string {
  return `(${shape.join(", ")})`;
}

/** NumPy's broadcasting of several shapes; `op` names the caller in the error. */
export function broadcastShapes(op: string, ...shapes: Shape[]): number[] {
  const rank = Math.max(...shapes.map((s) => s.length));
  const out = new Array<number>(rank).fill(1);
  for (const shape of shapes)
    for (let i = 0; i < shape.length; i++) {
      const d = rank - shape.length + i;
      const n = shape[i]!;
      if (n === 1 || n === out[d]) continue;
      if (out[d] !== 1)
        throw new Error(
          `${op}: shapes ${shapes.map(show).join(" and ")} do not broadcast: dimension ${d} is ${out[d]} and ${n}`,
        );
      out[d] = n;
    }
  return out;
}

/** Strides with which a contiguous array of `shape` is read as if it had the shape `out`: 0 where it is repeated. */
export function broadcastStrides(shape: Shape, out: Shape): number[] {
  const own = stridesOf(shape);
  const lead = out.length - shape.length;
  return out.map((_, d) => (d < lead || shape[d - lead] === 1 ? 0 : own[d - lead]!));
}

/** A dimension counted from the end where negative, checked. */
export function axis(op: string, dim: number, rank: number): number {
  const d = dim < 0 ? dim + rank : dim;
  if (!Number.isInteger(d) || d < 0 || d >= Math.max(rank, 1))
    throw new Error(
      `${op}: dim must lie in ${-rank}..${rank - 1} for a tensor of ${rank} dimensions; got ${typeof dim === "number" ? dim : typeof dim}`,
    );
  return d;
}

/** Merges neighbouring dimensions that every operand walks through in one stride: fewer divisions an element in strided kernels. */
export function collapse(
  shape: Shape,
  strides: readonly (readonly number[])[],
): { shape: number[]; strides: number[][] } {
  const outShape: number[] = [];
  const outStrides: number[][] = strides.map(() => []);
  for (let d = 0; d < shape.length; d++) {
    const n = shape[d]!;
    if (n === 1) continue;
    const last = outShape.length - 1;
    if (last >= 0 && strides.every((s, k) => outStrides[k]![last] === s[d]! * n)) {
      outShape[last]! *= n;
      for (let k = 0; k < strides.length; k++) outStrides[k]![last] = strides[k]![d]!;
    } else {
      outShape.push(n);
      for (let k = 0; k < strides.length; k++) outStrides[k]!.push(strides[k]![d]!);
    }
  }
  return { shape: outShape, strides: outStrides };
}
