/** Documents damaged at random places: they are read, or refused with BadInput in one line; nothing else happens. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { Random } from "../../engine/random.ts";
import { readInstances } from "../../train/data/coco.ts";
import { maskItems, weakItems } from "../../train/data/loader.ts";
import { readWeak, weaken } from "../../train/data/weak.ts";
import { BadInput } from "../../train/errors.ts";
import { evaluate, readResults } from "../../train/eval/coco-ap.ts";

const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-damaged-"));
const path = join(folder, "document.json");
const cases: { truth: object; results: object[] }[] = JSON.parse(
  readFileSync(new URL("../parity/data/ap.json", import.meta.url), "utf8"),
);

// What stands where something else should: JSON turns undefined and NaN into an absent field and null.
const ODD = [
  null,
  undefined,
  Number.NaN,
  -1,
  0,
  1.5,
  1e308,
  2 ** 53,
  "",
  "x",
  true,
  [],
  {},
  [null],
  [[]],
  [1, 2, 3, 4],
  [[1, 1, 2, 2, 3, 3]],
  { size: [128, 128], counts: [16_384] },
  { size: [1, 1], counts: "1" },
];

function damage(value: unknown, often: number, random: Random): unknown {
  if (random.uniform() < often) return ODD[random.int(ODD.length)];
  if (Array.isArray(value)) {
    const list = value.map((item) => damage(item, often, random));
    if (random.uniform() < often) list.splice(random.int(list.length + 1), 1);
    if (random.uniform() < often) list.push(list[0]);
    return list;
  }
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, damage(item, often, random)]));
}

const test = suite("damaged documents");
test.after(() => rmSync(folder, { recursive: true }));

/** Runs `work` on the damaged document; true where it was refused. */
function refuses(document: unknown, work: () => void): boolean {
  writeFileSync(path, JSON.stringify(document) ?? "");
  try {
    work();
    return false;
  } catch (error) {
    assert.instance(error, BadInput, String((error as Error).stack));
    assert.not.match((error as Error).message, /\n/);
    assert.ok((error as Error).message.length < 400);
    return true;
  }
}

test("annotations, weak labels and results", () => {
  const random = new Random(1);
  const truthPath = join(folder, "truth.json");
  const outcomes = { read: 0, refused: 0 };
  const note = (refused: boolean) => outcomes[refused ? "refused" : "read"]++;
  for (let n = 0; n < 150; n++) {
    const { truth, results } = cases[n % cases.length]!;
    const often = n % 2 === 0 ? 0.0005 : 0.003;
    note(
      refuses(damage(truth, often, random), () => {
        const data = readInstances(path);
        maskItems(data, folder);
        weaken(data, { tags: 0.4, points: 0.3, boxes: 0.3 });
      }),
    );
    writeFileSync(truthPath, JSON.stringify(truth));
    const data = readInstances(truthPath);
    const weak = weaken(data, { tags: 0.2, points: 0.4, boxes: 0.4 }, { seed: n });
    note(refuses(damage(weak, 3 * often, random), () => weakItems(readWeak(path), folder)));
    note(
      refuses(damage(results, often, random), () => {
        const { perClass, ...figures } = evaluate(data, readResults(path, data), {
          iou: n % 3 === 0 ? "bbox" : "segm",
        });
        for (const value of [...Object.values(figures), ...Object.values(perClass)])
          assert.ok(value >= -1 && value <= 1);
      }),
    );
  }
  assert.ok(outcomes.read > 100 && outcomes.refused > 100, JSON.stringify(outcomes));
});

test.run();
