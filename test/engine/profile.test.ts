// What is asserted of times is their order and their sign, never how long anything took.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { timeTable } from "../../engine/rates.ts";
import { startProfiling, Trace } from "../../engine/trace.ts";
import { type Device, F, scope } from "../../index.ts";
import { node, wish } from "../cli/run.ts";
import { testDevice } from "../device.ts";

const gpu = await testDevice();
const test = suite("profile");
const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-profile-"));
test.after(() => rmSync(folder, { recursive: true, force: true }));
// No adapter that the tests meet lacks them; one that does has nothing to be tested here.
const timed = gpu.profiler.isOffered ? test : test.skip;

interface ChromeTrace {
  otherData: Record<string, number | string>;
  traceEvents: { name: string; ph: string; tid: number; ts: number; dur: number; args: Record<string, unknown> }[];
}

const read = (file: string): ChromeTrace => JSON.parse(readFileSync(file, "utf8")) as ChromeTrace;
const complete = (trace: ChromeTrace): ChromeTrace["traceEvents"] => trace.traceEvents.filter(({ ph }) => ph === "X");

/** Runs these lines with PROFILE set. */
async function profiled(file: string, lines: string): Promise<void> {
  const script = `import { Device, F, settle } from "./index.ts"; const gpu = await Device.open();${lines}`;
  const { code, stderr } = await node(["--import", "tsx", "--input-type=module", "-e", script], {
    env: { PROFILE: file },
  });
  assert.is(code, 0, stderr);
}

timed("a program's trace has every kernel in order, with what it computed and moved", async () => {
  const file = join(folder, "closed.json");
  await profiled(
    file,
    `const x = gpu.ones([64, 32]); F.matmul(x, gpu.ones([32, 16])); settle(F.tanh(x)); await gpu.close();`,
  );
  const trace = read(file);
  const events = complete(trace);
  assert.is(trace.otherData.dispatches, events.length, "the measurement of the peaks is no part of it");
  assert.ok(Number(trace.otherData.peakGflops) > 0 && Number(trace.otherData.peakGBps) > 0);
  assert.ok(events.some(({ name }) => name.startsWith("pointwise tanh")));
  let last = 0;
  for (const { ts, dur, tid } of events) {
    assert.ok(ts >= last && dur >= 0 && tid === 1, `${ts} after ${last}`);
    last = ts;
  }
  const product = events.find(({ name }) => name.startsWith("matmul"))!;
  assert.is(product.args.flops, 2 * 64 * 32 * 16);
  assert.is(product.args.bytes, 4 * (64 * 32 + 32 * 16 + 64 * 16));
  assert.match(String(product.args.operands), /a f32\(64, 32\).*y4? f32\(1, 1, 64, 16\)/);
});

timed("a program that does not close its device has its trace, too, and a second device a second file", async () => {
  const file = join(folder, "open.json");
  await profiled(
    file,
    `const other = await Device.open(); settle(F.exp(other.ones([4]))); gpu.ones([4]); await gpu.sync();`,
  );
  assert.equal(
    complete(read(file)).map(({ name }) => name),
    ["fill/forward"],
  );
  assert.is(complete(read(join(folder, "open-2.json"))).length, 2);
});

test("a trace keeps its last events and says so", async () => {
  const file = join(folder, "bounded.json");
  const trace = new Trace(file, "an adapter", 3);
  for (let i = 0; i < 5; i++)
    trace.add({ name: `kernel ${i}`, start: i, ms: 0.5, bytes: 1, flops: 0, operands: "x f32(1)" });
  await trace.write();
  const { otherData, traceEvents } = read(file);
  assert.is(otherData.note, "the last 3 of 5 dispatches");
  assert.equal(
    traceEvents.filter(({ ph }) => ph === "X").map(({ name, ts, dur }) => [name, ts, dur]),
    [2, 3, 4].map((i) => [`kernel ${i}`, i * 1000, 500]),
  );
});

test("an adapter without timestamps is told of in a line, and work goes on", async () => {
  const lines: string[] = [];
  const stderr = console.error;
  console.error = (line: string) => lines.push(line);
  try {
    const device = { name: "an adapter", debug: 2, profiler: { isOffered: false } } as unknown as Device;
    assert.is(await startProfiling(device), undefined);
  } finally {
    console.error = stderr;
  }
  assert.is(lines.length, 1);
  assert.match(lines[0]!, /no timestamp-query/);
});

timed("the command line refuses a trace that cannot be written, before any work", async () => {
  const { code, stderr, stdout } = await wish(["bench", "additions"], {
    env: { PROFILE: join(folder, "missing", "trace.json") },
  });
  assert.is(code, 2);
  assert.is(stdout, "");
  assert.match(stderr, /^error: PROFILE=.*trace\.json: the trace cannot be written there \(ENOENT\)[^\n]*\n$/);
});

timed("tables count the kernels between start and stop, one inside the other", async () => {
  const product = (): unknown => scope(() => F.matmul(gpu.ones([8, 8]), gpu.ones([8, 8])) && undefined);
  const calls = (times: { name: string; calls: number }[]): number | undefined =>
    times.find(({ name }) => name.startsWith("matmul"))?.calls;
  gpu.profiler.start();
  product();
  gpu.profiler.start();
  product();
  product();
  await gpu.sync();
  const inner = await gpu.profiler.stop();
  // More dispatches than one set of timestamps holds.
  for (let i = 0; i < 1000; i++) product();
  await gpu.sync();
  const outer = await gpu.profiler.stop();
  assert.equal([calls(inner), calls(outer)], [2, 1003]);
  assert.not(gpu.profiler.enabled);
  const table = timeTable(outer, await gpu.peaks());
  assert.match(table, /GFLOP\/s.*GB\/s.*of peak/);
  assert.match(table, /1003 .* % .*matmul/);
});

test.run();
