/**
 * Pointwise operations are not run when they are called: each makes an Expression, and what is computed at last, when something else needs
 * the numbers, is a whole chain of them in one kernel. Intermediate results that nothing but pointwise operations uses are never stored; the
 * backward pass computes them again inside its own kernels. Expressions hold on to the buffers that they read, so that freeing a tensor or a
 * scope's end takes nothing away from them, and they are computed before such a buffer is overwritten.
 *
 * What this file does not know: which operations there are. A row is a text of WGSL over `a`, `b`, `c`, `g`.
 */
import {
  type Chain,
  dispatch,
  isLeaf,
  type Leaf,
  MOST_NUMBERS,
  MOST_STRIDED,
  type PointwiseRow,
  planOf,
  SLOTS,
  type Slot,
} from "./chain.ts";
import type { Device } from "./device.ts";
import { platform } from "./platform.ts";
import type { Storage } from "./pool.ts";
import { broadcastStrides, collapse, type Shape, sameShape, sizeOf } from "./shape.ts";
import { BYTES, empty, type Pending, pendingTensor, Tensor } from "./tensor.ts";

export type Operand = Tensor | number;
type Input = number | Leaf | Expression;

/** The fewest storage bindings that an adapter offers a kernel are 8, one of them for the result. */
const MOST_LEAVES = 7;
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

class Expression implements Pending, Chain {
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
    this.#fitAgain();
    const plan = planOf(this);
    const size = sizeOf(shape);
    const storage = device.pool.allocate(size * BYTES[row.dtype]);
    dispatch(device, plan, { storage, shape, size, dtype: row.dtype, freed: false });
    this.#letGo();
    return storage;
  }

  /** What was taken in as a chain over few buffers may have been stored since, part by part, and be many buffers now. */
  #fitAgain(): void {
    for (;;) {
      const size = new Size(this.shape);
      size.add(this);
      if (size.leaves <= MOST_LEAVES) return;
      const open = [...this.inputs.values()].find((input) => input instanceof Expression && !input.known);
      if (!(open instanceof Expression)) return;
      open.settle();
    }
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
