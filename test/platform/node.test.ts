import { lstatSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { nodePlatform } from "../../platform/node.ts";
import { node } from "../cli/run.ts";

const test = suite("platform in Node");
const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-platform-"));
test.after(() => rmSync(folder, { recursive: true, force: true }));

const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
const bytes = (words: string): Uint8Array => new TextEncoder().encode(words);

async function rejection(promise: Promise<unknown>): Promise<NodeJS.ErrnoException> {
  try {
    await promise;
  } catch (error) {
    return error as NodeJS.ErrnoException;
  }
  throw new Error("the promise was not rejected");
}

test("a file that is written replaces the old one and leaves nothing beside it", async () => {
  const file = join(folder, "weights");
  await nodePlatform.writeFile(file, bytes("old and longer"));
  await nodePlatform.writeFile(file, bytes("new"));
  assert.is(text(await nodePlatform.readFile(file)), "new");
  assert.equal(readdirSync(folder), ["weights"]);
});

test("a write that fails leaves nothing beside its goal", async () => {
  const goal = join(folder, "taken");
  mkdirSync(join(goal, "inside"), { recursive: true });
  await rejection(nodePlatform.writeFile(goal, bytes("new")));
  assert.equal(readdirSync(folder).sort(), ["taken", "weights"]);
});

test("what is no file is never replaced, and a link stays one", async () => {
  if (process.platform === "win32") return;
  assert.is((await rejection(nodePlatform.writeFile("/dev/null", bytes("new")))).code, "EINVAL");
  assert.ok(statSync("/dev/null").isCharacterDevice());
  const link = join(folder, "link");
  symlinkSync("weights", link);
  await nodePlatform.writeFile(link, bytes("through"));
  assert.ok(lstatSync(link).isSymbolicLink());
  assert.is(text(await nodePlatform.readFile(join(folder, "weights"))), "through");
});
// Elsewhere no variable moves the folder, and the user's own is not to be touched.
if (process.platform === "linux")
  test("the cache keeps texts in $XDG_CACHE_HOME, and a folder that cannot be written is no error", async () => {
    const before = process.env.XDG_CACHE_HOME;
    try {
      process.env.XDG_CACHE_HOME = join(folder, "cache", "new");
      assert.is(await nodePlatform.readCache("choices.json"), undefined);
      await nodePlatform.writeCache("choices.json", "{}");
      await nodePlatform.writeCache("choices.json", "[]");
      assert.is(await nodePlatform.readCache("choices.json"), "[]");
      assert.equal(readdirSync(join(folder, "cache", "new", "wgpu-wish")), ["choices.json"]);
      process.env.XDG_CACHE_HOME = join(folder, "weights"); // A file in the folder's place.
      await nodePlatform.writeCache("choices.json", "{}");
      assert.is(await nodePlatform.readCache("choices.json"), undefined);
    } finally {
      if (before === undefined) delete process.env.XDG_CACHE_HOME;
      else process.env.XDG_CACHE_HOME = before;
      rmSync(join(folder, "cache"), { recursive: true, force: true });
    }
  });

test("dozing ends with what it waits for, kept or broken, and lets timers run meanwhile", async () => {
  let ticks = 0;
  const timer = setInterval(() => ticks++, 1);
  let over = false;
  const later = new Promise((resolve) => setTimeout(resolve, 30)).then(() => (over = true));
  await nodePlatform.doze!(later);
  clearInterval(timer);
  assert.ok(over && ticks > 0);
  await nodePlatform.doze!(Promise.reject(new Error("broken")));
});

test("an unknown shader's error names the file", () => {
  assert.throws(() => nodePlatform.shader("no_such"), /no_such\.wgsl/);
});

test("no adapter for the wish is an error with a code and advice", async () => {
  const error = await rejection(nodePlatform.requestAdapter("no such adapter"));
  assert.is(error.code, "NO_ADAPTER");
  assert.match(error.message, /"no such adapter"; leave the choice out/);
});

// Dawn aborts the process when the object of create() is collected while a device lives.
test("devices survive garbage collection, and several adapters open in one process", async () => {
  const script = `
    import { nodePlatform } from "./platform/node.ts";
    const open = async (wish) => (await nodePlatform.requestAdapter(wish)).adapter.requestDevice();
    const devices = [await open(undefined), await open(undefined)];
    const wishes = process.platform === "linux" && process.arch === "x64" ? ["swiftshader", "SWIFT", "software"] : [];
    for (const wish of wishes) devices.push(await open(wish));
    for (let i = 0; i < 20; i++) { globalThis.gc(); await new Promise((resolve) => setTimeout(resolve, 5)); }
    for (const device of devices) { device.createBuffer({ size: 16, usage: GPUBufferUsage.STORAGE }); await device.queue.onSubmittedWorkDone(); }
    console.log(devices.length, process.env.VK_DRIVER_FILES ?? "unset");`;
  const env = { VK_DRIVER_FILES: undefined, VK_ICD_FILENAMES: undefined };
  const { code, stdout, stderr } = await node(["--expose-gc", "--import", "tsx", "--input-type=module", "-e", script], {
    env,
  });
  assert.is(code, 0, stderr);
  assert.match(stdout, /^\d unset\n$/, "the choice of SwiftShader leaves no variable behind");
});

test.run();
