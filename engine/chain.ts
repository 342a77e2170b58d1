/**
 * The kernel of a chain of pointwise operations: its WGSL, written out of the rows' texts into shaders/pointwise.wgsl, and its dispatch; alone,
 * or around a reduction: one chain before it, one after it.
 */
import type { Device } from "./device.ts";
import { type Bound, defineSource, linearGroups, type Params, run } from "./kernel.ts";
import { platform } from "./platform.ts";
import type { Storage } from "./pool.ts";
import { broadcastStrides, collapse, type Shape, sizeOf } from "./shape.ts";
import type { DType } from "./tensor.ts";

export type Whole = "i32" | "u32";
export type Slot = "a" | "b" | "c" | "g";
export const SLOTS: readonly Slot[] = ["a", "b", "c", "g"];

/** A text of WGSL under the name that it always has. */
export interface PointwiseRow {
  name: string;
  expression: string;
  /** What comes of it. */
  dtype: DType;
  /** Operands are taken for whole numbers of this type; else for f32. */
  whole?: Whole | undefined;
}

/** A buffer that an expression reads. */
export interface Leaf {
  storage: Storage;
  shape: Shape;
  dtype: DType;
}

/** An expression as a kernel sees it. */
export interface Chain {
  readonly row: PointwiseRow;
  readonly shape: Shape;
  readonly operands: ReadonlyMap<Slot, number | Leaf | Chain | Reduced>;
  /** Its numbers, where another kernel has worked them out. */
  readonly known: Storage | undefined;
}

/** x (outer, r, inner) folded to (outer, pieces, inner), `piece` of r each: kind 0 is the sum, times `scale`, 1 the maximum, 2 the minimum. */
export interface Fold {
  outer: number;
  r: number;
  inner: number;
  pieces: number;
  piece: number;
  kind: number;
  scale: number;
}

/** A reduction as a kernel sees it. */
export interface Reduced {
  readonly fold: Fold;
  readonly source: Leaf | Chain;
  readonly shape: Shape;
  readonly known: Storage | undefined;
}

export const isLeaf = (input: number | Leaf | Chain | Reduced): input is Leaf =>
  typeof input === "object" && "storage" in input;
export const isReduced = (input: number | Leaf | Chain | Reduced): input is Reduced =>
  typeof input === "object" && "fold" in input;

/** Leaves that are broadcast or strided, of which the uniforms describe so many, and numbers. */
export const MOST_STRIDED = 4;
export const MOST_NUMBERS = 12;

interface PlannedLeaf extends Leaf {
  /** Which of the strided walks it takes; undefined: it lies like y. */
  walk: number | undefined;
}

/** What a kernel reads: buffers and numbers, each once, for all of its chains. */
class Plan {
  readonly leaves: PlannedLeaf[] = [];
  readonly numbers: number[] = [];
  readonly names: string[] = [];
  readonly #places = new Map<string, number>();

  leafAt(leaf: Leaf, n: number): number {
    const flat = sizeOf(leaf.shape) === n;
    const key = `${leaf.storage.id} ${leaf.dtype} ${flat ? `flat of ${n}` : leaf.shape.join()}`;
    let k = this.#places.get(key);
    if (k === undefined) {
      const walk = flat ? undefined : this.leaves.filter((other) => other.walk !== undefined).length;
      k = this.leaves.push({ ...leaf, walk }) - 1;
      this.#places.set(key, k);
    }
    return k;
  }

  number(v: number, whole: Whole | undefined): string {
    const k = this.numbers.push(bitsOf(v, whole)) - 1;
    const bits = `vec4u(params.numbers[${k >> 2}][${k & 3}])`;
    return `bitcast<${VECTOR[whole ?? "f32"]}>(${bits})`;
  }

  /** Short, for people. */
  get label(): string {
    const { names } = this;
    return names.length > 4 ? `${names.slice(0, 2).join("+")}+…+${names.at(-1)} (${names.length})` : names.join("+");
  }
}

const VECTOR: Record<DType, string> = { f32: "vec4f", i32: "vec4i", u32: "vec4u", bool: "vec4<bool>", f16: "vec4f" };

/** Lines of WGSL that work out a chain and all that it takes in, each once, and return its bits. `r` is the value of `reduced`. */
function bodyOf(root: Chain, plan: Plan, reduced?: Reduced): string {
  const lines: string[] = [];
  const values = new Map<Chain, string>();
  const loaded = new Set<string>();
  const n = sizeOf(root.shape);

  const leafOf = (leaf: Leaf): string => {
    const k = plan.leafAt(leaf, n);
    const name = `l${k}`;
    if (loaded.has(name)) return name;
    loaded.add(name);
    const { walk } = plan.leaves[k]!;
    const bits = walk === undefined ? `flat_x${k}(i)` : `strided_x${k}(i, ${walk}u)`;
    lines.push(
      `let ${name} = ${leaf.dtype === "f32" ? `bitcast<vec4f>(${bits})` : leaf.dtype === "i32" ? `bitcast<vec4i>(${bits})` : bits};`,
    );
    return name;
  };
  /** Its name and the type that it has there: truth values are stored as whole numbers, which is what they are loaded as. */
  const place = (input: Leaf | Chain | Reduced): [string, DType] => {
    if (isLeaf(input)) return [leafOf(input), input.dtype === "bool" ? "u32" : input.dtype];
    const dtype = isReduced(input) ? "f32" : input.row.dtype;
    if (input.known) return place({ storage: input.known, shape: root.shape, dtype });
    if (!isReduced(input)) return [valueFor(input), dtype];
    if (input !== reduced) throw new Error("fusion: a kernel finishes one reduction");
    return ["r", "f32"];
  };
  const valueFor = (chain: Chain): string => {
    const known = values.get(chain);
    if (known !== undefined) return known;
    const { row, operands } = chain;
    const operand = (slot: Slot): string => {
      const input = operands.get(slot)!;
      if (typeof input === "number") return plan.number(input, row.whole);
      const [name, dtype] = place(input);
      return dtype === (row.whole ?? "f32") ? name : `${VECTOR[row.whole ?? "f32"]}(${name})`;
    };
    const used = new Map<string, string>();
    const text = row.expression.replace(/\b([abcg])\b(?![_(])/g, (slot) => {
      if (!used.has(slot)) used.set(slot, operand(slot as Slot));
      return used.get(slot)!;
    });
    const name = `v${values.size}`;
    values.set(chain, name);
    lines.push(`let ${name} = ${text};`);
    plan.names.push(row.name);
    return name;
  };
  const last = valueFor(root);
  lines.push(`return ${root.row.dtype === "bool" ? `vec4u(${last})` : `bitcast<vec4u>(${last})`};`);
  return lines.join("\n  ");
}

const scratch = new DataView(new ArrayBuffer(4));
/** The 32 bits of a number, rounded to f32 or whole. */
function bitsOf(v: number, whole: Whole | undefined): number {
  if (whole) return v >>> 0;
  scratch.setFloat32(0, v);
  return scratch.getUint32(0);
}

/** The shader's text: its one operand as many times as there are leaves, and the bodies in their places. */
function sourceOf(plan: Plan, row: string, after: string | undefined): string {
  const text = platform().shader("pointwise");
  const block = text.match(/\/\/ <operand>\n([\s\S]*?)\/\/ <\/operand>\n/)![1]!;
  const operands = plan.leaves.map((_, k) =>
    block.replaceAll("x0", `x${k}`).replace("@binding(2)", `@binding(${2 + k})`),
  );
  const whole = text
    .replace(/\/\/ <operand>\n[\s\S]*?\/\/ <\/operand>\n/, operands.join("\n"))
    .replace(/\/\/ <row>[\s\S]*\/\/ <\/row>/, row);
  // Without a chain after the reduction its values are the result.
  if (after === undefined) return whole.replace(/ *\/\/ <kept>[\s\S]*?\/\/ <\/kept>\n/g, "");
  return whole.replace(/\/\/ <after>[\s\S]*\/\/ <\/after>/, after);
}

/** The operands' bindings, and the parameters of their walk over `shape`. */
function operandsOf({ leaves, numbers }: Plan, shape: Shape): { bind: Record<string, Bound>; params: Params } {
  const strided = leaves.filter(({ walk }) => walk !== undefined);
  const walk = collapse(
    shape,
    Array.from({ length: MOST_STRIDED }, (_, k) =>
      strided[k] ? broadcastStrides(strided[k].shape, shape) : shape.map(() => 0),
    ),
  );
  const last = walk.shape.length - 1;
  const vectors =
    last >= 0 &&
    walk.shape[last]! % 4 === 0 &&
    walk.strides.every(
      (own) => own[last]! === 0 || (own[last] === 1 && own.every((stride, d) => d === last || stride % 4 === 0)),
    );
  const bind: Record<string, Bound> = {};
  for (const [k, { storage, shape, dtype }] of leaves.entries())
    bind[`x${k}`] = { storage, shape, dtype, size: sizeOf(shape), freed: false };
  const params = {
    n: sizeOf(shape),
    rank: strided.length > 0 ? walk.shape.length : 0,
    vectors: vectors ? 1 : 0,
    numbers,
    shape: strided.length > 0 ? walk.shape : [],
    strides: strided.length > 0 ? walk.shape.flatMap((_, d) => walk.strides.map((own) => own[d]!)) : [],
  };
  return { bind, params };
}

const NO_FOLD = { outer: 0, r: 0, inner: 0, pieces: 0, piece: 0, scale: 0 };

/** Works out a chain. */
export function dispatch(device: Device, chain: Chain, y: Bound): void {
  const plan = new Plan();
  const body = bodyOf(chain, plan);
  const { bind, params } = operandsOf(plan, y.shape);
  run(
    device,
    uniqueSource(`pointwise ${plan.label}`, body, () => sourceOf(plan, body, undefined)),
    "forward",
    {
      bind: { y, ...bind },
      params: { ...params, ...NO_FOLD },
      groups: linearGroups(Math.ceil(y.size / 256)),
    },
  );
}

const FOLDS = ["sum", "max", "min"];

/** A chain of nothing but a buffer. */
function identity(source: Leaf | Chain): Chain {
  const row = { name: "read", expression: "a", dtype: "f32" } as const;
  return { row, shape: source.shape, operands: new Map([["a" as const, source]]), known: undefined };
}

/** Folds a chain's values into y. With `after`, whose one reduction this is, y takes what follows it and `kept` the folded values. */
export function foldChain(device: Device, reduced: Reduced, y: Bound, after?: { chain: Chain; kept: Bound }): void {
  const { fold, source } = reduced;
  const { outer, inner, pieces, kind } = fold;
  const plan = new Plan();
  const chain = isLeaf(source) || source.known ? identity(source) : source;
  const body = bodyOf(chain, plan);
  plan.names.push(FOLDS[kind]!);
  const tail = after && bodyOf(after.chain, plan, reduced);
  const { bind, params } = operandsOf(plan, chain.shape);
  const name = uniqueSource(`reduce ${plan.label}`, `${body} | ${tail}`, () => sourceOf(plan, body, tail));
  const rows = inner === 1;
  const { kind: _, ...sizes } = fold;
  run(device, name, rows ? "reduce_rows" : "reduce_columns", {
    bind: {
      [rows ? "y_single" : "y"]: y,
      ...(after && { [rows ? "reduced_single" : "reduced"]: after.kept }),
      ...bind,
    },
    params: { ...params, ...sizes },
    constants: { KIND: kind },
    groups: linearGroups(Math.ceil((outer * pieces * (rows ? 1 : inner / 4)) / 64)),
  });
}

const bodies = new Map<string, string>();
const labels = new Map<string, number>();

/** A name for the source: the label, and a number where another text has it. */
function uniqueSource(label: string, body: string, source: () => string): string {
  const known = bodies.get(body);
  if (known !== undefined) return known;
  const count = (labels.get(label) ?? 0) + 1;
  labels.set(label, count);
  const name = count === 1 ? label : `${label} #${count}`;
  bodies.set(body, name);
  defineSource(name, source);
  return name;
}
