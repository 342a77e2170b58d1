// What takes tensors larger than the adapter can bind is refused by the settings' names, before any work and without a trace.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { TooLarge } from "../../engine/index.ts";
import { LARGEST_SIDE } from "../../train/limits.ts";
import { evaluateRun, showRun } from "../../train/run-tools.ts";
import { train } from "../../train/train.ts";
import { config, folder, gpu, refused, removeFolder, silent } from "./tiny-run.ts";

const test = suite("what can be bound");
test.after(removeFolder);

const limit = gpu.gpu.limits.maxStorageBufferBindingSize;
/** Of a square image that is a larger tensor, or as large as may be asked for. */
const side = Math.min(LARGEST_SIDE, Math.ceil(Math.sqrt(limit / 12)) + 1);

test("train refuses batches and evaluations that cannot be bound, and leaves nothing behind", async () => {
  const batch = Math.ceil(limit / (12 * 64 * 64)) + 1;
  await refused(
    () => train(gpu, config("refused", [`batch=${batch}`]), { display: silent, file: "a.yaml" }),
    new RegExp(
      `^a\\.yaml: a step with batch=${batch}, data\\.width=64 and data\\.height=64 takes a tensor of \\d+ bytes, more than the ${limit} that`,
    ),
  );
  await refused(
    () => train(gpu, config("refused", [`val.short=${side}`, `val.long=${side}`]), { display: silent, file: "a.yaml" }),
    new RegExp(
      `^a\\.yaml: val\\.short=${side} and val\\.long=${side}: .*\\.png, seen at ${side} x ${side} pixels, takes`,
    ),
  );
  for (const name of ["refused", "cache"]) assert.not.ok(existsSync(join(folder, name)), name);
});

test("what comes up in the middle of a run is told as well", async () => {
  const { pool } = gpu;
  const allocate = pool.allocate.bind(pool);
  const log = (line: string): void => {
    if (line.startsWith("memory plan"))
      pool.allocate = () => {
        throw new TooLarge(limit + 4, limit);
      };
  };
  const run = () => train(gpu, config("crowded"), { display: { ...silent, log } });
  await refused(run, /crowded: the images at hand take a tensor of \d+ bytes/).finally(
    () => (pool.allocate = allocate),
  );
});

test("eval and show refuse a run's val.short that cannot be bound", async () => {
  const { run } = config("run", ["steps=1"]);
  await train(gpu, config("run", ["steps=1"]), { display: silent });
  const file = join(run, "config.yaml");
  writeFileSync(
    file,
    readFileSync(file, "utf8")
      .replace(/short: 64/, `short: ${side}`)
      .replace(/long: 64/, `long: ${side}`),
  );
  const said = new RegExp(`run/config\\.yaml: val\\.short=${side} and val\\.long=${side}: .*\\.png, seen at`);
  await refused(() => evaluateRun(gpu, { run }), said);
  const out = join(folder, "shown");
  for (const what of ["predictions", "cam"] as const)
    await refused(() => showRun(gpu, what, { run, out, display: silent }), said);
  assert.not.ok(existsSync(out));
});

test.run();
