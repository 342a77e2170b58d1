import { rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { augmentedPicture } from "../../train/augmented.ts";
import { resolveConfig } from "../../train/config.ts";
import { type Image, writePng } from "../../train/data/image.ts";
import { runsOfMask } from "../../train/data/mask.ts";
import { predictionOverlay } from "../../train/evaluate.ts";
import { classText, letter } from "../../train/lettering.ts";
import { classColour, contactSheet, drawOverlay, heatmap } from "../../train/pictures.ts";

const grey = (width: number, height: number): Image => ({
  width,
  height,
  data: new Uint8Array(width * height * 3).fill(100),
});
const pixel = ({ width, data }: Image, x: number, y: number) => [
  ...data.slice((y * width + x) * 3, (y * width + x) * 3 + 3),
];

const test = suite("pictures");

test("a mask is tinted inside, its rim is in the class's colour, the rest is untouched", () => {
  const mask = new Uint8Array(40 * 30);
  for (let y = 5; y < 25; y++) mask.fill(1, y * 40 + 10, y * 40 + 30);
  const picture = drawOverlay(grey(40, 30), { masks: [{ mask, classIndex: 2 }] }, { scale: 1 });
  assert.equal(pixel(picture, 10, 12), classColour(2));
  assert.equal(pixel(picture, 2, 2), [100, 100, 100]);
  assert.not.equal(pixel(picture, 20, 15), [100, 100, 100]);
  assert.not.equal(pixel(picture, 20, 15), classColour(2));
});

test("labels, points, boxes and captions stay in the picture wherever they are", () => {
  const labels = { label: "a very long name of a class", score: 0.5, classIndex: 0 };
  const last = new Uint8Array(20 * 20);
  last[399] = 1;
  const overlay = {
    masks: [
      { mask: new Uint8Array(400), ...labels },
      { mask: last, ...labels },
    ],
    points: [
      { x: -3, y: 25, ...labels },
      { x: 19, y: 19, ...labels },
    ],
    boxes: [{ box: [-5, -5, 40, 40] as [number, number, number, number], ...labels }],
    caption: "ünï© 100%",
  };
  const picture = drawOverlay(grey(20, 20), overlay, { scale: 3 });
  assert.is(picture.width, 60);
  assert.ok(picture.height > 60);
  assert.is(picture.data.length, picture.width * picture.height * 3);
});

test("texts of neighbours do not cover each other, and accents are written without them", () => {
  const one = { classIndex: 0, label: "triangle" };
  const at = (x: number, y: number) => ({ box: [x, y, 20, 20] as [number, number, number, number], ...one });
  const plateOf = (boxes: ReturnType<typeof at>[]) => {
    const drawn = drawOverlay(grey(200, 120), { boxes }, { scale: 1 });
    const bare = drawOverlay(grey(200, 120), { boxes: boxes.map(({ label: _, ...box }) => box) }, { scale: 1 });
    return drawn.data.filter((value, i) => value !== bare.data[i]).length;
  };
  const alone = plateOf([at(20, 60)]);
  // Four boxes in one place: four plates, none above another.
  const together = plateOf([at(20, 60), at(22, 60), at(24, 61), at(20, 62)]);
  assert.ok(together > 3.5 * alone, `${together} of 4 x ${alone}`);
  const written = (label: string) => drawOverlay(grey(90, 40), { points: [{ x: 5, y: 20, classIndex: 1, label }] });
  assert.equal(written("Étoilé"), written("etoile"));
  assert.not.equal(written("étoile"), written("?toile"));
});

test("every printable ASCII character has a glyph of its own, letters with accents are folded, and other scripts' classes are numbered", () => {
  const inkOf = (text: string) => JSON.stringify(letter(text, 1));
  const ascii = Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i));
  const drawn = new Set(ascii.filter((c) => !/[a-z]/.test(c)).map(inkOf));
  assert.is(drawn.size, 95 - 26);
  for (const [text, same] of [
    ["Ä", "A"],
    ["ångström", "ANGSTROM"],
    ["Łódź œuf Straße", "LODZ OEUF STRASSE"],
    ["ﬁsh №²", "FISH NO2"],
    ["собака", "??????"],
  ] as const)
    assert.is(inkOf(text), inkOf(same), text);
  const names = ["собака", "犬", "Ä", "犬 dog", "?", "__proto__", "dog"];
  assert.equal(
    names.map((name, i) => classText({ id: 10 + i, name })),
    ["class 10", "class 11", "Ä", "犬 dog", "class 14", "__proto__", "dog"],
  );
  const picture = predictionOverlay(
    [{ mask: new Uint8Array(4), label: 1, score: 1, query: 0 } as never],
    [
      { id: 1, name: "dog" },
      { id: 7, name: "犬" },
    ],
  );
  assert.is(picture.masks![0]!.label, "class 7");
});

test("small images are enlarged, large ones are not", () => {
  assert.is(drawOverlay(grey(128, 96), {}).width, 384);
  assert.is(drawOverlay(grey(640, 480), {}).width, 640);
  assert.is(drawOverlay(grey(1, 1), {}).width, 8);
});

test("the first classes have colours of their own", () => {
  const seen = new Set(Array.from({ length: 36 }, (_, i) => classColour(i).join()));
  assert.is(seen.size, 36);
});

test("a contact sheet holds all images, of any size, and none", () => {
  const sheet = contactSheet([grey(10, 10), grey(20, 5), grey(4, 8)], { columns: 2, gap: 2 });
  assert.equal([sheet.width, sheet.height], [2 * 22 + 2, 2 * 12 + 2]);
  assert.equal(pixel(sheet, 24, 2), [100, 100, 100]);
  assert.equal(pixel(sheet, 2, 14), [100, 100, 100]);
  const wide = [grey(1000, 1), grey(1000, 1), grey(1000, 1)];
  assert.is(contactSheet(wide, { columns: 3, gap: 0 }).width, 2000);
  assert.is(contactSheet(wide, { columns: 3, gap: 0, most: 3000 }).width, 3000);
  assert.is(contactSheet([]).data.length, 3);
});

test("an image and its augmented versions stand in one row, panels of like size, however large the image is", async () => {
  const path = join(tmpdir(), `wgpu-wish-large-${process.pid}.png`);
  const [width, height] = [3200, 1600];
  await writePng(path, grey(width, height));
  const box: [number, number, number, number] = [1600, 0, 1600, 1600];
  const mask = Uint8Array.from({ length: width * height }, (_, i) => Number(i % width >= 1600));
  const item = { imageId: 1, path, width, height, classes: [0], points: [], tags: [0] };
  const config = resolveConfig({ data: { width: 640, height: 640 } });
  try {
    for (const labels of [
      { kind: "boxes" as const, boxes: [box], runs: [] },
      { kind: "masks" as const, boxes: [box], runs: [runsOfMask(mask, width, height)] },
    ]) {
      const picture = await augmentedPicture({ ...item, ...labels }, 0, { categories: [{ id: 1, name: "a" }], config });
      assert.is(picture.width, 5 * (640 + 6) + 6);
      assert.ok(picture.height < 700, `${picture.height}`);
      // The original in its first panel: 640 x 320, the label on its right half.
      const [red, green, blue] = classColour(0);
      assert.equal(pixel(picture, 6 + 639, 6 + 160), [red, green, blue], labels.kind);
      assert.equal(pixel(picture, 6 + 300, 6 + 160), [100, 100, 100], labels.kind);
    }
  } finally {
    rmSync(path);
  }
});

test("a heat map goes from blue to red and takes values that are no numbers", () => {
  const picture = heatmap(grey(8, 4), [0, 1, Number.NaN, 5], 4, 1);
  const [cold, hot] = [pixel(picture, 0, 0), pixel(picture, 2, 2)];
  assert.ok(cold[2]! > cold[0]! && hot[0]! > hot[2]!);
  assert.throws(() => heatmap(grey(8, 4), [0], 4, 1), /4x1 values are expected; got 1/);
  assert.throws(
    () => drawOverlay(grey(8, 4), { masks: [{ mask: new Uint8Array(3), classIndex: 0 }] }),
    /8x4 pixels; got 3/,
  );
});

test.run();
