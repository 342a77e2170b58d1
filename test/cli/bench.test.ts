import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { BenchResult } from "../../cli/bench.ts";
import { testDevice } from "../device.ts";
import { wish } from "./run.ts";

const gpu = await testDevice();
const test = suite("bench");
const timed = gpu.profiler.isOffered ? test : test.skip;

timed("an operation and its gradients are measured by both clocks", async () => {
  const { code, stdout, stderr } = await wish(["bench", "wish-linear", "--json"]);
  assert.is(code, 0, stderr);
  const results = JSON.parse(stdout) as BenchResult[];
  assert.equal(
    results.map(({ name }) => name),
    ["wish-linear", "wish-linear/x", "wish-linear/weight"],
  );
  for (const { ms, gpuMs, gflops, gbps, ofPeak } of results)
    for (const value of [ms, gpuMs, gflops, gbps, ofPeak]) assert.ok(value! > 0);
});

timed("a whole step is set beside its kernels, which a table names", async () => {
  const { code, stdout, stderr } = await wish(["bench", "wish-step"]);
  assert.is(code, 0, stderr);
  assert.match(stdout, /GFLOP\/s +GB\/s +of peak +kernel\n.*%.*\/\w+\n/);
  assert.match(
    stdout,
    /\na step takes [\d.]+ ms, [\d.]+ times the [\d.]+ ms of its \d+ kernels; the host works, .* in \d+ % of it\n$/,
  );
});

test("what does not exist is refused with what there is", async () => {
  const { code, stderr } = await wish(["bench", "no-such"]);
  assert.is(code, 2);
  assert.match(stderr, /there is nothing called no-such; there are matmul-512, .*wish-conv-64\/weight.*sam-vit-b/);
});

test.run();
