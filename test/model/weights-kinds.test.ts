// Models are told by their keys, and a checkpoint that lacks something of its model is refused: names and shapes of the reference
// implementations, recorded by test/parity/make_shapes.py.
import { readFileSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { loadBackbone, MobileNetV2, ResNet, resNet, SwinTransformer } from "../../model/index.ts";
import { checkSamEncoder, mobileSam, readSam, samVitB, samVitH, samVitL } from "../../model/sam/index.ts";
import { checkTensors, compareTensors, type HostTensor, nameTensors } from "../../model/weights/index.ts";
import { testDevice } from "../device.ts";
import { message } from "./fixture.ts";

const test = suite("kinds of weights");
const recorded: Record<string, Record<string, number[]>> = JSON.parse(
  readFileSync(new URL("../parity/shapes.json", import.meta.url), "utf8"),
);

const EMPTY: HostTensor = { dtype: "F32", shape: [1], data: new Uint8Array(0) };

/** Without numbers: only names and shapes are looked at. */
function stateOf(model: string): Map<string, HostTensor> {
  const data = new Uint8Array(0);
  return new Map(Object.entries(recorded[model]!).map(([key, shape]) => [key, { dtype: "F32", shape, data }]));
}

test("each SAM is known, has the sizes of its configuration, and lacks nothing", () => {
  const configs = { "SAM ViT-B": samVitB, "SAM ViT-L": samVitL, "SAM ViT-H": samVitH, MobileSAM: mobileSam };
  for (const [model, config] of Object.entries(configs)) {
    const read = readSam({ tensors: stateOf(model), metadata: {} }, "x");
    assert.is(read.kind, model);
    // TinyViT's first stage has no heads and no windows.
    const { encoder } = config();
    const [heads, windows] =
      encoder.kind === "vit"
        ? []
        : [
            [1, ...encoder.heads.slice(1)],
            [1, ...encoder.windows.slice(1)],
          ];
    assert.equal(read.config, { ...config(), encoder: heads ? { ...encoder, heads, windows } : encoder });
    assert.equal([...read.tensors.keys(), ...read.spare.keys()].sort(), Object.keys(recorded[model]!).sort());
  }
  assert.is(
    readSam({ tensors: stateOf("MobileSAM"), metadata: {} }, "x").unused.filter((key) => /head/.test(key)).length,
    4,
  );
});

test("transformers' names become the original's, every one", () => {
  for (const model of ["SAM ViT-B", "SAM ViT-H"]) {
    const { tensors, kind, unused, spare } = readSam(
      { tensors: stateOf(`${model} of transformers`), metadata: {} },
      "x",
    );
    assert.is(kind, model);
    assert.equal(compareTensors(stateOf(model), tensors), { missing: [], unexpected: [], misshaped: [] });
    assert.equal(unused, ["prompt_encoder.shared_embedding.positional_embedding"]);
    assert.is(spare.size, 0);
  }
});

test("what a file of transformers' lacks is called as it would be there", () => {
  const model = "SAM ViT-B of transformers";
  for (const prefix of ["", "module."]) {
    const state = new Map([...stateOf(model)].map(([key, x]) => [prefix + key, x]));
    for (const key of state.keys()) {
      if (/layers\.(2|3|4|5|6|7|8|9|10|11)\.|shared_embedding/.test(key)) continue;
      const less = new Map([...state].filter(([name]) => name !== key));
      const told = message(() => readSam({ tensors: less, metadata: {} }, "x"));
      assert.ok(told.endsWith(`1 missing (${key})`) || told.endsWith(`${key} is missing`), `${key}: ${told}`);
    }
  }
  // Of the encoder alone.
  const inner = [...stateOf(model)].flatMap(([key, x]) =>
    key.startsWith("vision_encoder.") ? [[key.slice(15), x] as const] : [],
  );
  const named = nameTensors(new Map(inner.filter(([key]) => key !== "layers.1.layer_norm2.bias")), "x");
  assert.match(
    message(() => checkSamEncoder(named, "x")),
    /1 missing \(layers\.1\.layer_norm2\.bias\)$/,
  );
});

test("transformers' head for the predicted IoU may have any depth", () => {
  const head = "mask_decoder.iou_prediction_head.";
  const inner = (key: string) => key.startsWith(`${head}layers.0.`);
  const original = stateOf("SAM ViT-B of transformers");
  for (const prefix of ["", "module."])
    for (const depth of [2, 3, 4, 6]) {
      const state = new Map<string, HostTensor>();
      for (const [key, x] of original) {
        if (!inner(key)) state.set(prefix + key, x);
        else for (let i = 0; i < depth - 2; i++) state.set(prefix + key.replace("layers.0.", `layers.${i}.`), { ...x });
      }
      const { config, tensors } = readSam({ tensors: state, metadata: {} }, "x");
      assert.is(config.decoder.iouDepth, depth);
      const theirs = ["proj_in", ...Array.from({ length: depth - 2 }, (_, i) => `layers.${i}`), "proj_out"];
      for (const [i, layer] of theirs.entries())
        for (const part of ["weight", "bias"]) {
          const key = `${prefix}${head}${layer}.${part}`;
          assert.is(tensors.get(`${head}layers.${i}.${part}`), state.get(key), key);
          const less = new Map([...state].filter(([name]) => name !== key));
          const told = message(() => readSam({ tensors: less, metadata: {} }, "x"));
          assert.ok(told.endsWith(`1 missing (${key})`) || told.endsWith(`${key} is missing`), `${key}: ${told}`);
        }
    }
  const far = `${head}layers.4000000000.weight`;
  const told = message(() => readSam({ tensors: new Map([...original, [far, EMPTY]]), metadata: {} }, "x"));
  assert.match(told, /4000000000/);
});

const WIDE = "ResNet-50 of another width";
const backbones = Object.keys(recorded).filter((name) => /^(ResNet|MobileNet|Swin)/.test(name) && name !== WIDE);

test("backbones of torchvision, timm and transformers are known and lack nothing", () => {
  assert.is(backbones.length, 14);
  for (const model of backbones) {
    const { kind, family, expected, tensors, spare } = nameTensors(stateOf(model), "x");
    assert.is(family, "backbone");
    assert.is(kind, model.split(" ")[0]);
    const classifier =
      /^(fc|classifier|head)\.|^(swin\.)?(norm|layernorm)\.|num_batches_tracked$|relative_position_index$/;
    assert.ok(
      [...spare.keys()].every((key) => classifier.test(key)),
      model,
    );
    assert.equal(compareTensors(expected!, tensors), { missing: [], unexpected: [], misshaped: [] }, model);
  }
  assert.is(nameTensors(stateOf("unknown"), "x").kind, "unknown");
});

test("a backbone is known behind each prefix, and without its classifier", () => {
  for (const model of backbones)
    for (const prefix of ["backbone.", "module.backbone.", "_orig_mod.", "model.backbone.", "module.model."]) {
      // Heads of transformers' and detectron2's stand beside the backbone.
      const state = [...stateOf(model)].map(([key, x]) => [prefix + key, x] as const);
      const { kind, expected, tensors, spare, keyOf } = nameTensors(new Map([...state, ["linear.weight", EMPTY]]), "x");
      assert.is(kind, model.split(" ")[0], prefix + model);
      const plain = nameTensors(stateOf(model), "x");
      assert.is(spare.size, plain.spare.size + 1);
      assert.is(tensors.size, plain.tensors.size);
      checkTensors(expected!, tensors, "x", keyOf);
    }
  for (const model of backbones.filter((name) => name.startsWith("MobileNetV2"))) {
    const state = [...stateOf(model)].filter(([key]) => !/^(classifier|conv_head|bn2|features\.18)\./.test(key));
    const { kind, expected, tensors } = nameTensors(new Map(state), "x");
    assert.is(kind, "MobileNetV2");
    checkTensors(expected!, tensors, "x");
  }
});

test("what a backbone is compared with is what this package's has", async () => {
  const dry = (await testDevice()).dry();
  const swin = { embedDim: 8, depths: [1, 2, 3, 1], heads: [1, 4, 2, 8], window: 3 } as const;
  const sizes = { stem: 8, stemKind: "7x7", norm: "frozenBN", outputStride: 32 } as const;
  const basic = { ...sizes, blocks: [1, 2, 1, 2], widths: [16, 16, 24, 40], block: "basic" } as const;
  const models = {
    Swin: new SwinTransformer(dry, swin),
    "ResNet-50": resNet(dry, 50, { width: 8 }),
    "ResNet-14": new ResNet(dry, basic),
    MobileNetV2: new MobileNetV2(dry, { width: 0.5 }),
  };
  for (const [name, model] of Object.entries(models))
    for (const prefix of ["", "backbone.", "module.backbone."]) {
      const own = [...model.stateDict()].map(([key, { shape }]) => [prefix + key, { ...EMPTY, shape }] as const);
      const { kind, expected, tensors } = nameTensors(new Map(own), "x");
      assert.is(kind, name);
      assert.equal(compareTensors(expected!, tensors), { missing: [], unexpected: [], misshaped: [] }, name);
    }
});

test("wide and grouped ResNets are refused as such", async () => {
  assert.is(
    message(() => nameTensors(stateOf(WIDE), "x.pt")),
    "x.pt: is a wide ResNet, which is not supported: take a ResNet of the plain widths",
  );
  const grouped = [...stateOf("ResNet-50 of torchvision")].map(([key, x]) => {
    const [O, I, ...kernel] = x.shape;
    return [key, key.endsWith("conv2.weight") ? { ...x, shape: [O!, I! / 32, ...kernel] } : x] as const;
  });
  assert.match(
    message(() => nameTensors(new Map(grouped), "x.pt")),
    /is a grouped ResNet \(ResNeXt\), which is not supported/,
  );
  const model = resNet((await testDevice()).dry(), 50);
  assert.match(
    message(() => loadBackbone(model, stateOf(WIDE))),
    /^is a wide ResNet/,
  );
});

test("of a backbone each tensor that is missing, left over or of another shape is named, and no other", () => {
  for (const [m, model] of backbones.entries()) {
    const keys = [...nameTensors(stateOf(model), "x").tensors.keys()];
    for (const key of keys.filter((_, i) => i % 61 === m)) {
      const { shape } = stateOf(model).get(key)!;
      const refused = (change: (tensors: Map<string, HostTensor>) => unknown) => {
        const changed = stateOf(model);
        change(changed);
        const { expected, tensors } = nameTensors(changed, "x.pt");
        return message(() => checkTensors(expected!, tensors, "x.pt"));
      };
      const does = (what: string) => `x.pt: the weights do not fit the model: 1 ${what}`;
      assert.is(
        refused((tensors) => tensors.delete(key)),
        does(`missing (${key})`),
        model,
      );
      const wrongs = [[...shape, 2], shape.map((d) => d + 4), shape.map((d, i) => (i === 0 ? d + 4 : d))];
      for (const wrong of wrongs)
        assert.is(
          refused((tensors) => tensors.set(key, { ...EMPTY, shape: wrong })),
          does(`misshaped (${key} is (${wrong.join(", ")}), not (${shape.join(", ")}))`),
          model,
        );
      assert.is(
        refused((tensors) => tensors.set(`${key}_more`, EMPTY)),
        does(`unexpected (${key}_more)`),
        model,
      );
    }
  }
});

test("prefixes of wrappers go away, one inside the other", () => {
  for (const prefix of ["module.", "model.", "module.model.", "_orig_mod.module.", "sam."]) {
    const wrapped = new Map([...stateOf("SAM ViT-B")].map(([key, x]) => [prefix + key, x]));
    assert.is(readSam({ tensors: wrapped, metadata: {} }, "x").kind, "SAM ViT-B");
  }
});

test("whatever key is missing, left over or of another shape, the model is still known and the key is named", () => {
  const samKeys = Object.keys(recorded.MobileSAM!).filter((key) => !/num_batches|head\.|bias_idxs/.test(key));
  const sam = (tensors: Map<string, HostTensor>) => message(() => readSam({ tensors, metadata: {} }, "x.pt"));
  for (const key of samKeys.filter((_, i) => i % 5 === 0)) {
    const tensors = stateOf("MobileSAM");
    const { shape } = tensors.get(key)!;
    tensors.delete(key);
    assert.match(sam(tensors), new RegExp(`^x\\.pt: .*${key.replaceAll(".", "\\.")}.*`));
    tensors.set(key, { dtype: "F32", shape: [...shape, 2], data: new Uint8Array(0) });
    assert.match(sam(tensors), /^x\.pt: /);
  }
  const encoder = (without: string) =>
    [...stateOf("SAM ViT-B")].flatMap(([key, x]) => {
      const bare = key.replace("image_encoder.", "");
      return bare === key || bare === without ? [] : [[`module.${bare}`, x] as const];
    });
  for (const key of ["pos_embed", "blocks.0.mlp.lin1.weight", "neck.2.weight", "blocks.1.attn.rel_pos_h"])
    assert.is(
      message(() => checkSamEncoder(nameTensors(new Map(encoder(key)), "x.pt"), "x.pt")),
      `x.pt: the weights do not fit the model: 1 missing (module.${key})`,
    );
  const more = stateOf("SAM ViT-B").set("mask_decoder.hf_token.weight", {
    dtype: "F32",
    shape: [1],
    data: new Uint8Array(0),
  });
  assert.match(sam(more), /x\.pt: the weights do not fit the model: 1 unexpected \(mask_decoder\.hf_token\.weight\)/);
});

test("sizes in the metadata are checked before they are believed", () => {
  const sizes = (config: unknown) =>
    message(() => readSam({ tensors: stateOf("SAM ViT-B"), metadata: { config: JSON.stringify(config) } }, "x"));
  const vit = samVitB();
  assert.is(sizes(vit), "nothing was thrown");
  for (const [wrong, reason] of [
    [[], /^x: metadata "config": it must be the sizes of a SAM; got \[\]$/],
    [7, /it must be the sizes of a SAM; got 7$/],
    [null, /it must be the sizes of a SAM; got null$/],
    [{ ...vit, decoder: { ...vit.decoder, heads: -1 } }, /decoder\.heads must be a whole number from 0; got -1$/],
    [{ ...vit, decoder: undefined }, /decoder must be the sizes of a SAM; got nothing$/],
    [{ ...vit, encoder: [7] }, /encoder must be the sizes of a SAM; got \[7\]$/],
    [{ ...vit, encoder: { ...vit.encoder, kind: "swin" } }, /encoder\.kind must be vit or tiny-vit; got "swin"$/],
    [
      { ...vit, encoder: { ...vit.encoder, globalBlocks: 5 } },
      /"config": encoder\.globalBlocks must be a list of whole numbers from 0; got 5$/,
    ],
    [{ ...vit, encoder: { ...vit.encoder, heads: [12] } }, /encoder\.heads must be a whole number from 0; got \[12\]$/],
    [{ ...vit, encoder: { ...mobileSam().encoder, depths: 12 } }, /encoder\.depths must be a list .*; got 12$/],
    [{ ...vit, encoder: { ...vit.encoder, depth: "1e9" } }, /encoder\.depth must be a whole number .*; got "1e9"$/],
    [
      { ...vit, encoder: { ...vit.encoder, depth: 1e9 } },
      /^x: metadata "config": encoder\.depth: the file's 314 tensors cannot be that many; got 1000000000$/,
    ],
    [{ ...vit, encoder: { ...vit.encoder, dim: 770 } }, /heads 12 must divide encoder\.dim 770/],
    [{ ...vit, promptDim: 128 }, /misshaped/],
  ] as const)
    assert.match(sizes(wrong), reason);
});

test("whole numbers are no weights, whatever their shape", () => {
  const tensors = stateOf("SAM ViT-B");
  const { shape, data } = tensors.get("image_encoder.neck.0.weight")!;
  tensors.set("image_encoder.neck.0.weight", { dtype: "I64", shape, data });
  assert.match(
    message(() => readSam({ tensors, metadata: {} }, "x.pt")),
    /^x\.pt: tensor image_encoder\.neck\.0\.weight is of type I64, which no weights are$/,
  );
});

test("names without end take no time and no stack", () => {
  const one = { dtype: "F32", shape: [1], data: new Uint8Array(4) } as const;
  const began = process.cpuUsage();
  const long = new Map([["module.".repeat(1e5), one]]);
  assert.is(nameTensors(long, "x").kind, "unknown");
  for (const block of ["image_encoder.blocks.", "layer1.", "mask_decoder.transformer.layers."]) {
    const many = new Map(Array.from({ length: 2e4 }, (_, i) => [`${block}${i}.conv1.weight`, one]));
    const { expected, tensors } = nameTensors(many, "x");
    if (expected)
      assert.match(
        message(() => checkTensors(expected, tensors, "x")),
        /missing/,
      );
    else
      assert.match(
        message(() => readSam({ tensors: many, metadata: {} }, "x")),
        /^x: /,
      );
  }
  assert.ok(process.cpuUsage(began).user < 3e6);
});

test("weights of another model are no SAM's", () => {
  const sam = (model: string) => message(() => readSam({ tensors: stateOf(model), metadata: {} }, "x.pt"));
  assert.match(sam("ResNet-50 of torchvision"), /^x\.pt: no SAM checkpoint: its keys are those of ResNet-50$/);
  assert.match(sam("unknown"), /^x\.pt: no SAM checkpoint: its keys are those of a model that is not known here$/);
  const decoder = new Map([...stateOf("SAM ViT-B")].filter(([key]) => !key.startsWith("image_encoder.")));
  assert.match(
    message(() => readSam({ tensors: decoder, metadata: {} }, "x.onnx")),
    /^x\.onnx: a SAM without image encoder/,
  );
});

test.run();
