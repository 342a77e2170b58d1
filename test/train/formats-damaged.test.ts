// What is wrong with a data set is said in one line that names its file, whatever the format.
import { cpSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { Random } from "../../engine/random.ts";
import { readInstances } from "../../train/data/coco.ts";
import { categoriesOfLabels, instancesDocument } from "../../train/data/labelled.ts";
import { readSource, type SourceOptions } from "../../train/data/sources.ts";
import { BadInput } from "../../train/errors.ts";
import { copyOf, labelme, refused, root, sbd, voc } from "./trees.ts";

const test = suite("damaged data sets");
test.after(() => rmSync(root, { recursive: true }));

const cut = (path: string, share = 0.5) => {
  const bytes = readFileSync(path);
  writeFileSync(path, bytes.subarray(0, Math.floor(bytes.length * share)));
};
const rewrite = (path: string, from: string | RegExp, to: string) =>
  writeFileSync(path, readFileSync(path, "utf8").replace(from, to));

/** What is done to a copy of a tree, and the one line that says it. */
async function damaged(
  tree: string,
  cases: [damage: (copy: string) => unknown, options: SourceOptions, reason: RegExp][],
): Promise<void> {
  for (const [damage, options, reason] of cases) {
    const copy = copyOf(tree);
    damage(copy);
    await refused(() => readSource(copy, options), reason);
  }
}

/** One pixel. */
const GIF = "R0lGODdhAQABAIAAAP///////ywAAAAAAQABAAACAkQBADs=";

test("damaged VOC trees", async () => {
  const object = (copy: string) => join(copy, "SegmentationObject", "2007_000032.png");
  const xml = (copy: string) => join(copy, "Annotations", "2010_000002.xml");
  const boxes = { set: "Main/train" };
  await damaged(voc, [
    [
      () => {},
      { set: "test" },
      /test\.txt: there is no such list; --set takes train, trainval, val, Main\/train, train_aug/,
    ],
    [() => {}, { set: "train_aug" }, /give --set train_aug with --sbd/],
    [() => {}, { set: "train", sbd }, /give --set train_aug with --sbd/],
    [
      (copy) => writeFileSync(join(copy, "ImageSets/Segmentation/val.txt"), "\n"),
      { set: "val" },
      /val\.txt: the list is empty/,
    ],
    [
      (copy) => writeFileSync(join(copy, "ImageSets/Segmentation/val.txt"), "../x\n"),
      { set: "val" },
      /"\.\.\/x" is no name/,
    ],
    [(copy) => rmSync(join(copy, "JPEGImages/2007_000032.jpg")), {}, /2007_000032\.jpg: the image does not exist/],
    [
      (copy) => writeFileSync(join(copy, "JPEGImages/2007_000032.jpg"), ""),
      {},
      /2007_000032\.jpg: the image file is empty/,
    ],
    [
      (copy) => rmSync(join(copy, "SegmentationClass/2007_000032.png")),
      {},
      /SegmentationClass.2007_000032\.png: the labels' PNG does not/,
    ],
    [(copy) => rmSync(join(copy, "SegmentationObject"), { recursive: true }), {}, /SegmentationObject: holds no PNG/],
    [
      (copy) => cut(object(copy)),
      {},
      /SegmentationObject.2007_000032\.png: cannot be read as a PNG of numbers \(the file is truncated/,
    ],
    [(copy) => writeFileSync(object(copy), ""), {}, /the file is empty/],
    [(copy) => writeFileSync(object(copy), "GIF89a"), {}, /the file is no PNG/],
    [(copy) => cpSync(join(labelme, "mask.png"), object(copy)), {}, /it holds colours; expected a palette or greys/],
    [
      (copy) => cpSync(join(copy, "SegmentationObject/2009_000001.png"), object(copy)),
      {},
      /2007_000032\.png: is \d+x\d+, but its image is/,
    ],
    [(copy) => cut(xml(copy)), boxes, /2010_000002\.xml: not XML \(.*line \d.*truncated/],
    [(copy) => writeFileSync(xml(copy), ""), boxes, /2010_000002\.xml: not XML/],
    [(copy) => rmSync(xml(copy)), boxes, /2010_000002\.xml: the annotation does not exist/],
    [
      (copy) => rewrite(xml(copy), "<name>horse", "<name>unicorn"),
      boxes,
      /object 1: the name "unicorn" is none of the 20 classes/,
    ],
    [
      (copy) => rewrite(xml(copy), "<xmin>3<", "<xmin>three<"),
      boxes,
      /object 2: the bndbox .* does not lie in the image/,
    ],
    [(copy) => rewrite(xml(copy), /<xmax>11</, "<xmax>1100<"), boxes, /object 2: the bndbox/],
    [(copy) => rewrite(xml(copy), /<bndbox>.*?<\/bndbox>/, ""), boxes, /object 1: <bndbox> is missing/],
    [(copy) => rewrite(xml(copy), /<width>\d+/, "<width>7"), boxes, /is for "7" x/],
    [(copy) => writeFileSync(xml(copy), "<a/>"), boxes, /<annotation> is missing/],
    [
      (copy) => writeFileSync(xml(copy), `${"<a>".repeat(200_000)}${"</a>".repeat(200_000)}`),
      boxes,
      /2010_000002\.xml: cannot be read as a VOC annotation \(Maximum nested tags exceeded\)/,
    ],
    [
      (copy) => rewrite(xml(copy), "<object>", "<object><__proto__>x</__proto__>"),
      boxes,
      /2010_000002\.xml: cannot be read as a VOC annotation/,
    ],
    [
      (copy) => {
        const names = Array.from({ length: 1200 }, (_, i) => `2009_${100_000 + i}`);
        writeFileSync(join(copy, "ImageSets/Segmentation/val.txt"), [...names, names[700]].join("\n"));
      },
      { set: "val" },
      /val\.txt: names 2009_100700 twice/,
    ],
    [
      (copy) => writeFileSync(join(copy, "JPEGImages/2007_000032.jpg"), Buffer.from(GIF, "base64")),
      {},
      /2007_000032\.jpg: holds GIF; expected JPEG, PNG or WebP/,
    ],
  ]);
});

test("an XML that defines entities is read without them", async () => {
  const copy = copyOf(voc);
  const bomb = `<!DOCTYPE a [<!ENTITY a "dog"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>`;
  rewrite(join(copy, "Annotations/2010_000002.xml"), "<annotation>", `${bomb}<annotation>`);
  rewrite(join(copy, "Annotations/2010_000002.xml"), "<name>horse", "<name>&b;");
  await refused(() => readSource(copy, { set: "Main/train" }), /the name "&b;" is none of the 20 classes/);
});

test("objects without a class, or of one that is not there", async () => {
  const copy = copyOf(voc);
  const kinds = join(copy, "SegmentationClass/2008_000015.png");
  const objects = join(copy, "SegmentationObject/2008_000015.png");
  cpSync(objects, kinds);
  // Numbers 1 and 2 are classes, too: VOC itself could not tell.
  const { images } = await readSource(copy);
  assert.equal(
    images[1]!.objects.map(({ label }) => label),
    ["aeroplane", "bicycle"],
  );
  await refused(
    () => readSource(copy, { classes: [{ id: 1, name: "aeroplane" }] }),
    /SegmentationObject.2007_000032\.png: object 1 is of class 15; there are 1 classes/,
  );
});

test("damaged SBD trees", async () => {
  const mat = (copy: string) => join(copy, "inst", "2011_000003.mat");
  const plain = (copy: string) => join(copy, "inst", "2009_000001.mat");
  await damaged(sbd, [
    [() => {}, { set: "test" }, /test\.txt: there is no such list/],
    [(copy) => rmSync(mat(copy)), {}, /2011_000003\.mat: the MAT-file of the objects does not exist/],
    [(copy) => writeFileSync(mat(copy), ""), {}, /2011_000003\.mat: the file is truncated/],
    [(copy) => cut(mat(copy)), {}, /2011_000003\.mat: the file is truncated or damaged/],
    [(copy) => cut(plain(copy), 0.9), {}, /2009_000001\.mat: the file is truncated or damaged/],
    [(copy) => cut(mat(copy), 0.02), {}, /2011_000003\.mat: the file is truncated/],
    [
      (copy) => writeFileSync(mat(copy), `MATLAB 7.3 MAT-file${" ".repeat(600)}`),
      {},
      /is no MAT-file of level 5 \(HDF5/,
    ],
    [
      (copy) => cpSync(join(root, "complex.mat"), mat(copy)),
      {},
      /2011_000003\.mat: GTinst\.Segmentation holds complex numbers/,
    ],
    [(copy) => cpSync(plain(copy), mat(copy)), {}, /2011_000003\.mat: is for \d+x\d+, but its image is/],
    [(copy) => rewrite(join(copy, "train.txt"), "2011", "2012"), {}, /2012_000003\.jpg: the image does not exist/],
    [
      (copy) => {
        const bytes = readFileSync(plain(copy));
        bytes.fill(0x55, 150, 200);
        writeFileSync(plain(copy), bytes);
      },
      {},
      /2009_000001\.mat: an array cannot be inflated|2009_000001\.mat: the file is truncated or damaged/,
    ],
  ]);
  await refused(
    () => readSource(sbd, { classes: [{ id: 1, name: "x" }] }),
    /object 1 is of class 20; Categories has 1 of 1 to 1/,
  );
});

test("a MAT-file damaged at any place is read or refused, in one line", async () => {
  const copy = copyOf(sbd);
  const path = join(copy, "inst", "2011_000003.mat");
  const whole = readFileSync(path);
  let refusals = 0;
  for (let at = 0; at < whole.length; at += 37) {
    const bytes = Buffer.from(whole);
    bytes[at]! ^= 0xff;
    writeFileSync(path, bytes);
    await readSource(copy).catch((error) => {
      assert.instance(error, BadInput, String(error.stack));
      assert.not.match(error.message, /\n/);
      refusals++;
    });
  }
  assert.ok(refusals > 5, String(refusals));
});

test("trees damaged anywhere at random are read or refused, in one line; what is read is written and read again", async () => {
  const random = new Random(1);
  const sources: [string, SourceOptions][] = [
    [voc, {}],
    [voc, { set: "Main/train" }],
    [sbd, {}],
    [labelme, {}],
    [join(root, "yolo"), {}],
  ];
  const outcomes = { read: 0, refused: 0 };
  for (let n = 0; n < 150; n++) {
    const [tree, options] = sources[n % sources.length]!;
    const paths = readdirSync(tree, { recursive: true }).map((name) => join(tree, String(name)));
    const files = paths.filter((path) => statSync(path).isFile());
    const file = files[random.int(files.length)]!;
    const whole = readFileSync(file);
    const bytes = Buffer.from(whole);
    const at = random.int(bytes.length);
    if (n % 2 === 0) for (let i = at; i < Math.min(at + 3, bytes.length); i++) bytes[i] = random.int(256);
    writeFileSync(
      file,
      n % 2 === 0 ? bytes : Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + random.int(20))]),
    );
    try {
      const labelled = await readSource(tree, options);
      const written = join(root, "written.json");
      const classes = categoriesOfLabels(labelled);
      if (tree !== labelme) {
        writeFileSync(written, JSON.stringify(instancesDocument(labelled, classes)));
        readInstances(written);
      }
      outcomes.read++;
    } catch (error) {
      assert.instance(error, BadInput, `${file}: ${(error as Error).stack}`);
      const { message } = error as Error;
      assert.ok(message.includes(root) && !message.includes("\n") && message.length < 600, message);
      outcomes.refused++;
    }
    writeFileSync(file, whole);
  }
  assert.ok(outcomes.read > 30 && outcomes.refused > 30, JSON.stringify(outcomes));
});

test("damaged labelme folders", async () => {
  const file = (copy: string, name = "polygons") => join(copy, `${name}.json`);
  const polygon = '"shape_type": "polygon"';
  await damaged(labelme, [
    [(copy) => cut(file(copy)), {}, /polygons\.json: not JSON/],
    [(copy) => writeFileSync(file(copy), "[]"), {}, /polygons\.json: is no labelme file/],
    [
      (copy) => rewrite(file(copy), '"polygons.png"', '"gone.png"'),
      {},
      /polygons\.json: its image gone\.png is neither/,
    ],
    [(copy) => rewrite(file(copy), '"polygons.png"', "7"), {}, /"imagePath" must be/],
    [(copy) => writeFileSync(join(copy, "mask.png"), "PNG"), {}, /mask\.png: cannot be read as an image/],
    [
      (copy) => rewrite(file(copy), '"imageWidth": 40', '"imageWidth": 41'),
      {},
      /polygons\.png: is 40x30, but the labels are for 41x30/,
    ],
    [
      (copy) => rewrite(file(copy), '"imageHeight": 30, "imageWidth": 40', '"imageHeight": 40, "imageWidth": 30'),
      {},
      /is 40x30, but the labels are for 30x40 .*EXIF/,
    ],
    [
      (copy) => rewrite(file(copy), polygon, '"shape_type": "linestrip"'),
      {},
      /shapes\[0\] \("dog"\): is a "linestrip", which has no area/,
    ],
    [(copy) => rewrite(file(copy), '"label": "dog"', '"label": ""'), {}, /shapes\[0\]: "label" must be a class's name/],
    [
      (copy) => rewrite(file(copy), "[[2.5, 3], [20, 4], [11, 21.5]]", "[[2.5, 3]]"),
      {},
      /a "polygon" has 3 points or more, got 1/,
    ],
    [(copy) => rewrite(file(copy), "[2.5, 3]", '["2.5", 3]'), {}, /"points" must be a list of \[x, y\]/],
    [(copy) => rewrite(file(copy, "mask"), "[[7, 4]", "[[33, 4]"), {}, /mask of 9x6 at 33, 4 reaches beyond the image/],
    [
      (copy) => rewrite(file(copy, "mask"), /"mask": "(.{40})/, '"mask": "$1AAAA'),
      {},
      /shapes\[0\] \("dog"\): mask: cannot be read/,
    ],
    [() => {}, { set: "train" }, /--set goes with VOC, SBD and YOLO/],
    [() => {}, { images: join(root, "yolo") }, /lies outside .*; name the folder of the images with --images/],
  ]);
});

test("damaged YOLO data sets", async () => {
  const yaml = (copy: string) => join(copy, "data.yaml");
  const labels = (copy: string) => join(copy, "labels", "train", "a.txt");
  await damaged(join(root, "yolo"), [
    [() => {}, { set: "test" }, /data\.yaml: "test" must name a folder .*; --set takes train, val/],
    [(copy) => writeFileSync(yaml(copy), "names: [a\n"), {}, /data\.yaml: not YAML/],
    [(copy) => writeFileSync(yaml(copy), ""), {}, /data\.yaml: expected YOLO's path/],
    [(copy) => rewrite(yaml(copy), /names:[\s\S]*/, "names: 3\n"), {}, /"names" must name the classes/],
    [(copy) => rewrite(yaml(copy), /names:/, "nc: 3\nnames:"), {}, /"nc" is 3, but there are 2 names/],
    [(copy) => rewrite(yaml(copy), "images/train", "pictures"), {}, /train: .*pictures does not exist/],
    [(copy) => rewrite(yaml(copy), "images/train", "labels/train"), {}, /train: holds no JPEG, PNG or WebP/],
    [
      (copy) => writeFileSync(labels(copy), "2 0.1 0.1 0.2 0.2\n"),
      {},
      /a\.txt:1: the class "2" is no number from 0 to 1/,
    ],
    [(copy) => writeFileSync(labels(copy), "0 0.1 0.1 0.2 0.2\n1 0.1 0.1 0.2 x\n"), {}, /a\.txt:2: "x" is no share/],
    [(copy) => writeFileSync(labels(copy), "0 10 20 30 40\n"), {}, /a\.txt:1: "10" is no share of the image's side/],
    [(copy) => writeFileSync(labels(copy), "0 0.1 0.1 0.2\n"), {}, /a\.txt:1: has 3 numbers after the class/],
    [(copy) => writeFileSync(join(copy, "images/train/a.png"), "x"), {}, /a\.png: cannot be read as an image/],
    [(copy) => rewrite(join(copy, "val.txt"), "c.png", "d.png"), { set: "val" }, /d\.png: the image does not exist/],
  ]);
});

test("damaged tables of tags, and places where no data set lies", async () => {
  const table = join(root, "bad.csv");
  const images = labelme;
  const csv = (text: string, reason: RegExp) => {
    writeFileSync(table, text);
    return refused(() => readSource(table, { images }), reason);
  };
  await csv("", /bad\.csv: the first line must name the columns/);
  await csv("boxes.png,dog\n", /the first line must name the columns file_name and tags/);
  await csv("file_name,tags\n", /has no row below/);
  await csv("file_name,tags\nboxes.png,dog,cat\n", /bad\.csv: not CSV \(.*\); put quotes/);
  await csv('file_name,tags\nboxes.png,"dog\n', /bad\.csv: not CSV/);
  await csv("file_name,tags\n,dog\n", /row 2 names no file/);
  await csv("file_name,tags\ngone.png,dog\n", /gone\.png: the image does not exist/);
  await refused(() => readSource(table), /needs the folder of its images: --images/);
  await refused(() => readSource(join(root, "none")), /none: there is no such file or folder; expected a VOC root/);
  await refused(() => readSource(join(voc, "JPEGImages")), /holds no labels of a known format/);
  await refused(() => readSource(join(labelme, "mask.json")), /is one image's labelme file; give the folder/);
  await refused(() => readSource(join(labelme, "mask.png")), /is of no known format/);
  cpSync(voc, join(root, "VOCdevkit", "VOC2007"), { recursive: true });
  await refused(() => readSource(join(root, "VOCdevkit")), /holds several VOC roots; .*: VOC2007, VOC2012/);
});

test.run();
