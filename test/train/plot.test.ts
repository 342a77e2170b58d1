import { XMLParser, XMLValidator } from "fast-xml-parser";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { barChart, lineChart, matrixChart } from "../../train/plot.ts";

const test = suite("plot");
const ODD = "a<b> & \"c\" $& 'd'";
const LONG = "a name which is longer than any axis has room for";
const MATRIX = { title: "taken for", rows: "predicted", columns: "true" };

const series = (length: number, y: (i: number) => number): [number, number][] =>
  Array.from({ length }, (_, i) => [i, y(i)]);
const texts = (svg: string): string[] => matches(svg, /<text[^>]*>([^<]*)<\/text>/g);
const hints = (svg: string): string[] => matches(svg, /<title>([^<]*)<\/title>/g);
/** Paths of lines: those with a stroke and without a fill. */
const lines = (svg: string): string[] => matches(svg, /<path [^>]*\bd="([^"]*)" stroke="#[^>]*><title>/g);
const points = (path: string): number[][] =>
  path
    .slice(1)
    .split("L")
    .map((point) => point.split(",").map(Number));

function matches(svg: string, pattern: RegExp): string[] {
  return [...svg.matchAll(pattern)].map(([, found]) => found!);
}

test("a chart names its axis, its title and each line; the line of all is heavier", async () => {
  const svg = await lineChart(
    [
      { name: "all", heavy: true, points: series(30, (i) => i / 30) },
      { name: "ball", points: series(30, (i) => 1 - i / 30) },
    ],
    { title: "precision", x: "recall", y: [0, 1] },
  );
  for (const text of ["precision", "recall", "all", "ball", "0.2", "1"]) assert.ok(texts(svg).includes(text), text);
  assert.match(svg, /^<figure><svg role="img" aria-label="precision" [^>]*viewBox="0 0 520 \d+"/);
  assert.equal(hints(svg), ["all", "ball"]);
  assert.equal(matches(svg, /stroke-width="([\d.]+)"><title>/g), ["3", "1.6"]);
});

test("limits of the y axis hold, and values beyond them lie on its end", async () => {
  const svg = await lineChart([{ name: "a", points: series(4, (i) => i / 2) }], { title: "t", x: "x", y: [0, 1] });
  assert.equal(
    points(lines(svg)[0]!).map(([, y]) => y),
    [210, 105, 0, 0],
  );
});

test("few points get dots with their values, many none; values that are not finite are left out", async () => {
  const options = { title: "loss", x: "step" };
  const few = await lineChart([{ name: "loss", points: series(4, (i) => (i === 2 ? Number.NaN : i)) }], options);
  assert.equal(hints(few), ["loss", "loss, 0: 0", "loss, 1: 1", "loss, 3: 3"]);
  const two = await lineChart(
    [
      { name: "lost", points: series(3, () => Number.NaN) },
      { name: "kept", points: series(30, (i) => (i % 2 ? i : Number.POSITIVE_INFINITY)) },
    ],
    options,
  );
  assert.not.match(two, /NaN|Infinity|lost/);
  assert.is(points(lines(two)[0]!).length, 15);
  const one = await lineChart([{ name: "loss", points: [[240, 1 / 3]] }], options);
  assert.ok(texts(one).includes("240") && hints(one).includes("loss, 240: 0.3333"));
});

test("a long series is thinned to means of neighbours", async () => {
  const svg = await lineChart([{ name: "a", points: series(8000, (i) => i % 2) }], { title: "t", x: "x", y: [0, 1] });
  const drawn = points(lines(svg)[0]!);
  assert.is(drawn.length, 400);
  assert.ok(drawn.every(([, y]) => y === 105));
});

test("bars are as long as their values, and a negative one says that it is not defined", async () => {
  const bars = [
    { name: "half", value: 0.5 },
    { name: "whole", value: 1 },
    { name: "none", value: -1 },
  ];
  const svg = await barChart(bars, "AP of each class");
  const lengths = matches(svg, /<path d="M0,[\d.]+h([\d.]+)v[^"]*" fill="#2563eb">/g).map(Number);
  assert.is(lengths[0]! * 2, lengths[1]);
  assert.ok(lengths[1]! > 300 && lengths[2] === 0);
  assert.equal(hints(svg), ["half: 0.500", "whole: 1.000", "none: –"]);
  for (const text of ["AP of each class", "half", "whole", "none", "0.500", "1.000", "–"])
    assert.ok(texts(svg).includes(text), text);
});

test("a matrix has a shade by the column's share and a hint for each cell, and numbers where there is room", async () => {
  const names = ["ball", "background", "background"];
  const counts = [
    [3, 0, 1],
    [1, 5, 0],
    [0, 0, 3],
  ];
  const svg = await matrixChart(names, counts, MATRIX);
  assert.is(hints(svg).length, 9);
  assert.is(hints(svg)[2], "ball for background: 1");
  const shades = matches(svg, /fill="#2563eb" fill-opacity="([\d.]+)"/g).map(Number);
  assert.equal(
    shades.map((shade) => Number(shade.toFixed(4))),
    [0.6375, 0, 0.2125, 0.2125, 0.85, 0, 0, 0, 0.6375],
  );
  for (const text of ["taken for", "predicted", "true", "1", "3", "5"]) assert.ok(texts(svg).includes(text), text);
  assert.not.ok(texts(svg).includes("0"));
  assert.is(texts(svg).filter((text) => text === "background").length, 4);
});

test("with many classes a matrix drops numbers, and names that would overlap", async () => {
  const names = Array.from({ length: 81 }, (_, i) => `class ${i}`);
  const svg = await matrixChart(
    names,
    names.map((_, r) => names.map((_, c) => (r === c ? 1000 : 0))),
    MATRIX,
  );
  assert.is(hints(svg).length, 81 * 81);
  assert.not.ok(texts(svg).some((text) => text.includes("000")));
  assert.equal(
    texts(svg).filter((text) => text.startsWith("class")),
    [0, 1].flatMap(() => names.filter((_, i) => i % 3 === 0)),
  );
});

test("nothing to draw is no chart", async () => {
  assert.is(await lineChart([], { title: "t", x: "x" }), "");
  assert.is(await lineChart([{ name: "a", points: [[0, Number.NaN]] }], { title: "t", x: "x" }), "");
  assert.is(await barChart([], "t"), "");
  assert.is(await matrixChart([], [], MATRIX), "");
});

test("charts are whole XML whatever classes are called, stay within their width, ask for nothing and print nothing", async () => {
  const printed: unknown[] = [];
  const { log, warn, error } = console;
  console.log = console.warn = console.error = (...words: unknown[]) => void printed.push(words);
  const names = [ODD, LONG, "all"];
  const draw = () =>
    Promise.all([
      lineChart(
        names.map((name, line) => ({ name, points: series(5, (i) => line * i) })),
        { title: ODD, x: ODD },
      ),
      barChart(
        names.map((name) => ({ name, value: 0.5 })),
        ODD,
      ),
      matrixChart(
        names,
        names.map((_, row) => names.map((_, column) => row + column)),
        { title: ODD, rows: ODD, columns: ODD },
      ),
    ]);
  const charts = await draw();
  const again = await draw();
  Object.assign(console, { log, warn, error });
  assert.equal(printed, []);
  assert.equal(again, charts);
  const parser = new XMLParser({ ignoreAttributes: false });
  for (const svg of charts) {
    assert.is(XMLValidator.validate(svg), true);
    assert.is(parser.parse(svg).figure.svg["@_aria-label"], ODD);
    assert.is(parser.parse(svg).figure.svg["@_width"], "520");
    assert.ok(texts(svg).some((text) => /^a name which[^<]*…$/.test(text)));
    assert.not.match(svg, /<(image|script|style|a|use)\b|href=|url\(/);
  }
});

test.run();
