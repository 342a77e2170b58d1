import { suite } from "uvu";
import * as assert from "uvu/assert";
import { wish } from "./run.ts";

const test = suite("doctor");

test("--json prints one document with the adapter and a right product", async () => {
  const { code, stdout } = await wish(["doctor", "--fast", "--json"]);
  assert.is(code, 0);
  const report = JSON.parse(stdout);
  assert.is(report.ok, true);
  assert.ok(report.adapter.name.length > 0);
  assert.ok(report.correctness.maxRelError <= 1e-5);
  assert.ok(report.limits.maxStorageBufferBindingSize >= 2 ** 27);
  assert.is(report.speed, null);
});

test("text goes to stdout, without colour codes where there is no terminal", async () => {
  const { code, stdout, stderr } = await wish(["doctor", "--fast"]);
  assert.is(code, 0);
  assert.match(stdout, /^adapter +\S/);
  assert.match(stdout, /ready\n$/);
  assert.not.ok(`${stdout}${stderr}`.includes("\u001b"));
});

test("an adapter that is not there ends with 3 and still gives a report", async () => {
  const { code, stdout } = await wish(["doctor", "--json", "--adapter", "no such adapter"]);
  assert.is(code, 3);
  const report = JSON.parse(stdout);
  assert.is(report.adapter, null);
  assert.match(report.advice[0], /no GPU adapter answers to "no such adapter"/);
});

test("WGPU_WISH_ADAPTER chooses, and --adapter comes before it", async () => {
  const env = { WGPU_WISH_ADAPTER: "no such adapter" };
  assert.is((await wish(["doctor", "--fast"], { env })).code, 3);
  assert.is(
    (await wish(["doctor", "--fast", "--adapter", "software"], { env })).code,
    process.platform === "linux" ? 0 : 3,
  );
});

// The software Vulkan of the npm packages is for Linux on x64; elsewhere the system's own graphics interface answers.
if (process.platform === "linux" && process.arch === "x64") {
  test("SwiftShader from node_modules answers with no Vulkan driver of the system's", async () => {
    const env = { VK_DRIVER_FILES: "/nonexistent", VK_ICD_FILENAMES: "/nonexistent", WGPU_WISH_ADAPTER: "" };
    const { code, stdout } = await wish(["doctor", "--fast", "--json"], { env });
    assert.is(code, 0);
    assert.match(JSON.parse(stdout).adapter.name, /swiftshader/);
  });
}

test.run();
