/** Checks of arguments that all operations share: TypeScript tells its callers at once what plain JavaScript is told here. */
import { isTensor } from "./scope.ts";
import type { DType, Tensor } from "./tensor.ts";

export const DTYPES: readonly DType[] = ["f32", "f16", "i32", "u32", "bool"];

/** What an option may be: of a type, or one of the values listed. Numbers are not NaN. */
type Kind = "any" | "tensor" | "number" | "boolean" | readonly string[];
/** Every option there is. */
export type Kinds<T> = { readonly [K in keyof Required<T>]: Kind };

/** What came instead, in words. */
export function describe(value: unknown): string {
  if (value === undefined) return "nothing";
  if (typeof value === "string") return `"${value}"`;
  if (typeof value !== "object" && typeof value !== "function") return `${typeof value} ${String(value)}`;
  if (value === null) return "null";
  if (Array.isArray(value)) return "an array";
  if (isTensor(value)) return "a tensor";
  return typeof value === "function" ? "a function" : `an object (${value.constructor?.name ?? "without class"})`;
}

export function isPlain(value: unknown): value is Record<string, unknown> {
  if (typeof value !== "object" || value === null) return false;
  const prototype = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

/** Refuses what is no tensor, is f16 (unless all, or those named, may be stored so), or lives on another device than the rest. */
export function checkTensors(
  op: string,
  named: Record<string, Tensor>,
  stored: boolean | readonly string[] = false,
): void {
  let first: Tensor | undefined;
  for (const name in named) {
    const x = named[name];
    if (!isTensor(x)) throw new Error(`${op}: ${name} must be a tensor; got ${describe(x)}`);
    if (x.dtype === "f16" && !(typeof stored === "boolean" ? stored : stored.includes(name)))
      throw new Error(`${op}: ${name} is f16, which is storage only; F.cast(${name}, "f32") first`);
    first ??= x;
    if (x.device !== first.device)
      throw new Error(`${op}: ${name} lives on another device than the arguments before it`);
  }
}

/** The same, of f32 alone; those named in `halves` may be f16, too. */
export function checkFloats(op: string, named: Record<string, Tensor>, halves: readonly string[] = []): void {
  checkTensors(op, named, halves);
  for (const name in named) {
    const { dtype } = named[name]!;
    if (dtype !== "f32" && dtype !== "f16")
      throw new Error(`${op}: ${name} must be f32; got ${dtype}: F.cast(${name}, "f32") first`);
  }
}

/** Refuses options that are no plain object, options that the operation does not have, and values that they do not take. */
export function checkOptions<T extends object>(op: string, options: T, kinds: Kinds<T>): void {
  const known = kinds as Record<string, Kind>;
  if (!isPlain(options))
    throw new Error(`${op}: options are given as { ${Object.keys(known).join(", ")} }; got ${describe(options)}`);
  for (const [key, value] of Object.entries(options)) {
    const kind = Object.hasOwn(known, key) ? known[key] : undefined;
    if (kind === undefined)
      throw new Error(`${op}: there is no option "${key}"; there are ${Object.keys(known).join(", ")}`);
    if (value === undefined || fits(value, kind)) continue;
    const wanted = typeof kind === "string" ? `a ${kind}` : kind.map((k) => `"${k}"`).join(" or ");
    throw new Error(`${op}: ${key} must be ${wanted}; got ${describe(value)}`);
  }
}

function fits(value: unknown, kind: Kind): boolean {
  if (typeof kind !== "string") return kind.includes(value as string);
  if (kind === "tensor") return isTensor(value);
  return kind === "any" || (typeof value === kind && !Number.isNaN(value));
}

/** Refuses arguments after the last that the operation takes; but for the index and the array that Array.reduce passes. */
export function checkNoMore(op: string, more: readonly unknown[]): void {
  if (more.length > 0 && !Array.isArray(more[1]))
    throw new Error(`${op}: takes no further argument; got ${describe(more[0])}`);
}

/** A list of whole numbers: a shape (from 0 up), or dimensions and widths, which may be negative. */
export function checkNumbers(
  op: string,
  name: string,
  list: readonly number[],
  least = Number.NEGATIVE_INFINITY,
): void {
  if (!Array.isArray(list))
    throw new Error(`${op}: ${name} must be an array of whole numbers, such as [2, 3]; got ${describe(list)}`);
  for (const n of list)
    if (!Number.isInteger(n) || n < least)
      throw new Error(
        `${op}: ${name} holds whole numbers${least === 0 ? " from 0 up" : ""}; got (${list.map((v) => (typeof v === "number" ? v : describe(v))).join(", ")})`,
      );
}

export function checkType(op: string, dtype: DType): void {
  if (!DTYPES.includes(dtype))
    throw new Error(`${op}: dtype must be one of ${DTYPES.map((d) => `"${d}"`).join(", ")}; got ${describe(dtype)}`);
}
