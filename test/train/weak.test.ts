import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { Random } from "../../engine/random.ts";
import { anyPixel, centerPixel } from "../../train/data/click.ts";
import { type Instance, type Instances, instanceRuns } from "../../train/data/coco.ts";
import { type Box, encodeMask, maskOfRuns, type Rle, runsOfMask } from "../../train/data/mask.ts";
import { labelCounts, readWeak, type Shares, weaken, writeWeak } from "../../train/data/weak.ts";
import { BadInput } from "../../train/errors.ts";

// biome-ignore lint/suspicious/noExplicitAny: the tests break documents in every way
type Document = Record<string, any>;

const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-weak-"));
const path = join(folder, "weak.json");

/** `count` images of 20x10 with a ring, a bar and a crowd each; the last has a crowd alone. */
function dataSet(count: number): Instances {
  const [width, height] = [20, 10];
  const draw = (inside: (x: number, y: number) => boolean) =>
    encodeMask(
      Uint8Array.from({ length: width * height }, (_, at) => (inside(at % width, Math.floor(at / width)) ? 1 : 0)),
      width,
      height,
    );
  const ring = draw((x, y) => Math.abs(Math.hypot(x - 5, y - 5) - 3.5) < 1);
  const bar = draw((x, y) => x > 12 && y === 4);
  const instances: Instance[] = [];
  const images = Array.from({ length: count }, (_, i) => ({ id: 100 + i, fileName: `${i}.png`, width, height }));
  for (const { id: imageId } of images) {
    const add = (categoryId: number, crowd: boolean, segmentation: typeof ring) =>
      instances.push({
        id: instances.length + 1,
        imageId,
        categoryId,
        box: [1, 1, 9, 9],
        area: 20,
        crowd,
        segmentation,
      });
    if (imageId !== 100 + count - 1) {
      add(2, false, ring);
      add(1, false, bar);
      add(2, false, bar);
    }
    add(3, true, bar);
  }
  const categories = [1, 2, 3].map((id) => ({ id, name: `class ${id}`, supercategory: id < 3 ? "low" : "high" }));
  return { file: "instances.json", images, categories, instances };
}

function refusal(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    assert.instance(error, BadInput);
    return (error as Error).message;
  }
  throw new Error("was not refused");
}

const test = suite("weak labels");
test.after(() => rmSync(folder, { recursive: true }));

test("a budget of 10,582 gives the paper's numbers of images", () => {
  const third = 1 / 3;
  const rows: [Shares, [tags: number, points: number, boxes: number]][] = [
    [{ tags: 1 }, [10_582, 0, 0]],
    [{ boxes: 1 }, [0, 0, 882]],
    [{ points: 1 }, [0, 1764, 0]],
    [{ tags: 0.5, boxes: 0.5 }, [5290, 0, 441]],
    [{ tags: 0.5, points: 0.5 }, [5290, 882, 0]],
    [{ points: 0.5, boxes: 0.5 }, [0, 882, 441]],
    [{ tags: third, points: third, boxes: third }, [3526, 588, 294]],
  ];
  for (const [mix, [tags, points, boxes]] of rows) {
    assert.equal(labelCounts({ budget: 10_582, mix }, 10_582), { tags, points, boxes }, JSON.stringify(mix));
  }
});

test("shares of the images are met to the image, and all of them label every image", () => {
  assert.equal(labelCounts({ tags: 0.4, points: 0.3, boxes: 0.3 }, 10), { tags: 4, points: 3, boxes: 3 });
  assert.equal(labelCounts({ points: 0.25 }, 10), { tags: 0, points: 3, boxes: 0 });
  for (let n = 1; n < 300; n++) {
    const counts = labelCounts({ tags: 0.34, points: 0.33, boxes: 0.33 }, n);
    assert.is(counts.tags + counts.points + counts.boxes, n);
    for (const [kind, share] of [
      ["tags", 0.34],
      ["points", 0.33],
      ["boxes", 0.33],
    ] as const) {
      assert.ok(Math.abs(counts[kind] - share * n) < 1);
    }
  }
});

test("tags that a budget could buy beyond the images are left unbought", () => {
  assert.equal(labelCounts({ budget: 120, mix: { tags: 0.5, boxes: 0.5 } }, 40), { tags: 35, points: 0, boxes: 5 });
});

test("each image has one kind at most, and no mask is in the file", () => {
  const data = dataSet(40);
  const document = weaken(data, { tags: 0.25, points: 0.25, boxes: 0.25 }, { seed: 3 });
  assert.equal(document.info.counts, { tags: 10, points: 10, boxes: 10, unlabelled: 10 });
  assert.is(document.info.spent, 190);
  assert.is(document.info.budget, null);
  assert.is(document.images.length, 40);
  writeWeak(path, document);
  const text = readFileSync(path, "utf8");
  assert.not.match(text, /segmentation|counts":"|annotations/);
  const { entries } = readWeak(path);
  assert.is(new Set(entries.map(({ imageId }) => imageId)).size, 30);
  for (const entry of entries) {
    const empty = entry.imageId === 139;
    if (entry.kind === "tags") assert.equal(entry.categoryIds, empty ? [] : [1, 2]);
    if (entry.kind === "points") assert.is(entry.points.length, empty ? 0 : 3);
    if (entry.kind === "boxes") assert.is(entry.boxes.length, empty ? 0 : 3);
  }
});

test("the same seed gives the same bytes, another seed other images", () => {
  const data = dataSet(30);
  const plan = { budget: 60, mix: { tags: 0.2, points: 0.4, boxes: 0.4 } };
  const bytes = (seed: number) => {
    writeWeak(path, weaken(data, plan, { seed, point: "uniform" }));
    return readFileSync(path);
  };
  assert.equal(bytes(5), bytes(5));
  assert.not.equal(bytes(5), bytes(6));
});

test("a point lies in its mask: nearest to the centroid, or anywhere", () => {
  const data = dataSet(20);
  const masks = data.instances.slice(0, 3).map((instance) => maskOfRuns(instanceRuns(instance, data.images[0]!)));
  const spots = (point: "center" | "uniform") => {
    const seen = new Set<string>();
    writeWeak(path, weaken(data, { points: 1 }, { point }));
    for (const entry of readWeak(path).entries) {
      if (entry.kind !== "points") continue;
      entry.points.forEach(({ x, y }, i) => {
        assert.is(masks[i]![y * 20 + x], 1, `${point} ${x},${y}`);
        seen.add(`${i} ${x} ${y}`);
      });
    }
    return seen;
  };
  // The bar covers x 13..19 at y 4; the ring's own centre is a hole.
  assert.ok(spots("center").has("1 16 4"));
  assert.is(spots("center").size, 3);
  assert.ok(spots("uniform").size > 12);
});

test("points are those of a list of the mask's pixels, row by row", () => {
  const mask = fc.tuple(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 9 })).chain(([width, height]) => {
    const pixels = fc.uint8Array({ min: 0, max: 1, minLength: width * height, maxLength: width * height });
    return fc.record({ width: fc.constant(width), height: fc.constant(height), pixels });
  });
  fc.assert(
    fc.property(mask, fc.nat(), ({ width, height, pixels }, seed) => {
      const runs = runsOfMask(pixels, width, height);
      const places = [...pixels].flatMap((v, at) => (v ? [{ x: at % width, y: Math.floor(at / width) }] : []));
      if (places.length === 0) {
        assert.is(centerPixel(runs), undefined);
        assert.is(anyPixel(runs, new Random(seed)), undefined);
        return;
      }
      const mean = (key: "x" | "y") => places.reduce((sum, place) => sum + place[key], 0) / places.length;
      const far = places.map(({ x, y }) => (x - mean("x")) ** 2 + (y - mean("y")) ** 2);
      assert.equal(centerPixel(runs), places[far.indexOf(Math.min(...far))]);
      assert.equal(anyPixel(runs, new Random(seed)), places[new Random(seed).int(places.length)]);
    }),
    { seed: 1 },
  );
});

test("a mask of more pixels than a list holds gets its point", () => {
  const side = 16_000;
  const full: Rle = { size: [side, side], counts: [0, side * side] };
  const [id, box]: [number, Box] = [1, [0, 0, side, side]];
  const data: Instances = {
    file: "instances.json",
    images: [{ id, fileName: "large.png", width: side, height: side }],
    categories: [{ id, name: "wall" }],
    instances: [{ id, imageId: id, categoryId: id, box, area: side * side, crowd: false, segmentation: full }],
  };
  for (const point of ["center", "uniform"] as const) {
    const [entry] = weaken(data, { points: 1 }, { point }).weak as { points: { x: number; y: number }[] }[];
    const { x, y } = entry!.points[0]!;
    assert.ok(point === "center" ? x === 7999 && y === 7999 : x >= 0 && x < side && y >= 0 && y < side, `${x} ${y}`);
  }
});

test("supercategories are classes for weak labels too, each tag once", () => {
  writeWeak(path, weaken(dataSet(4), { tags: 1 }));
  const { categories, entries } = readWeak(path, { supercategories: true });
  assert.equal(
    categories.map(({ name }) => name),
    ["low", "high"],
  );
  assert.equal(entries[0], { imageId: 100, kind: "tags", categoryIds: [1] });
});

test("plans that cannot be met are refused", () => {
  assert.match(
    refusal(() => labelCounts({ tags: 0.6, boxes: 0.6 }, 10)),
    /add up to at most 1, got 1.2/,
  );
  assert.match(
    refusal(() => labelCounts({}, 10)),
    /no image would be labelled/,
  );
  assert.match(
    refusal(() => labelCounts({ tags: 1 }, 0)),
    /no image would be labelled/,
  );
  assert.match(
    refusal(() => labelCounts({ tags: Number.NaN }, 10)),
    /tags must be from 0 to 1/,
  );
  assert.match(
    refusal(() => labelCounts({ budget: 100, mix: { tags: 0.5 } }, 10)),
    /must add up to 1, got 0.5/,
  );
  assert.match(
    refusal(() => labelCounts({ budget: 1000, mix: { boxes: 1 } }, 10)),
    /83 images are needed .* there are 10/,
  );
  assert.match(
    refusal(() => labelCounts({ budget: Number.NaN, mix: { boxes: 1 } }, 10)),
    /--budget must be a number/,
  );
  const boxesAlone = dataSet(2);
  for (const instance of boxesAlone.instances) delete instance.segmentation;
  assert.match(
    refusal(() => weaken(boxesAlone, { points: 1 })),
    /annotation 1 has no segmentation; points/,
  );
  assert.is(weaken(boxesAlone, { boxes: 1 }).weak.length, 2);
});

test("a file with masks, or with a fault, is refused in a line that names it", () => {
  const write = (change: (document: Document) => void) => {
    const document: Document = {
      images: [{ id: 1, file_name: "a.png", width: 8, height: 6 }],
      categories: [{ id: 3, name: "cat" }],
      weak: [{ image_id: 1, kind: "points", points: [{ category_id: 3, x: 2, y: 5 }] }],
    };
    change(document);
    writeFileSync(path, JSON.stringify(document));
    return path;
  };
  assert.is(readWeak(write(() => {})).entries.length, 1);
  const box = (bbox: unknown) => (d: Document) => {
    d.weak = [{ image_id: 1, kind: "boxes", boxes: [{ category_id: 3, bbox }] }];
  };
  const faults: [(document: Document) => void, RegExp][] = [
    [
      (d) => {
        d.annotations = [];
        delete d.weak;
      },
      /holds annotations with masks; weak labels are expected here/,
    ],
    [
      (d) => {
        d.annotations = [];
      },
      /holds annotations with masks/,
    ],
    [(d) => delete d.weak, /"weak" must be a list/],
    [
      (d) => {
        d.weak[0].image_id = 2;
      },
      /weak\[0\]: image_id 2 names no image/,
    ],
    [
      (d) => {
        d.weak.push(d.weak[0]);
      },
      /weak\[1\]: image 1 has a label already/,
    ],
    [
      (d) => {
        d.weak[0].kind = "masks";
      },
      /"kind" must be tags, points or boxes, got "masks"/,
    ],
    [
      (d) => {
        d.weak[0].kind = "tags";
      },
      /is of kind tags, so it may not have "points"/,
    ],
    [
      (d) => {
        d.weak[0].segmentation = [];
      },
      /may not have "segmentation"/,
    ],
    [
      (d) => {
        d.weak[0].points[0].segmentation = [];
      },
      /holds a mask/,
    ],
    [
      (d) => {
        d.weak[0].points[0].category_id = 4;
      },
      /weak\[0\]: points\[0\]: category id 4 names no category/,
    ],
    [
      (d) => {
        d.weak[0].points[0].x = 8;
      },
      /x and y must lie in the image of 8x6, got 8 and 5/,
    ],
    [
      (d) => {
        d.weak[0].points[0].y = null;
      },
      /x and y must lie in the image/,
    ],
    [
      (d) => {
        d.weak = [{ image_id: 1, kind: "tags", category_ids: [9] }];
      },
      /category_ids\[0\]: category id 9/,
    ],
    [
      (d) => {
        d.weak = [{ image_id: 1, kind: "tags" }];
      },
      /"category_ids" must be a list/,
    ],
    [box([0, 0, 0, 3]), /the box has no area/],
    [box([0, 0, null, 3]), /"bbox" must be/],
    [box([8, 0, 2, 3]), /lies outside the image of 8x6/],
    [
      (d) => {
        d.weak = [5];
      },
      /weak\[0\] must be an object/,
    ],
  ];
  for (const [change, reason] of faults) {
    const message = refusal(() => readWeak(write(change)));
    assert.match(message, reason);
    assert.ok(message.startsWith(path), message);
  }
});

test.run();
