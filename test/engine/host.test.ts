import { suite } from "uvu";
import * as assert from "uvu/assert";
import { philox } from "../../engine/random.ts";
import {
  encode,
  encodeSafetensors,
  F,
  type FileTensor,
  fileNumbers,
  fileTensor,
  halfBits,
  halfValue,
  load,
  nn,
  optim,
  parseSafetensors,
  Random,
} from "../../index.ts";
import { testDevice } from "../device.ts";

const random = suite("random numbers");

random("Philox gives the published words", () => {
  // Known answers of the Random123 distribution (kat_vectors, philox4x32 10 rounds).
  const out = new Uint32Array(4);
  philox(out, 0, 0, 0, 0, 0, 0);
  assert.equal([...out], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
  const f = 0xffffffff;
  philox(out, f, f, f, f, f, f);
  assert.equal([...out], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
  philox(out, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0);
  assert.equal([...out], [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
});

random("a restored state continues with the same numbers", () => {
  const a = new Random(5);
  for (let i = 0; i < 7; i++) a.bits();
  const b = new Random(0);
  b.restore(JSON.parse(JSON.stringify(a.state)));
  assert.equal([a.bits(), a.normal(), a.int(9)], [b.bits(), b.normal(), b.int(9)]);
});

random("forks depend on the key, not on what was drawn", () => {
  const a = new Random(5);
  const before = a.fork("x").bits();
  a.bits();
  assert.is(a.fork("x").bits(), before);
  assert.is.not(a.fork("y").bits(), before);
});

random("uniform and normal have their moments", () => {
  const r = new Random(11);
  const u = Array.from({ length: 20000 }, () => r.uniform());
  const n = Array.from({ length: 20000 }, () => r.normal());
  const mean = (v: number[]): number => v.reduce((s, x) => s + x, 0) / v.length;
  assert.ok(Math.abs(mean(u) - 0.5) < 0.01);
  assert.ok(Math.abs(mean(n)) < 0.03);
  assert.ok(Math.abs(mean(n.map((v) => v * v)) - 1) < 0.05);
});

random.run();

const half = suite("half precision");

half("every half goes to a number and back", () => {
  for (let h = 0; h < 65536; h++) {
    const v = halfValue(h);
    if (Number.isNaN(v)) assert.ok(Number.isNaN(halfValue(halfBits(v))));
    else assert.is(halfBits(v), h, `half ${h}`);
  }
});

half("ties round to even and large numbers to infinity", () => {
  assert.is(halfBits(1 + 2 ** -11), halfBits(1));
  assert.is(halfBits(1 + 3 * 2 ** -11), halfBits(1 + 2 ** -9));
  assert.is(halfValue(halfBits(65520)), Number.POSITIVE_INFINITY);
  assert.is(halfValue(halfBits(65519)), 65504);
});

half.run();

const gpu = await testDevice();
const files = suite("safetensors");

files("tensors of every type survive a round trip", async () => {
  const tensors = new Map([
    ["f", gpu.tensor([1.5, -2, 3], [3])],
    ["h", F.cast(gpu.tensor([0.5, 65504, -1], [3, 1]), "f16")],
    ["i", gpu.tensor([-1, 2], [2], { dtype: "i32" })],
    ["b", gpu.tensor([1, 0, 1], [3], { dtype: "bool" })],
    ["empty", gpu.zeros([0, 4])],
  ]);
  const bytes = await encode(tensors, { config: "{}" });
  assert.is(parseSafetensors(bytes).metadata.config, "{}");
  const back = await load(gpu, bytes);
  for (const [key, x] of tensors) {
    assert.equal(back.get(key)!.shape, x.shape);
    assert.equal([...(await back.get(key)!.toArray())], [...(await x.toArray())], key);
  }
});

const file = (): Uint8Array =>
  encodeSafetensors(
    new Map([
      ["a", fileTensor([1, 2], [2])],
      ["b", fileTensor([3], [1])],
    ]),
  );
const withHeader = (
  change: (h: Record<string, { data_offsets: number[]; shape: number[]; dtype: string }>) => void,
): Uint8Array =>
  withText((text) => {
    const header = JSON.parse(text);
    change(header);
    return JSON.stringify(header);
  });
const withText = (change: (json: string) => string): Uint8Array => {
  const bytes = file();
  const n = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const json = new TextEncoder().encode(change(new TextDecoder().decode(bytes.subarray(8, 8 + n))));
  const out = new Uint8Array(8 + json.length + bytes.length - 8 - n);
  new DataView(out.buffer).setBigUint64(0, BigInt(json.length), true);
  out.set(json, 8);
  out.set(bytes.subarray(8 + n), 8 + json.length);
  return out;
};

for (const [what, bytes, message] of [
  ["an empty file", new Uint8Array(), /at least 8 bytes/],
  ["a truncated file", file().subarray(0, file().length - 2), /"b" lies at 8\.\.12, beyond the 10 bytes/],
  ["a header that is too long", Uint8Array.from([255, 255, 255, 255, 0, 0, 0, 0, 1]), /claims/],
  ["text", new TextEncoder().encode("hello, this is not a tensor file"), /claims|not JSON/],
  ["bytes that follow", Uint8Array.from([...file(), 1, 2]), /2 bytes follow/],
  ["a wrong shape", withHeader((h) => (h.a!.shape = [3])), /"a" of shape \(3\) and type F32 takes 12 bytes/],
  ["an unknown type", withHeader((h) => (h.a!.dtype = "F31")), /F31/],
  ["overlapping offsets", withHeader((h) => (h.b!.data_offsets = [4, 8])), /overlap/],
  ["a name twice", withText((json) => json.replace('"b":', '"a":')), /the header has "a" twice/],
  ["a name twice, written in two ways", withText((json) => json.replace('"b":', '"\\u0061" :')), /has "a" twice/],
  ["a field twice", withText((json) => json.replace('"shape":', '"dtype":"F16",$&')), /has "dtype" twice/],
  ["a text twice", withText((json) => json.replace("{", '{"__metadata__":{"x":"}","x":"{"},')), /has "x" twice/],
  ["a negative size", withHeader((h) => (h.a!.shape = [-2])), /whole numbers/],
] as const)
  files(`${what} is refused`, () => {
    assert.throws(() => parseSafetensors(bytes, "w.safetensors"), message);
    assert.throws(() => parseSafetensors(bytes, "w.safetensors"), /^Error: w\.safetensors|w\.safetensors/);
  });

files("64-bit numbers and bfloat16 are narrowed, or refused where they do not fit", () => {
  const i64 = (v: bigint): FileTensor => ({
    dtype: "I64",
    shape: [1],
    data: new Uint8Array(BigInt64Array.of(v).buffer),
  });
  assert.equal([...fileNumbers(i64(-7n))], [-7]);
  assert.throws(() => fileNumbers(i64(2n ** 40n)), /does not fit 32 bits/);
  assert.equal(
    [...fileNumbers({ dtype: "BF16", shape: [1], data: new Uint8Array(Uint16Array.of(0x3fc0).buffer) })],
    [1.5],
  );
});

files("any name but the format's own can be a tensor's", () => {
  const names = ["__proto__", "constructor", "1", "", "a\nb", '"', '\\"', "{", '}":', "dtype"];
  const file = encodeSafetensors(new Map(names.map((name, i) => [name, fileTensor([i], [1])])));
  const { tensors } = parseSafetensors(file);
  for (const [i, name] of names.entries()) assert.equal([...fileNumbers(tensors.get(name)!)], [i]);
  assert.throws(() => encodeSafetensors(new Map([["__metadata__", fileTensor([0], [1])]])), /no tensor can be named/);
});

files.run();

const modules = suite("modules");

modules("state has PyTorch's keys, and loading names what is wrong", async () => {
  class Net extends nn.Module {
    layers = [new nn.Linear(gpu, 2, 3), new nn.Linear(gpu, 3, 1, { bias: false })];
    neck = { 0: new nn.LayerNorm(gpu, 3), 2: new nn.Linear(gpu, 1, 1) };
  }
  const net = new Net();
  assert.equal(
    [...net.stateDict().keys()],
    [
      "layers.0.weight",
      "layers.0.bias",
      "layers.1.weight",
      "neck.0.weight",
      "neck.0.bias",
      "neck.2.weight",
      "neck.2.bias",
    ],
  );
  const other = new Net();
  net.loadStateDict(other.stateDict());
  assert.equal([...(await net.layers[0]!.weight.toArray())], [...(await other.layers[0]!.weight.toArray())]);
  const state = other.stateDict();
  state.delete("layers.0.bias");
  state.set("extra", gpu.zeros([1]));
  state.set("layers.1.weight", gpu.zeros([2, 2]));
  assert.throws(
    () => net.loadStateDict(state),
    /layers\.1\.weight is \(2, 2\), the model has \(1, 3\); missing: layers\.0\.bias; unexpected: extra/,
  );
  assert.is(
    net
      .freeze()
      .parameters()
      .filter((p) => p.requiresGrad).length,
    0,
  );
});

modules.run();

const optimizer = suite("AdamW");

optimizer("follows torch.optim.AdamW and clip_grad_norm_", async () => {
  // Recorded from torch 2.13: x = [1, -2, 3], loss = sum(x³), lr 0.1, weight decay 0.05, clipped to norm 0.5, three steps.
  const x = nn.parameter(gpu.tensor([1, -2, 3], [3]));
  const adam = new optim.AdamW([{ params: [x], lr: 0.1, weightDecay: 0.05 }]);
  const { backward } = await import("../../index.ts");
  const norms: number[] = [];
  for (let i = 0; i < 3; i++) {
    adam.zeroGrad();
    backward(F.sum(F.pow(x, 3)));
    norms.push(await optim.clipGradNorm([x], 0.5).item());
    adam.step();
  }
  const got = [...(await x.toArray()), ...norms];
  const want = [0.68982196, -2.2691138, 2.6570919, 29.698484, 28.301628, 27.148567];
  for (const [i, v] of want.entries())
    assert.ok(Math.abs(got[i]! - v) < 2e-5 * Math.max(1, Math.abs(v)), `${i}: ${got[i]} ${v}`);
});

optimizer("clipGradNorm takes a lone tensor, and squares that f32 cannot hold for infinite, as PyTorch", async () => {
  const x = nn.parameter(gpu.ones([2]));
  x.grad = gpu.tensor([3, 4]);
  assert.is(await optim.clipGradNorm(x, 1).item(), 5);
  for (const [i, v] of [...(await x.grad.toArray())].entries()) assert.ok(Math.abs(v - [0.6, 0.8][i]!) < 1e-6, `${v}`);
  // torch 2.13: tensor(inf), tensor([0., 0.])
  x.grad = gpu.tensor([1e20, 1]);
  assert.is(await optim.clipGradNorm(x, 1).item(), Infinity);
  assert.equal([...(await x.grad.toArray())], [0, 0]);
});

optimizer(
  "steps small and large parameters of two groups alike, leaves those without a gradient, and keeps its state",
  async () => {
    const sizes = [3, 20_000, 64, 65, 1, 130];
    const rates = [
      { lr: 0.1, weightDecay: 0.05 },
      { lr: 0.01, weightDecay: 0 },
    ];
    const xs = sizes.map((n, i) => nn.parameter(gpu.randn([n], { seed: 50 + i })));
    const groupsOf = (all: typeof xs) =>
      rates.map((rate, g) => ({ ...rate, params: all.filter((_, i) => i % 2 === g) }));
    let adam = new optim.AdamW(groupsOf(xs));
    const twins = await Promise.all(
      xs.map(async (x) => ({ x: [...(await x.toArray())], m: new Float64Array(x.size), v: new Float64Array(x.size) })),
    );
    for (let step = 1; step <= 4; step++) {
      // Another parameter goes without a gradient each time; the largest has one always.
      const absent = [0, 2, 3, 5][step - 1];
      const gradients = sizes.map((n, i) => gpu.randn([n], { seed: 100 * step + i }));
      for (const [i, x] of xs.entries()) x.grad = i === absent ? undefined : gradients[i]!;
      const host = await Promise.all(gradients.map(async (g) => [...(await g.toArray())]));
      const norm = Math.sqrt(host.flatMap((g, i) => (i === absent ? [] : g)).reduce((sum, v) => sum + v * v, 0));
      const got = await optim.clipGradNorm(xs, 2).item();
      assert.ok(Math.abs(got / norm - 1) < 1e-6, `norm ${got} ${norm}`);
      adam.step();
      for (const [i, twin] of twins.entries()) {
        if (i === absent) continue;
        const { lr, weightDecay } = rates[i % 2]!;
        for (let k = 0; k < twin.x.length; k++) {
          const g = host[i]![k]! * Math.min(1, 2 / (norm + 1e-6));
          twin.m[k] = 0.9 * twin.m[k]! + 0.1 * g;
          twin.v[k] = 0.999 * twin.v[k]! + 0.001 * g * g;
          const change = twin.m[k]! / (1 - 0.9 ** step) / (Math.sqrt(twin.v[k]! / (1 - 0.999 ** step)) + 1e-8);
          twin.x[k] = twin.x[k]! * (1 - lr * weightDecay) - lr * change;
        }
      }
      for (const [i, x] of xs.entries()) {
        const values = await x.toArray();
        for (const [k, v] of values.entries())
          assert.ok(Math.abs(v - twins[i]!.x[k]!) < 1e-5, `step ${step}, parameter ${i}[${k}]: ${v} ${twins[i]!.x[k]}`);
      }
      // A new optimizer with the old one's state goes on where it was.
      const next = new optim.AdamW(groupsOf(xs));
      next.loadStateDict(adam.stateDict(), adam.steps);
      adam = next;
    }
  },
);

optimizer("follows torch.optim.SGD with and without momentum", async () => {
  for (const momentum of [0, 0.9]) {
    const xs = [3, 20_000].map((n, i) => nn.parameter(gpu.randn([n], { seed: 70 + i })));
    const sgd = new optim.SGD([{ params: xs, lr: 0.1, weightDecay: 0.05 }], { momentum });
    const twins = await Promise.all(
      xs.map(async (x) => ({ x: [...(await x.toArray())], m: new Float64Array(x.size) })),
    );
    for (let step = 1; step <= 3; step++) {
      for (const [i, x] of xs.entries()) x.grad = gpu.randn(x.shape, { seed: 100 * step + i });
      for (const [i, x] of xs.entries())
        for (const [k, g] of (await x.grad!.toArray()).entries()) {
          const twin = twins[i]!;
          twin.m[k] = momentum * twin.m[k]! + g + 0.05 * twin.x[k]!;
          twin.x[k] = twin.x[k]! - 0.1 * twin.m[k]!;
        }
      sgd.step();
    }
    assert.equal([...sgd.stateDict().keys()], momentum > 0 ? ["0.0.m", "0.1.m"] : []);
    for (const [i, x] of xs.entries())
      for (const [k, v] of (await x.toArray()).entries())
        assert.ok(Math.abs(v - twins[i]!.x[k]!) < 1e-5, `momentum ${momentum}, parameter ${i}[${k}]`);
  }
});

optimizer("steps at any rate, and takes groups of f32 parameters alone", async () => {
  for (const lr of [20, 21, 30]) {
    const xs = [2, 20_000].map((n) => nn.parameter(gpu.ones([n])));
    for (const x of xs) x.grad = gpu.ones(x.shape);
    new optim.AdamW([{ params: xs, lr, weightDecay: 0.05 }]).step();
    const want = 1 - lr * 0.05 - lr;
    for (const x of xs) assert.ok(Math.abs((await x.toArray())[0]! - want) < 1e-3, `lr ${lr}, ${x.size} elements`);
  }
  const half = gpu.tensor([1, 2], [2], { dtype: "f16", requiresGrad: true });
  assert.throws(() => new optim.SGD([{ params: [half] }]), /SGD: parameter 0 is f16/);
  assert.throws(() => new optim.AdamW([gpu.ones([1])] as never), /AdamW: groups are objects such as .*; got a tensor/);
  const x = nn.parameter(gpu.ones([4]));
  assert.throws(() => new optim.AdamW(x as never), /AdamW: groups come as an array, .*; got a tensor/);
  assert.throws(
    () => new optim.AdamW([{ params: [x], lr: Number.NaN }]),
    /AdamW: lr must be a finite number from 0 up/,
  );
  assert.throws(
    () => new optim.AdamW([{ params: [x] }], { betas: [2, 0] }),
    /AdamW: betas\[0\] must be .* below 1; got/,
  );
  assert.throws(() => new optim.SGD([{ params: [x] }], { momentum: -1 }), /SGD: momentum must be/);
  assert.throws(() => optim.clipGradNorm([x], Number.NaN), /clipGradNorm: maxNorm must be a number above 0/);
  for (const [params, got] of [
    [5, "number 5"],
    [undefined, "nothing"],
    [{ params: [x] }, "an object"],
  ])
    assert.throws(
      () => optim.clipGradNorm(params as never, 1),
      new RegExp(`clipGradNorm: params must be a tensor or several, .*; got ${got}`),
    );
  assert.throws(
    () => optim.clipGradNorm([x, 5 as never], 1),
    /clipGradNorm: parameter 1 must be a tensor; got number 5/,
  );
  for (const scale of [0, -2, Infinity, 1e39, 1e-46])
    assert.throws(() => optim.clipGradNorm([x], 1, { scale }), /clipGradNorm: scale must be above 0 and/);
  x.grad = gpu.ones([2]);
  assert.throws(
    () => new optim.SGD([{ params: [x] }]).step(),
    /SGD: the gradient of a parameter of shape \(4\) must have/,
  );
});

optimizer.run();
