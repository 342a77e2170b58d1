import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import "../../index.ts";
import * as assert from "uvu/assert";
import { writePng } from "../../train/data/image.ts";
import { evaluate, type Metrics } from "../../train/eval/coco-ap.ts";
import { Diary } from "../../train/metrics.ts";
import { EventFile } from "../../train/tensorboard.ts";

const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-events-"));
const fileIn = (run: string) => join(folder, run, "tensorboard", "events.out.tfevents.0000000000.wgpu-wish");
const file = { file: "", images: [], categories: [{ id: 1, name: "dog" }], instances: [] };
const metrics: Metrics = { ...evaluate(file, []), AP: 0.25, perClass: { dog: 0.5 } };
await writePng(join(folder, "one.png"), { width: 2, height: 1, data: new Uint8Array(6) });
const png = readFileSync(join(folder, "one.png"));

const test = suite("TensorBoard's event files");
test.after(() => rmSync(folder, { recursive: true }));

/** A file of TensorBoard's own writer: test/parity/make_events.py. */
interface Recorded {
  hex: string;
  scalars: Record<string, [step: number, value: number][]>;
}
const recorded: Recorded = JSON.parse(readFileSync(new URL("../parity/data/events.json", import.meta.url), "utf8"));

test("events are TensorBoard's own, byte for byte but for the time", async () => {
  const events = await EventFile.open(join(folder, "own"), 0);
  for (const [tag, points] of Object.entries(recorded.scalars))
    for (const [step, value] of points) events.scalars(step, { [tag]: value });
  const [got, want] = [timeless(readFileSync(fileIn("own"))), timeless(Buffer.from(recorded.hex, "hex"))];
  assert.is(want.length, 5);
  // The first record also names the program that wrote the file.
  assert.equal(got.slice(1), want.slice(1));
});

/** The records as hex, without their times and the checksums of these. */
function timeless(bytes: Buffer): string[] {
  const records: string[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = Number(bytes.readBigUInt64LE(at));
    // Length and its checksum do not depend on the time; the record starts with 9 bytes of it.
    records.push(bytes.toString("hex", at, at + 12) + bytes.toString("hex", at + 21, at + 12 + length));
    at += 16 + length;
  }
  return records;
}

/** Steps and tags in the order of the file. */
function eventsOf(run: string): string[] {
  const text = readFileSync(fileIn(run)).toString("latin1");
  return [...text.matchAll(/(loss\/\w+|optim\/lr|speed\/\w+|eval\/AP|eval AP of classes\/dog|val\/one)/g)].map(
    ([tag]) => tag,
  );
}

test("a diary writes losses, rate, AP and pictures; what could not be measured is left out", async () => {
  const diary = await Diary.open(join(folder, "run"), 0, { tensorboard: true });
  diary.step({ step: 10, loss: 2, dice: 1, lr: 0.1, waiting: 0.5 });
  diary.evaluation(10, metrics, 5, () => [{ tag: "val/one", png }]);
  const evaluation = ["eval/AP", "eval AP of classes/dog", "val/one"];
  assert.equal(eventsOf("run"), ["loss/total", "loss/dice", "optim/lr", "speed/waiting", ...evaluation]);
});

test("a run that goes on writes nothing twice and drops a torn record", async () => {
  const before = readFileSync(fileIn("run"));
  const diary = await Diary.open(join(folder, "run"), 10, { tensorboard: true });
  diary.step({ step: 20, loss: 1, lr: 0.1 });
  const whole = readFileSync(fileIn("run"));
  assert.is(eventsOf("run").length, 9);
  // It was killed while it wrote step 30: from 10 on again, step 20 goes and the torn end with it.
  appendFileSync(fileIn("run"), whole.subarray(before.length, before.length + 30));
  await Diary.open(join(folder, "run"), 10, { tensorboard: true });
  const got = readFileSync(fileIn("run"));
  assert.equal(timeless(got), timeless(before));
});

test("a run that turns it on later gets its past, and none is written without being asked for", async () => {
  const run = join(folder, "late");
  (await Diary.open(run, 0)).step({ step: 10, loss: 2, lr: 0.1 });
  assert.not.ok(existsSync(fileIn("late")));
  await Diary.open(run, 10, { tensorboard: true });
  assert.equal(eventsOf("late"), ["loss/total", "optim/lr"]);
});

test.run();
