// The lock of a run's folder, and folders that cannot be had.
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { claimRun } from "../../train/claim.ts";
import { BadInput } from "../../train/errors.ts";

const test = suite("claim");
const folder = mkdtempSync(join(tmpdir(), "wish-claim-"));
test.after(() => rmSync(folder, { recursive: true, force: true }));

function refusal(run: string): string {
  try {
    claimRun(run).release();
  } catch (error) {
    assert.instance(error, BadInput);
    assert.not.match((error as Error).message, /\n/);
    return (error as Error).message;
  }
  throw new Error(`${run} was not refused`);
}

test("a folder has one owner at a time", () => {
  const run = join(folder, "a", "b");
  const claim = claimRun(run);
  assert.match(
    refusal(run),
    new RegExp(`process ${process.pid} on ${hostname()} is working in this folder; .*run=DIR`),
  );
  claim.release();
  assert.not.ok(existsSync(join(run, "lock")));
  claimRun(run).release();
});

test("a folder that was made for a claim goes with it where it is empty, and no other one does", () => {
  const top = join(folder, "new");
  claimRun(join(top, "run")).release();
  assert.not.ok(existsSync(top));
  mkdirSync(top);
  claimRun(join(top, "run")).release();
  assert.equal(readdirSync(top), []);
  claimRun(top).release();
  assert.ok(existsSync(top), "it was there before");
  const claim = claimRun(join(top, "run"));
  writeFileSync(join(top, "run", "config.yaml"), "");
  claim.release();
  assert.equal(readdirSync(join(top, "run")), ["config.yaml"]);
});

test("the lock of a living process holds, that of a dead one, of a later one with its number or of a crash does not", async () => {
  const run = join(folder, "other");
  mkdirSync(run);
  const lock = (owner: object | string) =>
    writeFileSync(join(run, "lock"), typeof owner === "string" ? owner : JSON.stringify(owner));
  const other = spawn(process.execPath, ["-e", "setTimeout(() => {}, 60000)"]);
  const ended = new Promise((resolve) => other.on("exit", resolve));
  lock({ pid: other.pid, host: hostname() });
  assert.match(refusal(run), new RegExp(`process ${other.pid} `));
  if (existsSync("/proc/self/stat")) {
    lock({ pid: other.pid, host: hostname(), born: "1" });
    claimRun(run).release();
  }
  lock({ pid: other.pid, host: "elsewhere.example" });
  assert.match(refusal(run), /on elsewhere\.example .*delete .*lock/);
  other.kill();
  await ended;
  for (const left of [{ pid: other.pid, host: hostname() }, { pid: process.pid, host: hostname() }, '{"pid', ""]) {
    lock(left);
    const claim = claimRun(run);
    assert.is(JSON.parse(readFileSync(join(run, "lock"), "utf8")).pid, process.pid);
    claim.release();
  }
});

test("a process that ends lets go of its folder", async () => {
  const run = join(folder, "ends");
  mkdirSync(run);
  const code = `import { claimRun } from ${JSON.stringify(new URL("../../train/claim.ts", import.meta.url).href)}; claimRun(${JSON.stringify(run)}); process.exit(130);`;
  const child = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", code], { stdio: "ignore" });
  assert.is(await new Promise((resolve) => child.on("exit", resolve)), 130);
  assert.ok(existsSync(run) && !existsSync(join(run, "lock")));
});

test("a folder that cannot be made or written to is refused at once", () => {
  writeFileSync(join(folder, "file"), "");
  assert.match(refusal(join(folder, "file")), /file: a folder is needed .*; name another one with run=DIR/);
  assert.match(refusal(join(folder, "file", "x")), /file.x: a folder is needed/);
  if (existsSync("/proc/self")) assert.match(refusal("/proc/foo/bar"), /\/proc\/foo\/bar: a folder is needed/);
});

test.run();
