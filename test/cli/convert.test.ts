// convert on files: what it writes.
import { copyFileSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { encodeSafetensors, fileTensor, optim, parseSafetensors } from "../../engine/index.ts";
import { loadMask2Former, resNet, Wish, wishResNet50 } from "../../model/index.ts";
import type { SamConfig } from "../../model/sam/index.ts";
import { readCheckpoint } from "../../model/weights/index.ts";
import { readWeights, saveCheckpoint } from "../../train/checkpoint.ts";
import { loadTrained } from "../../train/models.ts";
import { openSam } from "../../train/weights.ts";
import { testDevice } from "../device.ts";
import { asset, at, bytesOf, contents, convert, fixture, folder, type Report, refusal } from "./converting.ts";

const test = suite("convert");
test.after(() => rmSync(folder, { recursive: true }));

test("the reference's own checkpoints come out with every name, type, shape and byte", async () => {
  for (const [name, model] of [
    ["sam-vit.pt", "SAM (ViT)"],
    ["sam-tiny-vit.pth", "SAM (TinyViT)"],
  ] as const) {
    const { report, text } = await convert(fixture(name), at("out.safetensors"));
    assert.is(report.model, model);
    const { tensors } = parseSafetensors(bytesOf(at("out.safetensors")));
    const original = readCheckpoint(bytesOf(fixture(name)), name).tensors;
    assert.equal(contents(tensors).sort(), contents(original).sort());
    assert.equal(report.modules.map(({ module }) => module).sort(), [
      "image_encoder",
      "mask_decoder",
      "prompt_encoder",
    ]);
    assert.is(
      report.modules.reduce((sum, row) => sum + row.tensors, 0),
      original.size,
    );
    const numbers = [...original.values()].reduce((sum, { shape }) => sum + shape.reduce((p, d) => p * d, 1), 0);
    assert.is(
      report.modules.reduce((sum, row) => sum + row.parameters, 0),
      numbers,
    );
    assert.match(text, /^image_encoder +\d+ +\d+ +F32/m);
    assert.match(text, /^module +tensors +parameters +type$/m);
  }
});

test("transformers' SAM comes out under the original's names with the same bytes", async () => {
  const { report } = await convert(fixture("sam-hf.safetensors"), at("hf.safetensors"));
  assert.equal(report.unused, []);
  const { tensors } = parseSafetensors(bytesOf(at("hf.safetensors")));
  const found = readCheckpoint(bytesOf(fixture("sam-hf.safetensors")), "x").tensors;
  const bytes = (all: typeof tensors) =>
    [...all.values()].map(({ data }) => Buffer.from(data).toString("base64")).sort();
  assert.equal(bytes(tensors), bytes(found));
  const names = [...readCheckpoint(bytesOf(fixture("sam-vit.pt")), "x").tensors.keys()];
  for (const key of tensors.keys()) assert.ok(names.includes(key), key);
});

test("the number of the decoder's heads comes from transformers' config.json and stays with the converted file", async () => {
  mkdirSync(at("heads"));
  copyFileSync(fixture("sam-hf.safetensors"), at("heads", "model.safetensors"));
  const beside = (config: unknown) => writeFileSync(at("heads", "config.json"), JSON.stringify(config));
  const headsIn = (report: Report) => (report.config as SamConfig).decoder.heads;
  for (const [config, heads] of [
    [{ mask_decoder_config: { num_attention_heads: 4 } }, 4],
    [{ mask_decoder_config: {} }, 8],
    [[], 8],
  ] as const) {
    beside(config);
    assert.is(headsIn((await convert(at("heads"), at("heads.safetensors"))).report), heads);
    // There is no config.json beside it.
    assert.is(headsIn((await convert(at("heads.safetensors"), at("again.safetensors"))).report), heads);
    const sam = await openSam(await testDevice(), at("heads"), "a SAM");
    assert.is(sam.config.decoder.heads, heads);
  }
  for (const [config, reason] of [
    [
      { num_attention_heads: 3 },
      /model\.safetensors: SAM configuration: decoder\.heads 3 must divide promptDim \/ 2 = 8$/,
    ],
    [{ num_attention_heads: "4" }, /config\.json: mask_decoder_config\.num_attention_heads must be .*; got "4"$/],
    [{ num_attention_heads: 0 }, /config\.json: mask_decoder_config\.num_attention_heads must be .*; got 0$/],
  ] as const) {
    beside({ mask_decoder_config: config });
    assert.match(await refusal(at("heads")), reason);
  }
});

test("a config.json beside weights of other names than transformers' is nobody's business", async () => {
  const gpu = await testDevice();
  mkdirSync(at("original"));
  const beside = (text: string) => writeFileSync(at("original", "config.json"), text);
  copyFileSync(fixture("sam-vit.pt"), at("original", "sam.pt"));
  for (const text of ["{", JSON.stringify({ mask_decoder_config: { num_attention_heads: 4, hidden_act: "gelu" } })]) {
    beside(text);
    const { report } = await convert(at("original", "sam.pt"), at("original.safetensors"));
    assert.is((report.config as SamConfig).decoder.heads, 8);
    assert.is((await openSam(gpu, at("original", "sam.pt"), "a SAM")).config.decoder.heads, 8);
  }
  const { tensors } = readCheckpoint(bytesOf(fixture("mask2former-swin.safetensors")), "x");
  const weights = [...tensors].flatMap(([key, x]) => (key.startsWith("weights.") ? [[key.slice(8), x] as const] : []));
  mkdirSync(at("hub"));
  writeFileSync(at("hub", "model.safetensors"), encodeSafetensors(new Map(weights)));
  await convert(at("hub", "model.safetensors"), at("original", "m2f.safetensors"));
  beside("{");
  await convert(at("original", "m2f.safetensors"), at("m2f.safetensors"));
  assert.is((await loadTrained(gpu, at("original", "m2f.safetensors"))).categories.length, 3);
  // Beside transformers' own it counts.
  copyFileSync(fixture("sam-hf.safetensors"), at("original", "hub.safetensors"));
  copyFileSync(at("hub", "model.safetensors"), at("original", "m2f-hub.safetensors"));
  for (const name of ["hub.safetensors", "m2f-hub.safetensors"])
    assert.match(await refusal(at("original", name)), /config\.json: not JSON/);
});

test("the converted file is as good as the original, from a folder, an index, shards behind links", async () => {
  const { tensors } = readCheckpoint(bytesOf(fixture("sam-vit.pt")), "x");
  mkdirSync(at("blobs"));
  mkdirSync(at("model"));
  const keys = [...tensors.keys()];
  const index: Record<string, string> = {};
  for (const [i, part] of [keys.slice(0, 90), keys.slice(90)].entries()) {
    const name = `model-0000${i + 1}-of-00002.safetensors`;
    writeFileSync(at("blobs", name), encodeSafetensors(new Map(part.map((key) => [key, tensors.get(key)!]))));
    symlinkSync(at("blobs", name), at("model", name));
    for (const key of part) index[key] = name;
  }
  writeFileSync(at("model", "model.safetensors.index.json"), JSON.stringify({ weight_map: index }));
  for (const from of [at("model"), at("model", "model.safetensors.index.json")]) {
    const { report } = await convert(from, at("whole.safetensors"));
    assert.is(report.format, "safetensors");
    assert.equal(contents(parseSafetensors(bytesOf(at("whole.safetensors"))).tensors).sort(), contents(tensors).sort());
  }
  // Every place that takes weights reads them in parts.
  const gpu = await testDevice();
  const sam = await openSam(gpu, at("model"), "a SAM");
  assert.is(sam.stateDict().size, tensors.size);
  rmSync(at("model", "model-00002-of-00002.safetensors"));
  assert.match(
    await refusal(at("model")),
    /model-00002-of-00002\.safetensors: there is no such file; expected a part of/,
  );
  mkdirSync(at("two"));
  for (const name of ["a.pt", "b.pt"]) copyFileSync(fixture("sam-vit.pt"), at("two", name));
  assert.match(await refusal(at("two")), /two: is a folder with 2 files of weights; expected a file of weights: name/);
});

test("a Mask2Former keeps the classes' names, which lie beside the original, and ids; what is wrong with them is refused", async () => {
  const gpu = await testDevice();
  const { tensors: all } = readCheckpoint(bytesOf(fixture("mask2former-swin.safetensors")), "x");
  const weights = [...all].flatMap(([key, x]) => (key.startsWith("weights.") ? [[key.slice(8), x] as const] : []));
  for (const name of ["hub-bees", "bees"]) mkdirSync(at(name));
  writeFileSync(at("hub-bees", "model.safetensors"), encodeSafetensors(new Map(weights)));
  writeFileSync(at("hub-bees", "config.json"), JSON.stringify({ id2label: { 0: "ant", 1: "bee", 2: "cow" } }));
  const converted = at("bees", "bees.safetensors");
  await convert(at("hub-bees"), converted);
  const named = ["ant", "bee", "cow"].map((name, i) => ({ id: i + 1, name }));
  const classes = async (file: string) => (await loadTrained(gpu, file)).categories;
  assert.equal([await classes(at("hub-bees")), await classes(converted)], [named, named]);

  // Where a name is empty, there are none.
  writeFileSync(at("hub-bees", "config.json"), JSON.stringify({ id2label: { 0: "ant", 1: " ", 2: "cow" } }));
  await convert(at("hub-bees"), at("bees", "numbered.safetensors"));
  assert.is((await classes(at("bees", "numbered.safetensors")))[1]!.name, "class 2");

  const { tensors, metadata } = parseSafetensors(bytesOf(converted));
  const put = (change: Record<string, string>) =>
    writeFileSync(converted, encodeSafetensors(tensors, { ...metadata, ...change }));
  const tens = named.map(({ id, name }) => ({ id: 10 * id, name }));
  put({ categories: JSON.stringify(tens) });
  await convert(converted, at("bees", "again.safetensors"));
  assert.equal(await classes(at("bees", "again.safetensors")), tens);
  for (const [categories, reason] of [
    ["[]", /bees\.safetensors: metadata: categories: 3 as its tensors tell were expected; got 0$/],
    ["[{}", /bees\.safetensors: metadata: categories: is not JSON/],
    ['[{"id":"1","name":"ant"}]', /bees\.safetensors: metadata: categories\.0\.id: /],
  ] as const) {
    put({ categories });
    const told = await refusal(converted);
    assert.match(told, reason);
    await classes(converted).then(
      () => assert.unreachable(told),
      ({ message }: Error) => assert.is(message, told),
    );
  }
  put({ categories: "what others call so", model: "theirs" });
  assert.is((await classes(converted))[0]!.name, "class 1");
});

test("a Mask2Former of transformers' or detectron2's names is checked against a model of its sizes", async () => {
  const gpu = await testDevice();
  const sizes = wishResNet50(4, {
    backbone: { kind: "resnet", depth: 18, norm: "frozenBN", outputStride: 32, width: 8 },
    hiddenDim: 32,
    encoder: { layers: 1, points: 2, ffn: 24 },
    decoder: { layers: 2, ffn: 40 },
    queries: 6,
    prompt: { mode: "none" },
    cam: { feature: "none" },
  });
  const model = new Wish(gpu, sizes);
  const state = new Map<string, ReturnType<typeof fileTensor>>();
  for (const [key, x] of model.stateDict()) state.set(key, fileTensor(await x.toArray(), x.shape));
  writeFileSync(at("m2f.safetensors"), encodeSafetensors(state));
  const { report } = await convert(at("m2f.safetensors"), at("m2f-out.safetensors"));
  assert.is(report.model, "Mask2Former");
  assert.equal(report.config, loadMask2Former(gpu, model.stateDict()).config);
  assert.equal(contents(parseSafetensors(bytesOf(at("m2f-out.safetensors"))).tensors), contents(state));
  // predict takes it, too, whatever its classes are called.
  const trained = await loadTrained(gpu, at("m2f-out.safetensors"));
  assert.equal([trained.model.config.classes, trained.categories.length], [4, 4]);
  const broken = new Map(state);
  broken.delete("sem_seg_head.predictor.decoder_norm.bias");
  writeFileSync(at("broken.safetensors"), encodeSafetensors(broken));
  assert.match(await refusal(at("broken.safetensors")), /broken\.safetensors: .*decoder_norm\.bias/);
});

test("weights of our own keep what belongs to them; a checkpoint is left with its model", async () => {
  const gpu = await testDevice();
  const wish = asset("wish-scenes.safetensors");
  assert.is((await convert(wish, at("wish.safetensors"))).report.model, "WISH");
  assert.equal(parseSafetensors(bytesOf(at("wish.safetensors"))), parseSafetensors(bytesOf(wish)));

  const { model, categories, kinds } = await loadTrained(gpu, wish);
  const optimizer = new optim.AdamW([{ params: [model.parameters()[0]!] }]);
  const state = { sizes: model.config, categories, kinds, step: 7 };
  const saved = await saveCheckpoint(at("run"), 7, { model, optimizer, state, config: {} });
  const { report } = await convert(saved, at("trained.safetensors"));
  assert.is(report.model, "WISH");
  const trained = await loadTrained(gpu, at("trained.safetensors"));
  assert.equal([trained.categories, trained.kinds, trained.model.config], [categories, kinds, model.config]);
  const expected = new Map<string, ReturnType<typeof fileTensor>>();
  for (const [key, x] of model.stateDict()) expected.set(key, fileTensor(await x.toArray(), x.shape));
  assert.equal(contents(parseSafetensors(bytesOf(at("trained.safetensors"))).tensors), contents(expected));

  const sam = await openSam(gpu, asset("sam-mini.safetensors"), "a SAM");
  const samOptimizer = new optim.AdamW([{ params: [sam.parameters()[0]!] }]);
  const config = { model: sam.config };
  const samSaved = await saveCheckpoint(at("sam-run"), 1, { model: sam, optimizer: samOptimizer, state: {}, config });
  const samReport = (await convert(samSaved, at("sam.safetensors"))).report;
  assert.is(samReport.model, "SAM (TinyViT)");
  assert.equal(samReport.config, sam.config);
  const again = await openSam(gpu, at("sam.safetensors"), "a SAM");
  assert.equal([...again.stateDict().keys()], [...sam.stateDict().keys()]);
});

test("pre-trained weights of a configuration may be in torch's format", async () => {
  const gpu = await testDevice();
  const { weights } = await readWeights(gpu, fixture("weights/lightning.ckpt"));
  assert.ok(weights.has("a.weight") && !weights.has("module.a.weight"));
  const backbone = resNet(gpu, 18, { width: 8 });
  const state = new Map<string, ReturnType<typeof fileTensor>>();
  for (const [key, x] of backbone.stateDict()) state.set(`backbone.${key}`, fileTensor(await x.toArray(), x.shape));
  writeFileSync(at("resnet.safetensors"), encodeSafetensors(state));
  const { report } = await convert(at("resnet.safetensors"), at("resnet-out.safetensors"));
  assert.is(report.model, "ResNet-18");
  state.delete("backbone.res4.1.conv2.weight");
  writeFileSync(at("resnet.safetensors"), encodeSafetensors(state));
  assert.match(await refusal(at("resnet.safetensors")), /1 missing \(backbone\.res4\.1\.conv2\.weight\)/);
});

test("an export of SAM's image encoder comes out under the original's names", async () => {
  for (const name of ["sam-encoder.onnx", "sam-merged-encoder-dynamo.onnx", "sam-hf-encoder.onnx"]) {
    const { report } = await convert(fixture(name), at("encoder.safetensors"));
    assert.is(report.model, "SAM (ViT), its image encoder alone");
    const { tensors } = parseSafetensors(bytesOf(at("encoder.safetensors")));
    assert.ok(tensors.has("image_encoder.blocks.1.attn.qkv.weight") && tensors.has("image_encoder.neck.3.bias"));
    const again = await convert(at("encoder.safetensors"), at("again.safetensors"));
    assert.is(again.report.model, report.model);
    assert.equal(bytesOf(at("again.safetensors")), bytesOf(at("encoder.safetensors")));
    tensors.delete("image_encoder.blocks.0.norm2.bias");
    writeFileSync(at("encoder.safetensors"), encodeSafetensors(tensors));
    assert.match(await refusal(at("encoder.safetensors")), /1 missing \(image_encoder\.blocks\.0\.norm2\.bias\)$/);
  }
  const damaged = bytesOf(fixture("sam-encoder.onnx"));
  writeFileSync(
    at("damaged.onnx"),
    Buffer.from(Buffer.from(damaged).toString("latin1").replaceAll("norm2", "norm7"), "latin1"),
  );
  assert.match(
    await refusal(at("damaged.onnx")),
    /6 missing \(.*merged or changed weights in ways that its graph does not tell: take the original checkpoint$/,
  );
});

test.run();
