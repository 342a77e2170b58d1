import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type Device, load, noGrad, scope, type Tensor } from "../../engine/index.ts";
import type { Backbone } from "../../model/backbone.ts";
import { loadBackbone, MobileNetV2, miniNet, ResNet, resNet } from "../../model/index.ts";
import { checkTensors, type HostTensor, nameTensors } from "../../model/weights/index.ts";
import { mobileNetParts, TIMM_MOBILENET, TORCHVISION_MOBILENET } from "../../model/weights/mobilenet-shapes.ts";
import { testDevice } from "../device.ts";
import { distance, readFixture, roll, sharedFile, under } from "./fixture.ts";

const test = suite("backbones");
const EMPTY: HostTensor = { dtype: "F32", shape: [], data: new Uint8Array(0) };

/** Features of the image equal the recorded ones, and those of a black and of a shifted image differ as the recording says they must. */
async function assertParity(gpu: Device, backbone: Backbone, fixture: Map<string, Tensor>): Promise<void> {
  backbone.eval();
  const input = fixture.get("input")!;
  const forward = (images: Tensor) => scope(() => noGrad(() => backbone.forward(images)));
  const features = forward(input);
  for (const name of ["res2", "res3", "res4", "res5"] as const) {
    const error = await distance(features[name], fixture.get(`image.${name}`)!);
    assert.ok(error < 1e-3, `${name}: off by ${error} of the spread`);
  }
  const others = { black: gpu.zeros(input.shape), shifted: roll(input, 9, 14) };
  for (const [name, images] of Object.entries(others)) {
    const { res5 } = forward(images);
    const recorded = fixture.get(`${name}.res5`)!;
    assert.ok(
      (await distance(recorded, fixture.get("image.res5")!)) > 0.1,
      `${name}: the recording must differ from the image's`,
    );
    assert.ok((await distance(res5, recorded)) < 1e-3, `${name}: res5`);
  }
}

test("a ResNet of basic blocks with torchvision's names gives timm's features", async () => {
  const gpu = await testDevice();
  const fixture = await readFixture(gpu, "resnet");
  const sizes = { blocks: [1, 2, 1, 1], widths: [12, 16, 24, 32], stem: 64, block: "basic" } as const;
  for (const prefix of ["", "module.backbone.", "_orig_mod."]) {
    const backbone = new ResNet(gpu, { ...sizes, stemKind: "7x7", norm: "frozenBN", outputStride: 32 });
    const wrapped = [...under(fixture, "weights.")].map(([key, x]) => [prefix + key, x] as const);
    loadBackbone(backbone, new Map([...wrapped, ["linear.weight", gpu.zeros([1])]]));
    await assertParity(gpu, backbone, fixture);
  }
});

test("a narrow MobileNetV2 gives the features of its PyTorch twin", async () => {
  const gpu = await testDevice();
  const fixture = await readFixture(gpu, "mobilenet");
  const backbone = new MobileNetV2(gpu, { width: 0.25 });
  loadBackbone(backbone, under(fixture, "weights."));
  await assertParity(gpu, backbone, fixture);
});

const imagenet = sharedFile("weights/mobilenet_v2_imagenet.fp16.safetensors");
(imagenet ? test : test.skip)("MobileNetV2 with ImageNet weights gives the features of its PyTorch twin", async () => {
  const gpu = await testDevice();
  const fixture = await readFixture(gpu, "mobilenet_imagenet");
  const backbone = new MobileNetV2(gpu);
  loadBackbone(backbone, await load(gpu, imagenet!));
  await assertParity(gpu, backbone, fixture);
});

test("a MobileNetV2 of torchvision or timm gives their features, its norms folded", async () => {
  const gpu = await testDevice();
  const fixture = await readFixture(gpu, "mobilenet_torchvision");
  const weights = under(fixture, "weights.");
  const timm = new Map<string, Tensor>();
  const theirs = mobileNetParts(TIMM_MOBILENET);
  for (const [i, parts] of mobileNetParts(TORCHVISION_MOBILENET).entries())
    for (const [part, name] of parts.entries())
      for (const [key, x] of under(weights, `${name}.`)) timm.set(`model.${theirs[i]![part]}.${key}`, x);
  const wrapped = new Map([...weights].map(([key, x]) => [`module.backbone.${key}`, x]));
  wrapped.set("classifier.1.weight", gpu.zeros([1]));
  for (const state of [weights, timm, wrapped]) {
    const backbone = new MobileNetV2(gpu, { width: 0.1, origin: "pytorch" });
    loadBackbone(backbone, state);
    await assertParity(gpu, backbone, fixture);
  }
  const refused = (options: ConstructorParameters<typeof MobileNetV2>[1], state: ReadonlyMap<string, Tensor>) => {
    const backbone = new MobileNetV2(gpu, { width: 0.1, origin: "pytorch", ...options });
    return assert.throws.bind(undefined, () => loadBackbone(backbone, state));
  };
  // What these say to give is what the command line takes.
  refused(
    { origin: "tensorflow" },
    weights,
  )(/the weights are pytorch's.* give model\.backbone=\{kind: mobilenetV2, origin: pytorch\}$/);
  refused(
    { norm: "groupNorm" },
    weights,
  )(/norm is groupNorm, .* give model\.backbone=\{kind: mobilenetV2, norm: folded, origin: pytorch\}$/);
  refused({ width: 0.35 }, timm)(/misshaped \(model\.(conv_stem|bn1)/);
  weights.delete("features.2.conv.1.1.running_var");
  refused({}, weights)(/1 missing \(features\.2\.conv\.1\.1\.running_var/);
});

test("a MobileNetV2 of transformers gives its features: padded and normalised as TensorFlow's", async () => {
  const gpu = await testDevice();
  const fixture = await readFixture(gpu, "mobilenet_transformers");
  const weights = [...under(fixture, "weights.")];
  const classifier = new Map(weights.map(([key, x]) => [`mobilenet_v2.${key}`, x]));
  classifier.set("classifier.weight", gpu.zeros([1]));
  for (const state of [new Map(weights), classifier]) {
    const backbone = new MobileNetV2(gpu, { width: 0.28 });
    loadBackbone(backbone, state);
    await assertParity(gpu, backbone, fixture);
    const other = new MobileNetV2(gpu, { width: 0.28, origin: "pytorch" });
    assert.throws(() => loadBackbone(other, state), /the weights are tensorflow's/);
  }
  const shapes = [...classifier].map(([key, { shape }]) => [key, { ...EMPTY, shape }] as const);
  const narrow = new MobileNetV2(gpu, { width: 0.1 });
  assert.throws(() => loadBackbone(narrow, classifier), /no shortcut in its first block/);
  const { kind, expected, tensors } = nameTensors(new Map(shapes), "x");
  assert.is(kind, "MobileNetV2");
  checkTensors(expected!, tensors, "x");
});

test("ResNet-50 has detectron2's parameters", async () => {
  const gpu = await testDevice();
  const backbone = resNet(gpu, 50, { width: 8 });
  const keys = [...backbone.stateDict()].map(([key, x]) => `${key} ${x.shape.join("x")}`);
  for (const key of [
    "stem.conv1.weight 8x3x7x7",
    "stem.conv1.norm.running_var 8",
    "res2.0.shortcut.weight 32x8x1x1",
    "res2.2.conv3.norm.bias 32",
    "res4.5.conv2.weight 32x32x3x3",
    "res5.0.shortcut.norm.weight 256",
  ])
    assert.ok(keys.includes(key), `${key} is missing`);
  assert.is(keys.length, 5 * (1 + 16 * 3 + 4), "53 convolutions with a weight and four norm tensors each");
  assert.is([...backbone.parameters()].length, 53, "the norms are frozen");
});

test("an output stride of 16 or 8 keeps the resolution of the late stages", async () => {
  const gpu = await testDevice();
  const images = gpu.rand([1, 3, 64, 64], { seed: 1 });
  for (const [outputStride, sides] of [
    [32, "16 8 4 2"],
    [16, "16 8 4 4"],
    [8, "16 8 8 8"],
  ] as const) {
    for (const backbone of [
      miniNet(gpu, { widths: [8, 8, 16, 16], blocks: [1, 1, 1, 1], outputStride }),
      new MobileNetV2(gpu, { width: 0.1, norm: "groupNorm", outputStride }),
    ]) {
      const features = scope(() => noGrad(() => backbone.forward(images)));
      assert.is(
        Object.values(features)
          .map((x) => x.shape[3])
          .join(" "),
        sides,
      );
      assert.equal(
        Object.values(features).map((x) => x.shape[1]),
        Object.values(backbone.channels),
      );
    }
  }
});

test("padding is the mean colour, inside the batch as at its border", async () => {
  const gpu = await testDevice();
  const backbone = miniNet(gpu, { widths: [8, 8, 8, 8], blocks: [1, 1, 1, 1] });
  const x = backbone.normalise(gpu.full([2, 3, 30, 40], 255), {
    sizes: [
      [30, 40],
      [10, 20],
    ],
  });
  assert.equal(x.shape, [2, 3, 32, 64]);
  const values = await x.toArray();
  const at = (b: number, y: number, column: number) => values[((b * 3 + 0) * 32 + y) * 64 + column]!;
  const white = (255 - 123.675) / 58.395;
  assert.ok(Math.abs(at(0, 29, 39) - white) < 1e-5);
  assert.is(at(0, 30, 0), 0);
  assert.is(at(0, 0, 40), 0);
  assert.ok(Math.abs(at(1, 9, 19) - white) < 1e-5);
  assert.is(at(1, 10, 0), 0);
  assert.is(at(1, 0, 20), 0);
});

test("weights of another network are refused by name", async () => {
  const gpu = await testDevice();
  const fixture = await readFixture(gpu, "mobilenet");
  const backbone = new MobileNetV2(gpu, { width: 0.5 });
  assert.throws(
    () => loadBackbone(backbone, under(fixture, "weights.")),
    /97 misshaped \(10\.dwconv\.weight is \(48, 1, 3, 3\), not \(96, 1, 3, 3\)/,
  );
  const resnet = resNet(gpu, 18, { width: 8 });
  assert.throws(
    () => loadBackbone(resnet, under(fixture, "weights.")),
    /^(CheckpointError: )?holds no ResNet, which the model has: its keys are 00\.conv\.\w+, .* and \d+ more$/,
  );
  const own = [...resnet.stateDict()];
  const torchvision = new Map(
    own.map(([key, x]) => [key.replace("stem.conv1.norm", "bn1").replace("stem.conv1", "conv1"), x]),
  );
  assert.throws(
    () =>
      loadBackbone(
        resnet,
        new Map([
          ["linear.weight", gpu.zeros([1])],
          ...torchvision,
          ["conv1.weight", gpu.zeros([8, 3, 7, 7], { dtype: "i32" })],
        ]),
      ),
    /^tensor conv1\.weight is of type i32, which no weights are$/,
  );
});

test.run();
