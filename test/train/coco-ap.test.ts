import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type Instances, readInstances } from "../../train/data/coco.ts";
import { readJsonList } from "../../train/data/json.ts";
import { BadInput } from "../../train/errors.ts";
import {
  evaluate,
  evaluateDetailed,
  type Metrics,
  type Result,
  readResults,
  resultsDocument,
} from "../../train/eval/coco-ap.ts";
import { judge } from "../../train/eval/confusion.ts";
import { evaluateVoc } from "../../train/eval/voc.ts";

const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-ap-"));
const STATS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"] as const;

function close(got: Metrics, stats: readonly number[], what: string): void {
  STATS.forEach((name, i) => {
    assert.ok(Math.abs(got[name] - stats[i]!) <= 1e-9, `${what} ${name}: ${got[name]}, pycocotools has ${stats[i]}`);
  });
}

function write(name: string, document: unknown): string {
  writeFileSync(join(folder, name), JSON.stringify(document));
  return join(folder, name);
}

interface Recorded {
  stats: number[];
  ap25: number;
  ap70: number;
  perClass: Record<string, number>;
}
type Case = { truth: object; results: object[] } & Partial<Record<"segm" | "bbox", Recorded>>;
const cases: Case[] = JSON.parse(readFileSync(new URL("../parity/data/ap.json", import.meta.url), "utf8"));

const test = suite("COCO metrics");
test.after(() => rmSync(folder, { recursive: true }));

test("random ground truth and results give pycocotools' figures to 1e-9", () => {
  cases.forEach((recorded, n) => {
    const truth = readInstances(write("truth.json", recorded.truth));
    const results = readResults(write("results.json", recorded.results), truth);
    for (const iou of ["segm", "bbox"] as const) {
      const want = recorded[iou];
      if (want === undefined) continue;
      const got = evaluate(truth, results, { iou });
      close(got, want.stats, `case ${n} ${iou}`);
      assert.ok(Math.abs(got.AP25 - want.ap25) <= 1e-9 && Math.abs(got.AP70 - want.ap70) <= 1e-9, `case ${n} ${iou}`);
      assert.equal(Object.keys(got.perClass), Object.keys(want.perClass));
      for (const [name, ap] of Object.entries(want.perClass))
        assert.ok(Math.abs(got.perClass[name]! - ap) <= 1e-9, name);
    }
  });
});

type Odd = Omit<Case, "segm" | "bbox"> & { seed: number; want: Record<string, Record<string, unknown>> };
const odd: Odd[] = JSON.parse(readFileSync(new URL("../parity/data/ap-odd.json", import.meta.url), "utf8"));

test("ties, crowds, runs of no length, empty masks and areas at borders give pycocotools' and VOC's figures to 1e-9", () => {
  assert.ok(odd.length >= 20);
  for (const { seed, truth: file, results: found, want } of odd) {
    const truth = readInstances(write("truth.json", file), { bare: true });
    const results = readResults(write("results.json", found), truth);
    const got: Record<string, object> = want.voc ? { voc: evaluateVoc(truth, results) } : {};
    for (const iou of ["segm", "bbox"] as const) if (want[iou]) got[iou] = evaluate(truth, results, { iou });
    for (const [kind, figures] of Object.entries(want)) {
      const { perClass = {}, ...rest } = figures as { perClass?: Record<string, number> };
      const { perClass: ours = {}, ...others } = got[kind] as { perClass?: Record<string, number> };
      for (const [name, value] of Object.entries({ ...perClass, ...(rest as Record<string, number>) })) {
        const mine = ({ ...ours, ...others } as Record<string, number>)[name]!;
        assert.ok(Math.abs(mine - value) <= 1e-9, `seed ${seed} ${kind} ${name}: ${mine}, wanted ${value}`);
      }
    }
  }
});

test("results of classes that the ground truth does not have count for nothing", () => {
  const other: Result[] = [{ imageId: 1, categoryId: 77, score: 0.99, box: [10, 10, 20, 20] }];
  assert.equal(evaluate(truth, [...exact, ...other], bbox), evaluate(truth, exact, bbox));
});

test("what pycocotools does not ask for may be absent, and boxes may be turned inside out", () => {
  const annotation = { id: 1, image_id: 1, category_id: 3, bbox: [10, 10, 20, 20], area: 400, iscrowd: 0 };
  const document = { images: [{ id: 1 }], categories: [{ id: 3 }], annotations: [annotation] };
  const path = write("bare.json", document);
  const bare = readInstances(path, { bare: true });
  const entry = { image_id: 1, category_id: 3, score: 0.9, bbox: [10, 10, 20, 20] };
  const found = readResults(write("results.json", [entry, { ...entry, score: 0.1, bbox: [30, 30, -20, -20] }]), bare);
  const { AP, perClass } = evaluate(bare, found, bbox);
  assert.ok(AP > 0.999 && perClass["3"]! > 0.999);
  const refused = (text: RegExp, read: () => unknown) =>
    assert.throws(read, (error: Error) => error instanceof BadInput && text.test(error.message));
  refused(/"file_name" must be a name/, () => readInstances(path));
  const polygon = [[0, 0, 9, 0, 9, 9]];
  const masked = write("masked.json", { ...document, annotations: [{ ...annotation, segmentation: polygon }] });
  refused(/"width" and "height" must be pixels/, () => readInstances(masked, { bare: true }));
});

test("VOC counts all results, however many", () => {
  const noise: Result[] = Array.from({ length: 120 }, () => ({ ...exact[0]!, score: 0.9, box: [60, 60, 5, 5] }));
  assert.ok(evaluateVoc(truth, [...noise, ...exact], bbox).voc50 > 0);
});

const shared = process.env.WGPU_WISH_SHARED ?? join(import.meta.dirname, "../../../shared");
const fixture = join(shared, "data/coco-eval-fixture");
(existsSync(fixture) ? test : test.skip)("COCO's own fake results give the figures recorded for them", () => {
  const { runs } = JSON.parse(readFileSync(join(fixture, "expected.json"), "utf8"));
  for (const { iouType: iou, stats } of runs as { iouType: "segm" | "bbox"; stats: number[] }[]) {
    const truth = readInstances(join(fixture, `gt_${iou}.json`));
    close(evaluate(truth, readResults(join(fixture, `results_${iou}.json`), truth), { iou }), stats, iou);
  }
});

/** Two images of 100x100 with one square of 20x20 each, of class 1; class 2 is never there. */
const truth: Instances = {
  file: "truth.json",
  images: [1, 2].map((id) => ({ id, fileName: `${id}.png`, width: 100, height: 100 })),
  categories: [
    { id: 1, name: "square" },
    { id: 2, name: "none" },
  ],
  instances: [1, 2].map((id) => ({ id, imageId: id, categoryId: 1, box: [10, 10, 20, 20], area: 400, crowd: false })),
};
const exact: Result[] = [1, 2].map((imageId) => ({ imageId, categoryId: 1, score: 0.5, box: [10, 10, 20, 20] }));
const bbox = { iou: "bbox" } as const;

test("perfect results give 1, none give 0, what cannot be measured is -1, and classes of one name stay apart", () => {
  const perfect = evaluate(truth, exact, bbox);
  assert.equal([perfect.AP, perfect.AP25, perfect.AP70, perfect.APs, perfect.APm, perfect.AR1], [1, 1, 1, 1, -1, 1]);
  assert.equal(perfect.perClass, { square: 1, none: -1 });
  const [first, second] = truth.categories;
  const namesakes = { ...truth, categories: [first!, { ...second!, name: "square" }, { id: 9, name: "other" }] };
  assert.equal(evaluate(namesakes, exact, bbox).perClass, { "square (1)": 1, "square (2)": -1, other: -1 });
  assert.equal(judge(namesakes, exact, bbox).confusion.classes, ["square (1)", "square (2)", "other"]);
  const nothing = evaluate(truth, [], bbox);
  assert.equal([nothing.AP, nothing.AR100, nothing.perClass.square], [0, 0, 0]);
  assert.is(evaluate({ ...truth, instances: [] }, exact, bbox).AP, -1);
  assert.is(evaluate({ ...truth, images: [], instances: [] }, [], bbox).AP, -1);
});

test("a chosen set of images counts alone", () => {
  const half = exact.slice(0, 1);
  assert.ok(Math.abs(evaluate(truth, half, { ...bbox, imageIds: [1] }).AP - 1) < 1e-12);
  assert.is(evaluate(truth, half, { ...bbox, imageIds: [2] }).AP, 0);
});

test("more than 100 results of an image and class are cut by score", () => {
  const noise: Result[] = Array.from({ length: 120 }, () => ({
    imageId: 1,
    categoryId: 1,
    score: 0.9,
    box: [60, 60, 5, 5],
  }));
  const { AP, AR100 } = evaluate(truth, [...noise, ...exact], bbox);
  assert.is(AR100, 0.5);
  assert.ok(AP < 0.05);
});

test("curves fall from the precision at recall 0 and have the metric as their mean", () => {
  const results: Result[] = [...exact.slice(0, 1), { imageId: 2, categoryId: 1, score: 0.4, box: [60, 60, 9, 9] }];
  const { metrics, curves } = evaluateDetailed(truth, results, bbox);
  const all = curves.find(({ name, iou }) => name === "all" && iou === 0.5)!;
  assert.is(all.precision.length, 101);
  assert.ok(all.precision[0]! > 1 - 1e-12 && all.precision[100] === 0);
  assert.ok(Math.abs(all.precision.reduce((sum, v) => sum + v, 0) / 101 - metrics.AP50) < 1e-12);
  assert.equal(
    curves.map(({ name }) => name),
    ["all", "square", "all", "square"],
  );
});

test("VOC's figure is the area under the whole curve; a second hit is wrong", () => {
  const shifted = (score: number, x: number): Result => ({ imageId: 1, categoryId: 1, score, box: [x, 10, 20, 20] });
  // By falling score: right, a second hit of the same square (wrong), right: 1/2 * 1 + 1/2 * 2/3.
  const results = [shifted(0.9, 10), shifted(0.8, 11), { ...exact[1]!, score: 0.7 }];
  const { voc25, voc75 } = evaluateVoc(truth, results, bbox);
  assert.ok(Math.abs(voc75 - (1 / 2 + 1 / 3)) < 1e-12);
  assert.is(voc25, voc75);
  assert.is(evaluateVoc({ ...truth, instances: [] }, results, bbox).voc50, -1);
});

test("results are paired with objects of any class, one to one; what stays alone is made up or missed", () => {
  const at = (imageId: number, categoryId: number, score: number, x: number): Result => ({
    imageId,
    categoryId,
    score,
    box: [x, 10, 20, 20],
  });
  const crowd = {
    id: 9,
    imageId: 2,
    categoryId: 2,
    box: [60, 10, 30, 30] as [number, number, number, number],
    area: 900,
  };
  const scene = { ...truth, instances: [...truth.instances, { ...crowd, crowd: true }] };
  // Image 1: the square is taken for "none", and found again less well. Image 2: nearly right, one on the crowd, one too unsure.
  const results = [at(1, 2, 0.6, 10), at(1, 1, 0.9, 12), at(2, 1, 0.5, 14), at(2, 1, 0.5, 65), at(2, 1, 0.1, 40)];
  const { confusion, quality } = judge(scene, results, bbox);
  assert.equal(confusion.counts, [
    [1, 0, 1],
    [1, 0, 0],
    [0, 0, 0],
  ]);
  const iou = 16 / 24;
  assert.is(quality.get(1), 0);
  assert.ok(Math.abs(quality.get(2)! - iou) < 1e-12);
  assert.is(judge(scene, [], bbox).confusion.counts[2]![0], 2);
  assert.equal([...judge(scene, [], { ...bbox, imageIds: [2] }).quality], [[2, 0]]);
});

test("results are written as COCO has them and read back", () => {
  const path = write("results.json", resultsDocument(exact));
  assert.equal(readResults(path, truth), exact);
  assert.equal(readResults(write("empty.json", []), truth), []);
});

test("a list that is too long for one string is read in pieces", () => {
  const list = [
    { a: '[",]\\', b: [1, { c: "é}" }] },
    7,
    "x, y",
    [],
    { d: null },
    ...Array.from({ length: 40 }, (_, i) => ({ i })),
  ];
  const plain = JSON.stringify(list);
  for (const text of [plain, ` \n${JSON.stringify(list, null, 2)}\n`, `\uFEFF${plain}`]) {
    writeFileSync(join(folder, "long.json"), text);
    for (const atOnce of [1, 10, 100, 1e6])
      assert.equal(readJsonList(join(folder, "long.json"), "a list", atOnce), list, String(atOnce));
  }
  assert.equal(readJsonList(write("none.json", { a: [1, 2] }), "a list", 1), { a: [1, 2] });
  for (const [name, text] of Object.entries({
    cut: '[{"a": 1}, {"a": ',
    open: "[1, 2",
    behind: "[1, 2] 3",
    hole: "[1,, 2]",
    end: "[1, 2,]",
  })) {
    writeFileSync(join(folder, "long.json"), text);
    const read = () => readJsonList(join(folder, "long.json"), "a list", 1);
    assert.throws(
      read,
      (error: Error) => error instanceof BadInput && /long\.json: not JSON/.test(error.message),
      name,
    );
  }
});

test("each fault of a results file is refused in one line that names it", () => {
  const entry = { image_id: 1, category_id: 1, score: 0.5, bbox: [0, 0, 4, 4] };
  const faults: [unknown, RegExp][] = [
    [{ annotations: [] }, /expected a list of results/],
    [[{ ...entry, image_id: 3 }], /results\[0\]: image_id 3 names no image of truth.json/],
    [[entry, { ...entry, category_id: "9" }], /results\[1\]: "category_id" must be a whole number, got "9"/],
    [[{ ...entry, score: null }], /"score" must be a number, got null/],
    [[{ ...entry, bbox: [0, 0, 4] }], /"bbox" must be/],
    [[{ ...entry, bbox: [] }], /neither "segmentation" nor "bbox"/],
    [[{ ...entry, segmentation: { size: [5, 5], counts: [25] } }], /mask is for \[5,5\]/],
    [[{ ...entry, segmentation: { size: [100, 100], counts: [25] } }], /RLE counts cover 25 pixels/],
    [[{ ...entry, segmentation: [[1, 2]] }], /must be RLE or polygons/],
    [[null], /results\[0\] must be an object/],
  ];
  for (const [document, reason] of faults) {
    const path = write("faulty.json", document);
    assert.throws(
      () => readResults(path, truth),
      (error: Error) => error instanceof BadInput && error.message.startsWith(path) && reason.test(error.message),
      JSON.stringify(document),
    );
  }
  assert.throws(() => evaluate(truth, [{ ...exact[0]!, score: Number.NaN }], bbox), /score NaN/);
  assert.throws(() => evaluate(truth, exact, { iou: "segm" }), /annotation 1 has no segmentation; compare boxes/);
});

test.run();
