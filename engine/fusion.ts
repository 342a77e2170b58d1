/**
 * Pointwise operations are not run when they are called: each makes an Expression, and what is computed at last, when something else needs
 * the numbers, is a whole chain of them in one kernel. Intermediate results that nothing but pointwise operations uses are never stored; the
 * backward pass computes them again inside its own kernels. Reductions wait as well: the chain that they fold is computed as they read it,
 * and a chain that follows is computed as they write. Both hold on to the buffers that they read, so that freeing a tensor or a scope's end
 * takes nothing away from them, and they are computed before such a buffer is overwritten.
 *
 * What this file does not know: which operations there are. A row is a text of WGSL over `a`, `b`, `c`, `g`.
 */
import {
  type Chain,
  dispatch,
  type Fold,
  foldChain,
  isLeaf,
  type Leaf,
  MOST_NUMBERS,
  MOST_STRIDED,
  type PointwiseRow,
  type Reduced,
  SLOTS,
  type Slot,
} from "./chain.ts";
import type { Device } from "./device.ts";
import type { Bound } from "./kernel.ts";
import { platform } from "./platform.ts";
import type { Storage } from "./pool.ts";
import { broadcastStrides, collapse, type Shape, sameShape, sizeOf } from "./shape.ts";
import { BYTES, checkAlive, type DType, empty, pendingTensor, Tensor } from "./tensor.ts";
import { Waiting } from "./waiting.ts";

export type Operand = Tensor | number;
type Input = number | Leaf | Expression | Reduction;

/** The fewest storage bindings that an adapter offers a kernel are 8, one of them for the result. */
const MOST_LEAVES = 7;
/** The same where a reduction keeps its own values beside the result. */
const MOST_LEAVES_OF_BOTH = 6;
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

class Expression extends Waiting implements Chain {
  readonly row: PointwiseRow;
  operands: ReadonlyMap<Slot, Input>;
  /** An expression or a reduction has taken it in. */
  taken = false;
  /** Elements of it depend on the same elements of everything below, whatever the shape. */
  readonly isFlat: boolean;

  constructor(device: Device, row: PointwiseRow, shape: Shape, operands: ReadonlyMap<Slot, Input>) {
    super(device, shape);
    this.row = row;
    this.operands = operands;
    const n = sizeOf(shape);
    this.isFlat = [...operands.values()].every(
      (input) => typeof input === "number" || (input instanceof Expression ? input.isFlat : sizeOf(input.shape) === n),
    );
    this.watch();
  }

  get inputs(): Iterable<Input> {
    return this.operands.values();
  }

  protected forget(): void {
    this.operands = new Map();
  }

  get holdsMuch(): boolean {
    const size = new Size(this.shape);
    size.add(this);
    return size.leaves > MOST_HELD || size.reductions.size > 0;
  }

  protected compute(): Storage {
    const { device, row, shape } = this;
    const reduction = this.#reduction();
    if (!reduction) this.fitAgain();
    const y = bound(device, shape, row.dtype);
    if (reduction) return reduction.finish(this, y);
    dispatch(device, this, y);
    return y.storage;
  }

  /** The one reduction that this can follow in its kernel; all others are computed. */
  #reduction(): Reduction | undefined {
    const size = new Size(this.shape);
    size.add(this);
    const [first, ...others] = size.reductions;
    for (const other of others) other.settle();
    if (!first || first.known) return undefined;
    if (
      this.isFlat &&
      size.leaves - 1 + first.leaves <= MOST_LEAVES_OF_BOTH &&
      size.numbers + first.numbers <= MOST_NUMBERS
    )
      return first;
    first.settle();
    return undefined;
  }

  /** What was taken in as a chain over few buffers may have been stored since, part by part, and be many buffers now. */
  fitAgain(): void {
    for (;;) {
      const size = new Size(this.shape);
      size.add(this);
      if (size.leaves <= MOST_LEAVES) return;
      const open = [...this.inputs].find((input) => input instanceof Expression && !input.known);
      if (!(open instanceof Expression)) return;
      open.settle();
    }
  }
}

/** A reduction of an expression or of a buffer. */
class Reduction extends Waiting implements Reduced {
  readonly fold: Fold;
  #source: Leaf | Expression | undefined;

  constructor(device: Device, shape: Shape, fold: Fold, source: Leaf | Expression) {
    super(device, shape);
    this.fold = fold;
    this.#source = source;
    this.watch();
  }

  get inputs(): Iterable<Input> {
    return this.#source ? [this.#source] : [];
  }

  get source(): Leaf | Expression {
    return this.#source!;
  }

  protected forget(): void {
    this.#source = undefined;
  }

  get holdsMuch(): boolean {
    return true;
  }

  /** Buffers that its kernel reads. */
  get leaves(): number {
    return this.#size.leaves;
  }

  get numbers(): number {
    return this.#size.numbers;
  }

  get #size(): Size {
    const { source } = this;
    const size = new Size(source.shape);
    if (isLeaf(source)) size.addLeaf(source.storage, source.shape);
    else size.add(source);
    return size;
  }

  protected compute(): Storage {
    return this.#run(bound(this.device, this.shape, "f32"));
  }

  /** Computes the chain that follows, and this with it: in one kernel, and this as well, for whoever else asks for it. */
  finish(chain: Expression, y: Bound): Storage {
    const kept = bound(this.device, this.shape, "f32");
    const storage = this.#run(y, { chain, kept });
    this.keep(kept.storage);
    return storage;
  }

  #run(y: Bound, after?: { chain: Chain; kept: Bound }): Storage {
    const { source } = this;
    if (!isLeaf(source)) {
      for (const open of this.#size.reductions) open.settle();
      source.fitAgain();
    }
    foldChain(this.device, this, y, after);
    return y.storage;
  }
}

function bound(device: Device, shape: Shape, dtype: DType): Bound {
  const size = sizeOf(shape);
  return { storage: device.pool.allocate(size * BYTES[dtype]), shape, size, dtype, freed: false };
}

/** The row's value over operands that broadcast to `shape`: a tensor whose numbers are worked out when they are needed. */
export function pointwise(row: PointwiseRow, operands: Partial<Record<Slot, Operand>>, shape: Shape): Tensor {
  const slots = SLOTS.filter((slot) => operands[slot] !== undefined);
  const tensors = slots.map((slot) => operands[slot]).filter((x) => x instanceof Tensor);
  const { device } = tensors[0]!;
  const size = sizeOf(shape);
  if (size === 0) return empty(device, shape, row.dtype);
  const limit = device.gpu.limits.maxStorageBufferBindingSize;
  if (size * BYTES[row.dtype] > limit)
    throw new Error(
      `${row.name}: a result of shape (${shape.join(", ")}) takes ${size * BYTES[row.dtype]} bytes, more than the ${limit} that this adapter can bind; use a smaller batch or image, or split the operands`,
    );
  for (const x of tensors) checkAlive(row.name, x);
  settleWhatIsTooMuch(row, tensors, shape);
  const inputs = new Map<Slot, Input>();
  for (const slot of slots) inputs.set(slot, inputOf(operands[slot]!, shape));
  const expression = new Expression(device, row, shape, inputs);
  const y = pendingTensor(device, expression, shape, row.dtype);
  if (!isFusing()) void y.storage;
  return y;
}

/**
 * x (outer, r, inner) folded to (outer, pieces, inner), four at a time: `inner`, or r where inner is 1, holds whole fours. A tensor whose numbers are worked out when they are needed,
 * where it is whole; parts are worked out at once.
 */
export function reduction(x: Tensor, fold: Fold): Tensor {
  const { pending } = x;
  const stored =
    pending instanceof Expression && (pending.isOlder || (pending.taken && DEAR.test(pending.row.expression)));
  const shape = [fold.outer, fold.pieces, fold.inner];
  const made = new Reduction(
    x.device,
    shape,
    fold,
    pending instanceof Expression && !stored ? take(pending) : leafOf(x),
  );
  const y = pendingTensor(x.device, made, shape, "f32");
  if (fold.pieces > 1 || !isFusing()) void y.storage;
  return y;
}

/** What may be taken into a kernel over `shape`. */
function openTo(x: Tensor, shape: Shape): Expression | Reduction | undefined {
  const { pending } = x;
  if (pending instanceof Waiting && pending.isOlder) return undefined;
  const whole = x.size === sizeOf(shape);
  if (pending instanceof Reduction) return whole ? pending : undefined;
  if (!(pending instanceof Expression)) return undefined;
  return sameShape(pending.shape, shape) || (whole && pending.isFlat) ? pending : undefined;
}

function take<T extends Expression | Reduction>(open: T): T {
  open.hold();
  if (open instanceof Expression) open.taken = true;
  return open;
}

function leafOf(x: Tensor): Leaf {
  const { storage } = x;
  storage.owners++;
  return { storage, shape: x.shape, dtype: x.dtype };
}

function inputOf(x: Operand, shape: Shape): Input {
  if (typeof x === "number") return x;
  const open = openTo(x, shape);
  return open ? take(open) : leafOf(x);
}

/** Operands with something dear that another kernel already computes are stored; and the longest ones, until the rest fits one kernel. */
function settleWhatIsTooMuch(row: PointwiseRow, tensors: readonly Tensor[], shape: Shape): void {
  for (const x of tensors) {
    const open = openTo(x, shape);
    if (open instanceof Expression && open.taken && DEAR.test(open.row.expression)) void x.storage;
  }
  for (;;) {
    const open = [...new Set(tensors.filter((x) => openTo(x, shape) instanceof Expression))];
    const size = new Size(shape);
    size.addRow(row);
    for (const x of tensors) {
      const taken = openTo(x, shape);
      if (taken) size.add(taken);
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
      own.add(openTo(x, shape)!);
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
  readonly #seen = new Set<Expression | Reduction>();
  /** Those that are not computed yet. */
  readonly reductions = new Set<Reduction>();

  constructor(shape: Shape) {
    this.#shape = shape;
    this.#n = sizeOf(shape);
  }

  get leaves(): number {
    return this.#flat.size + this.#strided.size + this.reductions.size;
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

  add(waiting: Expression | Reduction): void {
    if (waiting.known) {
      this.#flat.add(waiting.known);
      return;
    }
    if (this.#seen.has(waiting)) return;
    this.#seen.add(waiting);
    if (waiting instanceof Reduction) {
      this.reductions.add(waiting);
      return;
    }
    this.addRow(waiting.row);
    for (const input of waiting.inputs) {
      if (typeof input === "number") this.numbers++;
      else if (isLeaf(input)) this.addLeaf(input.storage, input.shape);
      else this.add(input);
    }
  }
}
