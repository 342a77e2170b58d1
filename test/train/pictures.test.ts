import { rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { augmentedPicture } from "../../train/augmented.ts";
import { resolveConfig } from "../../train/config.ts";
import { type Image, writePng } from "../../train/data/image.ts";
import { runsOfMask } from "../../train/data/mask.ts";
import { predictionOverlay } from "../../train/evaluate.ts";
import { classText, letter } from "../../train/lettering.ts";
import { classColour, contactSheet, drawOverlay, heatmap } from "../../train/pictures.ts";
import { node } from "../cli/run.ts";

const grey = (width: number, height: number): Image => ({
  width,
  height,
  data: new Uint8Array(width * height * 3).fill(100),
});
const pixel = ({ width, data }: Image, x: number, y: number) => [
  ...data.slice((y * width + x) * 3, (y * width + x) * 3 + 3),
];

const test = suite("pictures");

test("a mask is tinted inside, its rim is in the class's colour, the rest is untouched", async () => {
  const mask = new Uint8Array(40 * 30);
  for (let y = 5; y < 25; y++) mask.fill(1, y * 40 + 10, y * 40 + 30);
  const picture = await drawOverlay(grey(40, 30), { masks: [{ mask, classIndex: 2 }] }, { scale: 1 });
  assert.equal(pixel(picture, 10, 12), classColour(2));
  assert.equal(pixel(picture, 2, 2), [100, 100, 100]);
  assert.not.equal(pixel(picture, 20, 15), [100, 100, 100]);
  assert.not.equal(pixel(picture, 20, 15), classColour(2));
});

test("labels, points, boxes and captions stay in the picture wherever they are", async () => {
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
  const picture = await drawOverlay(grey(20, 20), overlay, { scale: 3 });
  assert.is(picture.width, 60);
  assert.ok(picture.height > 60);
  assert.is(picture.data.length, picture.width * picture.height * 3);
});

test("texts of neighbours do not cover each other", async () => {
  const one = { classIndex: 0, label: "triangle" };
  const at = (x: number, y: number) => ({ box: [x, y, 20, 20] as [number, number, number, number], ...one });
  const plateOf = async (boxes: ReturnType<typeof at>[]) => {
    const drawn = await drawOverlay(grey(200, 120), { boxes }, { scale: 1 });
    const unnamed = boxes.map(({ label: _, ...box }) => box);
    const bare = await drawOverlay(grey(200, 120), { boxes: unnamed }, { scale: 1 });
    return drawn.data.filter((value, i) => value !== bare.data[i]).length;
  };
  const alone = await plateOf([at(20, 60)]);
  // Four boxes in one place: four plates, none above another.
  const together = await plateOf([at(20, 60), at(22, 60), at(24, 61), at(20, 62)]);
  assert.ok(together > 3.5 * alone, `${together} of 4 x ${alone}`);
});

/** Where a picture differs from the grey it was drawn on. */
function drawnBox({ width, height, data }: Image): [left: number, top: number, right: number, bottom: number] {
  const at = Array.from({ length: width * height }, (_, i) => i).filter((i) => data[i * 3] !== 100);
  const [xs, ys] = [at.map((i) => i % width), at.map((i) => Math.floor(i / width))];
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs) + 1, Math.max(...ys) + 1];
}

test("a label stands above its object on a plate of the class's colour, letter for letter", async () => {
  const mask = new Uint8Array(200 * 80);
  mask[60 * 200 + 40] = 1;
  const picture = await drawOverlay(grey(200, 80), { masks: [{ mask, classIndex: 0, label: "Ärger", score: 0.97 }] });
  const { width, height, coverage } = await letter("Ärger 0.97", 13);
  const scale = picture.width / 200;
  const [left, top, right, bottom] = drawnBox(picture);
  assert.equal([left, right - left], [40 * scale, width + 6]);
  assert.equal([top, bottom], [60 * scale - height, 61 * scale]);
  const plate = pixel(picture, left, top);
  assert.ok(plate[0]! > 220 && plate[1]! < 60, `${plate}`);
  for (let i = 0; i < coverage.length; i++) {
    const share = coverage[i]! / 255;
    const wanted = plate.map((value) => Math.round(value * (1 - share) + 255 * share));
    assert.equal(pixel(picture, left + 3 + (i % width), top + Math.floor(i / width)), wanted, `pixel ${i}`);
  }
});

const setting = async (text: string, size = 13, most?: number) => JSON.stringify(await letter(text, size, most));

test("every character has a form of its own, with accents, in both cases and in more than one script", async () => {
  const ascii = Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i));
  const characters = [...ascii, ..."ÄäÖöÉéŁłØøñçßДджЖΩωΣπ№²"];
  assert.is(new Set(await Promise.all(characters.map((c) => setting(c)))).size, characters.length);
  for (const [text, same] of [
    ["A\u0308", "Ä"],
    ["ｄｏｇ　１", "dog 1"],
    ["犬 dog", "? dog"],
    ["a\n\tb", "a b"],
  ] as const)
    assert.is(await setting(text), await setting(same), text);
  // Nothing in a name is taken for markup.
  const [tagged, bare] = await Promise.all([letter("<b>&amp;</b>", 13), letter("&", 13)]);
  assert.ok(tagged.width > 6 * bare.width, `${tagged.width} of ${bare.width}`);
});

test("letters are smooth, as large as asked for, and cut off with an ellipsis where there is no room", async () => {
  const [small, large] = await Promise.all([letter("zebra 0.5", 13), letter("zebra 0.5", 26)]);
  assert.ok(Math.abs(large.width / small.width - 2) < 0.15 && Math.abs(large.height / small.height - 2) < 0.15);
  const { width, height, coverage } = large;
  assert.is(coverage.length, width * height);
  assert.ok(coverage.includes(255) && coverage.some((value) => value > 64 && value < 192));
  const cut = await letter("zebra crossing", 13, 60);
  assert.ok(cut.width <= 60 && cut.width > 45, `${cut.width}`);
  const beginnings = Array.from("zebra crossing", (_, i) => `${"zebra crossing".slice(0, i).trimEnd()}…`);
  assert.ok((await Promise.all(beginnings.map((text) => setting(text)))).includes(JSON.stringify(cut)));
  assert.is(await setting("zebra", 13, small.width), await setting("zebra"));
  assert.ok((await letter("zebra", 13, -5)).width < 20);
});

test("texts and lines grow with large pictures", async () => {
  const heightOf = async (side: number) => {
    const picture = await drawOverlay(grey(side, 100), { points: [{ x: 300, y: 80, classIndex: 1, label: "d" }] });
    const [, top, , bottom] = drawnBox(picture);
    return bottom - top;
  };
  const [normal, large] = [await heightOf(800), await heightOf(2048)];
  assert.ok(Math.abs(large / normal - 2) < 0.15, `${large} of ${normal}`);
});

test("texts are the same on a machine that has neither fonts nor font settings, and nothing complains there", async () => {
  const nowhere = join(tmpdir(), "wgpu-wish-no-fonts");
  const source = fileURLToPath(new URL("../../train/lettering.ts", import.meta.url));
  const script = `import { letter } from ${JSON.stringify(pathToFileURL(source).href)};
    console.log(JSON.stringify(await letter("Ärger собака 0.97", 13)));`;
  const { stdout, stderr, code } = await node(["--import", "tsx", "--input-type=module", "-e", script], {
    env: { FONTCONFIG_FILE: nowhere, FONTCONFIG_PATH: nowhere, HOME: nowhere },
  });
  assert.equal([code, stderr], [0, ""]);
  assert.is(stdout.trim(), await setting("Ärger собака 0.97"));
});

test("classes are called by their names, or numbered where the font has not one letter of them", () => {
  const names = ["собака", "犬", "Ä", "犬 dog", "?", "__proto__", "dog", "שלום", "犬 小", "🏳️‍🌈"];
  assert.equal(
    names.map((name, i) => classText({ id: 10 + i, name })),
    ["собака", "class 11", "Ä", "犬 dog", "class 14", "__proto__", "dog", "שלום", "class 18", "class 19"],
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

test("small images are enlarged, large ones are not", async () => {
  assert.is((await drawOverlay(grey(128, 96), {})).width, 384);
  assert.is((await drawOverlay(grey(640, 480), {})).width, 640);
  assert.is((await drawOverlay(grey(1, 1), {})).width, 8);
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
});

test("a mask of another size than the image's is refused", async () => {
  const masks = [{ mask: new Uint8Array(3), classIndex: 0 }];
  const message = await drawOverlay(grey(8, 4), { masks }).then(String, (error: Error) => error.message);
  assert.match(message, /8x4 pixels; got 3/);
});

test.run();
