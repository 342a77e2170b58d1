// sam and convert on the command line, with the small checkpoints that the reference implementations wrote.
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { encodeSafetensors, fileNumbers, fileTensor, parseSafetensors } from "../../engine/index.ts";
import { writePng } from "../../train/data/image.ts";
import { maskOfRuns, runsOfRle } from "../../train/data/mask.ts";
import { makeScene } from "../../train/data/scenes.ts";
import { wish } from "./run.ts";

const test = suite("cli sam");
const folder = mkdtempSync(join(tmpdir(), "cli-sam-"));
const at = (name: string) => join(folder, name);
const fixture = (name: string) => fileURLToPath(new URL(`../parity/${name}`, import.meta.url));
test.before(() => writePng(at("scene.png"), makeScene(5, 1, 80).image));
test.after(() => rmSync(folder, { recursive: true }));

test("convert keeps the original names and says which model it is", async () => {
  const done = await wish(["convert", fixture("sam-hf.safetensors"), at("hf.safetensors"), "--json"]);
  assert.is(done.code, 0, done.stderr);
  const report = JSON.parse(done.stdout);
  assert.is(report.model, "SAM (ViT)");
  const { tensors, metadata } = parseSafetensors(new Uint8Array(readFileSync(at("hf.safetensors"))));
  assert.ok(tensors.has("image_encoder.blocks.0.attn.qkv.weight"));
  assert.is(JSON.parse(metadata.config!).imageSize, 64);
});

test("convert refuses what is damaged, with the file's name and exit code 2", async () => {
  writeFileSync(at("cut.pt"), readFileSync(fixture("sam-vit.pt")).subarray(0, 9000));
  const done = await wish(["convert", at("cut.pt"), at("x.safetensors")]);
  assert.is(done.code, 2);
  assert.match(done.stderr, /cut\.pt: the archive's directory is missing/);
  assert.not.ok(existsSync(at("x.safetensors")));
});

test("sam answers with a mask for each prompt and candidate, and dumps its tensors", async () => {
  const args = [
    "--checkpoint",
    fixture("sam-vit.pt"),
    "--image",
    at("scene.png"),
    "--out",
    at("out"),
    "--dump",
    at("dump.safetensors"),
  ];
  const done = await wish(["sam", ...args, "--point", "20,30", "--point", "60,10,0", "--box", "5,5,60,70", "--json"]);
  assert.is(done.code, 0, done.stderr);
  const { image, masks, memory } = JSON.parse(done.stdout);
  assert.ok(memory.highWaterBytes >= memory.liveBytes && memory.liveBytes > 0);
  assert.equal(image, { width: 80, height: 80 });
  assert.equal(
    masks.map((m: { prompt: number; candidate: number }) => [m.prompt, m.candidate]),
    [
      [0, 0],
      [0, 1],
      [0, 2],
      [1, 0],
      [1, 1],
      [1, 2],
    ],
  );
  for (const { rle, area } of masks)
    assert.is(
      maskOfRuns(runsOfRle(rle)).reduce((sum, v) => sum + v, 0),
      area,
    );
  assert.ok(existsSync(at("out/overlay.png")) && existsSync(at("out/mask-1-2.png")));
  const { tensors } = parseSafetensors(new Uint8Array(readFileSync(at("dump.safetensors"))));
  const shapes = Object.fromEntries([...tensors].map(([key, { shape }]) => [key, [...shape]]));
  assert.equal(shapes, {
    image_embeddings: [1, 32, 12, 12],
    sparse_embeddings: [2, 3, 32],
    dense_embeddings: [2, 32, 12, 12],
    low_res_masks: [2, 3, 48, 48],
    iou_predictions: [2, 3],
  });
});

test("sam --half answers alike in less memory", async () => {
  const args = [
    "--checkpoint",
    fixture("sam-vit.pt"),
    "--image",
    at("scene.png"),
    "--out",
    at("out"),
    "--box",
    "5,5,60,70",
  ];
  const [full, half] = await Promise.all(
    [[], ["--half"]].map(async (more) => {
      const done = await wish(["sam", ...args, ...more, "--json"]);
      assert.is(done.code, 0, done.stderr);
      return JSON.parse(done.stdout);
    }),
  );
  assert.ok(half.memory.liveBytes < full.memory.liveBytes);
  full.masks.forEach(({ iou }: { iou: number }, i: number) => {
    assert.ok(Math.abs(half.masks[i].iou - iou) < 0.02);
  });
});

test("sam --half refuses a weight that half precision cannot hold, and takes one that stays as it is", async () => {
  const { tensors } = parseSafetensors(new Uint8Array(readFileSync(fixture("sam-hf.safetensors"))));
  const spoil = (file: string, key: string, value: number) => {
    const { shape } = tensors.get(key)!;
    const numbers = fileNumbers(tensors.get(key)!);
    numbers[numbers.length - 1] = value;
    writeFileSync(at(file), encodeSafetensors(new Map(tensors).set(key, fileTensor(numbers, shape))));
  };
  const answer = (file: string, out: string, ...more: string[]) =>
    wish(["sam", "--checkpoint", at(file), "--image", at("scene.png"), "--point", "9,9", "--out", at(out), ...more]);
  const key = "vision_encoder.layers.0.mlp.lin1.weight";
  spoil("large.safetensors", key, -1e5);
  spoil("bias.safetensors", key.replace("weight", "bias"), 1e5);
  spoil("edge.safetensors", key, 65519);
  const [refused, full, bias, edge] = await Promise.all([
    answer("large.safetensors", "large", "--half"),
    answer("large.safetensors", "full"),
    answer("bias.safetensors", "bias", "--half"),
    answer("edge.safetensors", "edge", "--half"),
  ]);
  assert.is(refused.code, 2);
  assert.is(
    refused.stderr.trim(),
    `error: ${at("large.safetensors")}: tensor ${key} holds -100000, which half precision cannot (it ends at 65504); leave --half out`,
  );
  assert.not.ok(existsSync(at("large")));
  for (const done of [full, bias, edge]) assert.is(done.code, 0, done.stderr);
});

test("sam refuses prompts outside of the image and missing files", async () => {
  const outside = await wish([
    "sam",
    "--checkpoint",
    fixture("sam-vit.pt"),
    "--image",
    at("scene.png"),
    "--out",
    at("out"),
    "--point",
    "200,10",
  ]);
  assert.is(outside.code, 2);
  assert.match(outside.stderr, /--point 200,10: lies outside of .*scene\.png, which has 80x80 pixels/);
  const absent = await wish([
    "sam",
    "--checkpoint",
    at("none.pt"),
    "--image",
    at("scene.png"),
    "--out",
    at("out"),
    "--point",
    "2,1",
  ]);
  assert.is(absent.code, 2);
  assert.match(absent.stderr, /none\.pt: there is no such file/);
});

test.run();
