/**
 * Linear assignment of least total cost (Jonker and Volgenant 1987: shortest augmenting paths with potentials), rectangular.
 * Costs that are not numbers count as dearer than every other, so that a broken prediction cannot break the training.
 */

/**
 * @param cost rows * columns, row by row
 * @returns min(rows, columns) pairs [row, column] in order of the rows. Of equal assignments the one found first; always the same.
 */
export function assign(cost: ArrayLike<number>, rows: number, columns: number): [row: number, column: number][] {
  if (cost.length !== rows * columns)
    throw new Error(`assign: ${rows} x ${columns} costs expected; got ${cost.length}`);
  if (rows === 0 || columns === 0) return [];
  const finite = withoutNaN(cost);
  if (rows <= columns) return augment(rows, columns, (r, c) => finite[r * columns + c]!).map((c, r) => [r, c]);
  return augment(columns, rows, (c, r) => finite[r * columns + c]!)
    .map((r, c): [number, number] => [r, c])
    .sort((a, b) => a[0] - b[0]);
}

function withoutNaN(cost: ArrayLike<number>): Float64Array {
  let largest = 0;
  for (let i = 0; i < cost.length; i++) if (Number.isFinite(cost[i]!)) largest = Math.max(largest, Math.abs(cost[i]!));
  // Dear enough to be avoided wherever that is possible, small enough to lose no digits of the others.
  const dear = (largest + 1) * 1e3;
  return Float64Array.from(cost, (v) => (Number.isFinite(v) ? v : v === Number.NEGATIVE_INFINITY ? -dear : dear));
}

/** n rows <= m columns: the column of each row. Index 0 of the working arrays is the unassigned state. */
function augment(n: number, m: number, cost: (row: number, column: number) => number): number[] {
  const u = new Float64Array(n + 1);
  const v = new Float64Array(m + 1);
  const owner = new Int32Array(m + 1); // row (from 1) of each column
  const way = new Int32Array(m + 1);
  for (let row = 1; row <= n; row++) {
    const least = new Float64Array(m + 1).fill(Number.POSITIVE_INFINITY);
    const done = new Uint8Array(m + 1);
    owner[0] = row;
    let column = 0;
    do {
      done[column] = 1;
      const r = owner[column]!;
      let delta = Number.POSITIVE_INFINITY;
      let next = 0;
      for (let c = 1; c <= m; c++) {
        if (done[c]) continue;
        const reduced = cost(r - 1, c - 1) - u[r]! - v[c]!;
        if (reduced < least[c]!) {
          least[c] = reduced;
          way[c] = column;
        }
        if (least[c]! < delta) {
          delta = least[c]!;
          next = c;
        }
      }
      for (let c = 0; c <= m; c++) {
        if (done[c]) {
          u[owner[c]!]! += delta;
          v[c]! -= delta;
        } else least[c]! -= delta;
      }
      column = next;
    } while (owner[column] !== 0);
    while (column !== 0) {
      owner[column] = owner[way[column]!]!;
      column = way[column]!;
    }
  }
  const out = new Array<number>(n);
  for (let c = 1; c <= m; c++) if (owner[c]! > 0) out[owner[c]! - 1] = c - 1;
  return out;
}
