// A reader of pickles that never executes: it knows plain containers and a list of callables by name, and refuses every other name.
// Opcodes as in CPython's Lib/pickletools.py, protocols 0 to 5 less what only executing code needs.
import { CheckpointError } from "./tensors.ts";

/** A callable that the pickle names; what it makes is data. */
export type Callable = (args: unknown[]) => unknown;

/** What a name stands for: a callable, or a marker such as a storage's type. */
export type Known = Callable | { readonly marker: string };

export interface PickleOptions {
  /** The file, for messages. */
  readonly file: string;
  /** "module name" -> meaning. Any other name is refused. */
  readonly known: ReadonlyMap<string, Known>;
  readonly persistent?: (id: unknown) => unknown;
  /** What BUILD does with an object and its state; default: containers ignore it. */
  readonly build?: (object: unknown, state: unknown) => unknown;
}

const MARK = Symbol("mark");
/** Objects, marks and memo entries: more than any checkpoint has, and far less than would exhaust a Map. */
const MAX_OBJECTS = 2_000_000;
/** Bytes of a whole number; torch writes 10. */
const MAX_LONG = 1024;

const utf8 = new TextDecoder("utf-8", { fatal: true });

/** A character a byte. TextDecoder's "latin1" is Windows-1252, which has other characters at 0x80 to 0x9f. */
function latin1(bytes: Uint8Array): string {
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return text;
}

const ESCAPES: Record<string, string> = { n: "\n", r: "\r", t: "\t", a: "\x07", b: "\b", f: "\f", v: "\v" };

/** Python's repr of a string of bytes, as protocol 0 writes it. */
function unquoted(text: string): string {
  const inner = /^(['"])(.*)\1$/.exec(text)?.[2] ?? text;
  return inner.replace(/\\(?:x([0-9a-fA-F]{2})|(.))/g, (_, hex, c) =>
    hex ? String.fromCharCode(Number.parseInt(hex, 16)) : (ESCAPES[c] ?? c),
  );
}

/** Python's raw-unicode-escape. */
function unescaped(text: string): string {
  return text.replace(/\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})/g, (whole, short, long) => {
    const code = Number.parseInt(short ?? long, 16);
    return code <= 0x10ffff ? String.fromCodePoint(code) : whole;
  });
}

/** Reads one pickle that starts at `start`; `end` is where the next byte stands. */
export function readPickle(bytes: Uint8Array, start: number, options: PickleOptions): { value: unknown; end: number } {
  const { file, known } = options;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const fail = (text: string): never => {
    throw new CheckpointError(`${file}: ${text}`);
  };
  let at = start;
  let objects = 0;
  let characters = 0;
  const stack: unknown[] = [];
  const memo = new Map<number, unknown>();

  const need = (n: number): number => {
    const from = at;
    if (n < 0 || at + n > bytes.length)
      fail(`the pickle is truncated at byte ${at}: ${n} more were expected of ${bytes.length}`);
    at += n;
    return from;
  };
  const u8 = () => bytes[need(1)]!;
  const u16 = () => view.getUint16(need(2), true);
  const u32 = () => view.getUint32(need(4), true);
  const i32 = () => view.getInt32(need(4), true);
  const u64 = () => Number(view.getBigUint64(need(8), true));
  const blob = (n: number) => bytes.subarray(need(n), at);
  const text = (n: number) => {
    const from = at;
    try {
      return utf8.decode(blob(n));
    } catch (error) {
      if (error instanceof CheckpointError) throw error;
      return fail(`text at byte ${from} of the pickle is not UTF-8`);
    }
  };
  const line = () => {
    const end = bytes.indexOf(10, at);
    if (end < 0) fail(`the pickle is truncated at byte ${at}: a line has no end`);
    const result = latin1(bytes.subarray(at, end));
    at = end + 1;
    return result;
  };
  const number = (digits = line()) => {
    const value = digits.trim() === "" ? Number.NaN : Number(digits.replace(/L$/, ""));
    return Number.isNaN(value) && digits !== "nan" ? fail(`the pickle is corrupt before byte ${at}: no number`) : value;
  };
  const long = (n: number) => {
    if (n > MAX_LONG) fail(`the pickle holds a whole number of ${n} bytes at byte ${at}, which weights do not`);
    const digits = blob(n);
    let value = 0n;
    for (let i = n - 1; i >= 0; i--) value = (value << 8n) | BigInt(digits[i]!);
    if (n > 0 && digits[n - 1]! & 0x80) value -= 1n << BigInt(8 * n);
    return value >= BigInt(Number.MIN_SAFE_INTEGER) && value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value;
  };
  const count = (n = 1) => {
    objects += n;
    if (objects > MAX_OBJECTS) fail(`the pickle holds more than ${MAX_OBJECTS} objects`);
  };
  const push = (value: unknown) => {
    count();
    stack.push(value);
  };
  const pop = (): unknown => {
    if (stack.length === 0) fail(`the pickle is corrupt at byte ${at}: it takes from an empty stack`);
    const value = stack.pop();
    if (value === MARK) fail(`the pickle is corrupt at byte ${at}: a mark stands where a value should`);
    return value;
  };
  const popMark = (): unknown[] => {
    const from = stack.lastIndexOf(MARK);
    if (from < 0) fail(`the pickle is corrupt at byte ${at}: no mark on the stack`);
    const items = stack.splice(from);
    items.shift();
    return items;
  };
  const top = <T>(kind: string, is: (value: unknown) => value is T): T => {
    const value = stack.at(-1);
    return is(value) ? value : fail(`the pickle is corrupt at byte ${at}: expected a ${kind}`);
  };
  const lookUp = (module: unknown, name: unknown): Known => {
    if (typeof module !== "string" || typeof name !== "string")
      return fail(`the pickle is corrupt at byte ${at}: a callable's name is no text`);
    return (
      known.get(`${module} ${name}`) ??
      fail(
        `the file wants to call ${module}.${name}, which weights do not need; nothing of it was executed: save the model's state_dict alone`,
      )
    );
  };
  const call = (callable: unknown, args: unknown) => {
    if (typeof callable !== "function" || !Array.isArray(args))
      return fail(`the pickle is corrupt at byte ${at}: it calls what is no callable`);
    // What a callable reads is paid for at each call: a memoised list or text could be handed over a million times.
    for (const arg of args) {
      if (Array.isArray(arg)) count(arg.length);
      else if (arg instanceof Map) count(arg.size);
      else if (typeof arg === "string" || arg instanceof Uint8Array) characters += arg.length;
    }
    if (characters > 3 * bytes.length) fail(`the pickle is corrupt at byte ${at}: it hands the same text over again`);
    return (callable as Callable)(args);
  };
  const setItems = (items: unknown[]) => {
    const dict = top("dict", (value) => value instanceof Map);
    if (items.length % 2 !== 0) fail(`the pickle is corrupt at byte ${at}: a key has no value`);
    for (let i = 0; i < items.length; i += 2) dict.set(items[i], items[i + 1]);
  };
  const fromMemo = (index: number) => {
    if (!memo.has(index)) fail(`the pickle is corrupt at byte ${at}: memo ${index} is empty`);
    push(memo.get(index));
  };
  const toMemo = (index: number) => {
    count();
    memo.set(index, stack.at(-1));
  };

  for (;;) {
    const opcode = u8();
    switch (opcode) {
      case 0x80: // PROTO
        if (u8() > 5) fail(`pickle protocol ${bytes[at - 1]} is unknown; 0 to 5 are read`);
        break;
      case 0x95: // FRAME
        need(8);
        break;
      case 0x2e: // STOP
        return { value: pop(), end: at };
      case 0x28: // MARK
        push(MARK);
        break;
      case 0x30: // POP
        stack.pop();
        break;
      case 0x31: // POP_MARK
        popMark();
        break;
      case 0x32: // DUP
        push(stack.at(-1));
        break;
      case 0x4e: // NONE
        push(null);
        break;
      case 0x88: // NEWTRUE
        push(true);
        break;
      case 0x89: // NEWFALSE
        push(false);
        break;
      case 0x4a: // BININT
        push(i32());
        break;
      case 0x4b: // BININT1
        push(u8());
        break;
      case 0x4d: // BININT2
        push(u16());
        break;
      case 0x49: {
        // INT: 00 and 01 are booleans
        const digits = line();
        push(digits === "00" ? false : digits === "01" ? true : number(digits));
        break;
      }
      case 0x4c: // LONG
        push(number());
        break;
      case 0x8a: // LONG1
        push(long(u8()));
        break;
      case 0x8b: // LONG4
        push(long(i32()));
        break;
      case 0x46: // FLOAT
        push(number());
        break;
      case 0x47: // BINFLOAT
        push(view.getFloat64(need(8), false));
        break;
      case 0x53: // STRING
        push(unquoted(line()));
        break;
      case 0x56: // UNICODE
        push(unescaped(line()));
        break;
      case 0x54: // BINSTRING
        push(latin1(blob(i32())));
        break;
      case 0x55: // SHORT_BINSTRING
        push(latin1(blob(u8())));
        break;
      case 0x58: // BINUNICODE
        push(text(u32()));
        break;
      case 0x8c: // SHORT_BINUNICODE
        push(text(u8()));
        break;
      case 0x8d: // BINUNICODE8
        push(text(u64()));
        break;
      case 0x42: // BINBYTES
        push(blob(u32()));
        break;
      case 0x43: // SHORT_BINBYTES
        push(blob(u8()));
        break;
      case 0x8e: // BINBYTES8
      case 0x96: // BYTEARRAY8
        push(blob(u64()));
        break;
      case 0x5d: // EMPTY_LIST
      case 0x29: // EMPTY_TUPLE
      case 0x8f: // EMPTY_SET
        push([]);
        break;
      case 0x6c: // LIST
      case 0x74: // TUPLE
      case 0x91: // FROZENSET
        push(popMark());
        break;
      case 0x85: // TUPLE1
        push([pop()]);
        break;
      case 0x86: {
        // TUPLE2
        const b = pop();
        push([pop(), b]);
        break;
      }
      case 0x87: {
        // TUPLE3
        const c = pop();
        const b = pop();
        push([pop(), b, c]);
        break;
      }
      case 0x61: {
        // APPEND
        const item = pop();
        top("list", Array.isArray).push(item);
        break;
      }
      case 0x65: // APPENDS
      case 0x90: {
        // ADDITEMS
        const items = popMark();
        const list = top("list", Array.isArray);
        for (const item of items) list.push(item);
        break;
      }
      case 0x7d: // EMPTY_DICT
        push(new Map());
        break;
      case 0x64: {
        // DICT
        const items = popMark();
        push(new Map());
        setItems(items);
        break;
      }
      case 0x73: {
        // SETITEM
        const value = pop();
        const key = pop();
        setItems([key, value]);
        break;
      }
      case 0x75: // SETITEMS
        setItems(popMark());
        break;
      case 0x63: {
        // GLOBAL
        const module = line();
        push(lookUp(module, line()));
        break;
      }
      case 0x93: {
        // STACK_GLOBAL
        const name = pop();
        push(lookUp(pop(), name));
        break;
      }
      case 0x52: // REDUCE
      case 0x81: {
        // NEWOBJ
        const args = pop();
        push(call(pop(), args));
        break;
      }
      case 0x69: {
        // INST
        const module = line();
        const callable = lookUp(module, line());
        push(call(callable, popMark()));
        break;
      }
      case 0x62: {
        // BUILD
        const state = pop();
        if (options.build) stack.push(options.build(pop(), state));
        break;
      }
      case 0x50: // PERSID
        push(persist(line()));
        break;
      case 0x51: // BINPERSID
        push(persist(pop()));
        break;
      case 0x70: // PUT
        toMemo(number());
        break;
      case 0x71: // BINPUT
        toMemo(u8());
        break;
      case 0x72: // LONG_BINPUT
        toMemo(u32());
        break;
      case 0x94: // MEMOIZE
        toMemo(memo.size);
        break;
      case 0x67: // GET
        fromMemo(number());
        break;
      case 0x68: // BINGET
        fromMemo(u8());
        break;
      case 0x6a: // LONG_BINGET
        fromMemo(u32());
        break;
      default:
        fail(`the pickle is corrupt or too new at byte ${at - 1}: opcode 0x${opcode.toString(16)} is not read`);
    }
  }

  function persist(id: unknown): unknown {
    return options.persistent
      ? options.persistent(id)
      : fail("the pickle refers to objects outside of it, which this file cannot hold");
  }
}
