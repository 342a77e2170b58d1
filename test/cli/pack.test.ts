/** What `npm pack` puts into the tarball runs from node_modules with plain Node, where no TypeScript is taken. */
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { packageRoot } from "../../platform/root.ts";
import { node } from "./run.ts";

const test = suite("pack");
const work = mkdtempSync(join(tmpdir(), "wgpu-wish-pack-"));
const installed = join(work, "empty", "node_modules", "wgpu-wish");
const manifest = JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8")) as {
  dependencies: Record<string, string>;
};

function runTool(command: string, args: string[], cwd: string): string {
  const shell = process.platform === "win32";
  const { status, stdout, stderr } = spawnSync(command, args, { cwd, encoding: "utf8", shell });
  assert.is(status, 0, `${command} ${args.join(" ")}: ${stderr}`);
  return stdout;
}

/**
 * Packs a copy, so that other tests may run in the checkout meanwhile, and lays the tarball out as npm would. The
 * dependencies are links to the checkout's: nothing is downloaded.
 */
test("npm pack makes a tarball and leaves no built file behind", () => {
  const copy = join(work, "copy");
  const leave = ["node_modules", ".git", "runs", "coverage", "shared", "test"];
  for (const name of readdirSync(packageRoot)) {
    if (!leave.includes(name)) cpSync(join(packageRoot, name), join(copy, name), { recursive: true });
  }
  symlinkSync(join(packageRoot, "node_modules"), join(copy, "node_modules"), "junction");
  const packed = JSON.parse(
    runTool("npm", ["pack", "--json", "--pack-destination", work], copy).replace(/^[^[{]*/, ""),
  );
  const [{ filename }] = Array.isArray(packed) ? packed : (Object.values(packed) as [{ filename: string }]);
  assert.equal(
    readdirSync(copy).filter((name) => name.endsWith(".js")),
    [],
    "the built files are taken away after packing",
  );
  mkdirSync(installed, { recursive: true });
  runTool("tar", ["-xzf", join(work, filename), "-C", installed, "--strip-components=1"], work);
  for (const name of Object.keys(manifest.dependencies)) {
    const link = join(installed, "..", name);
    mkdirSync(dirname(link), { recursive: true });
    symlinkSync(join(packageRoot, "node_modules", name), link, "junction");
  }
});

test.after(() => rmSync(work, { recursive: true, force: true }));

test("the tarball holds JavaScript, shaders and configs, and no TypeScript source", () => {
  const names = readdirSync(installed, { recursive: true }).map(String);
  assert.ok(names.some((name) => name.endsWith("pointwise.wgsl")));
  assert.ok(names.includes(join("cli", "main.js")));
  assert.equal(
    names.filter((name) => name.endsWith(".ts") && !name.endsWith(".d.ts")),
    [],
  );
  for (const folder of ["assets", "configs"]) {
    assert.equal(readdirSync(join(installed, folder)).sort(), readdirSync(join(packageRoot, folder)).sort());
  }
});

test("wgpu-wish doctor runs from the tarball", async () => {
  const { code, stdout } = await node([join(installed, "bin", "wgpu-wish.mjs"), "doctor", "--fast", "--json"], {
    cwd: join(work, "empty"),
  });
  assert.is(code, 0);
  assert.is(JSON.parse(stdout).ok, true);
});

test("the library, its models and its training parts import from the tarball", async () => {
  const file = join(work, "empty", "use.mjs");
  writeFileSync(
    file,
    `import { Device, F } from "wgpu-wish";
     import * as model from "wgpu-wish/model";
     import * as train from "wgpu-wish/train";
     const gpu = await Device.open();
     console.log(...(await F.add(gpu.ones([2]), 1).toArray()), Object.keys(model).length > 0, Object.keys(train).length > 0);
     gpu.close();`,
  );
  const { code, stdout, stderr } = await node([file], { cwd: dirname(file) });
  assert.is(code, 0, stderr);
  assert.is(stdout, "2 2 true true\n");
});

test("threads read images from the tarball", async () => {
  const file = join(work, "empty", "threads.mjs");
  const module = (name: string) => JSON.stringify(pathToFileURL(join(installed, "train", "data", `${name}.js`)).href);
  writeFileSync(
    file,
    `import { writeScenes } from ${module("scenes")};
     import { readInstances } from ${module("coco")};
     import { Loader, maskItems } from ${module("loader")};
     const { annotations, imagesDir } = await writeScenes("scenes", { images: 2, size: 32, seed: 1 });
     const items = maskItems(readInstances(annotations), imagesDir);
     const augment = { width: 32, height: 32, flip: true, scale: [1, 1] };
     const loader = new Loader({ items, batch: 2, seed: 1, augment, threads: 1 });
     console.log((await loader.next()).map(({ rgb }) => rgb.length));
     loader.close();`,
  );
  const { code, stdout, stderr } = await node([file], { cwd: dirname(file) });
  assert.is(code, 0, stderr);
  assert.is(stdout, "[ 3072, 3072 ]\n");
});

test("pictures are lettered from the tarball, with the font that it depends on", async () => {
  const file = join(work, "empty", "pictures.mjs");
  writeFileSync(
    file,
    `import { drawOverlay } from "wgpu-wish/train";
     const image = { width: 200, height: 50, data: new Uint8Array(30000) };
     const { data } = await drawOverlay(image, { points: [{ x: 9, y: 40, classIndex: 0, label: "a name" }] }, { scale: 1 });
     // Rows above the point: the plate, and letters of another shade on it.
     console.log(new Set(data.subarray(20 * 600, 33 * 600)).size > 10);`,
  );
  const { code, stdout, stderr } = await node([file], { cwd: dirname(file) });
  assert.is(code, 0, stderr);
  assert.is(stdout, "true\n");
});

test("the same imports work in the checkout with tsx", async () => {
  const script = `import { F } from "wgpu-wish"; import * as model from "wgpu-wish/model"; import * as train from "wgpu-wish/train";
    console.log(typeof F.add, Object.keys(model).length > 0, Object.keys(train).length > 0);`;
  const { code, stdout, stderr } = await node(["--import", "tsx", "--input-type=module", "-e", script]);
  assert.is(code, 0, stderr);
  assert.is(stdout, "function true true\n");
});

test.run();
