/** scenes, weaken, show and eval as a user runs them. */
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { wish } from "./run.ts";

const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-cli-"));
const scenes = join(folder, "scenes");
const ann = join(scenes, "annotations", "instances.json");
const images = join(scenes, "images");
const weak = join(folder, "weak.json");

const test = suite("data on the command line");
test.after(() => rmSync(folder, { recursive: true }));

async function done(args: string[]): Promise<string> {
  const { code, stdout, stderr } = await wish(args);
  assert.is(code, 0, stderr);
  return stdout;
}

/** Exit code 2 and one line on stderr. */
async function refused(args: string[], reason: RegExp): Promise<void> {
  const { code, stdout, stderr } = await wish(args);
  assert.is(code, 2, `${args.join(" ")}: ${stderr}`);
  assert.is(stdout, "");
  assert.match(stderr, /^error: .*\n$/);
  assert.match(stderr, reason);
}

test("scenes makes a data set in COCO's layout", async () => {
  const report = JSON.parse(
    await done(["scenes", "--out", scenes, "--images", "12", "--size", "48", "--seed", "4", "--json"]),
  );
  assert.is(report.annotations, ann);
  assert.is(report.count, 12);
  assert.is(readdirSync(images).length, 12);
  assert.is(JSON.parse(readFileSync(ann, "utf8")).annotations.length, report.instances);
});

test("weaken derives labels by shares and by budget", async () => {
  const shares = ["--tags", "0.5", "--points", "0.25", "--boxes", "0.25"];
  const byShares = JSON.parse(await done(["weaken", "--ann", ann, "--out", weak, ...shares, "--json"]));
  assert.equal(byShares.counts, { tags: 6, points: 3, boxes: 3, unlabelled: 0 });
  const first = readFileSync(weak);
  await done(["weaken", "--ann", ann, "--out", weak, ...shares, "--quiet"]);
  assert.equal(readFileSync(weak), first);
  const other = join(folder, "budget.json");
  const budget = ["--budget", "36", "--mix", "points:0.5,boxes:0.5", "--point", "uniform"];
  const byBudget = JSON.parse(await done(["weaken", "--ann", ann, "--out", other, ...budget, "--json"]));
  assert.equal(
    [byBudget.counts.tags, byBudget.counts.points, byBudget.counts.boxes, byBudget.counts.unlabelled],
    [0, 3, 2, 7],
  );
  const thirds = ["--budget", "36", "--mix", "tags:1/3,points:1/3,boxes:1/3"];
  const byThirds = JSON.parse(await done(["weaken", "--ann", ann, "--out", other, ...thirds, "--json"]));
  assert.equal(byThirds.counts, { tags: 9, points: 2, boxes: 1, unlabelled: 0 });
  const rich = await wish(["weaken", "--ann", ann, "--out", other, "--budget", "30", "--mix", "tags:0.6,boxes:0.4"]);
  assert.match(rich.stderr, /23 of the budget of 30 is spent: tags for 7 more images were due, but there are no more/);
});

test("show draws ground truth and weak labels", async () => {
  const out = join(folder, "previews");
  const gt = JSON.parse(
    await done(["show", "gt", "--ann", ann, "--images", images, "--out", out, "--limit", "3", "--json"]),
  );
  assert.is(gt.files.length, 3);
  for (const file of [...gt.files, gt.sheet]) assert.ok(existsSync(file), file);
  await done(["show", "weak", "--ann", weak, "--images", images, "--out", join(folder, "weak")]);
  assert.is(readdirSync(join(folder, "weak")).length, 13);
  const run = join(folder, "run");
  mkdirSync(run);
  writeFileSync(
    join(run, "config.yaml"),
    `data: { images: ${images}, labels: ${weak} }\nval: { images: ${images}, annotations: ${ann} }\n`,
  );
  for (const what of ["gt", "weak"])
    await done(["show", what, "--run", run, "--out", join(folder, `of-${what}`), "--limit", "2"]);
  assert.is(readdirSync(join(folder, "of-weak")).length, 3);
  assert.equal(readFileSync(join(folder, "of-gt", "000001.png")), readFileSync(join(out, "000001.png")));
});

test("show draws images of one name in different folders, and one called sheet, to files of their own", async () => {
  const document = JSON.parse(readFileSync(ann, "utf8"));
  const names = [join("a", "one.png"), join("b", "one.png"), "sheet.png"];
  const nested = join(folder, "nested");
  names.forEach((name, i) => {
    mkdirSync(join(nested, name, ".."), { recursive: true });
    cpSync(join(images, document.images[i].file_name), join(nested, name));
    document.images[i].file_name = name;
  });
  const nestedAnn = join(folder, "nested.json");
  writeFileSync(nestedAnn, JSON.stringify(document));
  for (const [what, sheets] of [
    ["gt", ["sheet-2.png", "sheet.png"]],
    ["augmented", ["sheet.png"]],
  ] as const) {
    const out = join(folder, `nested-${what}`);
    await done(["show", what, "--ann", nestedAnn, "--images", nested, "--out", out, "--limit", "3", "--quiet"]);
    assert.equal(readdirSync(out).sort(), ["one-2.png", "one.png", ...sheets], what);
  }
});

test("dataset turns labels of other formats into the JSON that the other commands read", async () => {
  const photos = join(folder, "photos");
  mkdirSync(photos);
  const shapes = [
    {
      label: "ball",
      shape_type: "rectangle",
      points: [
        [4, 4],
        [20, 30],
      ],
    },
  ];
  for (const name of ["000001", "000002"]) {
    cpSync(join(images, `${name}.png`), join(photos, `${name}.png`));
    writeFileSync(join(photos, `${name}.json`), JSON.stringify({ imagePath: `${name}.png`, shapes, flags: {} }));
  }
  const own = join(photos, "weak.json");
  const made = JSON.parse(await done(["dataset", photos, "--weak", "--out", own, "--json"]));
  assert.equal(made, {
    out: own,
    images: 2,
    classes: ["ball"],
    folder: photos,
    counts: { tags: 0, points: 0, boxes: 2 },
  });
  await done(["show", "weak", "--ann", own, "--images", photos, "--out", join(folder, "own"), "--quiet"]);
  const truth = join(folder, "truth.json");
  const text = await done(["dataset", photos, "--classes", own, "--out", truth]);
  assert.match(text, /truth\.json: 2 images, 2 instances of 1 classes; the images' folder is .*photos/);
  const table = join(folder, "tags.csv");
  writeFileSync(table, "file_name,tags\n000003.png,ball;star\n");
  const more = ["dataset", photos, table, "--images", images, "--weak", "--out", join(folder, "more.json"), "--json"];
  await refused(more, /000001\.png lies outside|lies outside/);
  cpSync(join(images, "000003.png"), join(photos, "000003.png"));
  more[4] = photos;
  assert.equal(JSON.parse(await done(more)).counts, { tags: 1, points: 0, boxes: 2 });
  await Promise.all([
    refused(
      ["dataset", photos, table, "--weak", "--out", own],
      /--images: name the folder that holds the images of all/,
    ),
    refused(["dataset", own, "--out", own], /is read here; name another file/),
    refused(["dataset", photos, "--out", join(own, "x.json")], /cannot be written/),
    refused(["dataset", own, "--out", truth], /holds weak labels; instances/),
    refused(
      ["weaken", "--ann", photos, "--out", weak, "--boxes", "1"],
      /is a folder; .*wgpu-wish dataset .*photos --out/,
    ),
    refused(
      ["show", "weak", "--ann", photos, "--images", photos, "--out", join(folder, "z")],
      /is a folder; .*--weak --out weak\.json/,
    ),
  ]);
});

test("show augmented draws weak labels and masks under the transforms of training", async () => {
  for (const [ann_, name] of [[weak, "augmented-weak"] as const, [ann, "augmented-gt"] as const]) {
    const out = join(folder, name);
    const { files } = JSON.parse(
      await done(["show", "augmented", "--ann", ann_, "--images", images, "--out", out, "--limit", "2", "--json"]),
    );
    assert.equal(
      files,
      ["000001.png", "000002.png"].map((file) => join(out, file)),
    );
    for (const file of files) assert.ok(existsSync(file), file);
  }
});

test("scenes takes the place of earlier scenes and of nothing else", async () => {
  const out = join(folder, "again");
  await done(["scenes", "--out", out, "--images", "4", "--size", "32"]);
  await done(["scenes", "--out", out, "--images", "2", "--size", "32"]);
  assert.equal(readdirSync(join(out, "images")), ["000001.png", "000002.png"]);
  const other = join(folder, "other");
  mkdirSync(join(other, "annotations"), { recursive: true });
  writeFileSync(join(other, "annotations", "instances.json"), "{}");
  await refused(["scenes", "--out", other, "--images", "2"], /instances.json: is there already and holds no scenes/);
});

test("eval gives every figure between 0 and 1", async () => {
  const truth = JSON.parse(readFileSync(ann, "utf8"));
  const results = truth.annotations.map(({ image_id, category_id, segmentation }: Record<string, unknown>) => ({
    image_id,
    category_id,
    segmentation,
    score: 0.9,
  }));
  const dt = join(folder, "results.json");
  writeFileSync(dt, JSON.stringify(results));
  const metrics = JSON.parse(await done(["eval", "--gt", ann, "--dt", dt, "--protocol", "voc", "--json"]));
  const keys = "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl AP25 AP70 perClass voc25 voc50 voc70 voc75";
  assert.equal(Object.keys(metrics), keys.split(" "));
  assert.ok(metrics.AP > 0.999 && metrics.voc50 > 0.999);
  const details = join(folder, "details.json");
  assert.match(await done(["eval", "--gt", ann, "--dt", dt, "--iou", "bbox", "--details", details]), /^AP +1\.0000$/m);
  const { curves, confusion } = JSON.parse(readFileSync(details, "utf8"));
  assert.is(curves[0].precision.length, 101);
  assert.is(confusion.counts.length, truth.categories.length + 1);
  writeFileSync(dt, JSON.stringify([...results, { ...results[0], category_id: 99, score: 1 }]));
  const { code, stdout, stderr } = await wish(["eval", "--gt", ann, "--dt", dt]);
  assert.is(code, 0);
  assert.match(stdout, /^AP +1\.0000$/m);
  assert.match(stderr, /1 of \d+ results are of categories that .* does not have, such as 99/);
});

test("bad input ends with 2 and one line that names the file", async () => {
  const cut = join(folder, "cut.json");
  writeFileSync(cut, readFileSync(ann).subarray(0, 500));
  await Promise.all([
    refused(
      ["weaken", "--ann", join(folder, "none.json"), "--out", weak, "--tags", "1"],
      /none.json: the annotations file does not exist/,
    ),
    refused(["weaken", "--ann", cut, "--out", weak, "--tags", "1"], /cut.json: not JSON/),
    refused(["weaken", "--ann", ann, "--out", ann, "--tags", "1"], /is the file with the masks/),
    refused(["weaken", "--ann", ann, "--out", weak, "--tags", "0.7", "--boxes", "0.7"], /at most 1, got 1.4/),
    refused(["weaken", "--ann", ann, "--out", weak, "--budget", "10"], /--budget and --mix belong together/),
    refused(
      ["weaken", "--ann", ann, "--out", weak, "--budget", "10", "--mix", "tags:1/2,tags:1/2"],
      /--mix: has tags twice/,
    ),
    refused(
      ["weaken", "--ann", ann, "--out", weak, "--tags", "1/0"],
      /--tags: .* or a fraction such as 1\/3, got "1\/0"/,
    ),
    refused(["weaken", "--ann", weak, "--out", join(folder, "x.json"), "--tags", "1"], /holds weak labels/),
    refused(["show", "weak", "--ann", ann, "--images", images, "--out", folder], /holds annotations with masks/),
    refused(
      ["show", "gt", "--ann", ann, "--images", folder, "--out", join(folder, "y")],
      /000001.png: the image does not exist/,
    ),
    refused(["show", "gt", "--ann", ann, "--images", images, "--out", images], /holds the image .*000001.png/),
    refused(["show", "gt", "--out", folder], /give --ann and --images, or --run alone/),
    refused(["convert", ann, ann], /the output is a safetensors file/),
    refused(["convert", `${ann}.safetensors`, `${ann}.safetensors`], /is one of the files that are read; name another/),
    refused(["eval", "--gt", ann, "--dt", weak], /expected a list of results/),
    refused(["eval", "--gt", ann], /give --run, or --gt and --dt/),
    refused(["scenes", "--out", join(ann, "x"), "--images", "1"], /the folder cannot be made/),
    refused(["scenes", "--out", folder, "--images", "1", "--size", "5"], /--size: expected 32 to 4096 pixels, got 5/),
  ]);
  assert.is(JSON.parse(readFileSync(ann, "utf8")).images.length, 12);
});

test.run();
