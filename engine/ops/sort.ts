/**
 * Stable sorting of whole-number keys: how gradients that many elements add to are summed in a fixed order, since floating-point atomics
 * do not exist in WGSL and would give another sum each time. No tape here.
 */
import { linearGroups, run } from "../kernel.ts";
import { free } from "../scope.ts";
import { empty, type Tensor } from "../tensor.ts";

const MAX_DIGIT_BITS = 8;
/** Blocks that keep the adapter busy; more cost counters. */
const BLOCKS = 2048;
const SCAN_CHUNK = 128;

const groupsFor = (n: number): [number, number] => linearGroups(Math.ceil(n / 64));

/** Turns u32 `x`, n elements, into the sums of what stands before each. */
function scan(x: Tensor, n: number): void {
  const blocks = Math.ceil(n / SCAN_CHUNK);
  const params = { rows: 1, n, block: SCAN_CHUNK, blocks, shift: 0, digits: 1, first: blocks === 1 ? 1 : 0, n_keys: 0 };
  const totals = empty(x.device, [blocks], "u32");
  if (blocks > 1) {
    run(x.device, "sort", "total", { bind: { counters: x, totals }, params, groups: groupsFor(blocks) });
    scan(totals, blocks);
  }
  run(x.device, "sort", "spread", { bind: { counters: x, before: totals }, params, groups: groupsFor(blocks) });
  free(totals);
}

/** Sorts each row of u32 keys (rows, n) of at most `bits` bits; `order` holds where in its row each key came from. Equal keys keep their order. */
export function sortKeys(keys: Tensor, rows: number, n: number, bits: number): { keys: Tensor; order: Tensor } {
  const { device } = keys;
  const passes = Math.max(1, Math.ceil(bits / MAX_DIGIT_BITS));
  const digitBits = Math.max(1, Math.ceil(bits / passes));
  const digits = 2 ** digitBits;
  const block = Math.max(digits, Math.ceil((rows * n) / BLOCKS));
  const blocks = Math.max(1, Math.ceil(n / block));
  const counters = empty(device, [rows, digits, blocks], "u32");
  let from = { keys, order: keys };
  for (let pass = 0; pass < passes; pass++) {
    const to = { keys: empty(device, [rows, n], "u32"), order: empty(device, [rows, n], "u32") };
    const params = { rows, n, block, blocks, shift: pass * digitBits, digits, first: pass === 0 ? 1 : 0, n_keys: 0 };
    const groups = groupsFor(rows * blocks);
    run(device, "sort", "count", { bind: { keys: from.keys, counters }, params, groups });
    scan(counters, counters.size);
    run(device, "sort", "scatter", {
      bind: { keys: from.keys, order: from.order, counters, keys_out: to.keys, order_out: to.order },
      params,
      groups,
    });
    if (pass > 0) for (const done of [from.keys, from.order]) free(done);
    from = to;
  }
  free(counters);
  return from;
}

/** Sources by destination: those of destination k are order[start[k]] to order[start[k + 1] - 1], in ascending order. */
export interface Segments {
  order: Tensor;
  start: Tensor;
}

/** Groups n sources by their keys in 0..count-1; a key of `count` means that the source goes nowhere. */
export function groupByKey(keys: Tensor, n: number, count: number): Segments {
  const sorted = sortKeys(keys, 1, n, Math.ceil(Math.log2(count + 1)));
  const start = empty(keys.device, [count + 1], "u32");
  run(keys.device, "sort", "bounds", {
    bind: { keys: sorted.keys, start },
    params: { rows: 1, n, block: 0, blocks: 0, shift: 0, digits: 1, first: 0, n_keys: count },
    groups: groupsFor(Math.ceil((count + 1) / 16)),
  });
  free(sorted.keys);
  return { order: sorted.order, start };
}
