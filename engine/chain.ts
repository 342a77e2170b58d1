/**
 * The kernel of a chain of pointwise operations: its WGSL, written out of the rows' texts into shaders/pointwise.wgsl, and its dispatch.
 */
import type { Device } from "./device.ts";
import { type Bound, defineSource, linearGroups, run } from "./kernel.ts";
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
  readonly inputs: ReadonlyMap<Slot, number | Leaf | Chain>;
  /** Its numbers, where another kernel has worked them out. */
  readonly known: Storage | undefined;
}

export const isLeaf = (input: number | Leaf | Chain): input is Leaf => typeof input === "object" && "storage" in input;

/** Leaves that are broadcast or strided, of which the uniforms describe so many, and numbers. */
export const MOST_STRIDED = 4;
export const MOST_NUMBERS = 16;

interface PlannedLeaf extends Leaf {
  /** Which of the strided walks it takes; undefined: it lies like y. */
  walk: number | undefined;
}

interface Plan {
  /** Lines of WGSL that end with the bits of y. */
  body: string;
  /** Short, for people. */
  label: string;
  leaves: PlannedLeaf[];
  numbers: number[];
}

const VECTOR: Record<DType, string> = { f32: "vec4f", i32: "vec4i", u32: "vec4u", bool: "vec4<bool>", f16: "vec4f" };

/** Writes out a chain and all that it takes in, each once. */
export function planOf(root: Chain): Plan {
  const leaves: PlannedLeaf[] = [];
  const numbers: number[] = [];
  const lines: string[] = [];
  const names: string[] = [];
  const values = new Map<Chain, string>();
  const places = new Map<string, string>();
  const n = sizeOf(root.shape);

  const leafOf = (leaf: Leaf): string => {
    const flat = sizeOf(leaf.shape) === n;
    const key = `${leaf.storage.id} ${leaf.dtype} ${flat ? "" : leaf.shape.join()}`;
    let name = places.get(key);
    if (name !== undefined) return name;
    const walk = flat ? undefined : leaves.filter((other) => other.walk !== undefined).length;
    const k = leaves.push({ ...leaf, walk }) - 1;
    name = `l${k}`;
    places.set(key, name);
    const bits = walk === undefined ? `flat_x${k}(i)` : `strided_x${k}(i, ${walk}u)`;
    lines.push(
      `let ${name} = ${leaf.dtype === "f32" ? `bitcast<vec4f>(${bits})` : leaf.dtype === "i32" ? `bitcast<vec4i>(${bits})` : bits};`,
    );
    return name;
  };
  const numberOf = (v: number, whole: Whole | undefined): string => {
    const k = numbers.push(bitsOf(v, whole)) - 1;
    const bits = `vec4u(params.numbers[${k >> 2}][${k & 3}])`;
    return `bitcast<${VECTOR[whole ?? "f32"]}>(${bits})`;
  };
  const valueFor = (chain: Chain): string => {
    const known = values.get(chain);
    if (known !== undefined) return known;
    const { row, inputs } = chain;
    const type = VECTOR[row.whole ?? "f32"];
    const operand = (slot: Slot): string => {
      const input = inputs.get(slot)!;
      if (typeof input === "number") return numberOf(input, row.whole);
      if (isLeaf(input)) {
        const name = leafOf(input);
        // Truth values are stored as whole numbers, which is what they are loaded as.
        const loaded = input.dtype === "bool" ? "u32" : input.dtype;
        return loaded === (row.whole ?? "f32") ? name : `${type}(${name})`;
      }
      const name = input.known
        ? leafOf({ storage: input.known, shape: root.shape, dtype: input.row.dtype })
        : valueFor(input);
      const loaded = input.known && input.row.dtype === "bool" ? "u32" : input.row.dtype;
      return loaded === (row.whole ?? "f32") ? name : `${type}(${name})`;
    };
    const used = new Map<string, string>();
    const text = row.expression.replace(/\b([abcg])\b(?![_(])/g, (slot) => {
      if (!used.has(slot)) used.set(slot, operand(slot as Slot));
      return used.get(slot)!;
    });
    const name = `v${values.size}`;
    values.set(chain, name);
    lines.push(`let ${name} = ${text};`);
    names.push(row.name);
    return name;
  };
  const last = valueFor(root);
  lines.push(`return ${root.row.dtype === "bool" ? `vec4u(${last})` : `bitcast<vec4u>(${last})`};`);
  const label =
    names.length > 4 ? `${names.slice(0, 2).join("+")}+…+${names.at(-1)} (${names.length})` : names.join("+");
  return { body: lines.join("\n  "), label, leaves, numbers };
}

const scratch = new DataView(new ArrayBuffer(4));
/** The 32 bits of a number, rounded to f32 or whole. */
function bitsOf(v: number, whole: Whole | undefined): number {
  if (whole) return v >>> 0;
  scratch.setFloat32(0, v);
  return scratch.getUint32(0);
}

/** The shader's text: its one operand as many times as there are leaves, and the body in the place of the row. */
function sourceOf({ body, leaves }: Plan): string {
  const text = platform().shader("pointwise");
  const block = text.match(/\/\/ <operand>\n([\s\S]*?)\/\/ <\/operand>\n/)![1]!;
  const operands = leaves.map((_, k) => block.replaceAll("x0", `x${k}`).replace("@binding(2)", `@binding(${2 + k})`));
  return text
    .replace(/\/\/ <operand>\n[\s\S]*?\/\/ <\/operand>\n/, operands.join("\n"))
    .replace(/\/\/ <row>[\s\S]*\/\/ <\/row>/, body);
}

export function dispatch(device: Device, plan: Plan, y: Bound): void {
  const { leaves, numbers } = plan;
  const name = `pointwise ${plan.label}`;
  // Chains of one label differ in what feeds what.
  const source = uniqueSource(name, plan);
  const strided = leaves.filter(({ walk }) => walk !== undefined);
  const walk = collapse(
    y.shape,
    Array.from({ length: MOST_STRIDED }, (_, k) =>
      strided[k] ? broadcastStrides(strided[k].shape, y.shape) : y.shape.map(() => 0),
    ),
  );
  const last = walk.shape.length - 1;
  const vectors =
    last >= 0 &&
    walk.shape[last]! % 4 === 0 &&
    walk.strides.every(
      (own) => own[last]! === 0 || (own[last] === 1 && own.every((stride, d) => d === last || stride % 4 === 0)),
    );
  const bind: Record<string, Bound> = { y };
  for (const [k, { storage, shape, dtype }] of leaves.entries())
    bind[`x${k}`] = { storage, shape, dtype, size: sizeOf(shape), freed: false };
  run(device, source, "forward", {
    bind,
    params: {
      n: y.size,
      rank: strided.length > 0 ? walk.shape.length : 0,
      vectors: vectors ? 1 : 0,
      numbers,
      shape: strided.length > 0 ? walk.shape : [],
      strides: strided.length > 0 ? walk.shape.flatMap((_, d) => walk.strides.map((own) => own[d]!)) : [],
    },
    groups: linearGroups(Math.ceil(y.size / 256)),
  });
}

const bodies = new Map<string, string>();
const labels = new Map<string, number>();

/** A name for the source: the label, and a number where another chain has it. */
function uniqueSource(label: string, plan: Plan): string {
  const known = bodies.get(plan.body);
  if (known !== undefined) return known;
  const count = (labels.get(label) ?? 0) + 1;
  labels.set(label, count);
  const name = count === 1 ? label : `${label} #${count}`;
  bodies.set(plan.body, name);
  defineSource(name, () => sourceOf(plan));
  return name;
}
