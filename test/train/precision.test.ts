// Mixed precision and the memory plan of whole runs.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { parse } from "yaml";
import { Device, optim } from "../../index.ts";
import { packageRoot } from "../../platform/root.ts";
import { resolveConfig } from "../../train/config.ts";
import { readInstances } from "../../train/data/coco.ts";
import { Loader, weakItems } from "../../train/data/loader.ts";
import { runsOfMask } from "../../train/data/mask.ts";
import { writeScenes } from "../../train/data/scenes.ts";
import { readWeak, weaken, writeWeak } from "../../train/data/weak.ts";
import { NotFinite } from "../../train/finite.ts";
import { type LoggedStep, readDiary } from "../../train/metrics.ts";
import { modelConfig, newModel } from "../../train/models.ts";
import { openTeacher } from "../../train/prepare.ts";
import { type Trainer, trainStep } from "../../train/step.ts";
import { train } from "../../train/train.ts";
import { bothPrecisions } from "./precisions.ts";
import { config, folder, gpu, labels, removeFolder, scenes, silent } from "./tiny-run.ts";

const test = suite("precision and memory");
const plain = ["val.annotations=", "cam.warmup=0", "sam.cache="];

const losses = (run: string): number[] => readDiary(join(folder, run)).map((entry) => (entry as LoggedStep).loss!);

test("mixed precision follows f32, and goes on bit for bit, the scale included", async () => {
  await train(gpu, config("full", plain), { display: silent });
  await train(gpu, config("mixed", ["precision=mixed", ...plain]), { display: silent });
  const [want, got] = [losses("full"), losses("mixed")];
  assert.is(got.length, 4);
  assert.ok(Math.abs(got[0]! / want[0]! - 1) < 0.01 && got[0] !== want[0], `${got[0]}, in f32 ${want[0]}`);
  assert.ok(got.every(Number.isFinite));
  const settings = ["precision=mixed", "log.checkpoint=1", ...plain];
  await train(gpu, config("pieces", settings), { display: silent, enough: (step) => step === 2 });
  await train(gpu, config("pieces", settings), { display: silent, resume: true });
  assert.equal(losses("pieces"), got);
  const scales = readDiary(join(folder, "mixed")).map((entry) => (entry as LoggedStep).scale!);
  assert.is(scales[0], 65536);
});

test("from the same weights each step's loss and gradient are f32's, those of random weights and of new assignments too", async () => {
  // The gradient of the CAMs' own loss jumps where a cell crosses its clamp.
  const settings = ["steps=12", "loss.self=0", ...plain];
  let steps = 0;
  for await (const { f32, mixed, cosine } of bothPrecisions(gpu, config("both", settings), silent)) {
    assert.ok(Math.abs(mixed / f32 - 1) < 0.01 && mixed !== f32, `step ${steps}: ${mixed}, in f32 ${f32}`);
    assert.ok(cosine > 0.99, `step ${steps}: ${cosine}`);
    steps++;
  }
  assert.is(steps, 12);
});

test("from weights that have settled the loss stays within 2 % of f32's", async () => {
  // From random ones the first assignments are decided by rounding, in f32 too.
  const preset = parse(readFileSync(join(packageRoot, "configs", "scenes.yaml"), "utf8"));
  const made = await writeScenes(join(folder, "settled"), { images: 12, size: 96, seed: 8 });
  const weak = join(folder, "settled.json");
  await writeWeak(weak, weaken(readInstances(made.annotations), { tags: 0.2, points: 0.3, boxes: 0.5 }, { seed: 1 }));
  const settings = (run: string, precision: string): string[] => [
    `run=${join(folder, run)}`,
    `precision=${precision}`,
    `data.images=${made.imagesDir}`,
    `data.labels=${weak}`,
    "model.weights=assets/wish-scenes.safetensors",
    "val.annotations=",
    "steps=24",
    "log.every=1",
    "optim.lr=5e-5",
  ];
  for (const precision of ["f32", "mixed"])
    await train(gpu, resolveConfig(preset, settings(`settled-${precision}`, precision)), { display: silent });
  const [want, got] = [losses("settled-f32"), losses("settled-mixed")];
  assert.is(got.length, 24);
  for (let i = 0; i < 24; i += 8) {
    const mean = (from: number[]): number => from.slice(i, i + 8).reduce((a, b) => a + b) / 8;
    assert.ok(Math.abs(mean(got) / mean(want) - 1) < 0.02, `steps ${i + 1} on: ${mean(got)}, in f32 ${mean(want)}`);
  }
});

test("precision and what the backward pass keeps may change when a run goes on, and one line says so", async () => {
  const said: string[] = [];
  const display = { ...silent, log: (line: string) => said.push(line) };
  const notes = (): string[] => said.splice(0).filter((line) => line.includes("rounding differs"));
  const go = (steps: number, ...settings: string[]) =>
    train(gpu, config("switched", [...plain, "log.checkpoint=1", `steps=${steps}`, ...settings]), {
      display,
      resume: true,
    });
  const halves = ["precision=mixed", "memory.checkpoint=true", "memory.activations=f16"];
  await go(1);
  await go(2, ...halves);
  assert.match(
    notes().join("\n"),
    /switched: from step 1 on precision is "mixed", it was "f32"; memory\.checkpoint is true, it was false; memory\.activations is "f16", it was "f32": rounding differs from a run in one piece$/,
  );
  await go(3, ...halves);
  assert.equal(notes(), []);
  await go(4);
  assert.match(notes().join("\n"), /from step 3 on precision is "f32", it was "mixed"; memory\.checkpoint is false/);
  const steps = readDiary(join(folder, "switched")) as LoggedStep[];
  assert.equal(
    steps.map(({ scale }) => scale !== undefined),
    [false, true, true, false],
  );
});

async function trainer(scaler: optim.GradScaler): Promise<[Trainer, Loader]> {
  const settled = config("step", ["precision=mixed", "cam.feature=none", ...plain]);
  const weak = readWeak(labels);
  const items = weakItems(weak, scenes.imagesDir).filter((item) => item.kind === "boxes");
  const teacher = await openTeacher(gpu, settled, items);
  const { model } = await newModel(gpu, settled, modelConfig(settled, weak.categories.length, teacher.promptDim));
  model.train();
  const mask = [1, 2, 3].map(() => runsOfMask(new Uint8Array(64 * 64).fill(1), 64, 64));
  const proxies = items.map((item) => item.classes.map(() => ({ candidates: mask, iou: [1, 1, 1] })));
  const { data, batch, seed } = settled;
  const loader = new Loader({
    ...{ items, batch, seed, augment: { ...data }, maskStride: data.maskStride },
    proxies: (_, index) => proxies[index] as never,
  });
  const optimizer = new optim.AdamW([{ params: model.parameters(), lr: 1e-3 }]);
  const made = {
    gpu,
    config: settled,
    model,
    optimizer,
    scaler,
    rates: [1e-3],
    teacher,
    items,
    proxies: [],
    hasTags: false,
  };
  return [made, loader];
}

test("a step whose gradients f16 cannot hold is left out and the scale falls; where that does not help, it is an error", async () => {
  const [made, loader] = await trainer(new optim.GradScaler());
  made.scaler!.loadStateDict({ scale: 2 ** 40, good: 0 });
  const batches = [await loader.next()];
  const weights = async (): Promise<number[]> => [...(await made.model.parameters()[0]!.toArray())];
  const before = await weights();
  const report = await trainStep(made, batches, 0);
  assert.equal([report.skipped, report.scale], [1, 2 ** 40]);
  assert.ok(report.loss! > 0 && report.gradient === undefined, "the loss itself is finite");
  assert.is(made.scaler!.getScale(), 2 ** 39);
  assert.equal(await weights(), before);
  assert.is(made.optimizer.steps, 0);
  made.scaler!.loadStateDict({ scale: 1024, good: 0 });
  const next = await trainStep(made, batches, 1);
  assert.ok(Number.isFinite(next.loss) && next.skipped === undefined);
  assert.not.equal(await weights(), before);
  made.scaler!.loadStateDict({ scale: 0.5, good: 0 });
  gpu.upload(made.model.parameters()[0]!, new Float32Array(made.model.parameters()[0]!.size).fill(Number.NaN));
  let error: unknown;
  await trainStep(made, batches, 2).catch((e: unknown) => {
    error = e;
  });
  assert.instance(error, NotFinite);
});

test("passes that one step accumulates take no memory but their turn's", async () => {
  const most: number[] = [];
  for (const accumulate of [1, 6]) {
    const own = await Device.open();
    // The same twelve images.
    const settings = [...plain, "batch=1", `accumulate=${accumulate}`, `steps=${12 / accumulate}`];
    most.push((await train(own, config(`passes-${accumulate}`, settings), { display: silent })).highWaterBytes);
    await own.close();
  }
  assert.ok(most[1]! < 1.25 * most[0]!, `${most[1]} bytes, of one pass ${most[0]}`);
});

for (const settings of [
  [],
  ["memory.checkpoint=true", "memory.activations=f16", "precision=mixed"],
  ["mode=supervised"],
  ["data.labels=TAGS"],
  ["data.labels=TAGS", "cam.warmup=1"],
  ["data.labels=SOME", "batch=1"],
])
  test(`the memory plan is what the first step takes: ${settings.join(" ") || "defaults"}`, async () => {
    const said: string[] = [];
    const instances = readInstances(scenes.annotations);
    const [known, tags] = [join(folder, "known.json"), join(folder, "tags.json")];
    await writeWeak(known, weaken(instances, { points: 0.5, boxes: 0.5 }));
    await writeWeak(tags, weaken(instances, { tags: 1 }));
    const given = settings.map((setting) => setting.replace("TAGS", tags).replace("SOME", labels));
    const all = [...plain, `data.labels=${known}`, ...given, "steps=4"];
    if (settings.includes("mode=supervised")) all.push(`data.labels=${scenes.annotations}`, "prompt.mode=none");
    const own = await Device.open(); // Without what other tests left to the garbage collector.
    await train(own, config(`plan-${settings.join("-").replace(/[^\w-]/g, "")}`, all), {
      display: { ...silent, log: (line) => said.push(line) },
    });
    await own.close();
    const plan = said.find((line) => line.startsWith("memory plan"));
    assert.match(
      plan ?? "",
      /a step of \d+ objects owns [\d.]+ MiB of the GPU at most: [\d.]+ MiB weights, .* gradients, .* moments, .* activations/,
    );
    const crowd = said.find((line) => line.startsWith("tags show more or fewer objects"));
    if (!settings.some((setting) => /TAGS|SOME/.test(setting))) assert.is(crowd, undefined);
    else if (crowd) assert.match(crowd, /step; \d+ would take [\d.]+ MiB$/);
    const told = /a whole step of \d+ objects owned ([\d.]+) MiB at most, of ([\d.]+) MiB planned for as many/;
    const found = said.map((line) => line.match(told)).find(Boolean);
    assert.ok(found, said.join("\n"));
    const [measured, planned] = [Number(found[1]), Number(found[2])];
    assert.ok(Math.abs(planned / measured - 1) < 0.1, `${planned} MiB planned, ${measured} measured`);
  });

test.after(removeFolder);
test.run();
