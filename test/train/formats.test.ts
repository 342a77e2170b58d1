// Data sets in formats of their own, written by test/parity/make_formats.py, which also says what is to be read from them.
import { cpSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type Category, readInstances } from "../../train/data/coco.ts";
import {
  categoriesOfLabels,
  instancesDocument,
  type Labelled,
  type LabelledImage,
  merge,
  readClasses,
} from "../../train/data/labelled.ts";
import { areaOfRuns, iouOfRuns, rleOfRuns, runsByIndex, runsOfRle } from "../../train/data/mask.ts";
import { ownWeakLabels } from "../../train/data/own-labels.ts";
import { runsOfPolygons } from "../../train/data/polygon.ts";
import { readSource } from "../../train/data/sources.ts";
import { sbdExtra } from "../../train/data/voc.ts";
import { readWeak } from "../../train/data/weak.ts";
import { copyOf, labelme, refused, root, sbd, voc, type Wanted, want } from "./trees.ts";

/** What was read, through COCO's JSON and its reader, as the recording script says it. */
function read(labelled: Labelled): { objects: Record<string, Wanted[]>; ids: number[] } {
  const path = join(root, "instances.json");
  writeFileSync(path, JSON.stringify(instancesDocument(labelled, categoriesOfLabels(labelled))));
  const data = readInstances(path);
  const name = new Map(data.categories.map((category) => [category.id, category.name]));
  const objects = data.images.map(({ id, fileName, width, height }): [string, Wanted[]] => [
    fileName,
    data.instances
      .filter(({ imageId }) => imageId === id)
      .map(({ categoryId, segmentation, box, area, crowd }) => {
        const runs = Array.isArray(segmentation)
          ? undefined
          : segmentation && { rle: rleOfRuns(runsOfRle(segmentation)) };
        if (runs) assert.equal(runs.rle.size, [height, width]);
        return { label: name.get(categoryId)!, ...runs, bbox: box, area, crowd: crowd ? 1 : 0 };
      }),
  ]);
  return { objects: Object.fromEntries(objects), ids: data.images.map(({ id }) => id) };
}

/** Polygons are compared by box and area: their pixels are the mask's tests' affair. */
function withoutPolygons(wanted: Record<string, Wanted[]>): Record<string, Wanted[]> {
  return Object.fromEntries(
    Object.entries(wanted).map(([file, list]) => [file, list.map(({ rle: _, ...rest }) => rest)]),
  );
}

const test = suite("formats");
test.after(() => rmSync(root, { recursive: true }));

test("VOC: objects by number without their border, classes at the same pixels, ids from names", async () => {
  const all = await readSource(voc);
  assert.equal(read(all).objects, want.voc);
  assert.equal(read(all).ids, [2007000032, 2008000015, 2009000001]);
  assert.is(all.categories!.length, 20);
  assert.equal(read(await readSource(join(root, "VOCdevkit"), { set: "train" })).objects, want["voc-train"]);
  assert.equal(Object.keys(read(await readSource(voc, { set: "val" })).objects), ["2009_000001.jpg"]);
});

test("VOC: lists under Main give the boxes of Annotations, difficult ones as crowd", async () => {
  assert.equal(read(await readSource(voc, { set: "Main/train" })).objects, want["voc-boxes"]);
});

test("SBD: structs compressed and not, numbers of several types", async () => {
  assert.equal(Object.keys(read(await readSource(sbd, { set: "val" })).objects), [
    "2009_000001.jpg",
    "2011_000009.jpg",
  ]);
  assert.equal(read(await readSource(sbd)).objects, want.sbd);
});

test("train_aug joins VOC's train and what only SBD has, without VOC's val", async () => {
  assert.equal(read(await readSource(voc, { set: "train_aug", sbd })).objects, want.train_aug);
  // With the official lists' sizes and overlaps: 1,464 + 9,118.
  const folder = copyOf(sbd);
  const names = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => `2008_${100_000 + from + i}`);
  const [vocTrain, vocVal] = [names(0, 1464), names(1464, 1464 + 1449)];
  // SBD: 8,498 + 2,857 images, of which 2,237 are in VOC's two lists.
  writeFileSync(join(folder, "train.txt"), names(676, 676 + 8498).join("\n"));
  writeFileSync(join(folder, "val.txt"), names(676 + 8498, 676 + 8498 + 2857).join("\n"));
  assert.is(vocTrain.length + sbdExtra(vocTrain, vocVal, folder).length, 10_582);
});

test("labelme: polygons in groups, masks and circles are masks", async () => {
  const folder = copyOf(labelme);
  for (const name of ["points", "tags", "nothing", "boxes"]) rmSync(join(folder, `${name}.json`));
  const labelled = await readSource(folder);
  const { objects } = read(labelled);
  assert.equal(objects["mask.png"], want["labelme-masks"]!["mask.png"]);
  assert.equal(objects["polygons.png"], withoutPolygons(want["labelme-masks"]!)["polygons.png"]);
  const circle = instancesDocument(labelled, categoriesOfLabels(labelled)).annotations[0] as {
    segmentation: number[][];
  };
  const drawn = runsOfPolygons(circle.segmentation, 40, 30);
  const exact = runsOfRle(want["labelme-masks"]!["circle.png"]![0]!.rle!);
  assert.ok(iouOfRuns([drawn], [exact], [false])[0]! > 0.93);
  assert.equal(
    labelled.images.map(({ fileName }) => fileName),
    ["circle.png", "mask.png", "polygons.png"],
  );
});

test("labelme: rectangles, points and flags are a person's weak labels, one kind an image", async () => {
  const folder = copyOf(labelme);
  for (const name of ["polygons", "mask", "circle"]) rmSync(join(folder, `${name}.json`));
  const path = join(folder, "weak.json");
  const labelled = await readSource(folder);
  writeFileSync(path, JSON.stringify(ownWeakLabels(labelled, categoriesOfLabels(labelled))));
  const weak = readWeak(path);
  assert.equal(weak.categories, [
    { id: 1, name: "cat" },
    { id: 2, name: "dog" },
  ]);
  assert.equal(weak.entries, [
    { imageId: 1, kind: "boxes", boxes: [{ categoryId: 1, box: [12, 5.5, 18, 14.5] }] },
    { imageId: 2, kind: "boxes", boxes: [] },
    { imageId: 3, kind: "points", points: [{ categoryId: 2, x: 10, y: 6.75 }] },
    { imageId: 4, kind: "tags", categoryIds: [1] },
  ]);
  // What this program wrote among labelme's files is no labelme file; points have no mask.
  assert.is((await readSource(folder)).images.length, 4);
  await refused(() => instancesDocument(labelled, weak.categories), /points\.json: "dog" is a point.*--weak/);
});

test("YOLO: polygons, boxes, nested folders, lists, images without objects", async () => {
  assert.equal(read(await readSource(join(root, "yolo"))).objects, withoutPolygons(want.yolo!));
  const val = await readSource(join(root, "yolo", "data.yaml"), { set: "val" });
  assert.equal(read(val).objects, withoutPolygons(want["yolo-val"]!));
  const roboflow = copyOf(join(root, "yolo"));
  writeFileSync(join(roboflow, "data.yaml"), "train: ../images/train\nnc: 2\nnames: [dog, cat]\n");
  assert.equal(read(await readSource(roboflow)).objects, withoutPolygons(want.yolo!));
});

test("a CSV of tags: separators, quotes, rows that add up, a byte order mark", async () => {
  const table = join(root, "tags.csv");
  writeFileSync(
    table,
    '\uFEFFtags,file_name\r\n"dog, cat",boxes.png\r\n,nothing.png\r\ncat|dog;dog,mask.png\r\ndog,nothing.png\r\n',
  );
  const { images } = await readSource(table, { images: labelme });
  assert.equal(
    images.map(({ fileName, tags }) => [fileName, tags]),
    [
      ["boxes.png", ["dog", "cat"]],
      ["nothing.png", ["dog"]],
      ["mask.png", ["cat", "dog"]],
    ],
  );
  const other = copyOf(labelme);
  for (const name of ["polygons", "mask", "circle", "points", "tags", "nothing"]) rmSync(join(other, `${name}.json`));
  const boxes = await readSource(other);
  await refused(
    () => merge([boxes, { images, imagesDir: labelme }]),
    /tags\.csv: row 2: boxes\.png is labelled in .*boxes\.json/,
  );
  const both = merge([boxes, { images: images.slice(1), imagesDir: labelme }]);
  const document = ownWeakLabels(both, categoriesOfLabels(both));
  assert.equal(document.info.counts, { tags: 2, points: 0, boxes: 1 });
  assert.is(document.info.spent, 2 + 12);
});

test("sources are joined by the names of classes, also where one of them has a list and others none", () => {
  const image: LabelledImage = { fileName: "a.png", width: 20, height: 10, at: "a.json", objects: [] };
  const listed = (fileName: string, ...categories: Category[]): Labelled => ({
    images: [{ ...image, fileName }],
    categories,
    imagesDir: undefined,
  });
  const drawn: Labelled = { images: [{ ...image, objects: [{ label: "dog", box: [1, 1, 4, 4] }] }], imagesDir: "a" };
  const tagged: Labelled = { images: [{ ...image, fileName: "b.png", tags: ["cat", "person"] }], imagesDir: "a" };
  const [person, sheep] = [
    { id: 17, name: "person", supercategory: "person" },
    { id: 3, name: "sheep" },
  ];
  const classes = (...sources: Labelled[]) => categoriesOfLabels(merge(sources));
  // A list keeps its ids, and what it does not have comes behind them.
  assert.equal(classes(drawn, listed("c.png", person), tagged), [
    person,
    { id: 18, name: "cat" },
    { id: 19, name: "dog" },
  ]);
  assert.equal(classes(listed("c.png", person), listed("d.png", person)), [person]);
  const joined = ["person", "sheep", "cat", "dog"].map((name, i) => ({ id: i + 1, name }));
  assert.equal(classes(listed("c.png", person), tagged, listed("d.png", sheep), drawn), joined);
  assert.equal(
    classes(drawn, tagged),
    ["cat", "dog", "person"].map((name, i) => ({ id: i + 1, name })),
  );
});

test("COCO's boxes become weak labels; masks are left to weaken", async () => {
  const path = join(root, "boxes.json");
  const document = {
    images: [
      { id: 7, file_name: "a.jpg", width: 9, height: 9 },
      { id: 9, file_name: "b.jpg", width: 9, height: 9 },
    ],
    categories: [{ id: 3, name: "dog", supercategory: "animal" }],
    annotations: [
      { id: 1, image_id: 7, category_id: 3, bbox: [1, 2, 3, 4], segmentation: [] },
      {
        id: 2,
        image_id: 7,
        category_id: 3,
        bbox: [0, 0, 9, 9],
        iscrowd: 1,
        segmentation: { size: [9, 9], counts: [0, 81] },
      },
    ],
  };
  writeFileSync(path, JSON.stringify(document));
  const labelled = await readSource(path);
  const { weak, categories, images } = ownWeakLabels(labelled, categoriesOfLabels(labelled));
  assert.equal(weak, [
    { image_id: 7, kind: "boxes", boxes: [{ category_id: 3, bbox: [1, 2, 3, 4] }] },
    { image_id: 9, kind: "boxes", boxes: [] },
  ]);
  assert.equal([categories, images], [document.categories, document.images]);
  const folder = join(root, "boxes");
  mkdirSync(folder);
  await refused(() => readSource(path, { images: folder }), /a\.jpg: the image does not exist/);
  cpSync(join(labelme, "boxes.png"), join(folder, "a.jpg"));
  await refused(() => readSource(path, { images: folder }), /a\.jpg: is 40x30, but the labels are for 9x9/);
  Object.assign(document.annotations[0]!, { segmentation: [[1, 1, 5, 1, 5, 5]] });
  writeFileSync(path, JSON.stringify(document));
  const masked = await readSource(path);
  await refused(() => ownWeakLabels(masked, categories), /boxes\.json: a\.jpg: "dog" is a mask.*wgpu-wish weaken/);
});

test("classes: a list of names, the categories of a JSON, and labels that are in neither", async () => {
  const list = join(root, "classes.txt");
  writeFileSync(list, "__ignore__\n_background_\ndog\r\ncat\n\n");
  const classes = { file: list, categories: readClasses(list) };
  assert.equal(classes.categories, [
    { id: 1, name: "dog" },
    { id: 2, name: "cat" },
  ]);
  const labelled = await readSource(labelme);
  assert.equal(categoriesOfLabels(labelled, classes), classes.categories);
  writeFileSync(list, "dog\n");
  const fewer = { file: list, categories: readClasses(list) };
  await refused(
    () => categoriesOfLabels(labelled, fewer),
    /boxes\.json: the label "cat" is none of the classes of .*classes\.txt/,
  );
  const json = join(root, "made-before.json");
  writeFileSync(json, JSON.stringify({ categories: [{ id: 5, name: "cat" }] }));
  assert.equal(readClasses(json), [{ id: 5, name: "cat" }]);
  writeFileSync(list, "dog\ndog\n");
  await refused(() => readClasses(list), /has the class "dog" twice/);
  writeFileSync(list, "\n");
  await refused(() => readClasses(list), /names no class/);
  await refused(() => readClasses(join(root, "none.txt")), /none\.txt: the list of classes does not exist/);
});

test("an image of one kind: boxes beside points, and labels beside the image, are refused", async () => {
  const image: LabelledImage = { fileName: "a.png", width: 20, height: 10, at: "a.json", objects: [] };
  const weak = (objects: LabelledImage["objects"]) => {
    const labelled = { images: [{ ...image, objects }], imagesDir: undefined };
    return ownWeakLabels(labelled, categoriesOfLabels(labelled));
  };
  const [box, point] = [
    { label: "dog", box: [1, 1, 4, 4] as const },
    { label: "dog", point: [3, 3] as const },
  ];
  await refused(() => weak([{ ...box, box: [...box.box] }, point]), /a\.json: has 1 points and 1 boxes/);
  await refused(() => weak([{ label: "dog", point: [3, 10] }]), /a\.json: the point on "dog" lies at 3, 10, outside/);
  await refused(
    () => weak([{ label: "dog", box: [20, 0, 4, 4] }]),
    /a\.json: the box of "dog" .* has no area in the image/,
  );
  await refused(() => weak([{ label: "dog", box: [2, 2, 0, 4] }]), /has no area/);
  // Nor is it a truth to judge by.
  const truth = (box: [number, number, number, number]) => {
    const labelled = { images: [{ ...image, objects: [{ label: "dog", box }] }], imagesDir: undefined };
    return instancesDocument(labelled, categoriesOfLabels(labelled));
  };
  await refused(
    () => truth([2, 2, 0, 4]),
    /a\.json: the box of "dog" \[2,2,0,4\] .* has no area in the image of 20x10/,
  );
  await refused(() => truth([-9, 2, 9, 4]), /has no area/);
  await refused(() => weak([]), /there is no label/);
});

test("numbers' masks cover the image once", () => {
  const indices = Uint8Array.from({ length: 35 }, (_, i) => (i * i) % 5);
  const masks = runsByIndex(indices, 7, 5);
  let covered = 0;
  for (const [index, runs] of masks) {
    const { length } = indices.filter((value) => value === index);
    assert.is(areaOfRuns(runs), length);
    assert.is(
      runs.counts.reduce((a, b) => a + b),
      35,
    );
    covered += length;
  }
  assert.is(covered, 35);
});

test.run();
