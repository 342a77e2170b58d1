// sam --engine onnx: ONNX Runtime on exports of a small model (test/parity/make_sam_onnx.py) beside this package's engine on its weights.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { encodeSafetensors, type FileTensor, fileNumbers, parseSafetensors } from "../../engine/index.ts";
import { writePng } from "../../train/data/image.ts";
import { makeScene } from "../../train/data/scenes.ts";
import { BadInput } from "../../train/errors.ts";
import { OnnxDecoder, OnnxEncoder } from "../../train/sam/onnx.ts";
import { readOnnxFile, releaseOnnxFile } from "../../train/weights.ts";
import { message, number, type Place, withRawData } from "../protobuf.ts";
import { wish } from "./run.ts";

const test = suite("cli sam onnx");
const folder = mkdtempSync(join(tmpdir(), "sam-onnx-"));
const at = (name: string) => join(folder, name);
const fixture = (name: string) => fileURLToPath(new URL(`../parity/${name}`, import.meta.url));
const [WIDTH, HEIGHT] = [90, 60];
const DECODER = fixture("sam-decoder.onnx");
const ENCODER = fixture("sam-encoder.onnx");
const WEIGHTS = at("weights.safetensors");
/** Exports with their data in files beside them. */
const BESIDE = { decoder: "decoder.onnx", encoder: "encoder.onnx" };
const read = (file: string) => parseSafetensors(new Uint8Array(readFileSync(file))).tensors;

test.before(async () => {
  const { data } = makeScene(5, 1, WIDTH).image;
  await writePng(at("scene.png"), { width: WIDTH, height: HEIGHT, data: data.subarray(0, 3 * WIDTH * HEIGHT) });
  const weights = [...read(fixture("sam-training.safetensors"))].filter(([key]) => key.startsWith("weight/"));
  mkdirSync(at("data"));
  withDataBeside(DECODER, BESIDE.decoder, "./data/decoder.bin");
  withDataBeside(fixture("sam-encoder-dynamo.onnx"), BESIDE.encoder, "encoder.onnx.data");
  writeFileSync(WEIGHTS, encodeSafetensors(new Map(weights.map(([key, x]) => [key.slice("weight/".length), x]))));
});
test.after(() => rmSync(folder, { recursive: true }));

/** What has fewer bytes stays in the model: shapes are needed there before data is loaded. */
const LEAST = 256;

/** A copy of a model whose numbers lie in a file beside it, as torch's exporters write those that are large; that file has `end` bytes. */
function withDataBeside(model: string, name: string, location: string, end = Number.POSITIVE_INFINITY): string {
  const data: Uint8Array[] = [];
  let offset = 0;
  const onnx = withRawData(readFileSync(model), (raw): Uint8Array | Place => {
    if (raw.length < LEAST) return raw;
    data.push(raw);
    offset += raw.length;
    return { location, offset: String(offset - raw.length), length: String(raw.length) };
  });
  writeFileSync(at(name), onnx);
  if (!location.startsWith("..")) writeFileSync(at(location), Buffer.concat(data).subarray(0, end));
  return at(name);
}

/** A copy of a model with a number in place of the first one of its first large initialiser. */
function withNumber(model: string, name: string, value: number): string {
  let isDone = false;
  const onnx = withRawData(readFileSync(model), (raw) => {
    if (isDone || raw.length < LEAST) return raw;
    isDone = true;
    return Buffer.concat([Buffer.from(Float32Array.of(value).buffer), raw.subarray(4)]);
  });
  writeFileSync(at(name), onnx);
  return at(name);
}

interface Entry {
  prompt: number;
  candidate: number;
  iou: number;
  area: number;
}

const POINTS = ["--point", "20,30", "--point", "60,10,0"];
const BOX = ["--box", "5,5,60,55"];

async function segment(out: string, ...args: string[]): Promise<{ masks: Entry[]; dump: Map<string, FileTensor> }> {
  const files = ["--image", at("scene.png"), "--out", at(out), "--dump", at(`${out}.safetensors`)];
  const done = await wish(["sam", ...args, ...POINTS, ...files, "--json"]);
  assert.is(done.code, 0, done.stderr);
  return { masks: JSON.parse(done.stdout).masks, dump: read(at(`${out}.safetensors`)) };
}

function near(got: FileTensor | undefined, want: FileTensor | undefined, key: string, most = 1e-3): void {
  assert.equal(got?.shape, want?.shape, key);
  const [a, b] = [fileNumbers(got!), fileNumbers(want!)];
  const spread = Math.sqrt(Array.from(b).reduce((sum, v) => sum + v * v, 0) / b.length);
  const worst = Array.from(b).reduce((most, v, i) => Math.max(most, Math.abs(v - a[i]!)), 0);
  assert.ok(worst <= most * spread, `${key}: off by ${worst} where the spread is ${spread}`);
}

const HUB = fixture("sam-hf.safetensors");
const HUB_DECODER = fixture("sam-hf-decoder.onnx");

for (const [name, weights, decoder, encoder, more] of [
  ["segment-anything's decoder and an encoder's export", WEIGHTS, DECODER, ENCODER, BOX],
  ["segment-anything's decoder after this engine's encoder, a single mask", WEIGHTS, DECODER, WEIGHTS, ["--single"]],
  ["exports whose data lies beside them", WEIGHTS, at(BESIDE.decoder), at(BESIDE.encoder), []],
  ["optimum's decoder and encoder", HUB, HUB_DECODER, fixture("sam-hf-encoder.onnx"), []],
  ["optimum's decoder after this engine's encoder", HUB, HUB_DECODER, HUB, []],
] as const) {
  test(`both engines agree on ${name}`, async () => {
    const ours = await segment("ours", "--checkpoint", weights, ...more);
    const onnx = await segment("onnx", "--engine", "onnx", "--checkpoint", decoder, "--encoder", encoder, ...more);
    const places = (masks: Entry[]) => masks.map(({ prompt, candidate }) => [prompt, candidate]);
    assert.equal(places(onnx.masks), places(ours.masks));
    assert.is(onnx.masks.length, more === BOX ? 6 : more.length > 0 ? 1 : 3);
    onnx.masks.forEach(({ area }, i) => {
      assert.ok(
        Math.abs(area - ours.masks[i]!.area) <= 0.002 * WIDTH * HEIGHT,
        `mask ${i}: ${area}, ${ours.masks[i]!.area}`,
      );
    });
    for (const key of ["image_embeddings", "low_res_masks", "iou_predictions"])
      near(onnx.dump.get(key), ours.dump.get(key), key);
  });
}

test("exports in half precision take and give halves", async () => {
  const ours = await segment("ours", "--checkpoint", WEIGHTS);
  const half = ["--checkpoint", fixture("sam-half-decoder.onnx"), "--encoder", fixture("sam-half-encoder.onnx")];
  const onnx = await segment("onnx", "--engine", "onnx", ...half);
  assert.is(onnx.masks.length, 3);
  for (const key of ["image_embeddings", "low_res_masks", "iou_predictions"])
    near(onnx.dump.get(key), ours.dump.get(key), key, 5e-2);
});

async function refusal(...args: string[]): Promise<string> {
  const prompt = args.includes("--box") ? [] : POINTS;
  const done = await wish(["sam", ...args, ...prompt, "--image", at("scene.png"), "--out", at("out")]);
  assert.is(done.code, 2, done.stderr);
  assert.is(done.stderr.trim().split("\n").length, 1, done.stderr);
  return done.stderr;
}

const onnx = ["--engine", "onnx", "--checkpoint"];

test("what does not go together is refused in one line", async () => {
  assert.match(await refusal(...onnx, DECODER), /holds no image encoder; name it with --encoder/);
  assert.match(
    await refusal(...onnx, WEIGHTS, "--encoder", ENCODER),
    /weights\.safetensors: --engine onnx runs an ONNX/,
  );
  assert.match(await refusal(...onnx, ENCODER, "--encoder", ENCODER), /sam-encoder\.onnx: is no SAM decoder/);
  assert.match(await refusal(...onnx, DECODER, "--encoder", DECODER), /sam-decoder\.onnx: is no image encoder/);
  assert.match(
    await refusal(...onnx, DECODER, "--encoder", fixture("sam-vit.pt")),
    /takes image embeddings \(1, 16, 8, 8\); the encoder gives \(1, 32, 12, 12\)/,
  );
  assert.match(await refusal(...onnx, HUB_DECODER, "--encoder", HUB, ...BOX), /takes points alone; give --point/);
  assert.match(await refusal("--checkpoint", DECODER), /sam-decoder\.onnx: .*run as they are by --engine onnx/);
  writeFileSync(
    at("unknown.onnx"),
    readFileSync(DECODER).toString("latin1").replaceAll("Softmax", "Softmix"),
    "latin1",
  );
  assert.match(
    await refusal(...onnx, at("unknown.onnx"), "--encoder", ENCODER),
    /unknown\.onnx: ONNX Runtime cannot load it \(.*Softmix.*\); expected SAM's decoder/,
  );
});

/** The message of BadInput; what the command makes of it other tests tell. */
async function refused(opening: Promise<unknown>): Promise<string> {
  const error = await opening.then(
    () => new Error("was opened"),
    (cause: Error) => cause,
  );
  assert.instance(error, BadInput, error.message);
  return error.message;
}

test("models that are damaged, or whose data does not lie where they say in their folder, are refused", async () => {
  writeFileSync(at("stolen.bin"), new Uint8Array(2 ** 20));
  assert.match(
    await refusal(...onnx, withDataBeside(DECODER, "data/out.onnx", "../stolen.bin"), "--encoder", ENCODER),
    /out\.onnx: initialiser \S+: names the file "\.\.\/stolen\.bin", which is outside of the model's own folder; refused/,
  );
  writeFileSync(at("broken.onnx"), readFileSync(DECODER).subarray(0, 1000));
  assert.match(await refused(OnnxDecoder.open(at("broken.onnx"))), /broken\.onnx: .* is truncated at byte/);
  const short = withDataBeside(ENCODER, "short.onnx", "short.bin", 1000);
  assert.match(
    await refused(OnnxEncoder.open(short)),
    /short\.onnx: initialiser \S+: lies at \d+\.\.\d+ of short\.bin, beyond its end at 1000; the file is truncated/,
  );
  rmSync(at("short.bin"));
  assert.match(
    await refused(OnnxEncoder.open(short)),
    /short\.bin: there is no such file; expected a part of \S+short\.onnx/,
  );
});

/** An "encoder" of one node, which casts (1, 3, 8, 8) from one of ONNX's types to another. */
function casting(name: string, from: number, to: number): string {
  const dims = [1, 3, 8, 8].map((d) => message(1, number(1, d)));
  const value = (field: number, id: string, type: number) =>
    message(field, message(1, id), message(2, message(1, number(1, type), message(2, ...dims))));
  const attribute = message(5, message(1, "to"), number(3, to), number(20, 2));
  const node = message(1, message(1, "x"), message(2, "y"), message(4, "Cast"), attribute);
  const graph = message(7, node, message(2, "cast"), value(11, "x", from), value(12, "y", to));
  writeFileSync(at(name), Buffer.concat([number(1, 8), graph, message(8, number(2, 17))]));
  return at(name);
}

test("exports of other types, and what ONNX Runtime refuses while it runs, are refused by file", async () => {
  const image = makeScene(5, 1, 64).image;
  const [F32, F16, F64] = [1, 10, 11];
  const encode = async (file: string) => (await OnnxEncoder.open(file)).encode(image);
  assert.match(
    await refused(encode(casting("in64.onnx", F64, F32))),
    /in64\.onnx: its input x is of type float64; expected float32 or float16: export it so$/,
  );
  assert.match(
    await refused(encode(casting("out64.onnx", F32, F64))),
    /out64\.onnx: its output y is of type float64; expected float32 or float16: export it so$/,
  );
  // Pixels through halves: near, and not the same.
  const [half, full] = [await encode(casting("half.onnx", F32, F16)), await encode(casting("full.onnx", F32, F32))];
  const errors = half.values.map((v, i) => Math.abs(v - full.values[i]!));
  assert.ok(errors.some((error) => error > 0) && errors.every((error) => error < 2e-3));
  const decoder = await OnnxDecoder.open(DECODER);
  const embedding = { ...half, values: new Float32Array(32), shape: [1, 2, 4, 4] };
  assert.match(
    await refused(decoder.predict(embedding, { boxes: [1, 1, 5, 5] })),
    /sam-decoder\.onnx: ONNX Runtime cannot run it \(.+\)$/,
  );
  await decoder.close();
});

test("weights that are not finite are refused", async () => {
  assert.match(
    await refusal(...onnx, withNumber(DECODER, "nan.onnx", Number.NaN), "--encoder", ENCODER),
    /nan\.onnx: tensor (mask_decoder|prompt_encoder)\.\S+ holds NaN \(element 0\); the file is damaged/,
  );
  assert.match(
    await refused(OnnxEncoder.open(withNumber(ENCODER, "infinite.onnx", Number.POSITIVE_INFINITY))),
    /infinite\.onnx: tensor \S+ holds Infinity \(element 0\); the file is damaged/,
  );
});

test("the memory of a model's files does not wait for a collection of garbage", async () => {
  const model = await readOnnxFile(at(BESIDE.decoder), "a decoder");
  const files = [model.bytes, ...model.parts.values()];
  assert.is(files.length, 2);
  assert.ok(files.every(({ length }) => length > 1e4));
  releaseOnnxFile(model);
  assert.equal(
    files.map(({ buffer }) => buffer.byteLength),
    [0, 0],
  );
});

test.run();
