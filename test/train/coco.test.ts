import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { checkImages, classIndex, instanceRuns, instancesByImage, readInstances } from "../../train/data/coco.ts";
import { writePng } from "../../train/data/image.ts";
import { areaOfRuns } from "../../train/data/mask.ts";
import { BadInput } from "../../train/errors.ts";

// biome-ignore lint/suspicious/noExplicitAny: the tests break documents in every way
type Document = Record<string, any>;

const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-coco-"));
const path = join(folder, "instances.json");

/** A small valid document; `change` makes it what a test needs. */
function write(change: (document: Document) => void = () => {}): string {
  const document = {
    images: [
      { id: 7, file_name: "a.png", width: 8, height: 6 },
      { id: 9, file_name: "b.png", width: 4, height: 4 },
    ],
    categories: [
      { id: 3, name: "cat", supercategory: "animal" },
      { id: 5, name: "cup", supercategory: "kitchen" },
      { id: 8, name: "dog", supercategory: "animal" },
    ],
    annotations: [
      {
        id: 1,
        image_id: 7,
        category_id: 5,
        bbox: [1, 1, 4, 3],
        area: 12,
        iscrowd: 0,
        segmentation: [[1, 1, 5, 1, 5, 4, 1, 4]],
      },
      {
        id: 2,
        image_id: 7,
        category_id: 8,
        bbox: [0, 0, 2, 6],
        area: 12,
        iscrowd: 1,
        segmentation: { size: [6, 8], counts: [0, 12, 36] },
      },
    ],
  };
  change(document);
  writeFileSync(path, JSON.stringify(document));
  return path;
}

function refusal(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    assert.instance(error, BadInput);
    assert.not.match((error as Error).message, /\n/);
    return (error as Error).message;
  }
  throw new Error("was not refused");
}

const test = suite("COCO annotations");
test.after(() => rmSync(folder, { recursive: true }));

test("polygons, RLE and crowds are read", () => {
  const data = readInstances(write());
  assert.equal(
    data.instances.map(({ box, crowd, categoryId }) => [box, crowd, categoryId]),
    [
      [[1, 1, 4, 3], false, 5],
      [[0, 0, 2, 6], true, 8],
    ],
  );
  assert.equal(
    data.instances.map((instance) => areaOfRuns(instanceRuns(instance, data.images[0]!))),
    [12, 12],
  );
  assert.equal(
    [...instancesByImage(data)].map(([id, list]) => [id, list.length]),
    [
      [7, 2],
      [9, 0],
    ],
  );
  assert.equal(
    [...classIndex(data.categories)],
    [
      [3, 0],
      [5, 1],
      [8, 2],
    ],
  );
});

test("a missing box or area is taken from the mask, a missing mask left out", () => {
  const data = readInstances(
    write(({ annotations }) => {
      delete annotations[0].bbox;
      delete annotations[0].area;
      delete annotations[1].segmentation;
    }),
  );
  assert.equal(data.instances[0]!.box, [1, 1, 4, 3]);
  assert.is(data.instances[0]!.area, 12);
  assert.is(data.instances[1]!.segmentation, undefined);
  assert.throws(() => instanceRuns(data.instances[1]!, data.images[0]!), /annotation 2 has no segmentation/);
});

test("supercategories become classes", () => {
  const { categories, instances } = readInstances(write(), { supercategories: true });
  assert.equal(
    categories.map(({ id, name }) => [id, name]),
    [
      [1, "animal"],
      [2, "kitchen"],
    ],
  );
  assert.equal(
    instances.map(({ categoryId }) => categoryId),
    [2, 1],
  );
  assert.match(
    refusal(() =>
      readInstances(
        write((d) => delete d.categories[1].supercategory),
        { supercategories: true },
      ),
    ),
    /"cup" has no supercategory/,
  );
});

test("no annotations at all is fine", () => {
  const data = readInstances(
    write((d) => {
      d.annotations = [];
      d.images = [];
    }),
  );
  assert.equal([data.images.length, data.instances.length], [0, 0]);
});

test("each fault is refused in one line that names the file and the entry", () => {
  const faults: [(document: Document) => void, RegExp][] = [
    [(d) => delete d.images, /"images" must be a list, got nothing/],
    [
      (d) => {
        d.images = {};
      },
      /"images" must be a list, got a object/,
    ],
    [
      (d) => {
        d.annotations[0] = null;
      },
      /annotations\[0\] must be an object, got null/,
    ],
    [
      (d) => {
        d.images[0].width = 0;
      },
      /images\[0\]: "width" and "height"/,
    ],
    [
      (d) => {
        d.images[0].width = 1e9;
      },
      /images\[0\]: "width" and "height"/,
    ],
    [(d) => delete d.images[1].file_name, /images\[1\]: "file_name"/],
    [
      (d) => {
        d.images[1].id = 7;
      },
      /images has the id 7 twice/,
    ],
    [
      (d) => {
        d.categories = [];
      },
      /"categories" is empty/,
    ],
    [
      (d) => {
        d.categories[0].id = "3";
      },
      /categories\[0\]: "id" must be a whole number, got "3"/,
    ],
    [
      (d) => {
        d.annotations[0].image_id = 8;
      },
      /annotations\[0\] \(id 1\): image_id 8 names no image/,
    ],
    [
      (d) => {
        d.annotations[1].category_id = 99;
      },
      /annotations\[1\] \(id 2\): category_id 99 names no category/,
    ],
    [
      (d) => {
        d.annotations[1].id = 1;
      },
      /annotations has the id 1 twice/,
    ],
    [
      (d) => {
        d.annotations[0].bbox = [0, 0, null, 2];
      },
      /"bbox" must be \[x, y, width, height\]/,
    ],
    [
      (d) => {
        d.annotations[0].bbox = [0, 0, -1, 2];
      },
      /"bbox" must be/,
    ],
    [
      (d) => {
        d.annotations[0].bbox = [0, 0, 2];
      },
      /"bbox" must be/,
    ],
    [
      (d) => {
        d.annotations[0].segmentation = [[1, 1, 2, 2]];
      },
      /segmentation\[0\] must be a polygon/,
    ],
    [
      (d) => {
        d.annotations[0].segmentation = [[1, 1, 2, 2, 3, "4"]];
      },
      /segmentation\[0\] must be a polygon/,
    ],
    [
      (d) => {
        d.annotations[0].segmentation = 5;
      },
      /"segmentation" must be polygons or an RLE/,
    ],
    [
      (d) => {
        d.annotations[1].segmentation.size = [8, 6];
      },
      /segmentation is for \[8,6\]/,
    ],
    [
      (d) => {
        d.annotations[1].segmentation.counts = [0, 12];
      },
      /RLE counts cover 12 pixels/,
    ],
    [
      (d) => {
        d.annotations[0].iscrowd = 2;
      },
      /"iscrowd" must be 0 or 1/,
    ],
    [
      (d) => {
        d.annotations[0].area = -1;
      },
      /"area" must be a number/,
    ],
    [
      (d) => {
        delete d.annotations[0].bbox;
        delete d.annotations[0].segmentation;
      },
      /neither "bbox" nor "segmentation"/,
    ],
    [
      (d) => {
        d.weak = [];
        delete d.annotations;
      },
      /holds weak labels; instances with masks are expected/,
    ],
  ];
  for (const [change, reason] of faults) {
    const message = refusal(() => readInstances(write(change)));
    assert.match(message, reason);
    assert.ok(message.startsWith(path), message);
  }
});

test("a missing, empty, truncated or foreign file is refused", () => {
  assert.match(
    refusal(() => readInstances(join(folder, "none.json"))),
    /none.json: the annotations file does not exist/,
  );
  assert.match(
    refusal(() => readInstances(folder)),
    /is a folder/,
  );
  for (const [text, reason] of [
    ["", /the file is empty/],
    ['{"images": [', /not JSON .*truncated/],
    ["", /the file is empty\); the file may be truncated/],
    ['{"images": [], "area": NaN}', /not JSON \(NaN is no number of JSON's\); write a number/],
    ['{"images": [1, -Infinity]}', /not JSON \(-Infinity is no number/],
    ["[1, 2]", /expected a JSON object/],
    ["\uFEFF[1, 2]", /expected a JSON object/],
    ["null", /expected a JSON object/],
  ] as const) {
    writeFileSync(path, text);
    assert.match(
      refusal(() => readInstances(path)),
      reason,
    );
  }
});

test("images on disk are compared with the file", async () => {
  const data = readInstances(write());
  await writePng(join(folder, "a.png"), { width: 8, height: 6, data: new Uint8Array(8 * 6 * 3) });
  const failed = async () =>
    checkImages(data, folder).then(
      () => "",
      (error: Error) => error.message,
    );
  assert.match(await failed(), /b.png: the image does not exist/);
  await writePng(join(folder, "b.png"), { width: 4, height: 5, data: new Uint8Array(4 * 5 * 3) });
  assert.match(await failed(), /b.png: is 4x5, but .*instances.json says 4x4/);
  await writePng(join(folder, "b.png"), { width: 4, height: 4, data: new Uint8Array(4 * 4 * 3) });
  assert.is(await failed(), "");
});

const shared = process.env.WGPU_WISH_SHARED ?? join(import.meta.dirname, "../../../shared");
const real = join(shared, "data/coco-mini/annotations/instances_val2017.json");
(existsSync(real) ? test : test.skip)(
  "real COCO files are read, and their masks have about the areas they state",
  () => {
    const data = readInstances(real, { supercategories: true });
    assert.equal([data.images.length, data.instances.length, data.categories.length], [106, 854, 12]);
    const images = new Map(data.images.map((image) => [image.id, image]));
    for (const instance of data.instances) {
      const area = areaOfRuns(instanceRuns(instance, images.get(instance.imageId)!));
      const far = Math.abs(area - instance.area);
      const message = `annotation ${instance.id}: ${area} pixels, ${instance.area} stated`;
      assert.ok(instance.crowd || far <= Math.max(40, 0.12 * instance.area), message);
    }
  },
);

test.run();
