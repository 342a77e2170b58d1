// convert on files, in this process: what it writes, what it refuses, and that a refusal leaves no trace.
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { run } from "../../cli/convert.ts";
import { Terminal } from "../../cli/terminal.ts";
import { encodeSafetensors, fileTensor, optim, parseSafetensors } from "../../engine/index.ts";
import { loadMask2Former, resNet, SwinTransformer, Wish, wishResNet50 } from "../../model/index.ts";
import type { SamConfig } from "../../model/sam/index.ts";
import { readCheckpoint } from "../../model/weights/index.ts";
import { readWeights, saveCheckpoint } from "../../train/checkpoint.ts";
import { BadInput } from "../../train/errors.ts";
import { loadTrained } from "../../train/models.ts";
import { openSam } from "../../train/weights.ts";
import { testDevice } from "../device.ts";

const test = suite("convert");
const folder = mkdtempSync(join(tmpdir(), "convert-"));
const at = (...names: string[]) => join(folder, ...names);
const fixture = (name: string) => fileURLToPath(new URL(`../parity/${name}`, import.meta.url));
const asset = (name: string) => fileURLToPath(new URL(`../../assets/${name}`, import.meta.url));
const bytesOf = (path: string) => new Uint8Array(readFileSync(path));
test.after(() => rmSync(folder, { recursive: true }));

interface Report {
  model: string;
  format: string;
  tensors: number;
  modules: { module: string; tensors: number; parameters: number; types: string[] }[];
  unused: string[];
  config?: object;
}

/** Its report and its text. */
async function convert(
  from: string,
  to: string,
  options: { any?: boolean } = {},
): Promise<{ report: Report; text: string }> {
  let outcome: { report: Report; text: string } | undefined;
  const terminal = new Terminal();
  terminal.result = (document, text) => {
    outcome = { report: document as Report, text };
  };
  const interruptible = () => new AbortController().signal;
  await run({ args: [from, to], options, terminal, open: testDevice, interruptible });
  return outcome!;
}

/** The message of BadInput; the output is not there, or as it was. */
async function refusal(from: string): Promise<string> {
  for (const before of [undefined, "as it was"]) {
    const to = at("refused.safetensors");
    rmSync(to, { force: true });
    if (before !== undefined) writeFileSync(to, before);
    const there = readdirSync(folder);
    try {
      await convert(from, to);
      return "nothing was thrown";
    } catch (error) {
      if (!(error instanceof BadInput)) throw error;
      assert.not.match(error.message, /\n/);
      assert.equal(readdirSync(folder), there);
      if (before === undefined) continue;
      assert.is(readFileSync(to, "utf8"), before);
      return error.message;
    }
  }
  throw new Error("not reached");
}

const zeros = (shape: readonly number[], whole = false) =>
  fileTensor(new Array(shape.reduce((product, d) => product * d, 1)).fill(0), shape, whole ? "I32" : "F32");

const contents = (tensors: ReturnType<typeof readCheckpoint>["tensors"]) =>
  [...tensors].map(([key, { dtype, shape, data }]) => [key, dtype, [...shape], Buffer.from(data).toString("base64")]);

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

test("what transformers' config.json makes a model compute otherwise is refused, by its place in the file", async () => {
  const { tensors } = readCheckpoint(bytesOf(fixture("mask2former.safetensors")), "x");
  const weights = [...tensors].flatMap(([key, x]) => (key.startsWith("weights.") ? [[key.slice(8), x] as const] : []));
  for (const name of ["sam-acts", "m2f-acts"]) mkdirSync(at(name));
  copyFileSync(fixture("sam-hf.safetensors"), at("sam-acts", "model.safetensors"));
  writeFileSync(at("m2f-acts", "model.safetensors"), encodeSafetensors(new Map(weights)));
  for (const [name, config, reason] of [
    [
      "sam-acts",
      { vision_config: { hidden_act: "relu" } },
      /config\.json: vision_config\.hidden_act is "relu"; here it is always "gelu"/,
    ],
    ["m2f-acts", { pre_norm: true }, /config\.json: pre_norm is true; here it is always false/],
    [
      "m2f-acts",
      { backbone_config: { model_type: "resnet", downsample_in_bottleneck: true } },
      /config\.json: backbone_config\.downsample_in_bottleneck is true/,
    ],
  ] as const) {
    writeFileSync(at(name, "config.json"), JSON.stringify(config));
    assert.match(await refusal(at(name)), reason);
  }
  const usual = { vision_config: { hidden_act: "gelu" }, mask_decoder_config: { hidden_act: null } };
  writeFileSync(at("sam-acts", "config.json"), JSON.stringify(usual));
  await convert(at("sam-acts"), at("acts.safetensors"));
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

test("what stands beside weights of our own is checked before anything is made of it", async () => {
  const gpu = await testDevice();
  const { tensors, metadata } = parseSafetensors(bytesOf(asset("wish-scenes.safetensors")));
  const model = JSON.parse(metadata.model!);
  const sized = (change: object) => ({ model: JSON.stringify({ ...model, ...change }) });
  const mini = (change: object) => sized({ backbone: { ...model.backbone, ...change } });
  const wide = 8e9;
  for (const [change, reason] of [
    [mini({ blocks: [1e8, 1, 1, 1] }), /model\.backbone\.blocks: the file's 116 tensors .*; got 100000000,1,1,1$/],
    [sized({ decoder: { layers: 1e7, heads: 4, ffn: 128 } }), /model\.decoder\.layers: the file's .*; got 10000000$/],
    [sized({ encoder: { ...model.encoder, layers: -1 } }), /model\.encoder\.layers: .* >=0; got -1$/],
    [mini({ kind: "vit" }), /model\.backbone\.kind: .*; got "vit"$/],
    [sized({ hiddenDim: wide }), /model: no model can be made of these sizes: .* larger than/],
    [
      sized({ queries: 11 }),
      /model: the tensors are not .*: 2 misshaped \(.*query_feat\.weight is \(10, 64\), not \(11,/,
    ],
    [sized({ groups: 7 }), /model: no model can be made of these sizes: .*64 channels do not divide into 7/],
    [sized({ more: 1 }), /there is no setting "model\.more"/],
    [{ model: "null" }, /model: .*expected object, received null; got null$/],
    [{ model: "{" }, /model: is not JSON; the file is damaged$/],
    [{ categories: "5" }, /categories: .*expected array, received number; got 5$/],
    [{ categories: "[]" }, /categories: 6 as model\.classes were expected; got 0$/],
    [{ categories: JSON.stringify([{ id: 1 }]) }, /categories\.0\.name: .*expected string/],
    [{ kinds: '["x\\ny"]' }, /kinds\.0: .*; got "x\\ny"$/],
    [{ inference: '{"short":1e12,"long":96,"topk":1}' }, /inference\.short: .*<=16384; got 1000000000000$/],
  ] as [Record<string, string>, RegExp][]) {
    writeFileSync(at("described.safetensors"), encodeSafetensors(tensors, { ...metadata, ...change }));
    const told = await refusal(at("described.safetensors"));
    assert.ok(told.startsWith(`${at("described.safetensors")}: metadata: `), told);
    assert.match(told, reason);
    // predict's way.
    await loadTrained(gpu, at("described.safetensors")).then(
      () => assert.unreachable(told),
      ({ message }: Error) => assert.is(message, told),
    );
  }
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

test("of a backbone alone what is missing, left over or of another shape is refused under the file's own key", async () => {
  const recorded: Record<string, Record<string, number[]>> = JSON.parse(readFileSync(fixture("shapes.json"), "utf8"));
  const gpu = await testDevice();
  const swin = new SwinTransformer(gpu, { embedDim: 4, depths: [1, 2, 1, 1], heads: [1, 2, 2, 4], window: 2 });
  const microsoft = [...swin.stateDict()].filter(([key]) => !/^norm\d/.test(key));
  const shapes: Record<string, Record<string, readonly number[]>> = {
    "Swin of transformers, on disk": recorded["Swin of transformers, on disk"]!,
    "Swin of transformers, features alone": recorded["Swin of transformers, features alone"]!,
    "ResNet-18 of transformers": recorded["ResNet-18 of transformers, features alone"]!,
    "Swin of Microsoft": Object.fromEntries(microsoft.map(([key, { shape }]) => [key, shape])),
  };
  for (const [name, keys] of Object.entries(shapes)) {
    const state = new Map(
      Object.entries(keys).map(([key, shape]) => [`module.${key}`, zeros(shape, /num_batches/.test(key))]),
    );
    const written = async (change: (tensors: typeof state) => unknown) => {
      const tensors = new Map(state);
      change(tensors);
      writeFileSync(at("backbone.safetensors"), encodeSafetensors(tensors));
    };
    await written(() => {});
    assert.is((await convert(at("backbone.safetensors"), at("x.safetensors"))).report.model, name.split(" ")[0]);
    const key = [...state.keys()].filter((k) => /(fc1|dense|layer\.1\.convolution)\.weight$/.test(k)).at(-1)!;
    for (const [change, reason] of [
      [(t) => t.delete(key), `1 missing (${key})`],
      [(t) => t.set(key, zeros([3, 5])), `1 misshaped (${key} is (3, 5), not (${state.get(key)!.shape.join(", ")}))`],
      [(t) => t.set("module.more.weight", zeros([1])), "1 unexpected (module.more.weight)"],
      [(t) => t.set(key, zeros(state.get(key)!.shape, true)), `tensor ${key} is of type I32, which no weights are`],
    ] as [(tensors: typeof state) => unknown, string][]) {
      await written(change);
      const told = await refusal(at("backbone.safetensors"));
      assert.ok(told.startsWith(`${at("backbone.safetensors")}: `) && told.endsWith(reason), `${name}: ${told}`);
    }
  }
});

test("a model that is not known is refused unless it is asked for; a file without tensors is refused", async () => {
  const state = new Map([["head.gamma", fileTensor([1, 2], [2])]]);
  writeFileSync(at("other.safetensors"), encodeSafetensors(state));
  assert.match(
    await refusal(at("other.safetensors")),
    /other\.safetensors: its keys \(head\.gamma\) are those of no model that is known here: .* --any/,
  );
  const { report } = await convert(at("other.safetensors"), at("any.safetensors"), { any: true });
  assert.is(report.model, "unknown");
  assert.equal(parseSafetensors(bytesOf(at("any.safetensors"))).tensors, state);
  writeFileSync(at("empty.safetensors"), encodeSafetensors(new Map()));
  assert.match(await refusal(at("empty.safetensors")), /empty\.safetensors: holds no tensors$/);
});

test("what is wrong is refused in one line that names it, and nothing is written", async () => {
  const original = readCheckpoint(bytesOf(fixture("sam-vit.pt")), "x").tensors;
  const key = "mask_decoder.iou_token.weight";
  const variant = async (change: (tensors: typeof original) => void): Promise<string> => {
    const tensors = new Map(original);
    change(tensors);
    writeFileSync(at("variant.safetensors"), encodeSafetensors(tensors));
    return refusal(at("variant.safetensors"));
  };
  assert.match(
    await variant((tensors) => tensors.delete(key)),
    /variant\.safetensors: .*mask_decoder\.iou_token\.weight/,
  );
  const more = (tensors: typeof original) => tensors.set("mask_decoder.more", fileTensor([1], [1]));
  assert.match(await variant(more), /1 unexpected \(mask_decoder\.more\)/);
  const flat = (tensors: typeof original) => tensors.set("image_encoder.neck.0.weight", fileTensor([1, 2], [2]));
  assert.match(await variant(flat), /1 misshaped \(image_encoder\.neck\.0\.weight is \(2\), not \(32, 32, 1, 1\)\)/);
  for (const name of ["fp8.pt", "module.pt", "script.pt", "big-endian.pkl", "objects.pkl"])
    assert.match(await refusal(fixture(`weights/refused-${name}`)), new RegExp(`refused-${name}: `));
  assert.match(await refusal(at("none.pt")), /none\.pt: there is no such file; expected a file of weights/);
});

test("a pickle that names a callable calls nothing", async () => {
  const command = `touch ${at("owned")}`;
  const pickle = `cposix\nsystem\n(V${command}\ntR.`;
  writeFileSync(at("evil.pkl"), pickle);
  assert.match(await refusal(at("evil.pkl")), /evil\.pkl: the file wants to call posix\.system/);
  assert.not.ok(existsSync(at("owned")));
});

test("data of an ONNX model that a link leads out of its folder is not read", async () => {
  mkdirSync(at("onnx"));
  cpSync(fixture("weights/external.onnx"), at("onnx", "external.onnx"));
  copyFileSync(fixture("weights/external.data"), at("elsewhere.data"));
  assert.match(await refusal(at("onnx")), /external\.data: there is no such file; expected a part of/);
  symlinkSync(at("elsewhere.data"), at("onnx", "external.data"));
  assert.match(await refusal(at("onnx")), /external\.onnx: its data file external\.data is a link; refused/);
  rmSync(at("onnx", "external.data"));
  copyFileSync(fixture("weights/external.data"), at("onnx", "external.data"));
  assert.match(await refusal(at("onnx")), /of no model that is known here: .* folded into others by the export/);
  const { report, text } = await convert(at("onnx"), at("onnx.safetensors"), { any: true });
  assert.is(report.model, "unknown");
  assert.match(text, /the model is not one this program knows/);
  assert.equal(
    contents(parseSafetensors(bytesOf(at("onnx.safetensors"))).tensors).sort(),
    contents(parseSafetensors(bytesOf(fixture("weights/onnx.safetensors"))).tensors).sort(),
  );
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

test("the output is never one of the inputs", async () => {
  copyFileSync(fixture("sam-hf.safetensors"), at("same.safetensors"));
  symlinkSync(at("same.safetensors"), at("link.safetensors"));
  for (const to of ["same.safetensors", "link.safetensors"]) {
    let message = "";
    await convert(at("same.safetensors"), at(to)).catch((error: Error) => {
      message = error.message;
    });
    assert.match(message, /is the file to convert; name another output/);
  }
  assert.equal(readFileSync(at("same.safetensors")), readFileSync(fixture("sam-hf.safetensors")));
});

test.run();
