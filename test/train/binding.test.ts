// What takes tensors larger than the adapter can bind is refused by the settings' names, before any work and without a trace.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { TooLarge } from "../../engine/index.ts";
import { train } from "../../train/train.ts";
import { config, folder, gpu, refused, removeFolder, silent } from "./tiny-run.ts";

const test = suite("what can be bound");
test.after(removeFolder);

const limit = gpu.gpu.limits.maxStorageBufferBindingSize;
test("train refuses batches that cannot be bound, and leaves nothing behind", async () => {
  const batch = Math.ceil(limit / (12 * 64 * 64)) + 1;
  await refused(
    () => train(gpu, config("refused", [`batch=${batch}`]), { display: silent, file: "a.yaml" }),
    new RegExp(
      `^a\\.yaml: a step with batch=${batch}, data\\.width=64 and data\\.height=64 takes a tensor of \\d+ bytes, more than the ${limit} that`,
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
  await refused(run, /crowded: images with as many objects as came together take a tensor of \d+ bytes/).finally(
    () => (pool.allocate = allocate),
  );
});

test.run();
