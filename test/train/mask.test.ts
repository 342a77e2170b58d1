import { readFileSync } from "node:fs";
import fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { Random } from "../../engine/random.ts";
import {
  areaOfRuns,
  type Box,
  boxOfRuns,
  encodeMask,
  iouOfBoxes,
  iouOfRuns,
  maskOfRuns,
  mergeRuns,
  type Rle,
  type Runs,
  rleOfRuns,
  runsOfMask,
  runsOfRle,
} from "../../train/data/mask.ts";
import { runsOfPolygons } from "../../train/data/polygon.ts";
import { BadInput } from "../../train/errors.ts";

interface Text {
  size: [number, number];
  counts: string;
}
interface Recorded {
  polygons: { height: number; width: number; polygons: number[][]; rle: Text }[];
  groups: {
    height: number;
    width: number;
    pixels: string[];
    rles: Text[];
    areas: number[];
    boxes: Box[];
    iou: number[];
    crowdIou: number[];
    union: Text;
    intersection: Text;
  }[];
  boxes: Box[];
  boxIou: number[];
}
const recorded: Recorded = JSON.parse(readFileSync(new URL("../parity/data/masks.json", import.meta.url), "utf8"));

const test = suite("masks");

test("polygons become the masks that pycocotools makes of them", () => {
  for (const { height, width, polygons, rle } of recorded.polygons) {
    assert.equal(rleOfRuns(runsOfPolygons(polygons, width, height)), rle, JSON.stringify(polygons));
  }
});

test("a polygon takes the time of what is inside the image, however far outside its corners lie", () => {
  const random = new Random(7);
  const polygon = Array.from({ length: 6000 }, () => random.uniform(-9e5, 9e5));
  const started = performance.now();
  runsOfPolygons([polygon], 200, 150);
  assert.ok(performance.now() - started < 10_000);
});

test("encoding, decoding, areas, boxes, overlaps and merging equal pycocotools'", () => {
  for (const group of recorded.groups) {
    const { height, width } = group;
    const pixels = group.pixels.map((text) => Uint8Array.from(text, Number));
    const runs = group.rles.map(runsOfRle);
    assert.equal(
      pixels.map((mask) => encodeMask(mask, width, height)),
      group.rles,
    );
    assert.equal(runs.map(maskOfRuns), pixels);
    assert.equal(runs.map(areaOfRuns), group.areas);
    assert.equal(runs.map(boxOfRuns), group.boxes);
    assert.equal([...iouOfRuns(runs, runs, [false, false, false, false, false])], group.iou);
    assert.equal([...iouOfRuns(runs, runs, [true, true, true, true, true])], group.crowdIou);
    assert.equal(rleOfRuns(mergeRuns(runs.slice(2), "union")), group.union);
    assert.equal(rleOfRuns(mergeRuns(runs.slice(3), "intersection")), group.intersection);
  }
  const crowd = recorded.boxes.map((_, i) => i % 2 === 1);
  assert.equal([...iouOfBoxes(recorded.boxes, recorded.boxes, crowd)], recorded.boxIou);
});

test("counts may be a list, and hold runs of length 0", () => {
  const runs = runsOfRle({ size: [2, 3], counts: [0, 2, 0, 1, 3] });
  assert.equal([...maskOfRuns(runs)], [1, 1, 0, 1, 0, 0]);
  assert.equal(areaOfRuns(runs), 3);
  assert.equal(boxOfRuns(runs), [0, 0, 2, 2]);
  const one = runsOfRle({ size: [2, 3], counts: [0, 3, 3] });
  assert.equal([...iouOfRuns([runs], [one], [false])], [1]);
});

test("no masks merge to an empty one, no polygons to an empty mask", () => {
  assert.equal(areaOfRuns(runsOfPolygons([], 4, 5)), 0);
  assert.equal(maskOfRuns(runsOfPolygons([], 4, 5)).length, 20);
});

test("long and large masks survive the string form", () => {
  const [width, height] = [3000, 2000];
  const mask = new Uint8Array(width * height);
  for (let i = 0; i < mask.length; i += 7) mask[i] = 1;
  mask[mask.length - 1] = 1;
  const rle = encodeMask(mask, width, height);
  assert.equal(runsOfRle(rle).counts, runsOfMask(mask, width, height).counts);
  const huge: Rle = { size: [16_000, 16_000], counts: [100_000_000, 1, 100_000_000, 55_999_999] };
  assert.equal(runsOfRle(rleOfRuns(runsOfRle(huge))).counts, Uint32Array.from(huge.counts as number[]));
});

/** Two masks of one size. */
const pairs = fc.tuple(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 9 })).chain(([width, height]) => {
  const mask = fc.uint8Array({ min: 0, max: 1, minLength: width * height, maxLength: width * height });
  return fc.record({ width: fc.constant(width), height: fc.constant(height), a: mask, b: mask });
});

test("any mask survives its text, and overlaps are those counted pixel by pixel", () => {
  fc.assert(
    fc.property(pairs, ({ width, height, a, b }) => {
      const [p, q] = [a, b].map((mask) => runsOfRle(encodeMask(mask, width, height))) as [Runs, Runs];
      assert.equal(maskOfRuns(p), a);
      const both = a.map((value, i) => value & b[i]!);
      const either = a.map((value, i) => value | b[i]!);
      assert.equal(maskOfRuns(mergeRuns([p, q], "intersection")), both);
      assert.equal(maskOfRuns(mergeRuns([p, q], "union")), either);
      const count = (mask: Uint8Array) => mask.reduce((sum, value) => sum + value, 0);
      assert.is(areaOfRuns(p), count(a));
      const iou = (rest: Uint8Array) => (count(both) === 0 ? 0 : count(both) / count(rest));
      assert.equal([...iouOfRuns([p], [q, q], [false, true])], [iou(either), iou(a)]);
    }),
    { seed: 1 },
  );
});

test("what is no RLE is refused with the reason", () => {
  const bad: [Rle, RegExp][] = [
    [{ size: [2, 2], counts: [1, 2] }, /cover 3 pixels/],
    [{ size: [2, 2], counts: [1, -1, 4] }, /whole numbers/],
    [{ size: [2, 2], counts: [1.5, 2.5] }, /whole numbers/],
    [{ size: [2, 2], counts: "zz~" }, /none of their characters/],
    [{ size: [2, 2], counts: "P" }, /end in the middle|none of|cover/],
    [{ size: [1e9, 1e9], counts: "0" }, /RLE size/],
    [{ size: [2, Number.NaN], counts: "0" }, /RLE size/],
    [{ size: [2, 2], counts: "oooooooooooo" }, /more than 32 bits/],
    [{ size: [2, 2], counts: "1" }, /cover 1 pixels/],
  ];
  // As pycocotools: no counts are an empty mask.
  for (const counts of ["", []]) assert.is(areaOfRuns(runsOfRle({ size: [2, 2], counts })), 0);
  for (const [rle, reason] of bad) {
    assert.throws(
      () => runsOfRle(rle),
      (error: Error) => error instanceof BadInput && reason.test(error.message),
      JSON.stringify(rle),
    );
  }
  assert.throws(
    () => mergeRuns([runsOfRle({ size: [1, 2], counts: [2] }), runsOfRle({ size: [2, 1], counts: [2] })], "union"),
    /one size/,
  );
});

test.run();
