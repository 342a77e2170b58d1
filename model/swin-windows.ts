// Where the tokens of a grid stand when it is cut into windows, shifted or not: positions alone, no parameters.
import { type Device, F, keep, type Tensor } from "../engine/index.ts";

export interface WindowGrid {
  /** Windows of one image, nW. */
  windows: number;
  /** Tokens of one window, N. */
  length: number;
  /** For each token of each window its place in the grid, H W where it is padding: (nW N). */
  toWindows: Tensor;
  /** For each token of the grid its place among the windows: (H W). */
  toGrid: Tensor;
  /** Summands of the scores, (B nW, M, N, window), that part what a shift has brought into one window from two edges; none without a shift. */
  seams(B: number, M: number): { relH: Tensor; relW: Tensor } | undefined;
}

/** The reference's summand for two tokens that must not see each other. */
const APART = -100;
/** Grids kept per device: shifted and not, four stages, and as many sizes of images as come in turn. */
const MAX_GRIDS = 64;

const grids = new WeakMap<Device, Map<string, WindowGrid>>();

/** The windows of an H x W grid whose content was moved up and left by `shift`, the first rows and columns coming in at the end. */
export function windowGrid(gpu: Device, H: number, W: number, window: number, shift: number): WindowGrid {
  const known = grids.get(gpu) ?? new Map<string, WindowGrid>();
  grids.set(gpu, known);
  const name = `${H} ${W} ${window} ${shift}`;
  const grid = known.get(name) ?? makeGrid(gpu, H, W, window, shift);
  // A Map remembers the order of insertion: what was used last moves to the end, what was not used for longest is let go.
  known.delete(name);
  known.set(name, grid);
  if (known.size > MAX_GRIDS) known.delete(known.keys().next().value!);
  return grid;
}

function makeGrid(gpu: Device, H: number, W: number, window: number, shift: number): WindowGrid {
  const [nH, nW] = [Math.ceil(H / window), Math.ceil(W / window)];
  const [rows, columns] = [nH * window, nW * window];
  const N = window ** 2;
  const toWindows = new Int32Array(rows * columns).fill(H * W);
  const toGrid = new Int32Array(H * W);
  for (let y = 0; y < H; y++) {
    for (let x = 0; x < W; x++) {
      const [row, column] = [(y - shift + rows) % rows, (x - shift + columns) % columns];
      const at = Math.floor(row / window) * nW + Math.floor(column / window);
      const place = at * N + (row % window) * window + (column % window);
      toWindows[place] = y * W + x;
      toGrid[y * W + x] = place;
    }
  }
  const windows = nH * nW;
  const seam = (along: "y" | "x"): Tensor =>
    keep(gpu.tensor(seams(nH, nW, window, shift, along), [1, windows, 1, N, window]));
  const [relH, relW] = shift > 0 ? [seam("y"), seam("x")] : [];
  return {
    windows,
    length: N,
    toWindows: keep(gpu.tensor(toWindows, [rows * columns])),
    toGrid: keep(gpu.tensor(toGrid, [H * W])),
    seams(B, M) {
      if (!relH || !relW) return undefined;
      const each = (x: Tensor): Tensor =>
        F.reshape(F.expand(x, [B, windows, M, N, window]), [B * windows, M, N, window]);
      return { relH: each(relH), relW: each(relW) };
    },
  };
}

/**
 * (nH nW, N, window): for a query and a row (or column) of keys, APART where a seam runs between them. The last windows alone have one:
 * their last `shift` rows come from the other edge. Rows and columns add up, so that what both seams part gets twice as much: as good as
 * never, either way, and far less memory than the reference's (nW, N, N).
 */
function seams(nH: number, nW: number, window: number, shift: number, along: "y" | "x"): Float32Array {
  const N = window ** 2;
  const summands = new Float32Array(nH * nW * N * window);
  const moved = (i: number): boolean => i >= window - shift;
  for (let at = 0; at < nH * nW; at++) {
    const last = along === "y" ? Math.floor(at / nW) === nH - 1 : at % nW === nW - 1;
    if (!last) continue;
    for (let query = 0; query < N; query++) {
      const own = moved(along === "y" ? Math.floor(query / window) : query % window);
      for (let key = 0; key < window; key++) if (moved(key) !== own) summands[(at * N + query) * window + key] = APART;
    }
  }
  return summands;
}
