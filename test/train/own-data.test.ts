// A newcomer's images: labelled with boxes in labelme, converted, trained on, judged by boxes.
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { overlapOf, readInstances } from "../../train/data/coco.ts";
import { categoriesOfLabels, instancesDocument, readClasses } from "../../train/data/labelled.ts";
import { ownWeakLabels } from "../../train/data/own-labels.ts";
import { readSource } from "../../train/data/sources.ts";
import { isEvaluation, readDiary } from "../../train/metrics.ts";
import { evaluateRun } from "../../train/run-tools.ts";
import { train } from "../../train/train.ts";
import { config, folder, gpu, refused, removeFolder, scenes, silent } from "./tiny-run.ts";

const test = suite("own data");
test.after(removeFolder);

const photos = join(folder, "photos");
const weak = join(photos, "weak.json");
const truth = join(photos, "truth.json");

test("boxes drawn in labelme become weak labels, and boxes to be judged by", async () => {
  mkdirSync(photos);
  const data = readInstances(scenes.annotations);
  const name = new Map(data.categories.map((category) => [category.id, category.name]));
  for (const image of data.images) {
    cpSync(join(scenes.imagesDir, image.fileName), join(photos, image.fileName));
    const shapes = data.instances
      .filter(({ imageId }) => imageId === image.id)
      .map(({ categoryId, box: [x, y, w, h] }) => ({
        label: name.get(categoryId),
        shape_type: "rectangle",
        points: [
          [x, y],
          [x + w, y + h],
        ],
      }));
    const document = { imagePath: image.fileName, imageWidth: image.width, imageHeight: image.height, shapes };
    writeFileSync(join(photos, image.fileName.replace(".png", ".json")), JSON.stringify(document));
  }
  const labelled = await readSource(photos);
  writeFileSync(weak, JSON.stringify(ownWeakLabels(labelled, categoriesOfLabels(labelled))));
  const classes = { file: weak, categories: readClasses(weak) };
  writeFileSync(
    truth,
    JSON.stringify(instancesDocument(await readSource(photos), categoriesOfLabels(labelled, classes))),
  );
  assert.is(overlapOf(readInstances(truth)), "bbox");
  assert.is(overlapOf(data), "segm");
});

test("full supervision needs masks", async () => {
  const supervised = config("supervised", ["mode=supervised", `data.images=${photos}`, `data.labels=${truth}`]);
  await refused(
    () => train(gpu, supervised, { display: silent }),
    /truth\.json: annotation 1 has no segmentation, and full supervision needs masks; .*dataset .*--weak/,
  );
});

test("a run on them is judged by boxes, by itself and afterwards", async () => {
  const lines: string[] = [];
  const settings = [`data.images=${photos}`, `data.labels=${weak}`, `val.images=${photos}`, `val.annotations=${truth}`];
  const own = config("own", [...settings, "steps=2", "data.threads=1"]);
  const result = await train(gpu, own, { display: { ...silent, log: (line) => lines.push(line) } });
  assert.ok(result.evaluation?.complete);
  assert.ok(lines.some((line) => /truth\.json: has no masks, so results are judged by how boxes overlap/.test(line)));
  const again = await evaluateRun(gpu, { run: own.run, data: truth });
  assert.ok(again.metrics.AP >= 0 && again.metrics.AR100 >= 0);
  for (const entry of readDiary(own.run))
    if (!isEvaluation(entry)) assert.ok(entry.waiting! > 0 && entry.waiting! < 1, String(entry.waiting));
  const rows = readFileSync(join(own.run, "results.csv"), "utf8").trim().split("\n");
  assert.is(rows.length, 2);
  const report = readFileSync(join(own.run, "report.html"), "utf8");
  assert.match(report, />COCO AP of boxes</);
  assert.not.match(report, /AP of masks/);
});

test.run();
