/** Line charts and bars as SVG text: for reports that open without a network and years later. */

export interface Line {
  name: string;
  points: readonly (readonly [x: number, y: number])[];
}

export interface ChartOptions {
  title: string;
  x: string;
  /** Limits of the y axis; default: what the lines need, from 0 where they are not negative. */
  y?: readonly [number, number];
  width?: number;
  height?: number;
}

const COLOURS = [
  "#2563eb",
  "#d97706",
  "#059669",
  "#dc2626",
  "#7c3aed",
  "#0891b2",
  "#be185d",
  "#65a30d",
  "#475569",
  "#b45309",
  "#4338ca",
  "#0f766e",
];
const LEFT = 52;
const RIGHT = 12;
const TOP = 30;
const BOTTOM = 34;

/** More points than pixels help nobody: neighbours are averaged. */
const MOST_POINTS = 400;

export function lineChart(lines: readonly Line[], { title, x, y, width = 520, height = 280 }: ChartOptions): string {
  const drawn = lines
    .map(({ name, points }) => ({ name, points: thin(points.filter(([, v]) => Number.isFinite(v))) }))
    .filter((line) => line.points.length > 0);
  const xs = drawn.flatMap((line) => line.points.map((p) => p[0]));
  const ys = drawn.flatMap((line) => line.points.map((p) => p[1]));
  if (xs.length === 0) return "";
  const [x0, x1] = [min(xs), max(xs)];
  const [y0, y1] = y ?? [Math.min(0, min(ys)), max(ys) * 1.05 || 1];
  const across = (v: number): number => LEFT + ((v - x0) / (x1 - x0 || 1)) * (width - LEFT - RIGHT);
  const down = (v: number): number =>
    height - BOTTOM - ((Math.min(v, y1) - y0) / (y1 - y0 || 1)) * (height - TOP - BOTTOM);
  const grid = ticks(y0, y1).map(
    (v) =>
      `<path class="grid" d="M${LEFT} ${fixed(down(v))}H${width - RIGHT}"/><text x="${LEFT - 6}" y="${fixed(down(v) + 4)}" text-anchor="end">${label(v)}</text>`,
  );
  const marks = ticks(x0, x1).map(
    (v) => `<text x="${fixed(across(v))}" y="${height - BOTTOM + 16}" text-anchor="middle">${label(v)}</text>`,
  );
  const paths = drawn.map(({ name, points }, i) => {
    const d = points.map(([px, py], k) => `${k === 0 ? "M" : "L"}${fixed(across(px))} ${fixed(down(py))}`).join("");
    const dots =
      points.length < 25
        ? points
            .map(
              ([px, py]) => `<circle cx="${fixed(across(px))}" cy="${fixed(down(py))}" r="2.5" fill="${colour(i)}"/>`,
            )
            .join("")
        : "";
    return `<path d="${d}" fill="none" stroke="${colour(i)}" stroke-width="${name === "all" ? 3 : 1.6}"><title>${escapeHtml(name)}</title></path>${dots}`;
  });
  const legend = drawn
    .map(({ name }, i) => `<span><i style="background:${colour(i)}"></i>${escapeHtml(name)}</span>`)
    .join("");
  return `<figure><svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escapeHtml(title)}"><text class="title" x="${LEFT}" y="18">${escapeHtml(title)}</text>${grid.join("")}${marks.join("")}<text x="${width - RIGHT}" y="${height - 4}" text-anchor="end">${escapeHtml(x)}</text>${paths.join("")}</svg><figcaption>${legend}</figcaption></figure>`;
}

/** Horizontal bars from 0 to 1; a negative value is "not defined". */
export function barChart(
  bars: readonly { name: string; value: number }[],
  { title, width = 520 }: { title: string; width?: number },
): string {
  const [row, names] = [20, 130];
  const height = TOP + bars.length * row + 8;
  const drawn = bars.map(({ name, value }, i) => {
    const y = TOP + i * row;
    const length = Math.max(0, value) * (width - names - 60);
    return `<text x="${names - 6}" y="${y + 14}" text-anchor="end">${escapeHtml(name)}</text><rect x="${names}" y="${y + 3}" width="${fixed(length)}" height="${row - 6}" fill="${colour(0)}"/><text x="${fixed(names + length + 6)}" y="${y + 14}">${value < 0 ? "–" : value.toFixed(3)}</text>`;
  });
  return `<figure><svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escapeHtml(title)}"><text class="title" x="8" y="18">${escapeHtml(title)}</text>${drawn.join("")}</svg></figure>`;
}

/** Counts as shades of each column's share; with few classes the numbers stand in the cells. */
export function matrixChart(
  names: readonly string[],
  counts: readonly (readonly number[])[],
  { title, width = 520 }: { title: string; width?: number },
): string {
  const [left, top, right] = [110, TOP + 70, 50];
  const cell = (width - left - right) / names.length;
  const columns = names.map((_, c) => counts.reduce((sum, row) => sum + row[c]!, 0));
  const cells = counts.flatMap((row, r) =>
    row.map((count, c) => {
      const [x, y] = [left + c * cell, top + r * cell];
      const share = count / Math.max(1, columns[c]!);
      const hint = `<title>${escapeHtml(`${names[r]} for ${names[c]}: ${count}`)}</title>`;
      const number =
        cell >= 24 && count > 0
          ? `<text x="${fixed(x + cell / 2)}" y="${fixed(y + cell / 2 + 4)}" text-anchor="middle">${count}</text>`
          : "";
      return `<rect class="cell" x="${fixed(x)}" y="${fixed(y)}" width="${fixed(cell)}" height="${fixed(cell)}" fill="${colour(0)}" fill-opacity="${(0.85 * share).toFixed(2)}">${hint}</rect>${number}`;
    }),
  );
  // Every second or third name, where all would overlap.
  const every = Math.ceil(12 / cell);
  const labels = names.flatMap((name, i) => {
    if (i % every !== 0) return [];
    const middle = (i + 0.5) * cell;
    return [
      `<text x="${left - 6}" y="${fixed(top + middle + 4)}" text-anchor="end">${escapeHtml(name.slice(0, 18))}</text>`,
      `<text transform="translate(${fixed(left + middle + 4)} ${top - 6}) rotate(-45)">${escapeHtml(name.slice(0, 14))}</text>`,
    ];
  });
  const height = top + names.length * cell + 8;
  return `<figure><svg viewBox="0 0 ${width} ${fixed(height)}" role="img" aria-label="${escapeHtml(title)}"><text class="title" x="8" y="18">${escapeHtml(title)}</text>${cells.join("")}${labels.join("")}</svg></figure>`;
}

export function escapeHtml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

function thin(points: readonly (readonly [number, number])[]): (readonly [number, number])[] {
  const size = Math.ceil(points.length / MOST_POINTS);
  if (size <= 1) return [...points];
  return Array.from({ length: Math.ceil(points.length / size) }, (_, i) => {
    const group = points.slice(i * size, (i + 1) * size);
    const mean = (pick: 0 | 1): number => group.reduce((sum, p) => sum + p[pick], 0) / group.length;
    return [mean(0), mean(1)] as const;
  });
}

/** Round numbers within a range, about five. */
function ticks(low: number, high: number): number[] {
  const rough = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough)!;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

const label = (v: number): string => String(Number(v.toPrecision(6)));
const fixed = (v: number): string => v.toFixed(1);
const colour = (i: number): string => COLOURS[i % COLOURS.length]!;
const min = (values: readonly number[]): number => values.reduce((a, b) => Math.min(a, b));
const max = (values: readonly number[]): number => values.reduce((a, b) => Math.max(a, b));
