import { suite } from "uvu";
import * as assert from "uvu/assert";
import { F, nn, noGrad, scope, type Tensor } from "../../engine/index.ts";
import {
  loadMask2Former,
  mask2FormerConfig,
  mask2FormerNames,
  maskLogits,
  Wish,
  type WishConfig,
  wishResNet18,
  wishResNet34,
  wishResNet50,
  wishResNet101,
  wishSwinB,
  wishSwinL,
  wishSwinS,
  wishSwinT,
} from "../../model/index.ts";
import type { HostTensor } from "../../model/weights/index.ts";
import type { Source } from "../../model/weights/renaming.ts";
import { testDevice } from "../device.ts";
import { distance, message, readFixture, under } from "./fixture.ts";

const test = suite("mask2former checkpoints");

/** What a file holds, without its numbers. */
const shaped = (shape: readonly number[]): HostTensor => ({ dtype: "F32", shape, data: new Uint8Array(0) });

const SIZES = wishResNet50(4, {
  backbone: {
    kind: "residual",
    block: "basic",
    blocks: [1, 2, 1, 1],
    widths: [8, 16, 24, 32],
    stem: 8,
    stemKind: "7x7",
    norm: "frozenBN",
    outputStride: 32,
  },
  hiddenDim: 32,
  encoder: { layers: 2, ffn: 24 },
  decoder: { layers: 3, ffn: 40 },
  queries: 6,
  prompt: { mode: "none" },
  cam: { feature: "none" },
});

test("a checkpoint's tensors tell the sizes, and the loaded model predicts the same", async () => {
  const gpu = await testDevice();
  gpu.manualSeed(2);
  const model = new Wish(gpu, SIZES).eval();
  const state = new Map<string, Tensor>([...model.stateDict(), ["criterion.empty_weight", gpu.ones([5])]]);
  assert.equal(mask2FormerConfig(state), SIZES);
  gpu.manualSeed(3);
  const loaded = loadMask2Former(gpu, state);
  const image = F.mul(gpu.rand([1, 3, 64, 64], { seed: 4 }), 255);
  const [a, b] = scope(() =>
    noGrad(() => [model, loaded].map((m) => maskLogits(m.forward(image).predictions.at(-1)!))),
  ) as [Tensor, Tensor];
  assert.is(await distance(b, a), 0);
});

test("a number that no model has is refused before one is built", async () => {
  const gpu = await testDevice();
  const state = new Map<string, Tensor>(new Wish(gpu, SIZES).stateDict());
  const key = [...state.keys()].find((name) => name.includes("transformer_ffn_layers.0.linear1.weight"))!;
  const odd = key.replace("layers.0.", "layers.9999999.");
  state.set(odd, state.get(key)!);
  assert.throws(
    () => loadMask2Former(gpu, state),
    /transformer_ffn_layers\.9999999\.linear1\.weight: there are not as many/,
  );
});

test("detectron2's older names are understood", async () => {
  const gpu = await testDevice();
  const state = new Map(
    [...new Wish(gpu, SIZES).stateDict()].map(([name, x]) => [
      name
        .replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")
        .replace("predictor.query_feat", "predictor.static_query"),
      x,
    ]),
  );
  assert.equal(loadMask2Former(gpu, state).config, SIZES);
});

test("what is no ResNet or Swin Mask2Former, or not all of one, is refused in a line with the file's own names", async () => {
  const gpu = await testDevice();
  const state = new Wish(gpu, SIZES).stateDict();
  const without = (from: ReadonlyMap<string, Tensor>, ...names: string[]) =>
    new Map([...from].filter(([key]) => !names.includes(key)));
  const refused = (from: ReadonlyMap<string, Tensor>, reason: RegExp, options = {}) =>
    assert.throws(
      () => loadMask2Former(gpu, from, options),
      (error: Error) => reason.test(error.message) && !error.message.includes("\n"),
    );
  refused(without(state, "backbone.stem.conv1.weight"), /1 missing \(backbone\.stem\.conv1\.weight\)$/);
  const encoder = "model.pixel_level_module.encoder.";
  const other = [...under(await readFixture(gpu, "mask2former-swin"), "weights.")].flatMap(([key, x]) =>
    key.startsWith(encoder) ? [] : [[key, x] as const],
  );
  refused(
    new Map([...other, [`${encoder}stages.0.gamma`, gpu.ones([1])]]),
    /neither a ResNet nor a Swin: its keys are model\.pixel_level_module\.encoder\.stages\.0\.gamma$/,
  );
  refused(without(state, "backbone.res3.1.conv1.weight"), /1 missing \(backbone\.res3\.1\.conv1\.weight\)$/);
  const query = "sem_seg_head.predictor.query_feat.weight";
  refused(without(state, query), new RegExp(`1 missing \\(${query}\\)$`));
  refused(
    without(state, "sem_seg_head.predictor.decoder_norm.bias"),
    /1 missing \(sem_seg_head.predictor.decoder_norm.bias\)/,
  );
  refused(new Map([...state, ["left.over", gpu.ones([1])]]), /1 unexpected \(left\.over\)/);
  refused(state, /192 sampling offsets and 32 channels do not divide into 5 heads/, { heads: 5 });

  const swin = under(await readFixture(gpu, "mask2former-swin"), "weights.");
  const layer = "model.transformer_module.decoder.layers.1";
  refused(
    without(swin, `${layer}.fc1.bias`),
    /1 missing \(model\.transformer_module\.decoder\.layers\.1\.fc1\.bias\)$/,
  );
  refused(
    without(swin, `${layer}.self_attn.k_proj.bias`),
    /1 missing \(model\.\S+layers\.1\.self_attn\.k_proj\.bias\)$/,
  );
  const norm = "model.pixel_level_module.encoder.hidden_states_norms.stage2.weight";
  refused(
    without(swin, norm),
    /1 missing \(model\.pixel_level_module\.encoder\.hidden_states_norms\.stage2\.weight\)$/,
  );
  refused(
    without(swin, "model.pixel_level_module.encoder.embeddings.patch_embeddings.projection.weight"),
    /1 missing \(model\.pixel_level_module\.encoder\.embeddings\.patch_embeddings\.projection\.weight\)$/,
  );
  const value = "model.pixel_level_module.encoder.encoder.layers.2.blocks.1.attention.self.value.weight";
  refused(
    new Map([...swin, [value, gpu.ones([3, 32])]]),
    /1 misshaped \(model\.\S+value\.weight is \(3, 32\), not \(32, 32\)\)$/,
  );
});

test("a tensor of another shape is named, sizes that are read from it included", async () => {
  const gpu = await testDevice();
  const read =
    /queries_|level_embed|class_predictor|layers\.0\.(self_attn\.(sampling|attention_w)|fc[12])|embedder\.embedder|patch_embeddings|0\.layer\.2|bias_table|decoder\.layernorm/;
  for (const name of ["mask2former", "mask2former-swin"]) {
    const state = under(await readFixture(gpu, name), "weights.");
    const told = (key: string, shape: readonly number[]): string =>
      message(() => loadMask2Former(gpu, new Map<string, Source>([...state, [key, shaped(shape)]])));
    let count = 0;
    for (const [key, { shape }] of state) {
      if (!read.test(key)) continue;
      const changed = shape.flatMap((n, dim) => [n + 1, 0].map((m) => shape.map((d, i) => (i === dim ? m : d))));
      for (const other of [...changed, shape.slice(1), []]) {
        const is = `${key} is (${other.join(", ")})`;
        const line = told(key, other);
        // Of a stage with one block no other tensor shows the heads.
        if (/bias_table/.test(key) && /^tensor: /.test(line)) continue;
        const compared = `the weights do not fit the model: 1 misshaped (${is}, not (`;
        const starts = [compared, `${is}: `, `${is}, `].some((start) => line.startsWith(start));
        assert.ok(starts || line.includes(`, but ${is}: `), `${key} of ${shape} as ${other}: ${line}`);
        count++;
      }
    }
    assert.ok(count > 100, `${count} shapes`);
  }
});

test("sizes that no companion can set right are told with the tensor that shows them", async () => {
  const gpu = await testDevice();
  const state = under(await readFixture(gpu, "mask2former-swin"), "weights.");
  const told = (...changes: [key: RegExp, shape: readonly number[]][]): string => {
    const changed = [...state].map(([key, x]) => {
      const change = changes.find(([pattern]) => pattern.test(key));
      return [key, change ? shaped(change[1]) : x] as const;
    });
    return message(() => loadMask2Former(gpu, new Map<string, Source>(changed)));
  };
  const blocks = "model\\.pixel_level_module\\.encoder\\.encoder\\.layers";
  assert.match(
    told([/bias_table$/, [48, 1]]),
    new RegExp(`^${blocks}\\.0\\.\\S+bias_table is \\(48, 1\\): 48 rows are not the \\(2 w - 1\\)\\^2 of a window`),
  );
  assert.match(
    told([/layers\.3\.blocks\.0\.\S+bias_table$/, [81, 5]]),
    new RegExp(`^${blocks}\\.3\\.\\S+bias_table is \\(81, 5\\): 5 heads do not divide the 64 channels of the stage$`),
  );
  assert.match(
    told([/^class_predictor\.weight$/, [6, 32]]),
    /^class_predictor\.weight is \(6, 32\), but class_predictor\.bias is \(4\): 6 and 4 must be equal$/,
  );
  assert.match(
    told([/queries_\w+\.weight$/, [6, 40]], [/decoder\.layernorm/, [40]]),
    /queries_features\.weight is \(6, 40\): 40 channels do not divide into the 32 groups of the pixel decoder's norms$/,
  );
});

test("ResNets of the usual depths are told by their depth, others by their blocks", async () => {
  const gpu = await testDevice();
  const shapes = (backbone: WishConfig["backbone"]) => {
    const model = nn.init.skip(() => new Wish(gpu, { ...SIZES, backbone }));
    return mask2FormerConfig(model.stateDict()).backbone;
  };
  for (const depth of [18, 34, 50, 101] as const) {
    const { backbone } = { 18: wishResNet18, 34: wishResNet34, 50: wishResNet50, 101: wishResNet101 }[depth](4);
    assert.equal(shapes(backbone), { kind: "resnet", depth, norm: "frozenBN", outputStride: 32, width: 64 });
  }
  const fixture = await readFixture(gpu, "mask2former");
  assert.equal(loadMask2Former(gpu, under(fixture, "weights.")).config.backbone, {
    kind: "residual",
    block: "bottleneck",
    blocks: [1, 2, 1, 1],
    widths: [16, 32, 48, 64],
    stem: 16,
    stemKind: "7x7",
    norm: "frozenBN",
    outputStride: 32,
  });
  for (const preset of [wishSwinT, wishSwinS]) assert.equal(shapes(preset(4).backbone), preset(4).backbone);
  assert.equal(
    [wishSwinL, wishSwinB, wishSwinT].map((preset) => preset(80).queries),
    [200, 100, 100],
  );
});

test("transformers' names for Swin in memory, and in older files, mean the same as those of its files", async () => {
  const gpu = await testDevice();
  const onDisk = under(await readFixture(gpu, "mask2former-swin"), "weights.");
  const encoder = "model.pixel_level_module.encoder.";
  const inMemory = (key: string) =>
    key
      .replace(/^(model\.pixel_level_module\.encoder\.)(embeddings|encoder)/, "$1swin.$2")
      .replace(/attention\.self\.(query|key|value)/, (_, name: string) => `attention.${name[0]}_proj`)
      .replace("attention.self.relative", "attention.relative_position_bias.relative")
      .replace("attention.output.dense", "attention.o_proj")
      .replace("intermediate.dense", "mlp.fc1")
      .replace(/(blocks\.\d\.)output\.dense/, "$1mlp.fc2");
  const wrapped = (key: string) => key.replace(new RegExp(`^${encoder}(embeddings|encoder)`), `${encoder}model.$1`);
  const want = mask2FormerNames(onDisk);
  for (const rename of [inMemory, wrapped]) {
    const keys = [...onDisk].map(([key, x]) => [rename(key), x] as const);
    assert.ok(keys.some(([key]) => !onDisk.has(key)));
    const got = mask2FormerNames(new Map(keys));
    assert.equal([...got.keys()].sort(), [...want.keys()].sort());
  }
});

test.run();
