// convert on files that are not as they should be: what it refuses, and that a refusal leaves no trace.
import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { encodeSafetensors, fileTensor, parseSafetensors } from "../../engine/index.ts";
import { SwinTransformer } from "../../model/index.ts";
import { readCheckpoint } from "../../model/weights/index.ts";
import { loadTrained } from "../../train/models.ts";
import { testDevice } from "../device.ts";
import { asset, at, bytesOf, contents, convert, fixture, folder, refusal, zeros } from "./converting.ts";

const test = suite("convert refuses");
test.after(() => rmSync(folder, { recursive: true }));

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
    [
      "sam-acts",
      { mask_decoder_config: { layer_norm_eps: 0.01 } },
      /config\.json: mask_decoder_config\.layer_norm_eps is 0\.01; here it is always 0\.00001/,
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
  const usual = {
    vision_config: { hidden_act: "gelu", layer_norm_eps: 1e-6 },
    mask_decoder_config: { hidden_act: null },
  };
  writeFileSync(at("sam-acts", "config.json"), JSON.stringify(usual));
  await convert(at("sam-acts"), at("acts.safetensors"));
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

test("the output is never one of the inputs", async () => {
  copyFileSync(fixture("sam-hf.safetensors"), at("same.safetensors"));
  symlinkSync(at("same.safetensors"), at("link.safetensors"));
  for (const to of ["same.safetensors", "link.safetensors"]) {
    let message = "";
    await convert(at("same.safetensors"), at(to)).catch((error: Error) => {
      message = error.message;
    });
    assert.match(message, /is one of the files that are read; name another output$/);
  }
  assert.equal(readFileSync(at("same.safetensors")), readFileSync(fixture("sam-hf.safetensors")));
});

test.run();
