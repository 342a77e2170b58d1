/** Half precision: operands of products and weights of layers stored as f16. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { encode, load } from "../../engine/safetensors.ts";
import { backward, Device, F, nn, noGrad, optim, scope, type Tensor } from "../../index.ts";
import { testDevice } from "../device.ts";

const gpu = await testDevice();
const half = (x: Tensor): Tensor => F.cast(x, "f16");

const operands = suite("f16 operands");

operands("they are summed in f32, where f16 would stop at 2,048", async () => {
  const ones = half(gpu.ones([1, 4096]));
  const y = F.linear(ones, ones);
  assert.is(y.dtype, "f32");
  assert.is(await y.item(), 4096);
});

operands("numbers that f16 holds give what they give in f32, broadcast, in batches and as vectors", async () => {
  for (const [a, b] of [
    [[3, 5, 7], [7]],
    [[7], [3, 7, 5]],
    [
      [3, 1, 5, 7],
      [2, 7, 3],
    ],
    [
      [3, 5, 9],
      [9, 3],
    ],
  ] as const) {
    const [x, y] = [half(gpu.randn(a, { seed: 1 })), half(gpu.randn(b, { seed: 2 }))];
    const want = await F.matmul(F.cast(x, "f32"), F.cast(y, "f32")).toArray();
    assert.equal(await F.matmul(x, y).toArray(), want, `(${a}) x (${b})`);
    assert.equal(await F.matmul(x, F.cast(y, "f32")).toArray(), want, `(${a}) x (${b}), a alone`);
  }
});

operands("every kernel gives the same bits, also the one whose workgroup memory holds f16", async () => {
  const own = await Device.open();
  for (const [m, k, n] of [
    [130, 70, 67],
    [128, 100, 68],
  ] as const) {
    const [a, b] = [own.randn([m, k], { seed: 1 }), own.randn([k, n], { seed: 2 })].map((x) => F.cast(x, "f16"));
    const bits: ArrayLike<number>[] = [];
    for (const variant of ["plain", "tiled", "packed"]) {
      own.tuner.prefer = variant;
      bits.push(await F.matmul(a!, b!).toArray());
    }
    for (const other of bits.slice(1)) assert.equal(other, bits[0]);
  }
  const names = [...own.cache.pipelines.keys()];
  assert.is(
    names.some((name) => name.startsWith("matmul in f16/")),
    own.hasHalves,
  );
  await own.close();
});

operands("the gradient of an f16 tensor is f32, as a cast gives it", async () => {
  const full = gpu.randn([4, 3], { seed: 1, requiresGrad: true });
  const leaf = half(gpu.randn([4, 3], { seed: 1 }));
  leaf.requiresGrad = true;
  const x = gpu.randn([5, 3], { seed: 2 });
  backward(F.sum(F.linear(x, half(full))));
  backward(F.sum(F.linear(x, leaf)));
  assert.equal([leaf.grad!.dtype, full.grad!.dtype], ["f32", "f32"]);
  assert.equal(await leaf.grad!.toArray(), await full.grad!.toArray());
});

operands("a residual and the images of a convolution may be f16, too", async () => {
  const [x, residual] = [half(gpu.randn([2, 3, 6, 5], { seed: 1 })), half(gpu.randn([2, 4, 6, 5], { seed: 2 }))];
  const w = gpu.randn([4, 3, 3, 3], { seed: 3 });
  const [fullX, fullResidual] = [F.cast(x, "f32"), F.cast(residual, "f32")];
  const y = F.conv2d(x, w, { padding: 1, residual, activation: "relu" });
  assert.is(y.dtype, "f32");
  assert.equal(
    await y.toArray(),
    await F.conv2d(fullX, w, { padding: 1, residual: fullResidual, activation: "relu" }).toArray(),
  );
  const up = gpu.randn([3, 2, 2, 2], { seed: 4 });
  assert.equal(
    await F.convTranspose2d(x, up, { stride: 2 }).toArray(),
    await F.convTranspose2d(fullX, up, { stride: 2 }).toArray(),
  );
  const [rows, below] = [gpu.randn([5, 4], { seed: 5 }), half(gpu.randn([5, 4], { seed: 6 }))];
  const v = gpu.randn([4, 4], { seed: 7 });
  assert.equal(
    await F.linear(rows, v, undefined, { residual: below }).toArray(),
    await F.linear(rows, v, undefined, { residual: F.cast(below, "f32") }).toArray(),
  );
});

operands("what takes no f16 says so", () => {
  const x = gpu.ones([2, 2]);
  const image = gpu.ones([1, 1, 2, 2]);
  assert.throws(() => F.linear(x, half(x), half(gpu.ones([2]))), /linear: bias is f16, .* F\.cast\(bias, "f32"\)/);
  assert.throws(() => F.conv2d(image, half(image), { bias: half(gpu.ones([1])) }), /conv2d: bias is f16/);
  assert.throws(() => F.add(half(x), x), /add: a is f16/);
  assert.throws(() => F.matmul(x, F.cast(x, "i32")), /matmul: b must be f32; got i32/);
});

operands.run();

const layers = suite("layers with f16 weights");

class Net extends nn.Module {
  conv: nn.Conv2d;
  up: nn.ConvTranspose2d;
  depthwise: nn.Conv2d;
  norm: nn.LayerNorm2d;
  head: nn.Linear[];

  constructor(device = gpu) {
    super();
    this.conv = new nn.Conv2d(device, 3, 32, 3, { padding: 1, stride: 2 });
    this.up = new nn.ConvTranspose2d(device, 32, 32, 2, { stride: 2 });
    this.depthwise = new nn.Conv2d(device, 32, 32, 3, { padding: 1, groups: 32 });
    this.norm = new nn.LayerNorm2d(device, 32);
    this.head = [new nn.Linear(device, 512, 768), new nn.Linear(device, 768, 33)];
  }

  forward(x: Tensor): Tensor {
    const features = this.norm.forward(this.depthwise.forward(this.up.forward(this.conv.forward(x))));
    return this.head.reduce((y, layer) => layer.forward(y), F.reshape(features, [x.shape[0]!, -1]));
  }
}

const outputs = (net: Net): Promise<Float32Array> =>
  scope(async () => {
    const x = net.conv.weight.device.randn([4, 3, 4, 4], { seed: 9 });
    return Float32Array.from(await noGrad(() => net.forward(x)).toArray());
  });

function closeTo(got: Float32Array, want: Float32Array): void {
  const spread = Math.sqrt(want.reduce((sum, v) => sum + v * v, 0) / want.length);
  const worst = got.reduce((most, v, i) => Math.max(most, Math.abs(v - want[i]!)), 0);
  assert.ok(worst > 0, "rounded at all");
  assert.ok(worst < 4 * 2 ** -11 * spread, `off by ${worst} where outputs spread by ${spread}`);
}

layers("to f16 halves a model's memory, and its outputs stay within the rounding of its weights", async () => {
  const own = await Device.open(); // Nothing else is collected there meanwhile.
  await scope(async () => {
    await outputs(new Net(own)); // Makes the tables of convolutions, which stay.
  });
  const before = own.memory.liveBytes;
  await scope(async () => {
    const net = new Net(own);
    const full = own.memory.liveBytes - before;
    const want = await outputs(net);
    assert.is(net.to("f16"), net);
    const halved = own.memory.liveBytes - before;
    assert.ok(halved < 0.52 * full, `${halved} of ${full} bytes`);
    for (const [name, x] of net.namedTensors()) {
      const isWeight = name.endsWith(".weight") && !name.startsWith("norm");
      assert.is(x.dtype, isWeight ? "f16" : "f32", name);
      assert.ok(nn.isParameter(x) && x.requiresGrad, name);
    }
    const rounded = await outputs(net);
    closeTo(rounded, want);
    assert.is(own.memory.liveBytes - before, halved, "no copy stays behind");
    net.to("f32");
    assert.is(own.memory.liveBytes - before, full);
    assert.equal(
      [...net.namedTensors()].filter(([, x]) => x.dtype !== "f32"),
      [],
    );
    assert.equal(await outputs(net), rounded, "the same numbers, stored as f32");
  });
  own.close();
});

layers("files and models of either type load into each other", async () => {
  const [net, copy, plain] = [new Net(), new Net().to("f16"), new Net()];
  const want = await outputs(net);
  copy.loadStateDict(net.stateDict());
  closeTo(await outputs(copy), want);
  const file = await load(gpu, await encode(copy.stateDict()));
  plain.loadStateDict(file);
  assert.equal(await outputs(plain), await outputs(copy));
  const other = new Net().to("f16");
  other.loadStateDict(copy.stateDict());
  assert.equal(await outputs(other), await outputs(copy));
  const wrong = new Map(net.stateDict()).set("head.1.weight", gpu.zeros([33, 768], { dtype: "i32" }));
  assert.throws(() => net.loadStateDict(wrong), /head\.1\.weight is i32, the model has f32/);
  assert.throws(() => copy.loadStateDict(wrong), /head\.1\.weight is i32, the model has f16/);
  const kept = await outputs(copy);
  wrong.set("head.0.weight", gpu.zeros(wrong.get("head.0.weight")!.shape));
  assert.throws(() => copy.loadStateDict(wrong), /head\.1\.weight is i32/);
  assert.equal(await outputs(copy), kept, "what is refused leaves nothing behind");
  net.loadStateDict(net.stateDict());
  assert.equal(await outputs(net), want, "its own state");
});

layers("a weight that two layers share stays shared, and frozen ones stay frozen", () => {
  const [a, b] = [new nn.Linear(gpu, 4, 4), new nn.Linear(gpu, 4, 4)];
  b.weight = a.weight;
  class Tied extends nn.Module {
    both = [a, b];
  }
  new Tied().freeze().to("f16");
  assert.is(a.weight, b.weight);
  assert.equal([a.weight.dtype, a.weight.requiresGrad], ["f16", false]);
  assert.throws(() => a.to("i32" as never), /to: dtype must be "f16" or "f32"; got "i32"/);
});

layers("an optimizer whose parameters were converted says so, and a new one goes on", async () => {
  const net = new nn.Linear(gpu, 4, 3);
  const adamw = () => new optim.AdamW([{ params: net.parameters(), name: "head" }]);
  const step = (optimizer: optim.AdamW): void =>
    scope(() => {
      optimizer.zeroGrad();
      backward(F.sum(net.forward(gpu.ones([2, 4]))));
      optimizer.step();
    });
  const old = adamw();
  step(old);
  net.to("f16");
  const refused =
    /^AdamW: step: parameter 0 of group "head", of shape \(3, 4\), was freed, .*call module\.to\("f32"\), then make a new/;
  assert.throws(() => step(old), refused);
  assert.is(old.steps, 1);
  assert.throws(adamw, /^AdamW: parameter 0 is f16, which is storage only; module\.to\("f32"\) before/);
  net.to("f32");
  assert.throws(() => step(old), refused);
  const before = await net.weight.toArray();
  step(adamw());
  assert.not.equal(await net.weight.toArray(), before);
});

layers.run();
