/** Attention by one kernel that never writes the scores: only each query's maximum and sum are kept for the gradients. */
import type { Device } from "../device.ts";
import { linearGroups, run } from "../kernel.ts";
import { scope } from "../scope.ts";
import { stridesOf } from "../shape.ts";
import { alias, empty, type Tensor } from "../tensor.ts";
import { type Attended, maskParams, type Problem } from "./attention-problem.ts";
import { permuteData, stridedRead, stridedWrite } from "./strided.ts";

/** The shaders' tiles: queries and keys, and columns of what is summed up; groups of columns that fit into registers. */
const TILE = 32;
const MOST_GROUPS = 4;
const MOST_COLUMNS = TILE * MOST_GROUPS;

/** Adapters with kernels that spell out each lane of a subgroup. */
export const inLanes = ({ subgroupSize }: Device): boolean => subgroupSize === 4 || subgroupSize === 8;

/** Why a problem does not go in one pass, in words that follow its name; undefined where it does. */
export function onePassObstacle({ d, dv, mask }: Problem, keeps: boolean): string | undefined {
  if (d === 0 || d > MOST_COLUMNS || dv === 0 || dv > MOST_COLUMNS)
    return `takes heads of 1 to ${MOST_COLUMNS}; got ${d} and ${dv}`;
  // Its sum over the batch entries and queries that the mask is repeated to has no tile of its own.
  if (keeps && mask?.x.requiresGrad) return "has no gradient of a mask";
  return undefined;
}

/** Whether the values alone are faster in one pass than in pieces. Subgroups of 4 do not gain enough from what they need not load. */
export function onePassIsFaster(t: Problem): boolean {
  return !inLanes(t.q.device) || (t.q.device.subgroupSize === 8 && subgroupGroups(t) > 0);
}

/** Matrices side by side: (batch, R, C1 + C2). */
function beside(x: Tensor, y: Tensor): Tensor {
  const [batch, r, c] = x.shape as [number, number, number];
  const both = empty(x.device, [batch, r, c + y.shape[2]!]);
  const strides = stridesOf(both.shape);
  stridedWrite(x, both, 0, strides);
  stridedWrite(y, both, c, strides);
  return both;
}

/** Columns from `first` on as a matrix of their own, of x's shape. */
function columns(all: Tensor, first: number, x: Tensor): Tensor {
  return all.shape[2] === x.shape[2]
    ? all
    : stridedRead(all, x.shape, { offset: first, strides: stridesOf(all.shape) });
}

const tilesOf = (rows: number): number => Math.ceil(rows / TILE);
/** 1, 2 or 4 groups of columns: each number is a pipeline of its own. */
const groupsOf = (columns: number): number => (columns <= TILE ? 1 : columns <= 2 * TILE ? 2 : MOST_GROUPS);

interface Saved {
  y: Tensor;
  stats: Tensor;
}

function params(t: Problem) {
  const { batch, n, m, d, dv } = t;
  return { batch, n, m, d, dv, k_h: t.relH?.shape.at(-1) ?? 0, k_w: t.relW?.shape.at(-1) ?? 0, ...maskParams(t) };
}

function gradients(t: Problem, { y, stats }: Saved, gy: Tensor): (Tensor | null)[] {
  const { batch, n, m, d, dv, q, k, v, relH, relW } = t;
  const { device } = gy;
  const all = params(t);
  const rel = relH && relW && beside(relH, relW);
  const rows = empty(device, [batch, n, 4]);
  run(device, "attention_one_pass_grad", "delta", {
    bind: { y_in: y, stats_in: stats, gy, rows_out: rows },
    params: { ...all, columns: 0, first_column: 0 },
    groups: linearGroups(Math.ceil((batch * n) / 64)),
  });
  const bind = { q, k, v, mask: t.mask?.x ?? q, rel: rel ?? q, gy, rows };

  const gradQ = (): (Tensor | null)[] => {
    const width = d + all.k_h + all.k_w;
    const wanted = [q, relH, relW].map((x) => x?.requiresGrad);
    // The first columns are q's and the others those of the relative position.
    const [from, to] = [wanted[0] ? 0 : d, wanted[1] || wanted[2] ? width : d];
    if (from === to) return [null, null, null];
    const gx = empty(device, [batch, n, width]);
    for (let first = from; first < to; first += MOST_COLUMNS)
      run(device, "attention_one_pass_grad", "grad_q", {
        bind: { ...bind, gx },
        params: { ...all, columns: width, first_column: first },
        constants: { GROUPS: groupsOf(to - first) },
        groups: linearGroups(batch * tilesOf(n)),
      });
    return [q, relH, relW].map((x, i) => (x && wanted[i] ? columns(gx, [0, d, d + all.k_h][i]!, x) : null));
  };

  const gradKV = (): (Tensor | null)[] => {
    const [K, V] = [k.requiresGrad ? groupsOf(d) : 0, v.requiresGrad ? groupsOf(dv) : 0];
    if (K + V === 0) return [null, null];
    const width = (K > 0 ? d : 0) + (V > 0 ? dv : 0);
    const gx = empty(device, [batch, m, width]);
    const call = (GROUPS: number, GROUPS_V: number): void =>
      run(device, "attention_one_pass_grad", "grad_kv", {
        bind: { ...bind, gx },
        params: { ...all, columns: width, first_column: width - dv },
        constants: { GROUPS, GROUPS_V },
        groups: linearGroups(batch * tilesOf(m)),
      });
    if (K + V <= MOST_GROUPS) call(K, V);
    else {
      if (K > 0) call(K, 0);
      if (V > 0) call(0, V);
    }
    return [K > 0 ? columns(gx, 0, k) : null, V > 0 ? columns(gx, width - dv, v) : null];
  };

  const [gq, gRelH, gRelW] = scope(gradQ);
  const [gk, gv] = scope(gradKV);
  return [gq!, gk!, gv!, null, gRelH!, gRelW!];
}

/** Groups of columns of the kernel for subgroups of 4 or 8 lanes; 0 where that kernel does not fit. */
function subgroupGroups({ q, m, dv }: Problem): number {
  if (!inLanes(q.device) || m % 4 !== 0 || dv % 4 !== 0) return 0;
  const groups = Math.ceil(dv / (4 * q.device.subgroupSize));
  return groups <= 2 ? groups : groups <= MOST_GROUPS ? MOST_GROUPS : 0;
}

export function onePass(t: Problem): Attended {
  const { batch, n, m, d, dv, q, k, v, relH, relW } = t;
  const { device } = q;
  const y = empty(device, [batch, n, dv]);
  const stats = empty(device, [batch, n, 2]);
  const mask = t.mask?.x ?? q;
  const groups = subgroupGroups(t);
  if (groups > 0) {
    const keys = 4 * device.subgroupSize;
    // Tile by tile where the tiles come out even: rows of kt a power of two apart would fall on the same places of a cache.
    const tiled = m % keys === 0;
    scope(() => {
      const kt = tiled ? permuteData(alias(k, [batch * (m / keys), keys, d]), [0, 2, 1]) : permuteData(k, [0, 2, 1]);
      run(device, "attention_subgroup", "forward", {
        lanes: { lanes: device.subgroupSize, tiles: 1 },
        bind: { q, kt, v, mask, rel_h: relH ?? q, rel_w: relW ?? q, y, stats },
        params: {
          ...params(t),
          k_tile: ((tiled ? d : 1) * keys) / 4,
          k_column: (tiled ? keys : m) / 4,
        },
        constants: { GROUPS: groups },
        groups: linearGroups(batch * Math.ceil(n / 8)),
      });
    });
    return { y, grad: (gy) => gradients(t, { y, stats }, gy) };
  }
  const rel = relH && relW && beside(relH, relW);
  run(device, "attention_one_pass", "forward", {
    bind: { q, k, v, mask, rel: rel ?? q, y, stats },
    params: params(t),
    constants: { GROUPS: groupsOf(dv) },
    groups: linearGroups(batch * tilesOf(n)),
  });
  return { y, grad: (gy) => gradients(t, { y, stats }, gy) };
}
