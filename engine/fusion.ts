/**
 * Pointwise operations are not run when they are called: each makes an Expression, and what is computed at last, when something else needs
 * the numbers, is a whole chain of them in one kernel. Intermediate results that nothing but pointwise operations uses are never stored; the
 * backward pass computes them again inside its own kernels. Expressions hold on to the buffers that they read, so that freeing a tensor or a
 * scope's end takes nothing away from them, and they are computed before such a buffer is overwritten.
 *
 * What this file does not know: which operations there are. A row is a text of WGSL over `a`, `b`, `c`, `g`.
 */
import type { Device } from "./device.ts";
import { type Bound, defineSource, linearGroups, run } from "./kernel.ts";
import { platform } from "./platform.ts";
import type { Storage } from "./pool.ts";
import { broadcastStrides, collapse, type Shape, sameShape, sizeOf } from "./shape.ts";
import { BYTES, type DType, empty, type Pending, pendingTensor, Tensor } from "./tensor.ts";

export type Whole = "i32" | "u32";
export type Slot = "a" | "b" | "c" | "g";
export const SLOTS: readonly Slot[] = ["a", "b", "c", "g"];
export type Operand = Tensor | number;

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
interface Leaf {
  storage: Storage;
  shape: Shape;
  dtype: DType;
}

type Input = number | Leaf | Expression;

/** The fewest storage bindings that an adapter offers a kernel are 8, one of them for the result. */
const MOST_LEAVES = 7;
/** Leaves that are broadcast or strided, of which the uniforms describe so many. */
const MOST_STRIDED = 4;
const MOST_NUMBERS = 16;
/** Buffers that what leaves a scope may hold on to, for one that it would fill. */
const MOST_HELD = 4;
/** Dimensions of a walk over strided leaves. */
const MOST_DIMS = 8;
/** Rows of one kernel: longer ones compile slowly and save little more. */
const MOST_ROWS = 24;
/** What costs more to compute again than to store and load. */
const DEAR = /(exp|log|sin|cos|tanh|sigmoid|erf|pow)_\(/;

let fusing: boolean | undefined;
const isFusing = (): boolean => (fusing ??= platform().environment("WGPU_WISH_FUSE") !== "0");

/** Runs `fn` with every operation in a kernel of its own, as WGPU_WISH_FUSE=0 does for a whole program: for comparisons. */
export function withoutFusion<T>(fn: () => T): T {
  const before = fusing;
  fusing = false;
  try {
    return fn();
  } finally {
    fusing = before;
  }
}

class Expression implements Pending {
  readonly device: Device;
  readonly row: PointwiseRow;
  readonly shape: Shape;
  inputs: ReadonlyMap<Slot, Input>;
  /** Tensors and expressions that may still ask for it. */
  #holders = 1;
  #storage: Storage | undefined;
  /** An expression has taken it in. */
  taken = false;
  /** Elements of it depend on the same elements of everything below, whatever the shape. */
  readonly isFlat: boolean;

  constructor(device: Device, row: PointwiseRow, shape: Shape, inputs: ReadonlyMap<Slot, Input>) {
    this.device = device;
    this.row = row;
    this.shape = shape;
    this.inputs = inputs;
    const n = sizeOf(shape);
    this.isFlat = [...inputs.values()].every(
      (input) => typeof input === "number" || (isLeaf(input) ? sizeOf(input.shape) === n : input.isFlat),
    );
    for (const input of inputs.values()) if (isLeaf(input)) (input.storage.readers ??= new Set()).add(this);
  }

  get known(): Storage | undefined {
    return this.#storage;
  }

  hold(): void {
    this.#holders++;
  }

  release(): void {
    if (--this.#holders > 0) return;
    if (this.#storage) this.device.pool.release(this.#storage);
    else this.#letGo();
  }

  get holdsMuch(): boolean {
    const size = new Size(this.shape);
    size.add(this);
    return size.leaves > MOST_HELD;
  }

  settle(): Storage {
    this.#storage ??= this.#compute();
    return this.#storage;
  }

  #compute(): Storage {
    const { device, row, shape } = this;
    const plan = planOf(this);
    const size = sizeOf(shape);
    const storage = device.pool.allocate(size * BYTES[row.dtype]);
    dispatch(device, plan, { storage, shape, size, dtype: row.dtype, freed: false });
    this.#letGo();
    return storage;
  }

  #letGo(): void {
    for (const input of this.inputs.values()) {
      if (typeof input === "number") continue;
      if (isLeaf(input)) {
        input.storage.readers?.delete(this);
        this.device.pool.release(input.storage);
      } else input.release();
    }
    this.inputs = new Map();
  }
}

const isLeaf = (input: Input): input is Leaf => typeof input === "object" && "storage" in input;

/** The row's value over operands that broadcast to `shape`: a tensor whose numbers are worked out when they are needed. */
export function pointwise(row: PointwiseRow, operands: Partial<Record<Slot, Operand>>, shape: Shape): Tensor {
  const slots = SLOTS.filter((slot) => operands[slot] !== undefined);
  const tensors = slots.map((slot) => operands[slot]).filter((x) => x instanceof Tensor);
  const { device } = tensors[0]!;
  if (sizeOf(shape) === 0) return empty(device, shape, row.dtype);
  for (const x of tensors)
    if (x.freed)
      throw new Error(
        `${row.name}: the tensor of shape (${x.shape.join(", ")}) was freed when its scope ended; return it from the scope to keep it`,
      );
  settleWhatIsTooMuch(row, tensors, shape);
  const inputs = new Map<Slot, Input>();
  for (const slot of slots) inputs.set(slot, inputOf(operands[slot]!, shape));
  const expression = new Expression(device, row, shape, inputs);
  const y = pendingTensor(device, expression, shape, row.dtype);
  if (!isFusing()) void y.storage;
  return y;
}

/** An expression that may be taken into a kernel over `shape`. */
function openExpression(x: Tensor, shape: Shape): Expression | undefined {
  const { pending } = x;
  if (!(pending instanceof Expression)) return undefined;
  const fits = sameShape(pending.shape, shape) || (x.size === sizeOf(shape) && pending.isFlat);
  return fits ? pending : undefined;
}

function inputOf(x: Operand, shape: Shape): Input {
  if (typeof x === "number") return x;
  const expression = openExpression(x, shape);
  if (expression) {
    expression.hold();
    expression.taken = true;
    return expression;
  }
  const { storage } = x;
  storage.owners++;
  return { storage, shape: x.shape, dtype: x.dtype };
}

/** Operands with something dear that another kernel already computes are stored; and the longest ones, until the rest fits one kernel. */
function settleWhatIsTooMuch(row: PointwiseRow, tensors: readonly Tensor[], shape: Shape): void {
  for (const x of tensors) {
    const expression = openExpression(x, shape);
    if (expression?.taken && DEAR.test(expression.row.expression)) void x.storage;
  }
  for (;;) {
    const open = [...new Set(tensors.filter((x) => openExpression(x, shape)))];
    const size = new Size(shape);
    size.addRow(row);
    for (const x of tensors) {
      const expression = openExpression(x, shape);
      if (expression) size.add(expression);
      else size.addLeaf(x.storage, x.shape);
    }
    // Numbers of the row itself: at most four.
    size.numbers += 4;
    if (size.fits) return;
    if (open.length === 0) {
      if (size.dims <= MOST_DIMS) return;
      throw new Error(
        `${row.name}: broadcasting over more than ${MOST_DIMS} separate dimensions is not offered; reshape the operands first`,
      );
    }
    const rowsOf = (x: Tensor): number => {
      const own = new Size(shape);
      own.add(openExpression(x, shape)!);
      return own.rows;
    };
    open.sort((x, y) => rowsOf(y) - rowsOf(x));
    void open[0]!.storage;
  }
}

/** What a kernel over `shape` would hold. */
class Size {
  rows = 0;
  numbers = 0;
  readonly #shape: Shape;
  readonly #n: number;
  readonly #flat = new Set<Storage>();
  readonly #strided = new Map<string, Shape>();
  readonly #seen = new Set<Expression>();

  constructor(shape: Shape) {
    this.#shape = shape;
    this.#n = sizeOf(shape);
  }

  get leaves(): number {
    return this.#flat.size + this.#strided.size;
  }

  /** Dimensions of the walk over the strided leaves. */
  get dims(): number {
    const strides = [...this.#strided.values()].map((own) => broadcastStrides(own, this.#shape));
    return strides.length === 0 ? 0 : collapse(this.#shape, strides).shape.length;
  }

  get fits(): boolean {
    return (
      this.rows <= MOST_ROWS &&
      this.numbers <= MOST_NUMBERS &&
      this.#strided.size <= MOST_STRIDED &&
      this.leaves <= MOST_LEAVES &&
      this.dims <= MOST_DIMS
    );
  }

  addRow({ expression }: PointwiseRow): void {
    this.rows += DEAR.test(expression) ? 3 : 1;
  }

  addLeaf(storage: Storage, shape: Shape): void {
    if (sizeOf(shape) === this.#n) this.#flat.add(storage);
    else this.#strided.set(`${storage.id} ${shape.join()}`, shape);
  }

  add(expression: Expression): void {
    if (this.#seen.has(expression)) return;
    this.#seen.add(expression);
    this.addRow(expression.row);
    for (const input of expression.inputs.values()) {
      if (typeof input === "number") this.numbers++;
      else if (isLeaf(input)) this.addLeaf(input.storage, input.shape);
      else if (input.known) this.#flat.add(input.known);
      else this.add(input);
    }
  }
}

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

/** Writes out an expression and all that it takes in, each once. */
function planOf(root: Expression): Plan {
  const leaves: PlannedLeaf[] = [];
  const numbers: number[] = [];
  const lines: string[] = [];
  const names: string[] = [];
  const values = new Map<Expression, string>();
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
  const valueFor = (expression: Expression): string => {
    const known = values.get(expression);
    if (known !== undefined) return known;
    const { row, inputs } = expression;
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
    values.set(expression, name);
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

function dispatch(device: Device, plan: Plan, y: Bound): void {
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
