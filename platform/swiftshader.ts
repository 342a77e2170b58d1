/**
 * The software Vulkan that comes with `npm ci`: @sparticuz/chromium carries SwiftShader and a Vulkan loader as
 * bin/swiftshader.tar.br. Nothing of the browser is started; the three files are unpacked once and loaded in process.
 */
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createRequire } from "node:module";
import { homedir, constants as osConstants, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { brotliDecompressSync } from "node:zlib";
import { readTar } from "./tar.ts";

const ICD = "vk_swiftshader_icd.json";
const LOADER = "libvulkan.so.1";
const DRIVER = "libvk_swiftshader.so";

/** The unpacked folder, or undefined where the archive is not installed or is not for this machine. */
export function swiftShaderFolder(): string | undefined {
  if (process.platform !== "linux" || process.arch !== "x64") return undefined;
  const archive = findArchive();
  if (archive === undefined) return undefined;
  for (const parent of cacheParents(archive.modules)) {
    const folder = join(parent, `swiftshader-${archive.version}`);
    if (complete(folder)) return folder;
    if (unpackInto(archive.file, parent, folder)) return folder;
  }
  const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-"));
  process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
  writeArchive(archive.file, folder);
  return folder;
}

/**
 * Runs `open` with Vulkan told to use SwiftShader alone. The variables are put back afterwards, so that neither a child
 * process nor a later choice of another adapter inherits them.
 */
export async function withSwiftShader<T>(folder: string, open: () => Promise<T>): Promise<T> {
  const names = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] as const;
  const before = names.map((name) => process.env[name]);
  for (const name of names) process.env[name] = join(folder, ICD);
  try {
    return await open();
  } finally {
    names.forEach((name, i) => {
      const value = before[i];
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    });
  }
}

/**
 * Loads the archive's own Vulkan loader, for machines that have none. Node says that it is no addon, which is true, but
 * the library stays loaded (NODELETE) and Dawn's dlopen("libvulkan.so.1") then finds it by its SONAME.
 */
export function loadBundledLoader(folder: string): void {
  const RTLD_NODELETE = 0x1000;
  try {
    process.dlopen({ exports: {} }, join(folder, LOADER), osConstants.dlopen.RTLD_NOW | RTLD_NODELETE);
  } catch {
    // Always thrown: "Module did not self-register".
  }
}

function findArchive(): { file: string; version: string; modules: string } | undefined {
  let entry: string;
  try {
    entry = createRequire(import.meta.url).resolve("@sparticuz/chromium");
  } catch {
    return undefined;
  }
  for (let folder = dirname(entry); folder !== dirname(folder); folder = dirname(folder)) {
    const file = join(folder, "bin", "swiftshader.tar.br");
    if (existsSync(file)) {
      const { version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as { version: string };
      return { file, version, modules: dirname(dirname(folder)) };
    }
  }
  return undefined;
}

/** Where the files may be kept, best first. A shared temporary folder is not among them: its content would be run. */
function cacheParents(modules: string): string[] {
  const parents = [join(modules, ".cache", "wgpu-wish"), join(homedir(), ".cache", "wgpu-wish")];
  return parents.filter((parent) => {
    try {
      mkdirSync(parent, { recursive: true });
      accessSync(parent, constants.R_OK);
      return true;
    } catch {
      return false;
    }
  });
}

function complete(folder: string): boolean {
  return [ICD, LOADER, DRIVER].every((name) => existsSync(join(folder, name)));
}

/** Unpacks beside the goal and renames, so that two processes that start at once never see half a folder. */
function unpackInto(archive: string, parent: string, folder: string): boolean {
  let fresh: string | undefined;
  try {
    fresh = mkdtempSync(join(parent, "unpack-"));
    writeArchive(archive, fresh);
    renameSync(fresh, folder);
  } catch {
    if (fresh !== undefined) rmSync(fresh, { recursive: true, force: true });
  }
  return complete(folder);
}

function writeArchive(archive: string, folder: string): void {
  for (const { name, bytes } of readTar(brotliDecompressSync(readFileSync(archive)))) {
    const plain = name.split("/").at(-1) ?? "";
    if ([ICD, LOADER, DRIVER].includes(plain)) writeFileSync(join(folder, plain), bytes, { mode: 0o755 });
  }
}
