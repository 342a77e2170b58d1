// predict and convert with a Mask2Former as transformers saves one: the recorded model of test/parity/make_swin.py in a folder.
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { encodeSafetensors, type FileTensor, fileNumbers, fileTensor, parseSafetensors } from "../../engine/index.ts";
import { COCO_CATEGORIES } from "../../train/data/coco-categories.ts";
import { writePng } from "../../train/data/image.ts";
import { BadInput } from "../../train/errors.ts";
import { LARGEST_SIDE } from "../../train/limits.ts";
import { loadTrained } from "../../train/models.ts";
import { testDevice } from "../device.ts";
import { wish } from "./run.ts";

const test = suite("cli predict");
const folder = mkdtempSync(join(tmpdir(), "cli-predict-"));
const at = (...names: string[]) => join(folder, ...names);
const read = (path: string | URL) => parseSafetensors(new Uint8Array(readFileSync(path))).tensors;
const fixture = read(new URL("../parity/mask2former-swin.safetensors", import.meta.url));
const weights = new Map(
  [...fixture].flatMap(([key, x]) => (key.startsWith("weights.") ? [[key.slice(8), x] as const] : [])),
);

/** A folder as save_pretrained writes it. */
function save(name: string, tensors: ReadonlyMap<string, FileTensor>, labels: readonly string[]): void {
  mkdirSync(at(name));
  writeFileSync(at(name, "model.safetensors"), encodeSafetensors(tensors, { format: "pt" }));
  writeFileSync(at(name, "config.json"), JSON.stringify({ id2label: Object.fromEntries(labels.entries()) }));
}

test.before(async () => {
  save("named", weights, ["ant", "bee", "cow"]);
  save("unnamed", weights, ["LABEL_0", "LABEL_1", "LABEL_2"]);
  const { data, shape } = { data: fileNumbers(fixture.get("input")!), shape: fixture.get("input")!.shape };
  const [, , height, width] = shape as [number, number, number, number];
  const rgb = Uint8Array.from(
    { length: height * width * 3 },
    (_, i) => data[(i % 3) * height * width + Math.floor(i / 3)]!,
  );
  await writePng(at("image.png"), { width, height, data: rgb });
});
test.after(() => rmSync(folder, { recursive: true }));

const predict = (checkpoint: string, ...rest: string[]) =>
  wish(["predict", "--checkpoint", checkpoint, at("image.png"), "--short", "60", "--score", "0", "--json", ...rest]);

test("predict segments with a published model, names its classes, and dumps what transformers computes", async () => {
  const done = await predict(at("named"), "--out", at("out"), "--dump", at("dump.safetensors"));
  assert.is(done.code, 0, done.stderr);
  const [{ instances }] = JSON.parse(done.stdout).images;
  assert.ok(instances.length > 3);
  for (const { category, categoryId, mask } of instances) {
    assert.is(category, ["ant", "bee", "cow"][categoryId - 1]);
    assert.ok(existsSync(mask));
  }
  const dump = read(at("dump.safetensors"));
  const attention = ["attention_logits.0", "attention_logits.1"];
  assert.equal([...dump.keys()].sort(), [...attention, "class_logits", "mask_logits"]);
  assert.equal(
    attention.map((name) => dump.get(name)!.shape),
    [
      [1, 6, 2, 3],
      [1, 6, 4, 6],
    ],
  );
  for (const [name, recorded, shape] of [
    ["class_logits", "image.class", [1, 6, 4]],
    ["mask_logits", "image.mask", [1, 6, 16, 24]],
  ] as const) {
    assert.equal(dump.get(name)!.shape, shape);
    const got = fileNumbers(dump.get(name)!);
    const want = fileNumbers(fixture.get(recorded)!).subarray(0, got.length); // the first image of the recorded batch
    const worst = Math.max(...got.map((v, i) => Math.abs(v - want[i]!)));
    assert.ok(worst < 1e-3, `${name}: off by ${worst}`);
  }
});

test("convert keeps such a model under detectron2's names, and both load; classes without names are numbered", async () => {
  const converted = await wish(["convert", at("unnamed", "model.safetensors"), at("m2f.safetensors")]);
  assert.is(converted.code, 0, converted.stderr);
  assert.ok(read(at("m2f.safetensors")).has("backbone.layers.0.blocks.1.attn.qkv.weight"));
  assert.not.ok("categories" in parseSafetensors(new Uint8Array(readFileSync(at("m2f.safetensors")))).metadata);
  const gpu = await testDevice();
  for (const checkpoint of [at("m2f.safetensors"), at("unnamed")]) {
    const { categories, model } = await loadTrained(gpu, checkpoint);
    assert.equal(
      categories,
      [1, 2, 3].map((id) => ({ id, name: `class ${id}` })),
    );
    const key = "model.transformer_module.queries_features.weight";
    const queries = model.stateDict().get("sem_seg_head.predictor.query_feat.weight")!;
    assert.equal(await queries.toArray(), fileNumbers(weights.get(key)!));
  }
});

test("80 classes of COCO's have COCO's ids, however their names are spelt, and keep their names", async () => {
  const gpu = await testDevice();
  const [rows, dim] = [81, weights.get("class_predictor.weight")!.shape[1]!];
  const many = new Map(weights)
    .set("class_predictor.weight", fileTensor(new Float32Array(rows * dim), [rows, dim]))
    .set("class_predictor.bias", fileTensor(new Float32Array(rows), [rows]));
  const load = async (name: string, labels: readonly string[]) => {
    save(name, many, labels);
    const { categories } = await loadTrained(gpu, at(name));
    assert.equal(
      categories.map((category) => category.name),
      labels,
    );
    return categories.map(({ id }) => id);
  };
  const names = COCO_CATEGORIES.map(({ name }) => name);
  const ids = COCO_CATEGORIES.map(({ id }) => id);
  assert.is(ids.at(-1), 90);
  assert.equal(await load("coco", names), ids);
  const words = { motorcycle: "motorbike", airplane: "aeroplane", couch: "sofa", tv: "TVmonitor", person: "Person" };
  const spelt = Object.entries({ ...words, "potted plant": "pottedplant", "dining table": "dining_table" });
  const darknet = spelt.reduce((all, [name, other]) => all.with(names.indexOf(name), other), names);
  assert.equal(await load("darknet", darknet), ids);
  const numbered = names.map((_, i) => i + 1);
  assert.equal(await load("moved", [...darknet.slice(1), darknet[0]!]), numbered);
  assert.equal(await load("other", names.with(4, "rocket")), numbered);
});

test("a checkpoint that lacks a tensor, has one too many or another model's is refused in a line with its name", async () => {
  const key = "model.transformer_module.decoder.layers.0.self_attn.v_proj.bias";
  const cases = {
    missing: [new Map([...weights].filter(([name]) => name !== key)), /1 missing \(model\.\S+\.v_proj\.bias\)/],
    spare: [new Map([...weights, ["spare.weight", weights.get(key)!]]), /1 unexpected \(spare\.weight\)/],
    shape: [
      new Map([...weights, [key, weights.get("class_predictor.bias")!]]),
      /1 misshaped \(model\.\S+\.v_proj\.bias is \(4\), not \(32\)\)/,
    ],
    other: [new Map([["conv1.weight", weights.get(key)!]]), /holds no Mask2Former/],
    pixels: [
      new Map([...weights, ["pixel_mean", fileTensor([103.53, 116.28, 123.675], [3, 1, 1])]]),
      /pixel_mean is \(103\.5\d*, 116\.2\d*, 123\.6\d*\); here images are always normalised by \(123\.675, 116\.28, 103\.53\), RGB/,
    ],
  } as const;
  const gpu = await testDevice();
  for (const [name, [tensors, reason]] of Object.entries(cases)) {
    const path = at(`${name}.safetensors`);
    writeFileSync(path, encodeSafetensors(new Map(tensors)));
    const error = await loadTrained(gpu, path).then(
      () => undefined,
      (thrown: Error) => thrown,
    );
    assert.ok(error instanceof BadInput, `${name}: ${error}`);
    assert.ok(error.message.startsWith(`${path}: `) && reason.test(error.message), error.message);
    assert.not.match(error.message, /\n/);
  }
  const refused = await predict(at("missing.safetensors"), "--out", at("never"));
  assert.is(refused.code, 2);
  assert.is(refused.stderr.trim().split("\n").length, 1, refused.stderr);
  assert.not.ok(existsSync(at("never")));
  const sam = await predict(at("named"), "--out", at("never"), "--inference", "sam");
  assert.is(sam.code, 2, sam.stderr);
});

test("sizes in our own file's metadata that nobody can build end predict in a line, before the output's folder is made", async () => {
  const path = new URL("../../assets/wish-scenes.safetensors", import.meta.url);
  const { tensors, metadata } = parseSafetensors(new Uint8Array(readFileSync(path)));
  for (const [name, change, reason] of [
    ["blocks", { model: metadata.model!.replace("[1,1,1,1]", "[1e8,1,1,1]") }, /metadata: model\.backbone\.blocks: /],
    ["short", { inference: '{"short":1e12,"long":96,"topk":1}' }, /metadata: inference\.short: /],
  ] as const) {
    writeFileSync(at(`${name}.safetensors`), encodeSafetensors(tensors, { ...metadata, ...change }));
    const { code, stderr } = await wish([
      "predict",
      "--checkpoint",
      at(`${name}.safetensors`),
      at("image.png"),
      "--out",
      at("never"),
    ]);
    assert.is(code, 2, stderr);
    assert.match(stderr, reason);
    assert.is(stderr.trim().split("\n").length, 1, stderr);
    assert.not.ok(existsSync(at("never")));
  }
});

test("a size that the adapter cannot bind is refused before the output's folder is made", async () => {
  const side = String(LARGEST_SIDE);
  const done = await predict(at("named"), "--out", at("large"), "--short", side, "--long", side);
  assert.is(done.code, 2, done.stderr);
  assert.match(
    done.stderr.trim(),
    /^error: --short 16384 and --long 16384: \S+image\.png, seen at \d+ x \d+ pixels, takes a tensor of \d+ bytes, more than the \d+ that .* can bind at once; make them smaller, or use another --adapter$/,
  );
  assert.not.ok(existsSync(at("large")));
});

test("images of like names get files of their own, one that cannot be read is skipped, and images.json names them all", async () => {
  const paths = [at("x-2.png"), at("a", "x.png"), at("b", "x.png"), at("b", "cut.png"), at("x-001-bee.png")];
  for (const name of ["a", "b"]) mkdirSync(at(name));
  for (const path of paths) copyFileSync(at("image.png"), path);
  writeFileSync(at("b", "cut.png"), readFileSync(at("image.png")).subarray(0, 200));
  const options = ["--short", "60", "--score", "0", "--checkpoint", at("named"), "--out", at("many"), "--json"];
  const { code, stdout, stderr } = await wish(["predict", ...paths, ...options]);
  assert.is(code, 1, stderr);

  assert.match(stderr, /^warning: skipped: \S+cut\.png: cannot be read as an image .*$/m);
  const { images, skipped } = JSON.parse(stdout) as {
    images: { id: number; image: string; overlay: string; instances: { mask: string }[] }[];
    skipped: string[];
  };
  assert.match(skipped.join(), /cut\.png/);
  const files = images.flatMap(({ overlay, instances }) => [overlay, ...instances.map(({ mask }) => mask)]);
  assert.is(new Set(files.map((file) => file.toLowerCase())).size, files.length, "no file is written twice");
  assert.equal(readdirSync(at("many")).length, files.length + 2);
  const named = JSON.parse(readFileSync(at("many", "images.json"), "utf8"));
  assert.equal(
    named.images.map(({ id, file_name }: { id: number; file_name: string }) => [id, file_name]),
    paths.flatMap((path, i) => (path.endsWith("cut.png") ? [] : [[i + 1, path]])),
  );
  assert.equal(named.categories[1], { id: 2, name: "bee" });
  const results: { image_id: number }[] = JSON.parse(readFileSync(at("many", "results.json"), "utf8"));
  assert.equal([...new Set(results.map(({ image_id }) => image_id))], [1, 2, 3, 5]);

  const cut = at("b", "cut.png");
  copyFileSync(cut, at("cut too.png"));
  for (const [few, reason] of [
    [[cut], /^error: \S+cut\.png: cannot be read as an image/],
    [[cut, at("cut too.png")], /error: none of the 2 images could be read/],
  ] as const) {
    const none = await wish(["predict", ...few, ...options, "--out", at("none")]);
    assert.is(none.code, 2, none.stderr);
    assert.match(none.stderr, reason);
    assert.not.ok(existsSync(at("none", "results.json")));
  }
});

test.run();
