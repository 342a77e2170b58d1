// Training end to end on a handful of small scenes with mixed labels and a teacher of random weights: resuming, interruption, faults.
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { nn, optim, parseSafetensors, scope, type Tensor } from "../../engine/index.ts";
import { bestCheckpoint, latestCheckpoint, loadCheckpoint, saveCheckpoint } from "../../train/checkpoint.ts";
import { claimRun } from "../../train/claim.ts";
import { readGallery } from "../../train/gallery.ts";
import { isEvaluation, readDiary } from "../../train/metrics.ts";
import { exportWeights, loadRun, loadTrained } from "../../train/models.ts";
import { predictImages } from "../../train/predict.ts";
import { evaluateRun, showRun } from "../../train/run-tools.ts";
import { train } from "../../train/train.ts";
import { config, folder, gpu, refused, removeFolder, sam, scenes, silent } from "./tiny-run.ts";

const test = suite("train");

async function values(tensors: Iterable<[string, Tensor]>): Promise<Map<string, Float32Array>> {
  const out = new Map<string, Float32Array>();
  for (const [name, x] of tensors) out.set(name, Float32Array.from(await x.toArray()));
  return out;
}

test("a resumed run goes on bit for bit, in its weights and its diary", async () => {
  const whole = await train(gpu, config("whole"), { display: silent });
  assert.is(whole.step, 4);
  const stopped = await train(gpu, config("parts"), { display: silent, enough: (step) => step === 2 });
  assert.is(stopped.step, 2);
  const resumed = await train(gpu, config("parts"), { display: silent, resume: true });
  assert.is(resumed.step, 4);
  const [want, got] = [await values(whole.model.namedTensors()), await values(resumed.model.namedTensors())];
  for (const [name, x] of want) assert.equal(got.get(name), x, name);
  const terms = (run: string) =>
    readDiary(join(folder, run)).flatMap((e) => (isEvaluation(e) ? [] : [[e.step, e.loss, e.gradient]]));
  assert.equal(terms("parts"), terms("whole"));
  assert.is(terms("whole").length, 4);
});

test("a Swin whose blocks are left out by chance goes on bit for bit, too", async () => {
  const backbone = "{kind: swin, embedDim: 8, depths: [1, 1, 1, 1], heads: [1, 1, 2, 2], window: 4, dropPath: 0.8}";
  const settings = [`model.backbone=${backbone}`, "val.annotations="];
  const whole = await train(gpu, config("swin-whole", settings), { display: silent });
  await train(gpu, config("swin-parts", settings), { display: silent, enough: (step) => step === 2 });
  const resumed = await train(gpu, config("swin-parts", settings), { display: silent, resume: true });
  const [want, got] = [await values(whole.model.namedTensors()), await values(resumed.model.namedTensors())];
  for (const [name, x] of want) assert.equal(got.get(name), x, name);
});

test("the run's folder holds what the contract names", async () => {
  const run = join(folder, "whole");
  for (const file of [
    "config.yaml",
    "metrics.jsonl",
    "results.csv",
    "last",
    "best",
    "report.html",
    "pictures/sheet.png",
  ])
    assert.ok(existsSync(join(run, file)), file);
  const first = readDiary(run)[0] as Record<string, number>;
  assert.ok(first.step === 1 && first.cam! > 0 && first.class === undefined, "the warm-up trains the CAM alone");
  const second = readDiary(run)[1] as Record<string, number>;
  for (const term of [
    "loss",
    "class",
    "prompt",
    "bce",
    "dice",
    "cam",
    "lr",
    "imagesPerSecond",
    "liveBytes",
    "highWaterBytes",
  ])
    assert.ok(Number.isFinite(second[term]), term);
  assert.is(readdirSync(join(run, "checkpoints")).length, 2);
  const html = readFileSync(join(run, "report.html"), "utf8");
  assert.ok(html.includes("<svg") && html.includes("data:image/jpeg;base64,") && !/(src|href)="http/.test(html));
});

test("the report shows the best, the worst and training images with all stages, and who is taken for whom", () => {
  const run = join(folder, "whole");
  const rows = readGallery(run);
  assert.equal(
    rows.map(({ section, panels }) => [section, panels]),
    [
      ["best", 5],
      ["worst", 5],
      ["training", 4],
      ["training", 4],
      ["training", 4],
    ],
  );
  const html = readFileSync(join(run, "report.html"), "utf8");
  for (const { path } of rows) assert.ok(html.includes(readFileSync(path).toString("base64")), path);
  for (const text of ["Best images", "Worst images", "Training images", "IoU 0.75", "true classes"])
    assert.ok(html.includes(text), text);
});

test("memory between steps does not grow", () => {
  const bytes = readDiary(join(folder, "whole")).flatMap((e) => (isEvaluation(e) ? [] : [e.liveBuffers!]));
  // Less is possible: what an earlier run left goes when the garbage collector comes by.
  assert.ok(bytes[3]! <= bytes[2]!, `${bytes[2]} buffers became ${bytes[3]}`);
});

test("the most memory that a run had is in its diary, its results and its outcome", async () => {
  const { liveBytes } = gpu.memory;
  scope(() => void gpu.empty([2 ** 24]));
  const { highWaterBytes } = await train(gpu, config("peak"), { display: silent });
  assert.ok(highWaterBytes < liveBytes + 2 ** 26, "what came before the run does not count");
  const entries = readDiary(join(folder, "peak"));
  const most = entries.map((entry) => entry.highWaterBytes!);
  assert.ok(
    most.every((bytes, i) => bytes >= (most[i - 1] ?? 0)),
    most.join(),
  );
  for (const entry of entries)
    if (!isEvaluation(entry)) assert.ok(entry.highWaterBytes! > entry.liveBytes!, "a step needs more than what stays");
  const [head, ...rows] = readFileSync(join(folder, "peak", "results.csv"), "utf8")
    .trim()
    .split("\n");
  const figures = "AP,AP50,AP75,APs,APm,APl,AR1,AR10,AR100,ARs,ARm,ARl,AP25,AP70";
  assert.is(head, `step,${figures},highWaterBytes`);
  assert.is(Number(rows.at(-1)!.split(",").at(-1)), highWaterBytes);
});

test("an interrupted run saves its state and says where it is", async () => {
  const abort = new AbortController();
  abort.abort();
  const result = await train(gpu, config("interrupted"), { display: silent, signal: abort.signal });
  assert.ok(result.interrupted && result.evaluation === undefined);
  assert.ok(latestCheckpoint(join(folder, "interrupted")));
});

test("two runs do not share a folder at the same time", async () => {
  const claim = claimRun(join(folder, "shared"));
  await refused(() => train(gpu, config("shared"), { display: silent }), /shared: process \d+ on .* is working/);
  claim.release();
});

test("a run is not overwritten, and not resumed on other data", async () => {
  await refused(() => train(gpu, config("whole"), { display: silent }), /already holds a run.*--resume/);
  const resumed = (...settings: string[]) =>
    train(gpu, config("whole", settings), { display: silent, resume: true, file: "my.yaml" });
  await refused(
    () => resumed("seed=9"),
    /my\.yaml: seed cannot change when a run goes on: it was started with 0, now it is 9/,
  );
  await refused(() => resumed("model.queries=6"), /model\.queries cannot change.* with 5, now it is 6/);
  await refused(() => resumed("batch=2"), /batch cannot change.* with 3, now it is 2/);
  await refused(() => resumed("data.labels=other.json"), /other\.json/);
  await refused(() => resumed("steps=3"), /my\.yaml: steps is 3, but .*whole has done 4/);
});

test("a loss that is not finite stops the run, names the term and keeps the last good checkpoint", async () => {
  const good = await train(gpu, config("finite", ["steps=2"]), { display: silent });
  assert.is(good.step, 2);
  const before = readFileSync(latestCheckpoint(join(folder, "finite"))!);
  let message = "";
  // A learning rate that throws the weights out of f32's range at the first step.
  await train(gpu, config("finite", ["steps=6", "optim.lr=1e38", "optim.schedule=constant", "log.checkpoint=100"]), {
    display: silent,
    resume: true,
  }).catch((error: Error) => {
    message = error.message;
  });
  assert.match(
    message,
    /(loss term "\w+"|gradient's norm) is (NaN|Infinity|-Infinity) at step \d.*last good state is .*step-00000002/,
  );
  assert.equal(readFileSync(latestCheckpoint(join(folder, "finite"))!), before);
});

test("supervised training from masks needs no teacher", async () => {
  const settings = [
    "mode=supervised",
    `data.labels=${scenes.annotations}`,
    "steps=2",
    "sam.checkpoint=none.safetensors",
  ];
  const { evaluation } = await train(gpu, config("supervised", settings), { display: silent });
  assert.ok(evaluation!.metrics.AP >= 0);
  const step = readDiary(join(folder, "supervised"))[1] as Record<string, number>;
  assert.ok(step.dice! > 0 && step.prompt === undefined && step.cam === undefined);
});

test("every reading of the paper's open choices trains", async () => {
  const variants = [
    ["proxy.soft=true", "prompt.mode=sparse", "prompt.direction=student"],
    ["proxy.clipToBox=false", "prompt.mode=mean", "prompt.distance=l2", "match.candidate=iou"],
    ["prompt.mode=none", "cam.raw=true", "loss.deepSupervision=false", "accumulate=2"],
    ["cam.feature=none", "optim.clip=0", "optim.schedule=poly", "loss.importance=0"],
  ];
  for (const [i, settings] of variants.entries()) {
    const run = `variant${i}`;
    await train(gpu, config(run, [...settings, "steps=1", "cam.warmup=0", "val.annotations="]), { display: silent });
    const [entry] = readDiary(join(folder, run)) as Record<string, number>[];
    assert.ok(entry!.loss! > 0 && Number.isFinite(entry!.gradient), settings.join(" "));
    assert.is(entry!.prompt === undefined, settings.includes("prompt.mode=none"), settings.join(" "));
    assert.is(entry!.cam === undefined, settings.includes("cam.feature=none"), settings.join(" "));
  }
});

test("a trained run is evaluated, shown, and segments images; its exported weights do the same", async () => {
  const run = join(folder, "whole");
  const { metrics, results } = await evaluateRun(gpu, { run, iou: "bbox" });
  assert.ok(metrics.AP >= 0 && results.every((r) => r.imageId > 0));
  const wider = JSON.parse(readFileSync(scenes.annotations, "utf8")) as { images: { width: number }[] };
  wider.images[0]!.width = 128;
  const data = join(folder, "wider.json");
  writeFileSync(data, JSON.stringify({ ...wider, annotations: [] }));
  await refused(
    () => evaluateRun(gpu, { run, data, images: scenes.imagesDir }),
    /\.png: is 64x64, but the labels are for 128x64/,
  );
  // COCO 2017's own layout, and a folder that is named.
  const coco = join(folder, "coco");
  const val2017 = join(coco, "annotations", "instances_val2017.json");
  mkdirSync(join(coco, "annotations"), { recursive: true });
  const document = JSON.parse(readFileSync(scenes.annotations, "utf8")) as { images: { file_name: string }[] };
  for (const entry of document.images) entry.file_name = `moved-${entry.file_name}`;
  writeFileSync(val2017, JSON.stringify(document));
  await refused(
    () => evaluateRun(gpu, { run, data: val2017 }),
    /moved-\S+ was not found in .*; name the folder with --im/,
  );
  for (const [images, options] of [
    [join(coco, "val2017"), {}],
    [join(folder, "elsewhere"), { images: join(folder, "elsewhere") }],
  ] as const) {
    mkdirSync(images);
    for (const name of readdirSync(scenes.imagesDir))
      cpSync(join(scenes.imagesDir, name), join(images, `moved-${name}`));
    const again = await evaluateRun(gpu, { run, iou: "bbox", data: val2017, ...options });
    assert.equal(again.metrics, metrics, images);
    rmSync(images, { recursive: true });
  }
  for (const what of ["augmented", "cam", "proxies", "predictions"] as const) {
    const totals: number[] = [];
    const progress = (total: number) => {
      totals.push(total);
      return silent.progress(total);
    };
    const limit = what === "cam" ? {} : { limit: 2 };
    const files = await showRun(gpu, what, {
      run,
      out: join(folder, what),
      display: { ...silent, progress },
      ...limit,
    });
    assert.ok(files.length >= 2 && files.every(existsSync), what);
    assert.is(totals.at(-1), files.length - 1, `${what}: the bar counts the pictures`);
  }
  const trained = await loadRun(gpu, run);
  const image = join(scenes.imagesDir, readdirSync(scenes.imagesDir)[0]!);
  const options = {
    short: 64,
    long: 64,
    topk: 5,
    score: 0,
    out: join(folder, "predicted"),
    dump: join(folder, "dump.safetensors"),
  };
  const [predicted] = await predictImages(gpu, trained, [image], options);
  assert.ok(existsSync(predicted!.overlay) && predicted!.instances.every((i) => existsSync(i.mask)));
  const dump = parseSafetensors(readFileSync(options.dump)).tensors;
  assert.equal(dump.get("prompt_latents")!.shape, [1, 5, 3, 64]);
  assert.equal(dump.get("class_logits")!.shape, [1, 5, trained.categories.length + 1]);
  assert.ok(dump.has("mask_logits") && dump.has("cam"));

  await exportWeights(join(folder, "shipped.safetensors"), trained.model, trained.categories, trained.kinds);
  const again = await loadTrained(gpu, join(folder, "shipped.safetensors"));
  const [same] = await predictImages(gpu, again, [image], { ...options, out: join(folder, "predicted2") });
  assert.equal(
    same!.instances.map((i) => i.score),
    predicted!.instances.map((i) => i.score),
  );
});

test("a checkpoint that is cut off or no checkpoint is refused by name", async () => {
  const run = join(folder, "whole");
  const path = latestCheckpoint(run)!;
  const copy = join(folder, "cut.safetensors");
  writeFileSync(copy, readFileSync(path));
  truncateSync(copy, 1000);
  await refused(() => loadTrained(gpu, copy), /cut\.safetensors: .*truncated/);
  await refused(() => loadTrained(gpu, sam), /sam\.safetensors: holds no Mask2Former and was not written by wgpu-wish/);
  await refused(() => loadRun(gpu, join(folder, "data")), /holds no checkpoint/);
  await refused(() => train(gpu, config("nothing", ["data.labels=gone.json"]), { display: silent }), /gone\.json/);
  await refused(
    () => train(gpu, config("nothing", ["sam.checkpoint=gone.safetensors"]), { display: silent }),
    /gone\.safetensors/,
  );
});

test("old checkpoints go, the best and the newest stay", async () => {
  class One extends nn.Module {
    weight = nn.parameter(gpu.ones([3]));
  }
  const run = join(folder, "pruned");
  const model = new One();
  const optimizer = new optim.AdamW([{ params: model.parameters() }]);
  for (const step of [1, 2, 3, 4])
    await saveCheckpoint(run, step, { model, optimizer, state: { step }, config: {} }, { keep: 2, best: step === 1 });
  assert.equal(readdirSync(join(run, "checkpoints")).sort(), [
    "step-00000001.safetensors",
    "step-00000003.safetensors",
    "step-00000004.safetensors",
  ]);
  assert.ok(bestCheckpoint(run)!.endsWith("step-00000001.safetensors"));
  rmSync(join(run, "last"));
  const { state } = await loadCheckpoint(gpu, latestCheckpoint(run)!, { model, optimizer });
  assert.is(state.step, 4);
});

test.after(removeFolder);
test.run();
