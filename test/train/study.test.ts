// The paper's experiments as one command: which runs there are, that an interrupted study goes on, and the tables.
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { readInstances } from "../../train/data/coco.ts";
import { labelCounts, weaken } from "../../train/data/weak.ts";
import { type LoggedStep, readDiary } from "../../train/metrics.ts";
import { resolveSettings } from "../../train/settings.ts";
import { runStudy, type StudyConfig, studySchema } from "../../train/study.ts";
import { studyArms } from "../../train/study-arms.ts";
import { meanAndSpread, studyMarkdown } from "../../train/study-table.ts";
import { train } from "../../train/train.ts";
import { config, folder, gpu, refused, removeFolder, scenes, silent } from "./tiny-run.ts";

const test = suite("study");

test("a budget of 10,582 gives the paper's counts", () => {
  const arms = new Map(studyArms(10_582, 10_582).map((arm) => [arm.name, arm]));
  const counts = (name: string) => {
    const { labels } = arms.get(name)!;
    assert.ok(labels !== "masks");
    return labelCounts(labels as Exclude<typeof labels, "masks">, 10_582);
  };
  assert.equal(counts("budget-boxes"), { tags: 0, points: 0, boxes: 882 });
  assert.equal(counts("budget-points"), { tags: 0, points: 1764, boxes: 0 });
  assert.equal(counts("budget-tags-boxes"), { tags: 5290, points: 0, boxes: 441 });
  assert.equal(counts("budget-thirds"), { tags: 3526, points: 588, boxes: 294 });
  assert.is(arms.get("budget-tags")!.sameAs, "tags");
  assert.is(new Set([...arms.keys()]).size, studyArms(10_582, 10_582).length);
  // A smaller budget labels fewer images with tags than there are: a run of its own.
  assert.is(studyArms(100, 200).find((arm) => arm.name === "budget-tags")!.sameAs, undefined);
});

const study = (changes: Record<string, unknown> = {}): StudyConfig => {
  const { run: _, data, ...train } = structuredClone(config("unused")) as Record<string, unknown>;
  const { labels: __, ...unlabelled } = data as Record<string, unknown>;
  return resolveSettings(studySchema, {
    train: { ...train, data: unlabelled, steps: 2, log: { every: 1, checkpoint: 1, keep: 1 } },
    annotations: scenes.annotations,
    arms: ["boxes", "masks"],
    ...changes,
  });
};

test("every arm and seed is trained once; an interrupted study goes on, and what is done stays", async () => {
  const out = join(folder, "study");
  const abort = new AbortController();
  const display = {
    ...silent,
    log: (line: string) => {
      if (line.startsWith("masks, seed 0")) abort.abort();
    },
  };
  const options = { out, display: silent, seeds: 2, resume: false };
  const first = await runStudy(gpu, study(), { ...options, display, signal: abort.signal });
  assert.ok(first.interrupted);
  assert.equal(
    first.rows.map(({ name, runs }) => [name, runs.length]),
    [
      ["boxes", 1],
      ["boxes-b", 1],
      ["masks", 0],
    ],
  );
  const kept = join(out, "boxes", "seed-0.json");
  const written = statSync(kept).mtimeMs;
  await refused(() => runStudy(gpu, study(), options), /already holds a study; give --resume/);
  await refused(
    () => runStudy(gpu, study({ point: "uniform" }), { ...options, resume: true }),
    /point cannot change .* start another study with --out DIR/,
  );
  await refused(
    () => runStudy(gpu, study({ arms: ["boxs"] }), { ...options, resume: true }),
    /arms: there is no "boxs"; there are tags, points, boxes/,
  );
  const { rows, interrupted } = await runStudy(gpu, study(), { ...options, resume: true });
  assert.not.ok(interrupted);
  assert.equal(
    rows.map(({ name, runs }) => [name, runs.length]),
    [
      ["boxes", 2],
      ["boxes-b", 2],
      ["masks", 2],
    ],
  );
  assert.is(statSync(kept).mtimeMs, written);
  const labels = (seed: number) => JSON.parse(readFileSync(join(out, "boxes", `labels-${seed}.json`), "utf8"));
  assert.equal(labels(0).info.counts.boxes, 6);
  assert.equal(
    labels(1),
    JSON.parse(JSON.stringify(weaken(readInstances(scenes.annotations), { boxes: 1 }, { seed: 1 }))),
  );
  assert.not.ok(existsSync(join(out, "masks", "labels-0.json")), "masks are read as they are");
  // Asked for less, the tables keep what is done.
  const less = await runStudy(gpu, study({ arms: ["masks"] }), { ...options, seeds: 1, resume: true });
  assert.equal(less.rows, rows);
  const markdown = readFileSync(join(out, "study.md"), "utf8");
  assert.match(markdown, /\| boxes \| [\d.]+ ± [\d.]+ \| .* \| 2 \| 54\.6 \|/);
  assert.match(readFileSync(join(out, "report.html"), "utf8"), /<td>masks \(Mask2Former\)<\/td>/);
});

test("what a study cannot do is said before anything is trained", async () => {
  const out = join(folder, "refused");
  const options = { out, display: silent, seeds: 1, resume: false };
  const { train } = study();
  for (const [changes, message] of [
    [{ arms: [] }, /arms: is empty/],
    [{ train: { ...train, val: { ...train.val, annotations: "" } } }, /train\.val\.annotations: is missing/],
    [{ train: { ...train, seed: 4 } }, /train\.seed: is the study's own/],
    [{ train: { ...train, run: "x" } }, /train\.run: is the study's own/],
    [{ arms: ["boxes", "budget-boxes"], budget: 1000 }, /budget: budget-boxes cannot be had: .* images are needed/],
  ] as const)
    await refused(() => runStudy(gpu, study(changes), options), message);
  assert.not.ok(existsSync(out) && readdirSync(out).length > 0, "nothing is written");
  await runStudy(gpu, study({ arms: ["masks"] }), options);
  const file = join(out, "masks", "seed-0.json");
  writeFileSync(file, readFileSync(file, "utf8").slice(0, 20));
  await refused(
    () => runStudy(gpu, study({ arms: ["masks"] }), { ...options, resume: true }),
    /seed-0\.json: not JSON/,
  );
  writeFileSync(file, "{}");
  await refused(
    () => runStudy(gpu, study({ arms: ["masks"] }), { ...options, resume: true }),
    /not what a study writes/,
  );
});

test("BoxInst learns from filled boxes, and refuses other labels", async () => {
  const out = join(folder, "boxinst");
  const { rows } = await runStudy(gpu, study({ arms: ["boxinst"] }), { out, display: silent, seeds: 1, resume: false });
  assert.is(rows[0]!.runs.length, 1);
  const last = readDiary(join(out, "boxinst", "seed-0")).find((entry) => "projection" in entry) as LoggedStep;
  assert.ok(last.projection! > 0 && last.pairwise! > 0, JSON.stringify(last));
  assert.equal([last.bce, last.dice, last.prompt], [undefined, undefined, undefined]);
  await refused(
    () => train(gpu, config("not-boxes", ["proxy.source=box"]), { display: silent }),
    /proxy\.source=box: every image must be labelled with boxes; image \d+ has (tags|points)/,
  );
});

test("means and spreads are told in points of 100", () => {
  assert.is(meanAndSpread([]), "-");
  assert.is(meanAndSpread([0.4567]), "45.7");
  assert.is(meanAndSpread([0.1, 0.2, 0.3]), "20.0 ± 10.0");
  const row = { name: "tags", title: "a | b", group: "kinds" as const, runs: [] };
  assert.match(studyMarkdown([row], "x"), /\| a \\\| b \| - \| - \| - \| 0 \| 46\.0 \|/);
});

test.after(removeFolder);
test.run();
