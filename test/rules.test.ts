/** Rules of the house as tests, so that no one needs to know that they exist. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { builtinModules } from "node:module";
import { dirname, join, normalize, sep } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { commands } from "../cli/commands.ts";
import { cases } from "../engine/cases/index.ts";
import * as F from "../engine/functional.ts";
import { packageRoot } from "../platform/root.ts";

const test = suite("rules");

/** What each folder may import from, besides itself. index.ts is the library's entry in Node. */
const BELOW: Record<string, readonly string[]> = {
  engine: [],
  platform: ["engine"],
  "index.ts": ["engine", "platform"],
  model: ["engine"],
  train: ["model", "engine", "platform", "index.ts"],
  cli: ["train", "model", "engine", "platform", "index.ts"],
};
/** Layers that run in a browser page as they are. */
const PURE = ["engine", "model"];
const NODE_PACKAGES = ["webgpu", "sharp", "pngjs", "commander", "tsx", "@sparticuz/chromium"];

interface Import {
  from: string;
  to: string;
  typeOnly: boolean;
}

const files = ["index.ts", ...Object.keys(BELOW).filter((layer) => layer !== "index.ts")].flatMap(sourcesIn);
const sources = new Map(files.map((file) => [file, readFileSync(join(packageRoot, file), "utf8")]));
const imports = files.flatMap(importsOf);

function sourcesIn(path: string): string[] {
  if (path.endsWith(".ts")) return [path];
  return readdirSync(join(packageRoot, path), { recursive: true })
    .map((name) => `${path}/${String(name).split(sep).join("/")}`)
    .filter((name) => name.endsWith(".ts") && !name.endsWith(".d.ts"));
}

/** Every import and re-export, dynamic ones and those inside types included. */
function importsOf(from: string): Import[] {
  const text = withoutComments(sources.get(from) ?? "");
  const statements = text.matchAll(/^[ \t]*(import|export)\b([^;"'`]*?)\bfrom\s*["']([^"']+)["']/gm);
  const found = [...statements].map(([, , clause = "", to = ""]) => ({ from, to, typeOnly: isTypeOnly(clause) }));
  for (const [, to = ""] of text.matchAll(/^[ \t]*import\s*["']([^"']+)["']/gm))
    found.push({ from, to, typeOnly: false });
  // A dynamic import runs later than the modules' own code, so it closes no cycle of loading.
  for (const [, to = ""] of text.matchAll(/\bimport\(\s*["'`]([^"'`]+)["'`]\s*\)/g))
    found.push({ from, to, typeOnly: true });
  return found;
}

function withoutComments(text: string): string {
  return text.replace(/\/\*[\s\S]*?\*\//g, "").replace(/(^|\s)\/\/.*$/gm, "$1");
}

function isTypeOnly(clause: string): boolean {
  if (/^\s*type\b/.test(clause)) return true;
  const names = /^\s*\{([^}]*)\}\s*$/.exec(clause)?.[1];
  if (names === undefined) return false;
  return names.split(",").every((name) => name.trim() === "" || name.trim().startsWith("type "));
}

function target({ from, to }: Import): string {
  return normalize(join(dirname(from), to))
    .split(sep)
    .join("/");
}

const layerOf = (file: string): string => file.split("/", 1)[0] ?? "";
const isRelative = ({ to }: Import): boolean => to.startsWith(".");

test("the scan sees the imports", () => {
  assert.ok(imports.some(({ from, to }) => from === "cli/main.ts" && to === "commander"));
  assert.ok(imports.some(({ from, to }) => from === "cli/main.ts" && to === "../index.ts"));
  assert.ok(imports.some(({ from, to }) => from === "cli/commands.ts" && to === "./doctor.ts"));
  assert.ok(imports.some(({ from, to }) => from === "index.ts" && to === "./engine/index.ts"));
});

test("imports run downwards only: cli, train, model, engine", () => {
  const wrong = imports.filter(isRelative).filter((entry) => {
    const [from, to] = [layerOf(entry.from), layerOf(target(entry))];
    return from !== to && !BELOW[from]?.includes(to);
  });
  assert.equal(
    wrong.map(({ from, to }) => `${from} imports ${to}`),
    [],
  );
});

test("relative imports name a file that is there, with its extension", () => {
  const wrong = imports.filter(isRelative).filter((entry) => !existsSync(join(packageRoot, target(entry))));
  assert.equal(
    wrong.map(({ from, to }) => `${from} imports ${to}`),
    [],
  );
});

test("engine and model import nothing from Node", () => {
  const wrong = imports.filter(({ from, to }) => {
    if (!PURE.includes(layerOf(from))) return false;
    return to.startsWith("node:") || builtinModules.includes(to) || NODE_PACKAGES.includes(to);
  });
  assert.equal(
    wrong.map(({ from, to }) => `${from} imports ${to}`),
    [],
  );
});

test("engine and model use no global of Node's", () => {
  const wrong = files.filter(
    (file) =>
      PURE.includes(layerOf(file)) &&
      /\b(process\.(env|argv|std|platform|exit|on)|Buffer\.|require\(|__dirname|import\.meta)/.test(
        withoutComments(sources.get(file) ?? ""),
      ),
  );
  assert.equal(wrong, []);
});

test("the charts' library is loaded when a chart is drawn, not with the program", () => {
  const found = imports.filter(({ to }) => /^vega(-|$)/.test(to));
  assert.ok(found.some(({ from, to }) => from === "train/plot.ts" && to === "vega"));
  assert.equal(
    found.filter(({ typeOnly }) => !typeOnly).map(({ from }) => from),
    [],
  );
});

test("no cycle of imports", () => {
  const graph = new Map<string, string[]>();
  for (const entry of imports) {
    if (isRelative(entry) && !entry.typeOnly) graph.set(entry.from, [...(graph.get(entry.from) ?? []), target(entry)]);
  }
  const done = new Set<string>();
  const cycles: string[] = [];
  const visit = (file: string, path: readonly string[]): void => {
    if (path.includes(file)) {
      cycles.push([...path.slice(path.indexOf(file)), file].join(" -> "));
      return;
    }
    if (done.has(file)) return;
    for (const next of graph.get(file) ?? []) visit(next, [...path, file]);
    done.add(file);
  };
  for (const file of graph.keys()) visit(file, []);
  assert.equal(cycles, []);
});

/** The name stands in quotes in the engine, or its number is left open: `matmul_subgroup${size}`, fours("piece_stats"). */
function isNamed(name: string, text: string): boolean {
  const stem = name.replace(/\d+$/, "");
  return new RegExp(`["'\`](${name}["'\`]|${stem}\\$\\{)|fours\\("${stem}"\\)`).test(text);
}

test("every shader and each of its entry points is used", () => {
  const engine = files
    .filter((file) => layerOf(file) === "engine")
    .map((file) => sources.get(file))
    .join("\n");
  const unused: string[] = [];
  for (const file of readdirSync(join(packageRoot, "shaders"))) {
    const shader = file.replace(/\.wgsl$/, "");
    if (!isNamed(shader, engine)) unused.push(file);
    const entries = readFileSync(join(packageRoot, "shaders", file), "utf8").matchAll(/@compute[^{;]*?\bfn\s+(\w+)/g);
    for (const [, entry = ""] of entries) if (!isNamed(entry, engine)) unused.push(`${file}: ${entry}`);
  }
  assert.equal(unused, []);
});

test("every function of F has a case for gradcheck", () => {
  const without = Object.keys(F).filter((name) => (cases[name]?.length ?? 0) === 0);
  assert.equal(without, []);
});

test("every case belongs to a function of F", () => {
  assert.equal(
    Object.keys(cases).filter((name) => !Object.hasOwn(F, name)),
    [],
  );
});

test("every command has a summary, an example that names it, and code", () => {
  for (const { name, summary, examples, load } of commands) {
    assert.ok(summary.length > 0, name);
    assert.ok(
      examples.some((line) => line.startsWith(`wgpu-wish ${name}`)),
      `${name}: no example`,
    );
    assert.type(load, "function", `${name}: there is no code to load`);
  }
});

test.run();
