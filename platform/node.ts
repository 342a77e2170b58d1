/** What the engine needs from Node: Dawn's GPU with an adapter, the shaders' text, files, environment variables. */
import { readFileSync } from "node:fs";
import { mkdir, open, readFile, realpath, rename, rm, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { basename, dirname, isAbsolute, join } from "node:path";
import { create, globals } from "webgpu";
import type { Platform } from "../engine/platform.ts";
import { packageRoot } from "./root.ts";
import { loadBundledLoader, swiftShaderFolder, withSwiftShader } from "./swiftshader.ts";

type Found = { gpu: GPU; adapter: GPUAdapter; name: string };

/** No adapter answered, or none fits the wish. The command line ends with exit code 3. */
export class NoAdapter extends Error {
  readonly code = "NO_ADAPTER";
  override readonly name = "NoAdapter";
}

// Dawn crashes the process when the object of create() is collected while one of its devices lives. This list is what
// keeps it, and with it the adapter, reachable until the process ends.
const kept = globalThis as typeof globalThis & { wgpuWishKeepsAlive?: unknown[] };

/** Nobody wakes who sleeps here. */
const bed = new Int32Array(new SharedArrayBuffer(4));
const LEAST_DOZE_MS = 0.4;
const MOST_DOZE_MS = 1;

export const nodePlatform: Platform = {
  async requestAdapter(wish) {
    Object.assign(globalThis, globals);
    const found = await findAdapter(wish ?? process.env.WGPU_WISH_ADAPTER ?? "");
    kept.wgpuWishKeepsAlive ??= [];
    kept.wgpuWishKeepsAlive.push(found.gpu, found.adapter);
    return found;
  },

  shader(name) {
    const file = join(packageRoot, "shaders", `${name}.wgsl`);
    try {
      return readFileSync(file, "utf8");
    } catch {
      throw new Error(`${file}: there is no shader "${name}"`);
    }
  },

  async readFile(path) {
    return await readFile(path);
  },

  /** A crash at any moment leaves the old file or the new one, never a part: write beside it, flush, rename, flush the folder. */
  async writeFile(goal, bytes) {
    const path = await replaceable(goal);
    const beside = join(dirname(path), `.${basename(path)}.${process.pid}.tmp`);
    try {
      const file = await open(beside, "w");
      try {
        await file.writeFile(bytes);
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(beside, path);
    } catch (error) {
      await rm(beside, { force: true });
      throw error;
    }
    await syncFolder(dirname(path));
  },

  environment: (name) => process.env[name],

  async doze(until) {
    let over = false;
    const end = (): void => {
      over = true;
    };
    until.then(end, end);
    const began = performance.now();
    for (;;) {
      await new Promise((resolve) => setImmediate(resolve));
      if (over) return;
      // A tenth of what it took so far: short waits stay short, and the end of a long one is not missed by much.
      const elapsed = performance.now() - began;
      if (elapsed > LEAST_DOZE_MS) Atomics.wait(bed, 0, 0, Math.min(elapsed / 10, MOST_DOZE_MS));
    }
  },

  atEnd(work) {
    process.once("beforeExit", () => void work());
  },

  async readCache(name) {
    try {
      return await readFile(join(cacheFolder(), name), "utf8");
    } catch {
      return undefined;
    }
  },

  async writeCache(name, text) {
    try {
      await mkdir(cacheFolder(), { recursive: true });
      await nodePlatform.writeFile(join(cacheFolder(), name), new TextEncoder().encode(text));
    } catch {
      // A folder that cannot be written keeps nothing.
    }
  },
};

/** The file behind links. A rename would put a file in the place of what is none: /dev/null as root, say. */
async function replaceable(goal: string): Promise<string> {
  const there = await stat(goal).catch(() => undefined);
  if (there === undefined) return goal;
  if (there.isFile()) return await realpath(goal);
  const code = there.isDirectory() ? "EISDIR" : "EINVAL";
  throw Object.assign(new Error(`${goal}: is no file that could be replaced`), { code, path: goal });
}

/** Where the system wants what a program can make again. */
function cacheFolder(): string {
  const { XDG_CACHE_HOME, LOCALAPPDATA } = process.env;
  if (process.platform === "win32")
    return join(LOCALAPPDATA || join(homedir(), "AppData", "Local"), "wgpu-wish", "cache");
  if (process.platform === "darwin") return join(homedir(), "Library", "Caches", "wgpu-wish");
  // A relative path is not to be heeded, says the XDG specification.
  return join(XDG_CACHE_HOME && isAbsolute(XDG_CACHE_HOME) ? XDG_CACHE_HOME : join(homedir(), ".cache"), "wgpu-wish");
}

async function syncFolder(folder: string): Promise<void> {
  if (process.platform === "win32") return; // A folder cannot be opened there; NTFS keeps renames in its journal.
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** wish: "" for the best there is; gpu, software, lavapipe, swiftshader; else a part of the adapter's name. */
async function findAdapter(wish: string): Promise<Found> {
  const word = wish.toLowerCase();
  let found: Found | undefined;
  if (word === "" || word === "gpu") {
    found = await systemAdapter();
    if (word === "gpu" && found !== undefined && isSoftware(found)) found = undefined;
    if (word === "") found ??= await swiftShader();
  } else if (word === "software") {
    found = (await lavapipe()) ?? (await swiftShader()) ?? (await systemSoftware());
  } else if (word === "lavapipe") {
    found = await lavapipe();
  } else if (word === "swiftshader") {
    found = await swiftShader();
  } else {
    found = await namedAdapter(wish);
    // The software adapter of node_modules is not among those that the system lists.
    if (found === undefined && "swiftshader device".includes(word)) found = await swiftShader();
  }
  if (found !== undefined) return found;
  const asked = word === "" ? "no GPU adapter answers" : `no GPU adapter answers to "${wish}"`;
  throw new NoAdapter(`${asked}; ${advice(word)}`);
}

function advice(word: string): string {
  if (process.platform !== "linux") return "update the graphics driver, then run: wgpu-wish doctor";
  if (word === "lavapipe") return "install mesa-vulkan-drivers 25 or newer (npm run setup does as root on Debian)";
  if (word === "" || word === "swiftshader" || word === "software") {
    return "the software adapter comes with `npm ci` (optional packages included) on x64 with glibc 2.34 or newer";
  }
  return "leave the choice out, or ask for gpu, software, lavapipe, swiftshader or a part of an adapter's name";
}

async function request(flags: string[], options: GPURequestAdapterOptions = {}): Promise<Found | undefined> {
  // Dawn rounds timestamps to 65 µs, lest a web page spy by them: more than most kernels take. Matrix units (engine/matrices.ts) are still
  // among what it calls unsafe.
  const own = ["disable-dawn-features=timestamp_quantization", "enable-dawn-features=allow_unsafe_apis"];
  const gpu = create([...flags, ...own]);
  // Kept before the first await: a collected `gpu` is fatal even when it found nothing and only another one has a device.
  kept.wgpuWishKeepsAlive ??= [];
  kept.wgpuWishKeepsAlive.push(gpu);
  const adapter = await gpu.requestAdapter(options);
  return adapter === null ? undefined : { gpu, adapter, name: adapterName(adapter) };
}

function adapterName(adapter: GPUAdapter): string {
  const { device, description, vendor } = adapter.info;
  return device || description || vendor || "unnamed adapter";
}

function isSoftware({ adapter, name }: Found): boolean {
  return adapter.info.isFallbackAdapter === true || /llvmpipe|swiftshader|basic render/i.test(name);
}

const systemAdapter = (): Promise<Found | undefined> => request([], { powerPreference: "high-performance" });

/** WARP on Windows; macOS has none. */
const systemSoftware = (): Promise<Found | undefined> => request([], { forceFallbackAdapter: true });

/**
 * The first adapter whose name holds `part`, upper and lower case alike. Dawn's own filter knows no such kindness, but its
 * refusal lists the names there are.
 */
async function namedAdapter(part: string): Promise<Found | undefined> {
  try {
    return await request([`adapter=${part}`]);
  } catch (error) {
    const names = [...String(error).matchAll(/name: '(.*)'/g)].map((match) => match[1] ?? "");
    const name = names.find((candidate) => candidate.toLowerCase().includes(part.toLowerCase()));
    return name === undefined || name === part ? undefined : await request([`adapter=${name}`]);
  }
}

async function lavapipe(): Promise<Found | undefined> {
  return process.platform === "linux" ? await namedAdapter("llvmpipe") : undefined;
}

async function swiftShader(): Promise<Found | undefined> {
  const folder = swiftShaderFolder();
  if (folder === undefined) return undefined;
  const first = await withSwiftShader(folder, () => namedAdapter("SwiftShader"));
  if (first !== undefined) return first;
  loadBundledLoader(folder);
  return await withSwiftShader(folder, () => namedAdapter("SwiftShader"));
}
