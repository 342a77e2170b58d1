/** Charts as Vega-Lite specifications, drawn to SVG text: for reports that open without a network and years later. */
import type { TopLevelSpec } from "vega-lite";
import { escapeHtml } from "./html.ts";

export interface Line {
  name: string;
  /** Drawn thicker: of all classes together. */
  heavy?: boolean;
  points: readonly (readonly [x: number, y: number])[];
}

const COLOURS = "#2563eb #d97706 #059669 #dc2626 #7c3aed #0891b2 #be185d #65a30d #64748b #b45309 #4f46e5 #0f766e";
/** In the SVG's own pixels; the page scales them. CELLS is what those of a matrix share. */
const [WIDTH, CELLS, BAR] = [520, 330, 20];
/** More points than pixels help nobody: neighbours are averaged. So few that each gets a dot. */
const [MOST_POINTS, FEW_POINTS] = [400, 24];
const LONGEST = 18;
/** Data hold places in a list of names, so that two classes of one name stay two. */
const NAME = `truncate(names[datum.value], ${LONGEST})`;
const HINT = { description: { field: "hint" } };

/** Lines without a finite point are left out. `y`: limits of the axis; default: what the lines need, 0 included. */
export function lineChart(
  lines: readonly Line[],
  { title, x, y }: { title: string; x: string; y?: readonly [number, number] },
): Promise<string> {
  const drawn = lines
    .map(({ points, ...line }) => ({ heavy: false, ...line, points: points.filter(([, v]) => Number.isFinite(v)) }))
    .filter(({ points }) => points.length > 0);
  const names = drawn.map(({ name }) => name);
  const values = drawn.flatMap(({ name, heavy, points }, line) => {
    const [few, size] = [points.length <= FEW_POINTS, Math.ceil(points.length / MOST_POINTS)];
    return points.map(([x, y], i) => {
      const hint = `${name}, ${x}: ${Number(y.toPrecision(4))}`;
      return { name, heavy, line, few, group: Math.floor(i / size), x, y, hint };
    });
  });
  const whole = values.every((value) => Number.isInteger(value.x));
  const letters = Math.min(LONGEST, Math.max(...names.map((name) => name.length)));
  const mean = ["x", "y"].map((field) => ({ op: "mean", field, as: field }));
  return draw(title, names, values, {
    height: 210,
    encoding: {
      x: {
        field: "x",
        type: "quantitative",
        scale: { zero: false, nice: false },
        axis: { title: x, titleAnchor: "end", grid: false, tickMinStep: whole ? 1 : 0 },
      },
      y: { field: "y", type: "quantitative", scale: y ? { domain: y, clamp: true } : {}, axis: { tickCount: 5 } },
      color: {
        field: "line",
        scale: { domain: [...names.keys()], range: COLOURS.split(" ") },
        legend: { labelExpr: NAME, columns: Math.floor(WIDTH / (9 * letters + 30)), symbolType: "square" },
      },
    },
    layer: [
      {
        transform: [{ aggregate: mean, groupby: ["name", "heavy", "line", "group"] }],
        mark: "line",
        encoding: {
          description: { field: "name" },
          strokeWidth: { condition: { test: "datum.heavy", value: 3 }, value: 1.6 },
        },
      },
      { transform: [{ filter: "datum.few" }], mark: { type: "circle", size: 20, opacity: 1 }, encoding: HINT },
    ],
  });
}

/** Horizontal bars from 0 to 1; a negative value is "not defined". */
export function barChart(bars: readonly { name: string; value: number }[], title: string): Promise<string> {
  const names = bars.map(({ name }) => name);
  const values = bars.map(({ name, value }, bar) => {
    const figure = value < 0 ? "–" : value.toFixed(3);
    return { bar, length: Math.max(0, value), figure, hint: `${name}: ${figure}` };
  });
  return draw(title, names, values, {
    height: BAR * bars.length,
    encoding: {
      x: { field: "length", type: "quantitative", scale: { domain: [0, 1] }, axis: null },
      y: { field: "bar", axis: { labelExpr: NAME } },
    },
    layer: [
      { mark: "bar", encoding: HINT },
      { mark: { type: "text", align: "left", dx: 6 }, encoding: { text: { field: "figure" } } },
    ],
  });
}

/** Counts as shades of each column's share; with few classes the numbers stand in the cells. */
export function matrixChart(
  names: readonly string[],
  counts: readonly (readonly number[])[],
  { title, rows, columns }: { title: string; rows: string; columns: string },
): Promise<string> {
  const totals = names.map((_, c) => counts.reduce((sum, row) => sum + row[c]!, 0));
  const values = counts.flatMap((counted, row) =>
    counted.map((count, column) => {
      const share = count / Math.max(1, totals[column]!);
      return { row, column, count, shade: 0.85 * share, hint: `${names[row]} for ${names[column]}: ${count}` };
    }),
  );
  const cell = CELLS / names.length;
  const roomy = cell >= 24;
  // Every second or third name, where all would overlap.
  const shown = [...names.keys()].filter((i) => i % Math.ceil(12 / cell) === 0);
  const axis = { values: shown, labelExpr: NAME };
  return draw(title, names, values, {
    height: CELLS,
    encoding: {
      x: { field: "column", axis: { ...axis, title: columns, orient: "top", labelAngle: roomy ? -45 : -90 } },
      y: { field: "row", axis: { ...axis, title: rows } },
    },
    layer: [
      { mark: "rect", encoding: { ...HINT, fillOpacity: { field: "shade", type: "quantitative", scale: null } } },
      {
        transform: [{ filter: `${roomy} && datum.count > 0` }],
        mark: "text",
        encoding: { text: { field: "count" } },
      },
    ],
  });
}

/** Texts have the colour of the page's, light or dark. */
const LABELS = { labelColor: "currentColor", labelFontSize: 11, title: null, aria: false };
const TITLES = { titleColor: "currentColor", titleFontSize: 11, titleFontWeight: "normal" };
const FAINT = "#8884";
const STYLE = {
  background: "transparent",
  font: "system-ui, sans-serif",
  numberFormat: ",.12~g",
  view: { stroke: null },
  mark: { color: COLOURS.split(" ")[0] },
  rect: { stroke: FAINT, strokeWidth: 0.5 },
  text: { color: "currentColor", fontSize: 11, aria: false },
  title: { color: "currentColor", fontSize: 13, fontWeight: 600, anchor: "start", frame: "group", limit: WIDTH },
  axis: { ...LABELS, ...TITLES, labelPadding: 6, domain: false, ticks: false, gridColor: FAINT },
  legend: { ...LABELS, orient: "bottom" },
};

/** Vega writes labels, browsers show titles under the pointer. */
const LABEL = /<path aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="[^"]*"([^>]*)\/>/g;

/** A figure for an HTML page; "" where there is nothing to draw. */
async function draw(
  title: string,
  names: readonly string[],
  values: readonly object[],
  chart: object,
): Promise<string> {
  if (values.length === 0) return "";
  const [{ parse, View, ...vega }, { compile }] = await Promise.all([import("vega"), import("vega-lite")]);
  // Not in vega's types. With node-canvas's fonts, where that is installed, the same chart would be laid out otherwise.
  (vega as unknown as { textMetrics: { canvas(use: boolean): void } }).textMetrics.canvas(false);
  const autosize = { type: "fit-x", contains: "padding" };
  const params = [{ name: "names", value: names }];
  const common = { title, width: WIDTH, autosize, params, data: { values }, config: STYLE };
  const view = new View(parse(compile({ ...common, ...chart } as TopLevelSpec).spec), { renderer: "none" });
  const svg = (await view.toSVG()).replace("<svg", () => `<svg role="img" aria-label="${escapeHtml(title)}"`);
  view.finalize();
  return `<figure>${svg.replace(LABEL, "<path$2><title>$1</title></path>")}</figure>`;
}
