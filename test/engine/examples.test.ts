/** The examples work and stay short. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { trainGpt } from "../../examples/gpt.ts";
import { packageRoot } from "../../platform/root.ts";
import { testDevice } from "../device.ts";

const test = suite("examples");

test("a small GPT learns with the public library alone, in under 100 lines", async () => {
  const source = readFileSync(join(packageRoot, "examples", "gpt.ts"), "utf8");
  assert.ok(source.split("\n").length <= 100);
  assert.equal(
    [...source.matchAll(/from "(.*)"/g)].map(([, from]) => from),
    ["node:fs", "wgpu-wish"],
  );
  const text = "the quick brown fox jumps over the lazy dog; ".repeat(20);
  const { losses, written } = await trainGpt(await testDevice(), text, 40);
  const mean = (part: number[]): number => part.reduce((a, b) => a + b) / part.length;
  assert.ok(mean(losses.slice(0, 3)) > 2.5, `it starts at ${losses[0]}`);
  assert.ok(mean(losses.slice(-5)) < 1.2, `it ends at ${losses.at(-1)}`);
  assert.is(written.length, 64);
});

test.run();
