import { readFileSync } from "node:fs";
import { deflateRawSync } from "node:zlib";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { fileNumbers, parseSafetensors } from "../../engine/safetensors.ts";
import { readSam } from "../../model/sam/index.ts";
import { samConfigOf } from "../../model/sam/sizes.ts";
import { compareTensors, describeDifference, nameTensors, readCheckpoint } from "../../model/weights/index.ts";
import { readPickle } from "../../model/weights/pickle.ts";
import { message } from "./fixture.ts";

const test = suite("weights");
const read = (name: string) => new Uint8Array(readFileSync(new URL(`../parity/${name}`, import.meta.url)));
const ascii = (text: string) => Buffer.from(text, "latin1");
/** A zip archive of stored or deflated entries. */
function zip(
  entries: Record<string, Uint8Array>,
  { deflate = false, claim }: { deflate?: boolean; claim?: number } = {},
): Uint8Array {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let at = 0;
  for (const [name, content] of Object.entries(entries)) {
    const data = deflate ? deflateRawSync(content) : Buffer.from(content);
    const size = claim ?? content.length;
    const fields = Buffer.alloc(26);
    fields.writeUInt16LE(deflate ? 8 : 0, 4);
    fields.writeUInt32LE(data.length, 14);
    fields.writeUInt32LE(size, 18);
    fields.writeUInt16LE(name.length, 22);
    const local = Buffer.concat([Buffer.from([0x50, 0x4b, 3, 4]), fields, ascii(name)]);
    const tail = Buffer.alloc(14);
    tail.writeUInt32LE(at, 10);
    directory.push(Buffer.concat([Buffer.from([0x50, 0x4b, 1, 2, 0, 0]), fields, tail, ascii(name)]));
    parts.push(local, data);
    at += local.length + data.length;
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

/** {"w": a tensor of FloatStorage "0" with 6 elements}, as torch.save writes it in protocol 2. */
function pickledTensor(shape: number[], strides: number[], offset: number): Uint8Array {
  const tuple = (values: number[]) => Buffer.from([0x28, ...values.flatMap((v) => [0x4b, v]), 0x74]);
  const word = (text: string) => Buffer.concat([Buffer.from([0x58, text.length, 0, 0, 0]), ascii(text)]);
  return new Uint8Array(
    Buffer.concat([
      Buffer.from([0x80, 2, 0x7d]),
      word("w"),
      ascii("ctorch._utils\n_rebuild_tensor_v2\n(("),
      word("storage"),
      ascii("ctorch\nFloatStorage\n"),
      word("0"),
      word("cpu"),
      Buffer.from([0x4b, 6]),
      ascii("tQ"),
      Buffer.from([0x4b, offset]),
      tuple(shape),
      tuple(strides),
      Buffer.from([0x89]),
      ascii("N"),
      ascii("tRs."),
    ]),
  );
}

const numbers = new Uint8Array(Float32Array.of(0, 1, 2, 3, 4, 5).buffer);
const archive = (pickle: Uint8Array, storage = numbers) => zip({ "a/data.pkl": pickle, "a/data/0": storage });

test("the zip format of torch.save and the legacy one give every tensor", () => {
  for (const [name, keys] of [
    ["sam-vit.pt", 188],
    ["sam-tiny-vit.pth", 307],
  ] as const) {
    const { tensors, format } = readCheckpoint(read(name), name);
    assert.is(format, "torch");
    assert.is(tensors.size, keys);
    for (const [key, tensor] of tensors) {
      const values = fileNumbers(tensor, key);
      assert.ok(values.every(Number.isFinite), `${name}: ${key}`);
    }
  }
});

test("strides and offsets of a view are followed, deflated entries are read", () => {
  const { tensors } = readCheckpoint(archive(pickledTensor([2, 2], [1, 2], 1)), "a.pt");
  assert.equal([...fileNumbers(tensors.get("w")!)], [1, 3, 2, 4]);
  const packed = zip({ "a/data.pkl": pickledTensor([6], [1], 0), "a/data/0": numbers }, { deflate: true });
  assert.equal([...fileNumbers(readCheckpoint(packed, "a.pt").tensors.get("w")!)], [0, 1, 2, 3, 4, 5]);
});

test("a view that leaves its storage is refused with the tensor's name and the offset", () => {
  assert.match(
    message(() => readCheckpoint(archive(pickledTensor([2, 2], [2, 1], 3)), "a.pt")),
    /a\.pt: tensor w: \(2, 2\) at offset 3 needs element 6.* has 6/,
  );
  assert.match(
    message(() => readCheckpoint(archive(pickledTensor([6], [1], 0), numbers.slice(0, 20)), "a.pt")),
    /tensor w: its storage .* has 20 bytes, 24/,
  );
  assert.match(
    message(() => readCheckpoint(archive(pickledTensor([200], [0], 0)), "a.pt")),
    /more elements than its storage/,
  );
});

test("a callable that weights do not need is refused by its name and never called", () => {
  const evil = new Uint8Array(
    Buffer.concat([Buffer.from([0x80, 2]), ascii("cposix\nsystem\n"), Buffer.from([0x55, 2]), ascii("ls\x85R.")]),
  );
  assert.match(
    message(() => readCheckpoint(archive(evil), "evil.pt")),
    /evil\.pt: the file wants to call posix\.system/,
  );
  const stacked = new Uint8Array(
    Buffer.concat([Buffer.from([0x80, 4, 0x8c, 8]), ascii("builtins"), Buffer.from([0x8c, 4]), ascii("eval\x93.")]),
  );
  assert.match(
    message(() => readCheckpoint(archive(stacked), "evil.pt")),
    /builtins\.eval/,
  );
  assert.match(
    message(() => readPickle(evil, 0, { file: "x", known: new Map() })),
    /posix\.system/,
  );
});

test("truncated and foreign files are refused in one line", () => {
  const whole = read("sam-vit.pt");
  assert.match(
    message(() => readCheckpoint(whole.slice(0, 5000), "cut.pt")),
    /^cut\.pt: the archive's directory is missing; the file is truncated/,
  );
  const legacy = read("sam-tiny-vit.pth");
  assert.match(
    message(() => readCheckpoint(legacy.slice(0, -100), "cut.pth")),
    /^cut\.pth: tensor [a-z_]+\.\S+: its storage reaches beyond the end of the file; it is truncated$/,
  );
  // Of all storages only the first ones are whole: the first tensor in the file's order that has none is told.
  assert.match(
    message(() => readCheckpoint(legacy.slice(0, legacy.length / 2), "cut.pth")),
    /^cut\.pth: tensor (image_encoder|prompt_encoder|mask_decoder)\.\S+: its storage reaches beyond the end/,
  );
  assert.match(
    message(() => readCheckpoint(legacy.slice(0, 300), "cut.pth")),
    /^cut\.pth: the pickle is truncated/,
  );
  assert.match(
    message(() => readCheckpoint(ascii("hello world, no weights"), "x.pt")),
    /^x\.pt: no torch checkpoint/,
  );
  assert.match(
    message(() => readCheckpoint(new Uint8Array(0), "x.pt")),
    /^x\.pt: the file is empty/,
  );
  assert.match(
    message(() => readCheckpoint(zip({ "x.txt": ascii("x") }), "x.pt")),
    /without data\.pkl/,
  );
});

test("an entry that would inflate a thousandfold is refused before it does", () => {
  const bomb = zip({ "a/data.pkl": pickledTensor([6], [1], 0), "a/data/0": new Uint8Array(40e6) }, { deflate: true });
  assert.match(
    message(() => readCheckpoint(bomb, "bomb.pt")),
    /bomb\.pt: entry a\/data\/0 would grow from \d+ to 40000000 bytes/,
  );
  const lying = zip(
    { "a/data.pkl": pickledTensor([6], [1], 0), "a/data/0": new Uint8Array(1e6) },
    { deflate: true, claim: 500 },
  );
  assert.match(
    message(() => readCheckpoint(lying, "lie.pt")),
    /lie\.pt: entry a\/data/,
  );
});

test("the initialisers of an ONNX model are read, raw and typed", () => {
  const field = (number: number, content: Uint8Array) =>
    Buffer.concat([Buffer.from([number * 8 + 2, content.length]), content]);
  const raw = Buffer.concat([
    Buffer.from([0x08, 2, 0x08, 1, 0x10, 1]),
    field(8, ascii("a")),
    field(9, new Uint8Array(Float32Array.of(1.5, -2).buffer)),
  ]);
  const packed = Buffer.concat([
    field(1, Uint8Array.of(3)),
    Buffer.from([0x10, 7]),
    field(7, Uint8Array.of(5, 6, 0x80, 0x01)),
    field(8, ascii("b")),
  ]);
  const model = Buffer.concat([Buffer.from([0x08, 8]), field(7, Buffer.concat([field(5, raw), field(5, packed)]))]);
  const { tensors, format } = readCheckpoint(new Uint8Array(model), "m.onnx");
  assert.is(format, "onnx");
  assert.equal(tensors.get("a")!.shape, [2, 1]);
  assert.equal([...fileNumbers(tensors.get("a")!)], [1.5, -2]);
  assert.equal([...fileNumbers(tensors.get("b")!)], [5, 6, 128]);
  assert.match(
    message(() => readCheckpoint(new Uint8Array(model.subarray(0, -3)), "m.onnx")),
    /m\.onnx: the ONNX model is truncated/,
  );
});

test("a detectron2 pickle gives its NumPy arrays", () => {
  const word = (text: string) => Buffer.concat([Buffer.from([0x8c, text.length]), ascii(text)]);
  const pickle = Buffer.concat([
    Buffer.from([0x80, 4, 0x7d]),
    word("model"),
    Buffer.from([0x7d]),
    word("w"),
    ascii("cnumpy.core.multiarray\n_reconstruct\n"),
    ascii("cnumpy\nndarray\n"),
    Buffer.from([0x4b, 0, 0x85, 0x43, 1, 0x62, 0x87, 0x52]),
    Buffer.from([0x28, 0x4b, 1, 0x4b, 2, 0x4b, 1, 0x86]),
    ascii("cnumpy\ndtype\n"),
    word("f4"),
    Buffer.from([0x89, 0x88, 0x87, 0x52, 0x89, 0x43, 8]),
    new Uint8Array(Float32Array.of(0.5, 4).buffer),
    Buffer.from([0x74, 0x62, 0x73, 0x73, 0x2e]),
  ]);
  const { tensors, format } = readCheckpoint(new Uint8Array(pickle), "model.pkl");
  assert.is(format, "pickle");
  assert.equal(tensors.get("w")!.shape, [2, 1]);
  assert.equal([...fileNumbers(tensors.get("w")!)], [0.5, 4]);
});

test("the strings of Python 2's pickles are bytes, every one of them", () => {
  const every = Uint8Array.from({ length: 256 }, (_, i) => i);
  const pickle = Buffer.concat([
    Buffer.from([0x80, 2, 0x7d, 0x55, 1]),
    ascii("w"),
    ascii("cnumpy.core.multiarray\n_reconstruct\n"),
    ascii("cnumpy\nndarray\n"),
    Buffer.from([0x4b, 0, 0x85, 0x55, 1, 0x62, 0x87, 0x52]),
    Buffer.from([0x28, 0x4b, 1, 0x4d, 0, 1, 0x85]),
    ascii("cnumpy\ndtype\n"),
    Buffer.from([0x55, 2]),
    ascii("u1"),
    Buffer.from([0x4b, 0, 0x4b, 1, 0x87, 0x52, 0x89, 0x54, 0, 1, 0, 0]),
    every,
    Buffer.from([0x74, 0x62, 0x73, 0x2e]),
  ]);
  const { tensors } = readCheckpoint(new Uint8Array(pickle), "old.pkl");
  assert.equal([...tensors.get("w")!.data], [...every]);
});

test("sizes of SAM are recovered from shapes, transformers' names become the original's", () => {
  const vit = nameTensors(readCheckpoint(read("sam-vit.pt"), "v").tensors, "v");
  assert.is(vit.kind, "SAM (ViT)");
  assert.equal(samConfigOf(vit.tensors, "v"), {
    imageSize: 96,
    promptDim: 32,
    encoder: { kind: "vit", dim: 32, depth: 3, heads: 2, patch: 8, mlp: 64, window: 5, globalBlocks: [1] },
    maskChannels: 8,
    decoder: { depth: 2, heads: 8, mlp: 48, iouHidden: 24, iouDepth: 3, candidates: 3 },
  });
  const hub = nameTensors(parseSafetensors(read("sam-hf.safetensors")).tensors, "h");
  const blocks = (key: string) => /^image_encoder\.blocks\.2\./.test(key);
  const names = [...vit.tensors.keys()].filter((key) => !blocks(key)).sort();
  assert.equal([...hub.tensors.keys()].sort(), names);
  const tiny = nameTensors(readCheckpoint(read("sam-tiny-vit.pth"), "t").tensors, "t");
  assert.is(tiny.kind, "SAM (TinyViT)");
  assert.ok(tiny.unused.includes("image_encoder.head.weight"));
});

test("a SAM's tensor of another shape is named and no other one, sizes that are read from it included", () => {
  const counts: number[] = [];
  for (const [name, undecided] of [
    ["sam-vit.pt", /^$/],
    // The blocks of a stage that must have the same are two, or one.
    ["sam-tiny-vit.pth", /attention_biases$/],
    ["sam-hf.safetensors", /^$/],
  ] as const) {
    const { tensors } = readCheckpoint(read(name), name);
    const { unused } = nameTensors(tensors, name);
    counts.push(0);
    for (const [key, x] of tensors) {
      if (unused.includes(key) || undecided.test(key)) continue;
      const { shape } = x;
      const changed = shape.flatMap((_, dim) =>
        [(n: number) => n + 1, (n: number) => n - 1, (n: number) => 2 * n].map((change) =>
          shape.map((n, i) => (i === dim ? change(n) : n)),
        ),
      );
      for (const other of [...changed, shape.slice(1), [...shape, 1], []]) {
        const state = new Map([...tensors, [key, { ...x, shape: other }]]);
        const told = message(() => readSam({ tensors: state, metadata: {} }, name));
        const is = `${key} is (${other.join(", ")})`;
        const compared = `${name}: the weights do not fit the model: 1 misshaped (${is}, not (`;
        const named = [compared, `${name}: no SAM checkpoint: ${is}, of which no dimension`];
        assert.ok(
          named.some((start) => told.startsWith(start)),
          `${key} of ${shape} as ${other}: ${told}`,
        );
        counts[counts.length - 1]!++;
      }
    }
  }
  assert.ok(
    counts.every((count) => count > 1000),
    `${counts} shapes`,
  );
});

test("a size that no dimension of a tensor can be is told with the tensor", () => {
  const name = "sam-tiny-vit.pth";
  const { tensors } = readCheckpoint(read(name), name);
  const told = (...changes: [key: string, shape: number[]][]) => {
    const state = new Map([
      ...tensors,
      ...changes.map(([key, shape]) => [key, { ...tensors.get(key)!, shape }] as const),
    ]);
    return message(() => readSam({ tensors: state, metadata: {} }, name));
  };
  const biases = "image_encoder.layers.3.blocks.0.attn.attention_biases";
  assert.is(
    told([biases, [5, 16]]),
    `${name}: no SAM checkpoint: ${biases} has 5 heads, which do not divide the 48 channels of its stage`,
  );
  assert.match(told([biases, [4, 17]]), /: 1 misshaped \(\S+biases is \(4, 17\), not \(4, 16\)\)$/);
  const tokens = ["iou_token", "mask_tokens"].map((key) => `mask_decoder.${key}.weight`);
  assert.match(
    told([tokens[0]!, [1]], [tokens[1]!, [4]], ["prompt_encoder.no_mask_embed.weight", [1, 0]]),
    /: mask_decoder\.iou_token\.weight is \(1\), of which no dimension 2 can be taken for a size$/,
  );
});

test("a comparison names what is missing, unexpected and misshaped", () => {
  const of = (entries: [string, number[]][]) => new Map(entries.map(([key, shape]) => [key, { shape }]));
  const text = describeDifference(
    compareTensors(
      of([
        ["a", [2]],
        ["b", [3]],
      ]),
      of([
        ["b", [4]],
        ["c", [1]],
      ]),
    ),
  );
  assert.is(text, "1 missing (a); 1 unexpected (c); 1 misshaped (b is (4), not (3))");
  assert.is(describeDifference(compareTensors(of([["a", [2]]]), of([["a", [2]]]))), undefined);
});

test.run();
