/**
 * Settings from a YAML file, changed by key=value, checked by a schema and frozen: the machinery, which knows no setting by name.
 */
import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { parse as parseYaml, stringify } from "yaml";
import { z } from "zod";
import { BadInput } from "./errors.ts";

/**
 * Reads a YAML file, applies `key=value` settings, checks everything. Throws BadInput naming where the problem comes from, the file or one
 * of the settings, and the key. `extends: OTHER.yaml` in a file takes the other one's settings where it has none of its own.
 */
export function readSettings<T extends z.ZodObject>(
  schema: T,
  path: string,
  settings: readonly string[] = [],
): z.infer<T> {
  return resolveSettings(schema, readExtended(path, []), settings, path);
}

/** @param above the files that led here */
function readExtended(path: string, above: readonly string[]): unknown {
  const input = readYaml(path);
  if (!isRecord(input) || input.extends === undefined) return input;
  const { extends: other, ...own } = input;
  if (typeof other !== "string") throw new BadInput(`${path}: extends: must name a YAML file; got ${shown(other)}`);
  const base = join(dirname(path), other);
  const files = [...above, resolve(path)];
  if (files.includes(resolve(base))) throw new BadInput(`${path}: extends: ${other} leads back to itself`);
  const from = readExtended(base, files);
  return isRecord(from) ? merged(from, own) : own;
}

/** Sections are taken together; of everything else the own one counts. */
function merged(base: Record<string, unknown>, own: Record<string, unknown>): Record<string, unknown> {
  const together = Object.entries(own).map(([key, value]) => {
    const below = Object.hasOwn(base, key) ? base[key] : undefined;
    return [key, isRecord(below) && isRecord(value) ? merged(below, value) : value];
  });
  return { ...base, ...Object.fromEntries(together) };
}

function readYaml(path: string): unknown {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (cause) {
    throw new BadInput(
      `${path}: ${(cause as NodeJS.ErrnoException).code === "ENOENT" ? "there is no such file" : (cause as Error).message}`,
    );
  }
  try {
    return parseYaml(text, { maxAliasCount: 0 }) ?? {};
  } catch (cause) {
    throw new BadInput(`${path}: is not YAML: ${(cause as Error).message.split("\n")[0]}`);
  }
}

/** Checks settings given as an object. `name` stands in the errors about it; those about a setting name that. */
export function resolveSettings<T extends z.ZodObject>(
  schema: T,
  input: unknown,
  settings: readonly string[] = [],
  name = "config",
): z.infer<T> {
  if (!isRecord(input))
    throw new BadInput(`${name}: must hold settings by name; got ${Array.isArray(input) ? "a list" : typeof input}`);
  const changed = structuredClone(input);
  for (const setting of settings) apply(changed, setting);
  const [problem] = problemsOf(schema, changed);
  if (problem !== undefined) throw new BadInput(`${sourceOf(problem, schema, input, settings) ?? name}: ${problem}`);
  return freeze(schema.parse(changed));
}

/** The setting that brings a problem in; undefined where it was there without any. */
function sourceOf(
  problem: string,
  schema: z.ZodObject,
  input: Record<string, unknown>,
  settings: readonly string[],
): string | undefined {
  const changed = structuredClone(input);
  let source: string | undefined;
  let there = problemsOf(schema, changed).includes(problem);
  for (const setting of settings) {
    const before = there;
    apply(changed, setting);
    there = problemsOf(schema, changed).includes(problem);
    if (there && !before) source = setting;
  }
  return source;
}

/** All that is wrong with settings, a line each. */
function problemsOf(schema: z.ZodObject, input: Record<string, unknown>): string[] {
  const issues = schema.safeParse(input).error?.issues ?? [];
  return [
    ...unknownKeys(schema, schema, input, ""),
    ...issues.map(({ path, message }) => `${path.join(".") || "the settings"}: ${message}${given(input, path)}`),
  ];
}

/**
 * Refuses to go on with other settings than a run was started with.
 * @param fixed the settings that must stay, or the sections of them @param name stands in the errors
 */
export function refuseChanges(
  before: object,
  now: object,
  fixed: readonly string[],
  name: string,
  another = "another run with run=DIR",
): void {
  for (const { key, was, is } of changes(before, now, fixed))
    throw new BadInput(
      `${name}: ${key} cannot change when a run goes on: it was started with ${was}, now it is ${is}; leave it as it was, or start ${another}`,
    );
}

/** Of settings, or all that stand in sections, those that are other ones now. */
export function changes(
  before: object,
  now: object,
  among: readonly string[],
): { key: string; was: string; is: string }[] {
  const [old, given] = [leaves(before), leaves(now)];
  return [...new Set([...old.keys(), ...given.keys()])]
    .filter((key) => among.some((part) => key === part || key.startsWith(`${part}.`)))
    .map((key) => ({ key, was: shown(old.get(key)), is: shown(given.get(key)) }))
    .filter(({ was, is }) => was !== is);
}

/** Each setting by its dotted key; a list is one setting. */
function leaves(value: object, prefix = ""): Map<string, unknown> {
  return new Map(
    Object.entries(value).flatMap(([key, inner]): [string, unknown][] =>
      isRecord(inner) ? [...leaves(inner, `${prefix}${key}.`)] : [[prefix + key, inner]],
    ),
  );
}

export function configText(config: object): string {
  return stringify(config, { flowCollectionPadding: false });
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** `a.b=value`, the value in YAML's notation: 1e-4, true, [0.5, 2], name. */
function apply(target: Record<string, unknown>, setting: string): void {
  const at = setting.indexOf("=");
  if (at < 1) throw new BadInput(`${setting}: a setting is key=value, such as optim.lr=1e-4`);
  const path = setting.slice(0, at).split(".");
  if (path.includes("__proto__")) throw new BadInput(`${setting}: there is no such setting`);
  let value: unknown;
  try {
    // Nothing after the sign is an empty text: `val.annotations=` switches a file off.
    const text = setting.slice(at + 1);
    value = text === "" ? "" : parseYaml(text, { maxAliasCount: 0 });
  } catch (cause) {
    throw new BadInput(`${setting}: the value is not YAML: ${(cause as Error).message.split("\n")[0]}`);
  }
  let node = target;
  for (const key of path.slice(0, -1)) {
    const next = Object.hasOwn(node, key) ? node[key] : undefined;
    node = isRecord(next) ? next : ((node[key] = {}) as Record<string, unknown>);
  }
  node[path.at(-1)!] = value;
}

/** The object behind defaults and optionals; undefined where the schema is no object of settings. */
export function objectIn(schema: z.ZodType): z.ZodObject | undefined {
  let inner: unknown = schema;
  while (inner instanceof z.ZodDefault || inner instanceof z.ZodPrefault || inner instanceof z.ZodOptional)
    inner = inner.unwrap();
  return inner instanceof z.ZodObject ? inner : undefined;
}

/** Every setting's dotted key. */
function keysOf(schema: z.ZodObject, prefix: string): string[] {
  return Object.entries(schema.shape).flatMap(([key, field]) => {
    const inner = objectIn(field as z.ZodType);
    return inner ? keysOf(inner, `${prefix}${key}.`) : [prefix + key];
  });
}

/** What each key that the schema does not know is told. */
function unknownKeys(
  whole: z.ZodObject,
  schema: z.ZodObject,
  input: Record<string, unknown>,
  prefix: string,
): string[] {
  return Object.entries(input).flatMap(([key, value]) => {
    const field = Object.hasOwn(schema.shape, key) ? (schema.shape[key] as z.ZodType) : undefined;
    if (!field) {
      const known = keysOf(whole, "");
      const siblings = Object.keys(schema.shape).map((k) => prefix + k);
      return `there is no setting "${prefix}${key}"; did you mean "${nearest(prefix + key, [...siblings, ...known])}"?`;
    }
    const inner = objectIn(field);
    return inner && isRecord(value) ? unknownKeys(whole, inner, value, `${prefix}${key}.`) : [];
  });
}

function given(input: unknown, path: readonly PropertyKey[]): string {
  let value = input;
  for (const key of path)
    value = isRecord(value) || Array.isArray(value) ? (value as Record<PropertyKey, unknown>)[key] : undefined;
  return value === undefined ? "" : `; got ${shown(value)}`;
}

/** As JSON, but for what JSON has no word for: NaN and infinity. */
function shown(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(shown).join(", ")}]`;
  return typeof value === "number" ? String(value) : (JSON.stringify(value) ?? "nothing");
}

function nearest(word: string, words: readonly string[]): string {
  return words
    .map((candidate) => ({ candidate, far: distance(word, candidate) }))
    .reduce((a, b) => (b.far < a.far ? b : a)).candidate;
}

/** Levenshtein's. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++)
      next.push(Math.min(next[j - 1]! + 1, row[j]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)));
    row = next;
  }
  return row[b.length]!;
}

function freeze<T>(value: T): T {
  if (typeof value === "object" && value !== null) {
    for (const inner of Object.values(value)) freeze(inner);
    Object.freeze(value);
  }
  return value;
}
