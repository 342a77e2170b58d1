/**
 * The set-up as it runs on other platforms: `process.platform` is replaced before the script is loaded, and everything that it starts or
 * writes is recorded. A stand-in for npm lays the packages down.
 */
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { packageRoot } from "../../platform/root.ts";

const test = suite("set-up");
const work = mkdtempSync(join(tmpdir(), "wgpu-wish-setup-"));
test.after(() => rmSync(work, { recursive: true, force: true }));

/** Replaces the platform, and every way to start a program or to change a file; starting programs is only recorded. */
const RECORD = `
  import childProcess from "node:child_process";
  import fs from "node:fs";
  import { syncBuiltinESMExports } from "node:module";
  Object.defineProperty(process, "platform", { value: process.env.PLATFORM });
  const seen = [];
  for (const name of ["spawn", "spawnSync", "exec", "execSync", "execFile", "execFileSync", "fork"])
    childProcess[name] = (command, args = [], options = {}) => {
      seen.push([name, command, ...(Array.isArray(args) ? args : []), ...(options.shell ? ["in a shell"] : [])]);
      if (args.includes("ci")) {
        fs.mkdirSync("node_modules", { recursive: true });
        fs.copyFileSync("package-lock.json", "node_modules/.package-lock.json");
        seen.splice(-2); // The stand-in's own.
      }
      return { status: 0, stdout: "llvmpipe", stderr: "" };
    };
  for (const name of ["writeFileSync", "appendFileSync", "mkdirSync", "rmSync", "rmdirSync", "unlinkSync", "renameSync", "copyFileSync", "cpSync", "symlinkSync", "openSync", "writeFile", "createWriteStream"]) {
    const real = fs[name];
    fs[name] = (...args) => { seen.push([name, String(args[0])]); return real(...args); };
  }
  syncBuiltinESMExports();
  process.on("exit", () => console.log(JSON.stringify(seen)));
`;

/** A clone without packages, or with them. */
function clone({ ready }: { ready: boolean }): string {
  const folder = mkdtempSync(join(work, "clone-"));
  for (const name of ["scripts", "package.json", "package-lock.json"])
    cpSync(join(packageRoot, name), join(folder, name), { recursive: true });
  writeFileSync(join(folder, "record.mjs"), RECORD);
  if (ready) {
    mkdirSync(join(folder, "node_modules"));
    cpSync(join(folder, "package-lock.json"), join(folder, "node_modules", ".package-lock.json"));
  }
  return folder;
}

function setUp(folder: string, platform: string, env: NodeJS.ProcessEnv = {}): { seen: string[][]; stderr: string } {
  const { npm_execpath: _, WGPU_WISH_ADAPTER: __, ...rest } = process.env;
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ["--import", "./record.mjs", join("scripts", "setup.mjs")],
    { cwd: folder, encoding: "utf8", env: { ...rest, PLATFORM: platform, ...env } },
  );
  assert.is(status, 0, stderr);
  return { seen: JSON.parse(stdout) as string[][], stderr };
}

const files = (folder: string): string[] => (readdirSync(folder, { recursive: true }) as string[]).sort();

for (const platform of ["darwin", "win32"]) {
  test(`${platform}: a clone with its packages starts nothing, writes nothing and says nothing`, () => {
    const folder = clone({ ready: true });
    const before = files(folder);
    assert.equal(setUp(folder, platform), { seen: [], stderr: "" });
    assert.equal(files(folder), before);
  });

  test(`${platform}: a bare clone runs npm ci and nothing else`, () => {
    const folder = clone({ ready: false });
    const before = files(folder);
    const shell = platform === "win32" ? ["in a shell"] : [];
    assert.equal(setUp(folder, platform).seen, [
      ["spawnSync", "npm", "ci", "--no-audit", "--no-fund", "--loglevel=error", ...shell],
    ]);
    const added = files(folder).filter((name) => !before.includes(name));
    assert.equal(added, ["node_modules", join("node_modules", ".package-lock.json")]);
  });

  test(`${platform}: under npm its own script is run by this Node, without a shell`, () => {
    const npm = join("anywhere", "npm-cli.js");
    const { seen } = setUp(clone({ ready: false }), platform, { npm_execpath: npm });
    assert.equal(seen, [["spawnSync", process.execPath, npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"]]);
  });
}

test("linux: the adapter is asked for, so the record sees what the set-up starts", () => {
  const { seen, stderr } = setUp(clone({ ready: true }), "linux", { WGPU_WISH_ADAPTER: "any" });
  assert.equal(
    seen.map(([how, command]) => [how, command]),
    [["spawnSync", process.execPath]],
  );
  assert.match(stderr, /adapter: llvmpipe/);
});

test.run();
