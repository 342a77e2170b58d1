/**
 * Polygons as masks, with pycocotools' results bit for bit (rleFrPoly of cocodataset/cocoapi common/maskApi.c is the reference). That walks
 * each edge on a grid finer than the pixels and keeps the places where the walk passes the middle of a pixel column. Here those places are
 * computed one by one, so that the work grows with the columns an edge passes inside the image, not with how far outside its corners lie.
 */
import { mergeRuns, type Runs } from "./mask.ts";

/** The union of polygons [x0, y0, x1, y1, …], each rasterised as pycocotools does. */
export function runsOfPolygons(polygons: readonly (readonly number[])[], width: number, height: number): Runs {
  return mergeRuns(
    polygons.map((polygon) => runsOfPolygon(polygon, width, height)),
    "union",
    { width, height },
  );
}

/** The polygon's corners are put on a grid this much finer than the pixels. */
const FINER = 5;
/** A pixel column's middle lies between this step of the fine grid, counted from the column's left edge, and the next one. */
const MIDDLE = 2;

/** One polygon: where its outline passes the middle of a pixel column, the mask changes between 0 and 1 at the pixel's row. */
function runsOfPolygon(polygon: readonly number[], width: number, height: number): Runs {
  const corners = polygon.length >> 1;
  const xs = new Int32Array(corners + 1);
  const ys = new Int32Array(corners + 1);
  for (let i = 0; i < corners; i++) {
    xs[i] = FINER * polygon[2 * i]! + 0.5;
    ys[i] = FINER * polygon[2 * i + 1]! + 0.5;
  }
  xs[corners] = xs[0]!;
  ys[corners] = ys[0]!;

  const changes: number[] = [];
  for (let i = 0; i < corners; i++) {
    const [x0, y0, x1, y1] = [xs[i]!, ys[i]!, xs[i + 1]!, ys[i + 1]!];
    // An edge is always computed from its left (or upper) end, so that both ways along it give the same points.
    const wide = Math.abs(x1 - x0) >= Math.abs(y1 - y0);
    const forward = wide ? x0 <= x1 : y0 <= y1;
    const rowAt = (wide ? rowsOfWide : rowsOfSteep)(...((forward ? [x0, y0, x1, y1] : [x1, y1, x0, y0]) as Edge));
    const first = Math.max(0, Math.ceil((Math.min(x0, x1) - MIDDLE) / FINER));
    const last = Math.min(width - 1, Math.floor((Math.max(x0, x1) - MIDDLE - 1) / FINER));
    for (let x = first; x <= last; x++) {
      const y = (rowAt(FINER * x + MIDDLE) + 0.5) / FINER - 0.5;
      changes.push(x * height + Math.ceil(Math.min(Math.max(y, 0), height)));
    }
  }
  return { height, width, counts: countsOfChanges(Uint32Array.from(changes).sort(), height * width) };
}

type Edge = [x0: number, y0: number, x1: number, y1: number];

/** Of an edge that is no steeper than 45 degrees: the upper one of its fine rows at the fine columns `u` and `u + 1`. */
function rowsOfWide(x0: number, y0: number, x1: number, y1: number): (u: number) => number {
  const slope = (y1 - y0) / (x1 - x0);
  const row = (t: number) => Math.trunc(y0 + slope * t + 0.5);
  return (u) => Math.min(row(u - x0), row(u + 1 - x0));
}

/** Of a steeper one: the last fine row before it passes from the fine column `u` to `u + 1`, or the other way. */
function rowsOfSteep(x0: number, y0: number, x1: number, y1: number): (u: number) => number {
  const slope = (x1 - x0) / (y1 - y0);
  const passed = (t: number, u: number) => {
    const column = Math.trunc(x0 + slope * t + 0.5);
    return slope > 0 ? column > u : column <= u;
  };
  return (u) => {
    // Rounding may put the estimate a row beside the place where the columns, rounded themselves, change.
    let t = Math.ceil((u + 0.5 - x0) / slope);
    while (passed(t - 1, u)) t--;
    while (!passed(t, u)) t++;
    return y0 + t - 1;
  };
}

/** Places in ascending order where a mask of `size` pixels changes -> its counts. Two changes in one place cancel. */
function countsOfChanges(places: Uint32Array, size: number): Uint32Array {
  const kept: number[] = [];
  for (const place of places) {
    if (place >= size) break;
    if (kept.at(-1) === place) kept.pop();
    else kept.push(place);
  }
  kept.push(size);
  return Uint32Array.from(kept, (place, i) => place - (kept[i - 1] ?? 0));
}
