// Files of weights that are damaged or malicious: each is read right or refused with CheckpointError in one line, soon, in little memory.
import { readFileSync } from "node:fs";
import { deflateRawSync } from "node:zlib";
import fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { checkpointParts, readCheckpoint } from "../../model/weights/index.ts";
import { readPickle } from "../../model/weights/pickle.ts";
import { message as thrown } from "./fixture.ts";

const test = suite("damaged weights");
const folder = new URL("../parity/weights/", import.meta.url);
const bytesOf = (name: string) => new Uint8Array(readFileSync(new URL(name, folder)));
const ascii = (text: string) => Buffer.from(text, "latin1");
const bytes = (...parts: (string | Uint8Array | number[])[]) =>
  new Uint8Array(Buffer.concat(parts.map((part) => (typeof part === "string" ? ascii(part) : Buffer.from(part)))));

const FILES = [
  "zip.pt",
  "legacy.pth",
  "wrapped.pt",
  "dumped.pkl",
  "unsigned.pt",
  "numpy0.pkl",
  "numpy2.pkl",
  "numpy5.pkl",
  "raw.onnx",
  "typed.onnx",
  "external.onnx",
  "truth.safetensors",
  "shards-safetensors/model.safetensors.index.json",
];
/** Of the processor: the clock on the wall counts others' work, too. */
const MOST_MS = 3000;

/** Reads; true where it was refused, as it should be. Throws where anything else happens. */
function refuses(content: Uint8Array, name: string): boolean {
  const besides = name.slice(0, name.lastIndexOf("/") + 1);
  const began = process.cpuUsage();
  try {
    const parts = new Map<string, Uint8Array>();
    for (const part of checkpointParts(content, name)) {
      assert.not.match(part, /^\/|(^|\/)\.\.(\/|$)|\\/);
      try {
        parts.set(part, bytesOf(besides + part));
      } catch {
        // The damage is in the part's name.
      }
    }
    let total = 0;
    for (const [key, { dtype, shape, data }] of readCheckpoint(content, name, parts).tensors) {
      total += data.length;
      const width =
        { F64: 8, I64: 8, U64: 8, F32: 4, I32: 4, U32: 4, F16: 2, BF16: 2, I16: 2, U16: 2 }[dtype as "F64"] ?? 1;
      assert.is(
        data.length,
        shape.reduce((product, d) => product * d, width),
        key,
      );
    }
    assert.ok(total <= 16 * content.length + 70e6, `${total} bytes`);
    return false;
  } catch (error) {
    const { name: kind, message } = error as Error;
    if (kind !== "CheckpointError") throw error;
    assert.ok(message.startsWith(`${name}: `) || message.startsWith(besides), message);
    assert.not.match(message, /[\n\r\u2028]/);
    assert.ok(message.length < 1000);
    return true;
  } finally {
    const took = process.cpuUsage(began).user / 1000;
    assert.ok(took < MOST_MS, `${name} took ${took} ms`);
  }
}

const seed = 20;
for (const name of FILES) {
  const whole = bytesOf(name);

  test(`${name} cut short anywhere is refused`, () => {
    // Behind an ONNX model's weights stands which operations it needs.
    const end = name.endsWith(".onnx") ? whole.length - 4 : whole.length;
    const step = Math.max(1, Math.floor(end / 400));
    for (let length = 0; length < end; length += step)
      assert.ok(refuses(whole.slice(0, length), name), `${length} of ${whole.length} bytes`);
    assert.not(refuses(whole, name));
  });

  test(`${name} with other bytes is read or refused`, () => {
    let refused = 0;
    const place = fc.integer({ min: 0, max: whole.length - 1 });
    const odd = fc.constantFrom(0, 1, 0x28, 0x2e, 0x7f, 0x80, 0xff, ...ascii("()].}aestuRbQ\n"));
    fc.assert(
      fc.property(
        fc.array(fc.tuple(place, fc.oneof(odd, fc.integer({ min: 0, max: 255 }))), { minLength: 1, maxLength: 8 }),
        (changes) => {
          const content = whole.slice();
          for (const [at, byte] of changes) content[at] = byte;
          if (refuses(content, name)) refused++;
        },
      ),
      { seed, numRuns: 300 },
    );
    assert.ok(refused > 30, `${refused} of 300 were refused`);
  });

  test(`${name} with huge numbers, holes and repetitions is read or refused`, () => {
    const place = fc.integer({ min: 0, max: whole.length - 1 });
    const number = fc.constantFrom(
      0n,
      1n,
      2n ** 31n - 1n,
      2n ** 32n - 1n,
      2n ** 33n,
      2n ** 53n,
      2n ** 63n,
      2n ** 64n - 1n,
    );
    fc.assert(
      fc.property(place, fc.constantFrom(4, 8), number, place, fc.nat(40), (at, width, value, from, length) => {
        const content = Buffer.from(whole);
        const room = Buffer.alloc(8);
        room.writeBigUInt64LE(value);
        room.copy(content, at, 0, Math.min(width, content.length - at));
        refuses(new Uint8Array(content), name);
        refuses(bytes(whole.subarray(0, from), whole.subarray(Math.min(whole.length, from + length))), name);
        refuses(bytes(whole.subarray(0, from), whole.subarray(at, at + length), whole.subarray(from)), name);
      }),
      { seed, numRuns: 150 },
    );
  });
}

test("random opcodes are no way out of the pickle reader", () => {
  const known = new Map([["a b", (args: unknown[]) => args]]);
  const opcodes = [
    ...ascii("(.012NIJKMLFSTUXVBC]tl)ae}dsucRibPQprjgh"),
    ...ascii("q"),
    0x80,
    0x81,
    0x85,
    0x86,
    0x87,
    0x88,
    0x8a,
    0x8b,
  ].concat([0x8c, 0x8d, 0x8e, 0x8f, 0x90, 0x91, 0x93, 0x94, 0x95, 0x96]);
  const piece = fc.oneof(
    { weight: 6, arbitrary: fc.constantFrom(...opcodes).map((code) => [code]) },
    { weight: 1, arbitrary: fc.constantFrom([...ascii("ca\nb\n")], [0x4b, 2], [...ascii("V1\n")]) },
    { weight: 1, arbitrary: fc.array(fc.integer({ min: 0, max: 255 }), { maxLength: 4 }) },
  );
  let read = 0;
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 60 }), (pieces) => {
      try {
        readPickle(Uint8Array.from([...pieces.flat(), 0x2e]), 0, { file: "x", known, persistent: (id) => id });
        read++;
      } catch (error) {
        if ((error as Error).name !== "CheckpointError") throw error;
      }
    }),
    { seed, numRuns: 5000 },
  );
  assert.ok(read > 20, `${read} were read`);
});

test("small pickles that would fill the memory or run for ever are refused", () => {
  const bombs: Record<string, Uint8Array> = {
    "a number of a million digits": bytes([0x80, 2, 0x8b, 0, 0x42, 0x0f, 0], new Uint8Array(1e6).fill(0x7f), "."),
    "millions of memo entries": bytes([0x80, 4, 0x4e], new Uint8Array(6e6).fill(0x94), "."),
    "millions of marks": bytes([0x80, 2], new Uint8Array(6e6).fill(0x28), "N."),
    "millions of copies": bytes([0x80, 2, 0x5d], new Uint8Array(6e6).fill(0x32), "."),
    // l0 = [], l1 = [l0, l0], … as a name.
    "a name that doubles": bytes([0x80, 4, 0x5d], ...Array.from({ length: 40 }, () => [0x32, 0x86]), [0x32, 0x93], "."),
    "a list in a list in a list": bytes(
      [0x80, 2],
      new Uint8Array(2e6).fill(0x5d),
      new Uint8Array(2e6 - 1).fill(0x61),
      ".",
    ),
    "a dict that is its own model": bytes([0x80, 2, 0x7d], "q\0", [0x58, 5, 0, 0, 0], "model", "h\0", "s."),
    "a list handed over a million times": bytes(
      [0x80, 2],
      ["(", "N".repeat(1e5), "lq\0", "0"].join(""),
      ...Array.from({ length: 1e5 }, () => "ccollections\nOrderedDict\nh\0\x85R0"),
      "N.",
    ),
    "a text handed over a thousand times": bytes(
      [0x80, 2, 0x58, 0x40, 0x42, 0x0f, 0],
      "x".repeat(1e6),
      "q\0",
      ...Array.from({ length: 1e3 }, () => "c_codecs\nencode\nh\0\x85R"),
      ".",
    ),
  };
  for (const [what, pickle] of Object.entries(bombs)) assert.ok(refuses(pickle, "bomb.pkl"), what);
});

/** {"w0": a view of FloatStorage "0", "w1": …} of a storage of `length` elements. */
function views(count: number, length: number, shape: number[], strides: number[]): Uint8Array {
  const int = (v: number) => [0x4a, v & 255, (v >> 8) & 255, (v >> 16) & 255, v >> 24];
  const word = (text: string) => bytes([0x58, text.length, 0, 0, 0], text);
  const storage = bytes("((", word("storage"), "ctorch\nFloatStorage\n", word("0"), word("cpu"), int(length), "tQ");
  const view = bytes(int(0), "(", shape.flatMap(int), "t(", strides.flatMap(int), "t\x89NtR");
  const items = Array.from({ length: count }, (_, i) =>
    bytes(word(`w${i}`), "ctorch._utils\n_rebuild_tensor_v2\n", storage, view, "s"),
  );
  return bytes([0x80, 2, 0x7d], ...items, ".");
}

interface Entry {
  name: string;
  data: Uint8Array;
  deflate?: boolean;
  /** The directory says that it lies where this other entry does. */
  at?: number;
}

function zip(entries: readonly Entry[]): Uint8Array {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  const places: number[] = [];
  let at = 0;
  for (const { name, data, deflate, at: other } of entries) {
    const packed = deflate ? deflateRawSync(data) : Buffer.from(data);
    const fields = Buffer.alloc(26);
    fields.writeUInt16LE(deflate ? 8 : 0, 4);
    fields.writeUInt32LE(packed.length, 14);
    fields.writeUInt32LE(data.length, 18);
    fields.writeUInt16LE(name.length, 22);
    const tail = Buffer.alloc(14);
    tail.writeUInt32LE(other === undefined ? at : places[other]!, 10);
    directory.push(Buffer.concat([Buffer.from([0x50, 0x4b, 1, 2, 0, 0]), fields, tail, ascii(name)]));
    places.push(at);
    if (other !== undefined) continue;
    const local = Buffer.concat([Buffer.from([0x50, 0x4b, 3, 4]), fields, ascii(name), packed]);
    parts.push(local);
    at += local.length;
  }
  const central = Buffer.concat(directory);
  const end = Buffer.alloc(22);
  end.writeUInt32LE(0x06054b50, 0);
  end.writeUInt16LE(directory.length, 8);
  end.writeUInt16LE(directory.length, 10);
  end.writeUInt32LE(central.length, 12);
  end.writeUInt32LE(at, 16);
  return new Uint8Array(Buffer.concat([...parts, central, end]));
}

const message = (content: Uint8Array, name: string, parts?: Map<string, Uint8Array>): string =>
  thrown(() => {
    checkpointParts(content, name);
    readCheckpoint(content, name, parts);
  });

test("views and entries cannot grow far beyond the file", () => {
  const storage = new Uint8Array(4 * 65536);
  const many = (count: number) =>
    zip([
      { name: "a/data.pkl", data: views(count, 65536, [256, 256], [1, 256]) },
      { name: "a/data/0", data: storage },
    ]);
  assert.not(refuses(many(3), "a.pt"));
  assert.match(message(many(2000), "a.pt"), /a\.pt: with tensor w\d+ its contents would take \d+ bytes, 16 times/);
  const zeros = Array.from({ length: 20 }, (_, i) => ({
    name: `a/data/${i}`,
    data: new Uint8Array(15e6),
    deflate: true,
  }));
  const word = (i: number) => bytes([0x58, String(i).length, 0, 0, 0], String(i));
  const pickle = bytes(
    [0x80, 2, 0x7d],
    ...zeros.map((_, i) =>
      bytes(
        word(i),
        "ctorch._utils\n_rebuild_tensor_v2\n((",
        [0x58, 7, 0, 0, 0],
        "storage",
        "ctorch\nFloatStorage\n",
        word(i),
        "NK\x01tQK\0K\x01\x85K\x01\x85\x89NtRs",
      ),
    ),
    ".",
  );
  const packed = zip([{ name: "a/data.pkl", data: pickle }, ...zeros]);
  assert.match(message(packed, "zeros.pt"), /zeros\.pt: with entry a\/data\/\d+ its contents would take/);
});

test("entries that overlap or come twice are refused", () => {
  const data = { name: "a/data.pkl", data: views(1, 1, [1], [1]) };
  assert.match(
    message(zip([data, { name: "a/data/0", data: new Uint8Array(4), at: 0 }]), "a.pt"),
    /a\.pt: entries a\/data\.pkl and a\/data\/0 overlap at byte 0/,
  );
  assert.match(message(zip([data, data]), "a.pt"), /a\.pt: the archive has two entries a\/data\.pkl/);
});

/** An ONNX model of one float initialiser per entry. */
function onnx(
  ...tensors: { name: string; dims: number[]; raw?: Uint8Array; external?: Record<string, string> }[]
): Uint8Array {
  const varint = (v: number): number[] => (v < 128 ? [v] : [(v % 128) | 128, ...varint(Math.floor(v / 128))]);
  const field = (number: number, content: Uint8Array) => bytes(varint(number * 8 + 2), varint(content.length), content);
  const protos = tensors.map(({ name, dims, raw, external }) => {
    const entries = Object.entries(external ?? {}).map(([key, value]) =>
      field(13, bytes(field(1, ascii(key)), field(2, ascii(value)))),
    );
    return bytes(
      ...dims.map((d) => [8, ...varint(d)]),
      [16, 1],
      field(8, ascii(name)),
      ...(raw ? [field(9, raw)] : []),
      ...(external ? [bytes(...entries), [14 * 8, 1]] : []),
    );
  });
  return field(7, bytes(...protos.map((proto) => field(5, proto))));
}

test("data of an ONNX model lies in its folder, inside its file, and does not overlap", () => {
  const at = (location: string, offset = "0", length = "8") => ({ location, offset, length });
  for (const location of ["../w", "a/../../w", "/etc/passwd", "C:\\w", "c:w", "\\\\host\\w", "a//b", "", "a\0b"])
    assert.match(
      message(onnx({ name: "w", dims: [2], external: at(location) }), "m.onnx"),
      /^m\.onnx: initialiser w: names the file ".*", which is outside of the model's own folder; refused$/,
    );
  const parts = new Map([["w", new Uint8Array(12)]]);
  const one = (...fields: [string?, string?]) => onnx({ name: "w", dims: [2], external: at("w", ...fields) });
  assert.is(message(one("4"), "m.onnx", parts), "nothing was thrown");
  assert.match(message(one("8"), "m.onnx", parts), /initialiser w: lies at 8\.\.16 of w, beyond its end at 12/);
  assert.match(message(one("9".repeat(15)), "m.onnx", parts), /initialiser w: lies at 9{15}\.\./);
  assert.match(message(one("-4"), "m.onnx", parts), /initialiser w: its offset in w is "-4", no number/);
  assert.match(message(one("0", "12"), "m.onnx", parts), /initialiser w: of shape \(2\) has 12 bytes; 8 were expected/);
  assert.match(message(one(), "m.onnx", new Map()), /initialiser w: lies in w, which was not read/);
  const two = (offset: string) =>
    onnx({ name: "a", dims: [2], external: at("w") }, { name: "b", dims: [2], external: at("w", offset) });
  assert.is(message(two("0"), "m.onnx", parts), "nothing was thrown");
  assert.match(message(two("4"), "m.onnx", parts), /m\.onnx: initialisers a and b overlap at byte 4 of w/);
});

test("shapes that the file does not pay for take no memory", () => {
  assert.match(
    message(onnx({ name: "w", dims: [2 ** 40, 2 ** 40] }), "m.onnx"),
    /initialiser w: of shape .* has fewer than/,
  );
  assert.match(
    message(onnx({ name: "w", dims: Array(70).fill(1) }), "m.onnx"),
    /initialiser w: its dimensions are not/,
  );
  const storage = zip([
    { name: "a/data.pkl", data: views(1, 2 ** 30, [2 ** 15, 2 ** 15], [2 ** 15, 1]) },
    { name: "a/data/0", data: new Uint8Array(4) },
  ]);
  assert.match(message(storage, "a.pt"), /a\.pt: with tensor w0 its contents would take 4294967296 bytes/);
});

test("an index of shards names files in its folder that hold what it says, and nothing else", () => {
  const index = (map: unknown) => new Uint8Array(Buffer.from(JSON.stringify({ weight_map: map })));
  const name = "d/model.safetensors.index.json";
  const part = "model-00001-of-00002.safetensors";
  const parts = new Map([[part, bytesOf(`shards-safetensors/${part}`)]]);
  assert.match(message(index({ w: "../x.safetensors" }), name), /tensor w: names the file "\.\.\/x\.safetensors"/);
  assert.match(message(index({ w: "x.index.json" }), name), /tensor w: x\.index\.json is no file of weights/);
  assert.match(message(index({ w: 5 }), name), /tensor w: its file is no text/);
  assert.match(message(index({}), name), /its "weight_map" is empty/);
  assert.match(message(index([]), name), /holds no "weight_map"/);
  assert.match(message(index({ w: part }), name, parts), /tensor w is not in model-00001/);
  assert.match(message(index({ "a.weight": part }), name, parts), /does not list tensor \S+ of model-00001/);
});

test("whatever names a file holds, the message is one line of readable length", () => {
  const odd = `w\n\r\u2028${"x".repeat(5000)}`;
  const text = message(onnx({ name: odd.replaceAll("\u2028", ""), dims: [3], raw: new Uint8Array(4) }), "m.onnx");
  assert.match(text, /^m\.onnx: initialiser w\\u000a\\u000dx+ … x*: of shape \(3\) has 4 bytes; 12 were expected$/);
  assert.ok(text.length < 700);
});

test.run();
