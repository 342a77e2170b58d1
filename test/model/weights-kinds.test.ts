// Models are told by their keys, and a checkpoint that lacks something of its model is refused: names and shapes of the reference
// implementations, recorded by test/parity/make_shapes.py.
import { readFileSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { mobileSam, readSam, samVitB, samVitH, samVitL } from "../../model/sam/index.ts";
import { checkTensors, compareTensors, type HostTensor, nameTensors } from "../../model/weights/index.ts";

const test = suite("kinds of weights");
const recorded: Record<string, Record<string, number[]>> = JSON.parse(
  readFileSync(new URL("../parity/shapes.json", import.meta.url), "utf8"),
);

/** Without numbers: only names and shapes are looked at. */
function stateOf(model: string): Map<string, HostTensor> {
  const data = new Uint8Array(0);
  return new Map(Object.entries(recorded[model]!).map(([key, shape]) => [key, { dtype: "F32", shape, data }]));
}

const message = (run: () => unknown): string => {
  try {
    run();
  } catch (error) {
    return (error as Error).message;
  }
  return "nothing was thrown";
};

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

test("backbones of torchvision and timm are known and compared", () => {
  for (const model of Object.keys(recorded).filter((name) => /^(ResNet|MobileNet)/.test(name))) {
    const { kind, family, expected, tensors, spare } = nameTensors(stateOf(model), "x");
    assert.is(family, "backbone");
    assert.is(kind, model.split(" ")[0]);
    assert.ok(spare.size > 0 && [...spare.keys()].every((key) => /^(fc|classifier)\.|num_batches_tracked$/.test(key)));
    const { missing, unexpected, misshaped } = compareTensors(expected!, tensors);
    assert.equal([missing, unexpected], [[], []], model);
    assert.is(misshaped.length > 0, model === "ResNet-50 of another width");
  }
  assert.is(nameTensors(stateOf("unknown"), "x").kind, "unknown");
});

test("Swins of three libraries are told by their width and blocks", () => {
  for (const model of Object.keys(recorded).filter((name) => name.startsWith("Swin"))) {
    const { kind, family } = nameTensors(stateOf(model), "x");
    assert.equal([kind, family], [model.split(" ")[0], "backbone"]);
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
  const more = stateOf("SAM ViT-B").set("mask_decoder.hf_token.weight", {
    dtype: "F32",
    shape: [1],
    data: new Uint8Array(0),
  });
  assert.match(sam(more), /x\.pt: the weights do not fit the model: 1 unexpected \(mask_decoder\.hf_token\.weight\)/);
  for (const model of ["ResNet-18 of torchvision", "MobileNetV2 of torchvision", "MobileNetV2 of timm"]) {
    const keys = Object.keys(recorded[model]!).filter((key) => !/num_batches|^(fc|classifier)/.test(key));
    for (const key of keys.filter((_, i) => i % 7 === 0)) {
      const tensors = stateOf(model);
      tensors.delete(key);
      const { expected, tensors: got } = nameTensors(tensors, "x.pt");
      assert.match(
        message(() => checkTensors(expected!, got, "x.pt")),
        new RegExp(`1 missing \\(${key.replaceAll(".", "\\.")}\\)`),
      );
    }
  }
});

test("sizes in the metadata are checked before they are believed", () => {
  const sizes = (config: unknown) =>
    message(() => readSam({ tensors: stateOf("SAM ViT-B"), metadata: { config: JSON.stringify(config) } }, "x"));
  const vit = samVitB();
  assert.is(sizes(vit), "nothing was thrown");
  for (const [wrong, reason] of [
    [[], /lacks sizes/],
    [7, /lacks sizes/],
    [{ ...vit, decoder: { ...vit.decoder, heads: -1 } }, /does not hold the sizes/],
    [{ ...vit, decoder: undefined }, /lacks sizes/],
    [{ ...vit, encoder: { ...vit.encoder, depth: "1e9" } }, /does not hold the sizes/],
    [{ ...vit, encoder: { ...vit.encoder, depth: 1e9 } }, /1000000008 blocks do not fit 314 tensors/],
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
