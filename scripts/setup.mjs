// Makes a fresh clone ready: the packages, and on Linux a Vulkan that answers. Uses Node alone, because it runs before
// anything is installed. It prints one line about the adapter and never fails for want of a better one.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { removeBuilt } from "./build.mjs";
import { installMesa } from "./mesa.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const cache = join(root, "node_modules", ".cache", "wgpu-wish");
const DAY_MS = 86_400_000;

const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
if (major < 20 || (major === 20 && minor < 11)) {
  console.error(`setup: Node ${process.versions.node} is too old; install Node 20.11 or newer`);
  process.exit(1);
}

if (!packagesInstalled()) {
  say("installing the packages (npm ci)");
  if (!npmCi()) {
    console.error("setup: npm ci failed; its messages stand above");
    process.exit(1);
  }
}
if (existsSync(join(root, "index.js"))) removeBuilt(); // Left by an `npm pack` that was interrupted.
// macOS and Windows bring Metal and D3D12: nothing to set up.
if (process.platform === "linux") chooseVulkan();

function say(line) {
  console.error(`setup: ${line}`);
}

/** The versions that package-lock.json names are the ones in node_modules. */
function packagesInstalled() {
  try {
    const wanted = readPackages(join(root, "package-lock.json"));
    const present = readPackages(join(root, "node_modules", ".package-lock.json"));
    return Object.entries(wanted).every(
      ([path, { version, optional }]) =>
        path === "" || present[path]?.version === version || (optional && !present[path]),
    );
  } catch {
    return false;
  }
}

function readPackages(file) {
  return JSON.parse(readFileSync(file, "utf8")).packages;
}

function npmCi() {
  const args = ["ci", "--no-audit", "--no-fund", "--loglevel=error"];
  const stdio = ["ignore", 2, 2]; // stdout stays the command's own
  const npm = process.env.npm_execpath; // npm's JavaScript, when npm runs this script; needs no shell on Windows
  const inNpm = npm !== undefined && /npm-cli\.[cm]?js$/.test(npm);
  const result = inNpm
    ? spawnSync(process.execPath, [npm, ...args], { cwd: root, stdio })
    : spawnSync("npm", args, { cwd: root, stdio, shell: process.platform === "win32" });
  return result.status === 0;
}

function chooseVulkan() {
  let adapter = probe();
  const asked = process.env.WGPU_WISH_ADAPTER;
  if (asked) {
    say(adapter ? `adapter: ${adapter}` : `no adapter answers to WGPU_WISH_ADAPTER=${asked}`);
    return;
  }
  let because = "";
  let installed = false;
  if ((!adapter || /swiftshader/i.test(adapter)) && mayTryMesa()) {
    say("no GPU answers; looking for Mesa's software Vulkan (a minute or two, once)");
    because = installMesa();
    installed = because === "";
    if (installed) adapter = probe() ?? adapter;
    else writeFileSync(join(cache, "mesa-tried"), `${because}\n`);
  }
  if (!adapter) say("no GPU adapter answers; run: npx wgpu-wish doctor");
  else if (/swiftshader/i.test(adapter)) {
    say(`no GPU: SwiftShader from node_modules computes in software, slowly${because && ` (Mesa: ${because})`}`);
  } else if (/llvmpipe/i.test(adapter))
    say(`no GPU: Mesa's lavapipe${installed ? ", now installed," : ""} computes in software`);
  else say(`GPU: ${adapter}`);
}

/** Installing needs root, and is tried once a day unless the user asks with `npm run setup`. */
function mayTryMesa() {
  if (process.getuid?.() !== 0) return false;
  mkdirSync(cache, { recursive: true });
  const tried = join(cache, "mesa-tried");
  if (process.env.npm_lifecycle_event === "setup" || !existsSync(tried)) return true;
  return Date.now() - statSync(tried).mtimeMs > DAY_MS;
}

/** The name of the adapter that the product finds, asked in a process of its own: a broken driver may crash it. */
function probe() {
  const script = `
    import { nodePlatform } from "./platform/node.ts";
    const { name } = await nodePlatform.requestAdapter(undefined);
    process.stdout.write(name);`;
  const args = ["--import", "tsx", "--input-type=module", "-e", script];
  const { status, stdout } = spawnSync(process.execPath, args, { cwd: root, encoding: "utf8", timeout: 60_000 });
  return status === 0 ? stdout.trim() : undefined;
}
