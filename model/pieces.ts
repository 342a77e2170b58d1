// Work on many rows at once makes tensors that some adapters cannot bind: then it is done in pieces.
import { F, type Tensor } from "../engine/index.ts";

/**
 * fn(x), row by row of the first dimension: in pieces where its largest tensor, `rowBytes` for each row, would be more than `limit`. `fn` is
 * given the first row of its piece, too.
 */
export function inPieces(
  x: Tensor,
  rowBytes: number,
  fn: (piece: Tensor, first: number) => Tensor,
  limit: number = x.device.gpu.limits.maxStorageBufferBindingSize,
): Tensor {
  const rows = x.shape[0]!;
  const count = Math.ceil(rows / Math.max(1, Math.floor(limit / rowBytes)));
  if (count <= 1) return fn(x, 0);
  const each = Math.ceil(rows / count);
  const starts = Array.from({ length: Math.ceil(rows / each) }, (_, i) => i * each);
  return F.cat(
    starts.map((first) => fn(F.slice(x, 0, first, Math.min(rows, first + each)), first)),
    0,
  );
}
