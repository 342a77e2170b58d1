/**
 * Memory without bookkeeping: what is made inside a scope is freed at its end, except what it returns, parameters' gradients and whatever
 * was handed to an outer owner. Scopes nest; an async one ends when its promise settles, and two async ones must not interleave.
 */
import type { Memory, Tensor } from "./tensor.ts";

export interface Scope {
  readonly tensors: Set<Tensor>;
}

const stack: Scope[] = [];
/** Buffers of tensors that no scope owns go back to the pool when the tensor itself is collected. */
const orphans = new FinalizationRegistry<Memory>(giveBack);

function giveBack({ device, storage, pending }: Memory): void {
  if (storage) device.pool.release(storage);
  else pending?.release();
}

export function currentScope(): Scope | undefined {
  return stack.at(-1);
}

/** Hands a tensor over to a scope, or to the garbage collector. */
export function own(x: Tensor, owner: Scope | undefined): Tensor {
  if (x.scope) x.scope.tensors.delete(x);
  else orphans.unregister(x);
  x.scope = owner;
  if (owner) owner.tensors.add(x);
  else orphans.register(x, x.memory, x);
  return x;
}

export function isTensor(value: unknown): value is Tensor {
  return typeof value === "object" && value !== null && "storage" in value && "dtype" in value;
}

/** Runs `fn`; then frees every tensor made inside but those reachable from its result (through arrays, maps and plain objects). */
export function scope<T>(fn: () => T): T {
  if (typeof fn !== "function")
    throw new Error(`scope: a function is wanted, whose tensors are freed; got ${typeof fn}`);
  const inner: Scope = { tensors: new Set() };
  stack.push(inner);
  let result: T;
  try {
    result = fn();
  } catch (error) {
    leave(inner);
    throw error;
  }
  if (result instanceof Promise)
    return result.then(
      async (value) => {
        const device = inner.tensors.values().next().value?.device;
        leave(inner, value);
        await device?.throttle();
        return value;
      },
      (error) => {
        leave(inner);
        throw error;
      },
    ) as T;
  leave(inner, result);
  return result;
}

/** Makes a tensor outlive the scope it was made in: it then belongs to the scope of `owner`, or to the garbage collector. */
export function keep(x: Tensor, owner?: Tensor): Tensor {
  if (x.freed)
    throw new Error(
      `keep: the tensor of shape (${x.shape.join(", ")}) was freed, by free or when its scope ended; keep it inside that scope`,
    );
  return own(x, owner?.scope);
}

/**
 * Frees one tensor now, before its scope ends. What was made from it stays, and where that is not yet worked out the memory, too, until it
 * is; so does memory that others share, as a reduction's own. A backward pass must not need the tensor any more.
 */
export function free(x: Tensor): void {
  if (!isTensor(x)) throw new Error(`free: a tensor is wanted; got ${x === null ? "null" : typeof x}`);
  if (x.freed) return;
  if (x.scope) x.scope.tensors.delete(x);
  else orphans.unregister(x);
  drop(x);
}

function drop(x: Tensor): void {
  if (x.freed) return;
  x.freed = true;
  const { node } = x;
  x.node = undefined;
  giveBack(x.memory);
  // Without its result an operation's gradient is not asked for.
  node?.saved?.forEach(free);
}

function leave(inner: Scope, result?: unknown): void {
  const at = stack.lastIndexOf(inner);
  stack.splice(at, 1);
  const outer = stack[at - 1];
  const seen = new Set<unknown>();
  const keepAll = (value: unknown): void => {
    if (typeof value !== "object" || value === null || seen.has(value) || ArrayBuffer.isView(value)) return;
    seen.add(value);
    if (isTensor(value)) {
      if (value.scope !== inner || value.freed) return;
      own(value, outer);
      // What leaves the last scope is worked out, and elsewhere what would hold much of the memory that it is made from.
      if (!outer || value.pending?.holdsMuch) void value.storage;
      return;
    }
    if (value instanceof Map || value instanceof Set || Array.isArray(value)) for (const item of value) keepAll(item);
    else for (const item of Object.values(value)) keepAll(item);
  };
  keepAll(result);
  for (const x of inner.tensors) drop(x);
  inner.tensors.clear();
}
