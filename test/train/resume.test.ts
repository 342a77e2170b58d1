// What a run leaves behind when it is interrupted, fails or is damaged, and how it goes on from there.
import { copyFileSync, existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { parse } from "yaml";
import { Device, optim } from "../../engine/index.ts";
import { parameterGroups } from "../../model/index.ts";
import { bestCheckpoint, latestCheckpoint, loadCheckpoint, markBest } from "../../train/checkpoint.ts";
import type { Display } from "../../train/display.ts";
import { isEvaluation, readDiary } from "../../train/metrics.ts";
import { loadRun, loadTrained } from "../../train/models.ts";
import { train } from "../../train/train.ts";
import { config, folder, gpu, refused, removeFolder, scenes, silent } from "./tiny-run.ts";

const test = suite("resume");

/** Lines of metrics.jsonl without what no two runs share: speed, and memory that the garbage collector has a hand in. */
function lines(run: string): object[] {
  return readDiary(join(folder, run)).map((entry) => {
    const {
      imagesPerSecond: _,
      waiting: _____,
      liveBytes: __,
      liveBuffers: ___,
      highWaterBytes: ____,
      ...rest
    }: Record<string, unknown> = { ...entry };
    return rest;
  });
}

/** Aborts when the evaluation number `at` has shown its first image. */
function abortingIn(at: number): { display: Display; signal: AbortSignal } {
  const abort = new AbortController();
  let evaluations = 0;
  const display: Display = {
    ...silent,
    progress: () => {
      let counted = false;
      return {
        update: (_, terms) => {
          if (terms?.evaluated === undefined || counted) return;
          counted = true;
          if (++evaluations === at) abort.abort();
        },
        end: () => {},
      };
    },
  };
  return { display, signal: abort.signal };
}

const evaluated = ["val.every=2", "log.every=3", "log.checkpoint=2", "log.keep=1"];

test("what a checkpoint holds is on the GPU once when a model and its optimizer have it", async () => {
  const own = await Device.open(); // Without what other tests leave to the garbage collector.
  const { model } = await train(own, config("held", ["val.annotations="]), { display: silent });
  const path = latestCheckpoint(join(folder, "held"))!;
  const groups = parameterGroups(model, { lr: 0, weightDecay: 0, backboneMultiplier: 1, camMultiplier: 1 });
  const target = { model, optimizer: new optim.AdamW(groups) };
  await loadCheckpoint(own, path, target);
  const { liveBytes } = own.memory;
  await loadCheckpoint(own, path, target);
  assert.is(own.memory.liveBytes, liveBytes);
  const weights = [...model.stateDict().values()].reduce((sum, x) => sum + x.storage.bytes, 0);
  await loadTrained(own, path);
  assert.ok(own.memory.liveBytes - liveBytes < 1.2 * weights, `${own.memory.liveBytes - liveBytes} of ${weights}`);
  await own.close();
});

test("an evaluation that was cut short counts for nothing and is done when the run goes on", async () => {
  const whole = await train(gpu, config("one-piece", evaluated), { display: silent });
  assert.ok(whole.evaluation!.complete);
  // Cut short in the middle, then at the end.
  for (const [at, step] of [
    [1, 2],
    [2, 4],
  ] as const) {
    const result = await train(gpu, config("pieces", evaluated), { ...abortingIn(at), resume: true });
    assert.ok(result.interrupted, `evaluation ${at}`);
    assert.is(result.step, step);
    assert.is(lines("pieces").filter((line) => "evaluation" in line).length, at - 1);
    assert.is(existsSync(join(folder, "pieces", "best")), at > 1);
  }
  const resumed = await train(gpu, config("pieces", evaluated), { display: silent, resume: true });
  assert.not.ok(resumed.interrupted);
  assert.equal(lines("pieces"), lines("one-piece"));
  assert.equal(
    lines("pieces").map((line) => (line as { step: number }).step),
    [2, 3, 4, 4],
  );
  assert.is(
    readFileSync(join(folder, "pieces", "best"), "utf8"),
    readFileSync(join(folder, "one-piece", "best"), "utf8"),
  );
  const before = lines("pieces");
  await train(gpu, config("pieces", evaluated), { display: silent, resume: true });
  assert.equal(lines("pieces"), before, "a run that has ended says nothing twice");
});

test("the means of an interrupted run go on where they were", async () => {
  const abort = new AbortController();
  const at = (step: number): Display => ({
    ...silent,
    progress: () => ({ update: (done) => done === step && abort.abort(), end: () => {} }),
  });
  const settings = ["log.every=4", "val.annotations="];
  await train(gpu, config("means-whole", settings), { display: silent });
  const stopped = await train(gpu, config("means", settings), { display: at(3), signal: abort.signal });
  assert.ok(stopped.interrupted && stopped.step === 3);
  assert.equal(lines("means"), [], "nothing is written at an interruption");
  await train(gpu, config("means", settings), { display: silent, resume: true });
  assert.equal(lines("means"), lines("means-whole"));
  assert.is(lines("means").length, 1);
});

test("an image that cannot be read any more ends a run with what it has learned", async () => {
  const settings = [
    "log.checkpoint=100",
    "log.every=4",
    "val.annotations=",
    "data.threads=0",
    "accumulate=2",
    "batch=1",
  ];
  await train(gpu, config("readable", settings), { display: silent });
  // Four steps see every image; those that nobody has read yet go when the first step is done.
  const hidden = join(folder, "hidden");
  const gone: Display = {
    ...silent,
    progress: () => ({
      update: (done, terms) => done === 1 && terms?.loss !== undefined && renameSync(scenes.imagesDir, hidden),
      end: () => {},
    }),
  };
  const start = (display: Display, resume = false) => train(gpu, config("unreadable", settings), { display, resume });
  const ended = start(gone).finally(() => renameSync(hidden, scenes.imagesDir));
  await refused(
    () => ended,
    /images\/\d+\.png: .*; .*unreadable is saved at step [123]: mend the image and go on with --resume$/,
  );
  assert.ok(latestCheckpoint(join(folder, "unreadable")));
  await start(silent, true);
  assert.equal(lines("unreadable"), lines("readable"), "nothing was lost or seen twice");
});

test("the last steps have a line, however few they are", async () => {
  await train(gpu, config("short", ["steps=3", "log.every=20", "val.annotations="]), { display: silent });
  const [line, ...others] = readDiary(join(folder, "short")) as { step: number; lr: number }[];
  assert.is(line!.step, 3);
  assert.is(others.length, 0);
  assert.match(readFileSync(join(folder, "short", "report.html"), "utf8"), /3 of 3, 3 images each/);
});

test("the learning rate of the log is the configured one, not the backbone's", async () => {
  const settings = ["steps=1", "optim.lr=0.002", "optim.backbone=0.5", "optim.schedule=constant", "val.annotations="];
  await train(gpu, config("rate", settings), { display: silent });
  assert.is((lines("rate")[0] as { lr: number }).lr, 0.002);
});

test("the best evaluation is known after a resume, and its checkpoint stays", async () => {
  const run = join(folder, "best");
  await train(gpu, config("best", evaluated), { display: silent });
  // As if step 2 had been good: what comes after it does not reach that.
  const diary = readDiary(run).map((entry) =>
    isEvaluation(entry) && entry.step === 2 ? { ...entry, evaluation: { ...entry.evaluation, AP: 0.9 } } : entry,
  );
  const second = join(run, "checkpoints", "step-00000002.safetensors");
  await train(gpu, config("best-two", [...evaluated, "steps=2"]), { display: silent });
  copyFileSync(join(folder, "best-two", "checkpoints", "step-00000002.safetensors"), second);
  writeFileSync(join(run, "metrics.jsonl"), diary.map((entry) => `${JSON.stringify(entry)}\n`).join(""));
  await markBest(run, 4);
  await train(gpu, config("best", [...evaluated, "steps=6"]), { display: silent, resume: true });
  assert.is(bestCheckpoint(run), second);
  assert.ok(latestCheckpoint(run)!.endsWith("step-00000006.safetensors"));
});

test("weights that are no use are never saved, and the last good checkpoint stays", async () => {
  const run = join(folder, "wild");
  const settings = ["log.checkpoint=1", "log.keep=1", "optim.schedule=constant", "val.annotations="];
  await train(gpu, config("wild", [...settings, "steps=1"]), { display: silent });
  const good = readFileSync(latestCheckpoint(run)!);
  const error = await train(gpu, config("wild", [...settings, "optim.lr=1e30"]), {
    display: silent,
    resume: true,
  }).catch((cause: Error) => cause);
  assert.match(
    (error as Error).message,
    /wild: the weight ".+" holds \S+ after step 2; the last good state is .*step-00000001.*lower optim\.lr/,
  );
  assert.equal(readdirSync(join(run, "checkpoints")), ["step-00000001.safetensors"]);
  assert.equal(readFileSync(latestCheckpoint(run)!), good);
});

test("a damaged checkpoint is set aside for an older one that is whole", async () => {
  const settings = ["log.checkpoint=1", "log.keep=2", "val.annotations="];
  await train(gpu, config("damaged", [...settings, "steps=3"]), { display: silent });
  const run = join(folder, "damaged");
  const newest = latestCheckpoint(run)!;
  const bytes = readFileSync(newest);
  bytes[bytes.length - 5]! ^= 1;
  writeFileSync(newest, bytes);
  await refused(() => loadRun(gpu, run), /step-00000003\.safetensors: .*the checksum differs/);
  const warnings: string[] = [];
  const display = { ...silent, warn: (line: string) => warnings.push(line) };
  const { step } = await train(gpu, config("damaged", settings), { display, resume: true });
  assert.is(step, 4);
  assert.match(warnings[0]!, /step-00000003\.safetensors: .*; it is now .*\.damaged, .* goes on from .*step-00000002/);
  assert.ok(existsSync(`${newest}.damaged`) && existsSync(newest), "step 3 was done again");

  for (const name of readdirSync(join(run, "checkpoints"))) writeFileSync(join(run, "checkpoints", name), "cut");
  await refused(
    () => train(gpu, config("damaged", settings), { display: silent, resume: true }),
    /step-00000004.*no other checkpoint that is whole/,
  );
});

test("settings that may change are those of config.yaml from then on, other groups of rates included", async () => {
  const settings = ["steps=2", "val.annotations="];
  await train(gpu, config("changed", settings), { display: silent });
  const changes = ["steps=3", "optim.backbone=1", "optim.weightDecay=0", "log.every=2", "val.annotations="];
  await train(gpu, config("changed", changes), { display: silent, resume: true });
  const saved = parse(readFileSync(join(folder, "changed", "config.yaml"), "utf8"));
  assert.is(saved.steps, 3);
  assert.is(saved.optim.backbone, 1);
  assert.is(saved.log.every, 2);
});

test.after(removeFolder);
test.run();
