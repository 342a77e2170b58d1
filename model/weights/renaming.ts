// Names in other people's files <-> ours, by tables. A table is read both ways, so that errors can call a tensor what its file calls it.
import { type Device, F, type nn, scope, type Tensor } from "../../engine/index.ts";
import { fileNumbers } from "../../engine/safetensors.ts";
import { checkWeightType, compareTensors, describeDifference, type Shapes } from "./compare.ts";
import { CheckpointError, type HostTensor } from "./tensors.ts";

/**
 * Theirs and ours: `#` stands for a number, `*` for the rest of the name, in the same order on both sides. Several names of theirs are the
 * parts of one tensor of ours, one after the other along its first dimension. The whole name must match; the first rule that does counts.
 */
export type Rule = readonly [theirs: string | readonly string[], ours: string];

/** Rules for the same names below other ones. */
export function below(theirs: string, ours: string, rules: readonly Rule[]): Rule[] {
  return rules.map(([from, to]) => [
    typeof from === "string" ? theirs + from : from.map((part) => theirs + part),
    ours + to,
  ]);
}

interface Compiled {
  theirs: readonly string[];
  theirPatterns: readonly RegExp[];
  ours: string;
  ourPattern: RegExp;
}

const pattern = (template: string): RegExp =>
  new RegExp(`^${template.replaceAll(".", "\\.").replaceAll("#", "(\\d+)").replaceAll("*", "(.+)")}$`);

function fill(template: string, values: readonly string[]): string {
  let at = 0;
  return template.replaceAll(/[#*]/g, () => values[at++] ?? "");
}

function compile([from, ours]: Rule): Compiled {
  const theirs = typeof from === "string" ? [from] : from;
  return { theirs, theirPatterns: theirs.map(pattern), ours, ourPattern: pattern(ours) };
}

/** A file's keys, sorted by what they are called here. */
export interface Named {
  /** Our name -> the file's keys that make it up; undefined where the file lacks a part. */
  readonly parts: ReadonlyMap<string, readonly (string | undefined)[]>;
  /** What a file of this kind calls a tensor of ours. */
  theirs(name: string): readonly string[];
}

/** Keys under the one of several tables that gives the most of them a name that is known here; the first of equals. */
export function nameKeys(
  keys: readonly string[],
  tables: readonly (readonly Rule[])[],
  known: (name: string) => boolean,
): Named {
  let best = { table: [] as Compiled[], count: -1 };
  for (const rules of tables) {
    const table = rules.map(compile);
    const count = keys.filter((key) => known(ourName(key, table)[0])).length;
    if (count > best.count) best = { table, count };
  }
  return namedBy(keys, best.table);
}

/** A key that no rule knows keeps its name, so that loading reports it. */
function namedBy(keys: readonly string[], table: readonly Compiled[]): Named {
  const parts = new Map<string, (string | undefined)[]>();
  for (const key of keys) {
    const [name, part, count] = ourName(key, table);
    const slots = parts.get(name) ?? new Array<string | undefined>(count).fill(undefined);
    if (slots[part] !== undefined) throw new CheckpointError(`${slots[part]} and ${key} both mean ${name}`);
    slots[part] = key;
    parts.set(name, slots);
  }
  return { parts, theirs: (name) => theirNames(name, table) };
}

/** A table alone, for names that are no parts of others; without a rule a name stays. */
export function bothWays(rules: readonly Rule[]): { ours(key: string): string; theirs(name: string): string } {
  const table = rules.map(compile);
  return { ours: (key) => ourName(key, table)[0], theirs: (name) => theirNames(name, table)[0]! };
}

function theirNames(name: string, table: readonly Compiled[]): readonly string[] {
  for (const rule of table) {
    const match = rule.ourPattern.exec(name);
    if (match) return rule.theirs.map((template) => fill(template, match.slice(1)));
  }
  return [name];
}

function ourName(key: string, table: readonly Compiled[]): [name: string, part: number, parts: number] {
  for (const { theirPatterns, ours } of table) {
    for (const [part, regex] of theirPatterns.entries()) {
      const match = regex.exec(key);
      if (match) return [fill(ours, match.slice(1)), part, theirPatterns.length];
    }
  }
  return [key, 0, 1];
}

/** On the device, or as a file holds it. */
export type Source = Tensor | HostTensor;

/** Our names with their shapes; parts that are there count as whole. */
export function shapesOf({ parts }: Named, state: Shapes): Shapes {
  const shapes = new Map<string, { shape: readonly number[] }>();
  for (const [name, keys] of parts) {
    const [first, ...rest] = state.get(keys.find((key) => key !== undefined)!)!.shape;
    shapes.set(name, { shape: first === undefined ? [] : [first * keys.length, ...rest] });
  }
  return shapes;
}

/** Shapes of tensors of ours under the keys that the file has, or would have, for them. */
export function theirShapes(named: Named, ours: Shapes): Shapes {
  const shapes = new Map<string, { shape: readonly number[] }>();
  for (const [name, { shape }] of ours) {
    const theirs = named.theirs(name);
    const keys = named.parts.get(name)?.map((key, i) => key ?? theirs[i]!) ?? theirs;
    const [rows, ...rest] = shape;
    for (const key of keys) shapes.set(key, { shape: rows === undefined ? [] : [rows / keys.length, ...rest] });
  }
  return shapes;
}

interface NamedOptions {
  what?: string;
  /** Names of ours that may be missing and then stay as they are. */
  optional?: RegExp;
}

/** Throws CheckpointError with the names that the file uses where a tensor of the module is missing, unexpected or misshaped. */
export function checkNamed(
  own: Shapes,
  named: Named,
  state: ReadonlyMap<string, Source>,
  { what = "model", optional }: NamedOptions = {},
): void {
  const needed = [...own].filter(([name]) => named.parts.has(name) || !optional?.test(name));
  const expected = theirShapes(named, new Map(needed));
  const given = new Map(
    [...named.parts.values()]
      .flatMap((keys) => keys.flatMap((key) => (key ? [key] : [])))
      .map((key) => [key, state.get(key)!]),
  );
  const difference = describeDifference(compareTensors(expected, given));
  if (difference) throw new CheckpointError(`the weights do not fit the ${what}: ${difference}`);
  for (const [key, { dtype }] of given) checkWeightType(key, dtype);
}

/** Copies a file's tensors into a module, one at a time, so that memory holds the model once. They are checked before. */
export function loadNamed(
  module: nn.Module,
  named: Named,
  state: ReadonlyMap<string, Source>,
  options: NamedOptions = {},
): void {
  const own = module.stateDict();
  checkNamed(own, named, state, options);
  for (const [name, x] of own) {
    const keys = named.parts.get(name);
    if (!keys) continue;
    scope(() => {
      const tensors = keys.map((key) => onDevice(x.device, state.get(key!)!, key!));
      const whole = tensors.length === 1 ? tensors[0]! : F.cat(tensors, 0);
      module.loadStateDict(new Map([[name, whole]]), { strict: false });
    });
  }
}

export function onDevice(gpu: Device, source: Source, key: string): Tensor {
  return "data" in source ? gpu.tensor(fileNumbers(source, key), source.shape) : source;
}
