// SAM's decomposed relative position: a score bias for each query and each key row, and one for each key column.
import { F, type Tensor } from "../../engine/index.ts";

export interface PositionBias {
  readonly relH: Tensor; // (B, M, N, H)
  readonly relW: Tensor; // (B, M, N, W)
}

/**
 * @param q (B, M, N, hd) of an H x W grid, not scaled
 * @param tableH (2 H - 1, hd), row (query - key) + H - 1; another length is resampled linearly, as the reference does
 * @param tableW (2 W - 1, hd)
 */
export function relativePositions(q: Tensor, tableH: Tensor, tableW: Tensor, H: number, W: number): PositionBias {
  const [B, M, N, hd] = q.shape as [number, number, number, number];
  const grid = F.reshape(q, [B * M, H, W, hd]);
  const Rh = F.permute(distances(tableH, H), [0, 2, 1]); // (H, hd, H)
  const relH = F.matmul(grid, Rh); // (B*M, H, W, hd) @ (H, hd, H) -> (B*M, H, W, H)
  const Rw = F.permute(distances(tableW, W), [0, 2, 1]);
  const byColumn = F.matmul(F.permute(grid, [0, 2, 1, 3]), Rw); // (B*M, W, H, W)
  const relW = F.permute(byColumn, [0, 2, 1, 3]);
  return { relH: F.reshape(relH, [B, M, N, H]), relW: F.reshape(relW, [B, M, N, W]) };
}

/** (2 n - 1, hd) -> (n, n, hd): the row of each query's distance to each key. */
function distances(table: Tensor, n: number): Tensor {
  const [length, hd] = table.shape as [number, number];
  let rows = table;
  if (length !== 2 * n - 1) {
    const line = F.reshape(F.permute(table, [1, 0]), [1, hd, 1, length]);
    const resampled = F.interpolate(line, { size: [1, 2 * n - 1], mode: "bilinear" });
    rows = F.permute(F.reshape(resampled, [hd, 2 * n - 1]), [1, 0]);
  }
  // Query i sees the keys 0 to n-1 in the rows i + n-1 down to i.
  const index = new Int32Array(n * n);
  for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) index[i * n + j] = i - j + n - 1;
  return F.reshape(F.indexSelect(rows, 0, table.device.tensor(index, [n * n])), [n, n, hd]);
}
