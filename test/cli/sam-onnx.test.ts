// sam --engine onnx: ONNX Runtime on exports of a small model (test/parity/make_sam_onnx.py) beside this package's engine on its weights.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { encodeSafetensors, type FileTensor, fileNumbers, parseSafetensors } from "../../engine/index.ts";
import { writePng } from "../../train/data/image.ts";
import { makeScene } from "../../train/data/scenes.ts";
import { wish } from "./run.ts";

const test = suite("cli sam onnx");
const folder = mkdtempSync(join(tmpdir(), "sam-onnx-"));
const at = (name: string) => join(folder, name);
const fixture = (name: string) => fileURLToPath(new URL(`../parity/${name}`, import.meta.url));
const [WIDTH, HEIGHT] = [90, 60];
const DECODER = fixture("sam-decoder.onnx");
const ENCODER = fixture("sam-encoder.onnx");
const WEIGHTS = at("weights.safetensors");
const read = (file: string) => parseSafetensors(new Uint8Array(readFileSync(file))).tensors;

test.before(async () => {
  const { data } = makeScene(5, 1, WIDTH).image;
  await writePng(at("scene.png"), { width: WIDTH, height: HEIGHT, data: data.subarray(0, 3 * WIDTH * HEIGHT) });
  const weights = [...read(fixture("sam-training.safetensors"))].filter(([key]) => key.startsWith("weight/"));
  writeFileSync(WEIGHTS, encodeSafetensors(new Map(weights.map(([key, x]) => [key.slice("weight/".length), x]))));
});
test.after(() => rmSync(folder, { recursive: true }));

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

function near(got: FileTensor | undefined, want: FileTensor | undefined, key: string): void {
  assert.equal(got?.shape, want?.shape, key);
  const [a, b] = [fileNumbers(got!), fileNumbers(want!)];
  const spread = Math.sqrt(Array.from(b).reduce((sum, v) => sum + v * v, 0) / b.length);
  const worst = Array.from(b).reduce((most, v, i) => Math.max(most, Math.abs(v - a[i]!)), 0);
  assert.ok(worst <= 1e-3 * spread, `${key}: off by ${worst} where the spread is ${spread}`);
}

const HUB = fixture("sam-hf.safetensors");
const HUB_DECODER = fixture("sam-hf-decoder.onnx");

for (const [name, weights, decoder, encoder, more] of [
  ["segment-anything's decoder and an encoder's export", WEIGHTS, DECODER, ENCODER, BOX],
  ["segment-anything's decoder after this engine's encoder, a single mask", WEIGHTS, DECODER, WEIGHTS, ["--single"]],
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

test("what does not go together is refused in one line", async () => {
  const refusal = async (...args: string[]) => {
    const prompt = args.includes("--box") ? [] : POINTS;
    const done = await wish(["sam", ...args, ...prompt, "--image", at("scene.png"), "--out", at("out")]);
    assert.is(done.code, 2, done.stderr);
    assert.is(done.stderr.trim().split("\n").length, 1, done.stderr);
    return done.stderr;
  };
  const onnx = ["--engine", "onnx", "--checkpoint"];
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
  writeFileSync(at("broken.onnx"), readFileSync(DECODER).subarray(0, 1000));
  assert.match(
    await refusal(...onnx, at("broken.onnx"), "--encoder", ENCODER),
    /broken\.onnx: ONNX Runtime cannot load/,
  );
});

test.run();
