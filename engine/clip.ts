/** Gradients limited in length, and measured on the way. */
import { checkOptions, checkTensors, describe } from "./check.ts";
import { linearGroups, run } from "./kernel.ts";
import { stridedRead } from "./ops/strided.ts";
import { Pack } from "./pack.ts";
import { isTensor, scope } from "./scope.ts";
import { empty, type Tensor } from "./tensor.ts";

/**
 * Scales the gradients so that their common L2 norm is at most `maxNorm` (torch.nn.utils.clip_grad_norm_); returns the norm before, (1).
 * Squares are summed in f32, as PyTorch does: gradients beyond 1e19, finite as they may be, have the norm Infinity and become 0.
 * `scale`: gradients of a loss that was multiplied by it; they are divided by it first. Default 1.
 */
export function clipGradNorm(
  params: Tensor | Iterable<Tensor>,
  maxNorm: number,
  options: { scale?: number } = {},
): Tensor {
  checkOptions("clipGradNorm", options, { scale: "number" });
  const { scale = 1 } = options;
  if (typeof maxNorm !== "number" || !(maxNorm > 0))
    throw new Error(`clipGradNorm: maxNorm must be a number above 0; got ${describe(maxNorm)}`);
  if (!(Math.fround(scale) > 0 && Math.fround(scale) < Number.POSITIVE_INFINITY))
    throw new Error(`clipGradNorm: scale must be above 0 and no more than f32 holds; got ${scale}`);
  const gradients = listed(params).flatMap((x) => (x.grad ? [x.grad] : []));
  const first = gradients[0];
  if (!first) throw new Error("clipGradNorm: no parameter has a gradient; call backward() first");
  const { device } = first;
  return scope(() => {
    const { small, large } = Pack.split(gradients);
    const pack = new Pack(small);
    const flat = small.length > 0 ? [pack.gather((g) => g)] : [];
    const all = [...large, ...flat];
    const blocks = all.map((g) => Math.ceil(g.size / 1024));
    const partial = empty(device, [blocks.reduce((sum, n) => sum + n, 0)]);
    let offset = 0;
    all.forEach((g, i) => {
      run(device, "clip_norm", "square", {
        bind: { g, partial },
        params: { n: g.size, offset, max_norm: 0, scale },
        groups: linearGroups(Math.ceil(blocks[i]! / 64)),
      });
      offset += blocks[i]!;
    });
    const norm = empty(device, [2]);
    run(device, "clip_norm", "clip_factor", {
      bind: { partial, norm },
      params: { n: partial.size, offset: 0, max_norm: maxNorm, scale },
      groups: [1],
    });
    for (const g of all)
      run(device, "clip_norm", "scale", {
        bind: { clip: norm, g_out: g },
        params: { n: g.size, offset: 0, max_norm: 0, scale },
        groups: linearGroups(Math.ceil(g.size / 64)),
      });
    for (const packed of flat) pack.scatter(packed, (g) => g);
    return stridedRead(norm, [1], { strides: [1] });
  });
}

function listed(params: Tensor | Iterable<Tensor>): Tensor[] {
  if (isTensor(params)) return [params];
  if (typeof params?.[Symbol.iterator] !== "function")
    throw new Error(
      `clipGradNorm: params must be a tensor or several, such as model.parameters(); got ${describe(params)}`,
    );
  const list = [...params];
  checkTensors("clipGradNorm", Object.fromEntries(list.map((x, i) => [`parameter ${i}`, x])), true);
  return list;
}
