/** What plain JavaScript callers may get wrong: refused before anything runs, by the operation's and the argument's name. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, Device, F, nn, type Tensor } from "../../index.ts";
import { testDevice } from "../device.ts";

const gpu = await testDevice();
const test = suite("arguments");
// biome-ignore lint/suspicious/noExplicitAny: the calls are wrong on purpose
const f = F as unknown as Record<string, (...args: any[]) => Tensor>;
// biome-ignore lint/suspicious/noExplicitAny: the same
const device = gpu as any;
const x = gpu.ones([1, 2, 4, 4]);
const w = gpu.ones([2, 2, 3, 3]);

const refused: Record<string, [() => unknown, RegExp]> = {
  "clamp, numbers": [() => f.clamp!(x, 2, 4), /clamp: options are given as \{ min, max \}; got number 2/],
  "clamp, nothing": [() => f.clamp!(x), /clamp: give min, max or both/],
  "clamp, NaN": [() => f.clamp!(x, { min: Number.NaN }), /clamp: min must be a number; got number NaN/],
  gelu: [() => f.gelu!(x, { approximate: "foo" }), /gelu: approximate must be "none" or "tanh"; got "foo"/],
  "conv2d, key": [
    () => f.conv2d!(x, w, { strides: 2 }),
    /conv2d: there is no option "strides"; there are bias, stride, padding, dilation, groups/,
  ],
  "conv2d, bias": [() => f.conv2d!(x, w, gpu.ones([2])), /conv2d: options are given as .*; got a tensor/],
  "conv2d, padding": [() => f.conv2d!(x, w, { padding: "same" }), /conv2d: padding takes one or two .*; got "same"/],
  convTranspose2d: [() => f.convTranspose2d!(x, w, { outputPadding: 1 }), /no option "outputPadding"/],
  pad: [() => f.pad!(x, [1, 1], "reflect"), /pad: takes no further argument; got "reflect"/],
  argmax: [() => f.argmax!(x, 1, { keepDim: true }), /argmax: there is no option "keepDim"; there are keepdim/],
  attention: [() => f.scaledDotProductAttention!(x, x, x, { isCausal: true }), /no option "isCausal"/],
  crossEntropy: [
    () => f.crossEntropy!(gpu.ones([1, 2]), gpu.zeros([1], { dtype: "i32" }), { labelSmoothing: 0.1 }),
    /crossEntropy: there is no option "labelSmoothing"/,
  ],
  mseLoss: [() => f.mseLoss!(x, x, { reduction: "avg" }), /mseLoss: reduction must be "none" or "mean" or "sum"/],
  gridSample: [
    () => f.gridSample!(x, gpu.zeros([1, 1, 1, 2]), { paddingMode: "reflection" }),
    /gridSample: paddingMode must be "zeros" or "border"; got "reflection"/,
  ],
  interpolate: [() => f.interpolate!(x, { size: 2, mode: "bicubic" }), /mode must be "bilinear" or "nearest"/],
  "conv2d, groups": [
    () => f.conv2d!(gpu.ones([1, 2, 4, 4]), gpu.ones([2, 2, 1, 1]), { groups: 0 }),
    /conv2d: groups must be a whole/,
  ],
  "linear, x": [() => f.linear!(gpu.tensor([1], []), x), /linear: x is a single number/],
  maxPool2d: [() => f.maxPool2d!(x, 2, { ceilMode: true }), /maxPool2d: there is no option "ceilMode"/],
  batchNorm: [() => f.batchNorm!(x, { training: 1 }), /batchNorm: training must be a boolean; got number 1/],
  dropout: [() => f.dropout!(x, { p: 0.5 }), /dropout: p must lie in 0\.\.1; got an object/],
  softmax: [() => f.softmax!(x, 1, { dtype: "f32" }), /softmax: takes no further argument/],
  embedding: [
    () => f.embedding!(gpu.zeros([1], { dtype: "i32" }), w, { paddingIdx: 0 }),
    /embedding: takes no further/,
  ],
  "add, alpha": [() => f.add!(x, x, { alpha: 2 }), /add: takes no further argument/],
  "sum, options first": [() => f.sum!(x, { keepdim: true }), /sum: dims come before the options/],
  "layerNorm, shape": [() => f.layerNorm!(x, [4], w, w), /layerNorm: weight must be a tensor; got an array/],
  "a missing operand": [() => f.add!(x), /add: b must be a tensor or a number; got nothing/],
  "numbers alone": [() => f.mul!(2, 3), /mul: one of a and b must be a tensor; got numbers/],
  "relu of a number": [() => f.relu!(3), /relu: x must be a tensor; got number 3/],
  "cast to a type that is none": [() => f.cast!(x, "float"), /cast: dtype must be one of "f32", .*; got "float"/],
  "cat of two": [() => f.cat!(x, x), /cat: the tensors come in an array, at least one; got a tensor/],
  "reshape to a number": [() => f.reshape!(x, 32), /reshape: shape must be an array of whole numbers/],
  "backward of a number": [
    () => (backward as (v: unknown) => void)(3),
    /backward: loss must be a tensor; got number 3/,
  ],
  "f16 in a sum": [() => f.add!(F.cast(x, "f16"), x), /add: a is f16, which is storage only/],
  "nested data": [() => device.tensor([[1, 2]]), /tensor: nested arrays are not taken; pass a flat array and a shape/],
  "a number as data": [() => device.tensor(3), /tensor: data must be an array of numbers; got one, 3/],
  "text as data": [() => device.tensor("12"), /tensor: data must be an array of numbers; got "12"/],
  "holes in data": [() => device.tensor([1, undefined]), /tensor: data must hold numbers; got nothing at 1/],
  "a type that is none": [
    () => device.zeros([2], { dtype: "float32" }),
    /zeros: dtype must be "f32" or .*; got "float32"/,
  ],
  "an option that is none": [() => device.randn([2], { sed: 3 }), /randn: there is no option "sed"/],
  "a negative size": [() => device.zeros([-1]), /zeros: shape holds whole numbers from 0 up; got \(-1\)/],
  "a shape that is a number": [() => device.ones(3), /ones: shape must be an array of whole numbers, .*; got number 3/],
  "a layer without a device": [
    () => new (nn.Linear as unknown as new (a: number, b: number) => unknown)(3, 2),
    /nn\.Linear: the device comes first, new nn\.Linear\(gpu, …\); got number 3/,
  ],
  "a layer's options": [() => new nn.Conv2d(gpu, 2, 2, 3, { strides: 2 } as never), /nn\.Conv2d: .* "strides"/],
  "a layer's sizes": [
    () => new nn.Linear(gpu, 3, undefined as never),
    /nn\.Linear: outFeatures must be .*; got nothing/,
  ],
};
for (const [name, [call, message]] of Object.entries(refused)) test(name, () => assert.throws(call, message));

/** What follows the wrong argument, where it is not a tensor alone. */
const others: Record<string, unknown[]> = {
  gather: [0, gpu.zeros([1, 1, 1, 1], { dtype: "i32" })],
  indexSelect: [0, gpu.zeros([1], { dtype: "i32" })],
  scatterAdd: [0, gpu.zeros([1, 1, 1, 1], { dtype: "i32" }), x],
  msDeformAttn: [[[4, 4]], x, x],
  where: [x, x],
  gelu: [],
  clamp: [],
  batchNorm: [],
  interpolate: [],
};
for (const name of Object.keys(F))
  test(`${name} names an argument that is no tensor`, () => {
    const rest = others[name] ?? [x];
    assert.throws(
      () => f[name]!("x", ...rest),
      new RegExp(`^(Error: )?${name}: .*(must be a tensor|come in an array).*got "x"`),
    );
  });

test("arrays can be mapped and reduced with operations", async () => {
  const xs = [gpu.tensor([-1, 2]), gpu.tensor([3, -4])];
  const y = xs.map(F.relu as (x: Tensor) => Tensor).reduce(F.add as (a: Tensor, b: Tensor) => Tensor);
  assert.equal([...(await y.toArray())], [3, 2]);
});

test("interpolate takes one number for both sides", async () => {
  assert.equal([...F.interpolate(x, { size: 3 }).shape], [1, 2, 3, 3]);
});

test("a tape that was used up says so", () => {
  const a = gpu.ones([2], { requiresGrad: true });
  const h = F.exp(a);
  const loss = F.sum(h);
  backward(loss);
  assert.throws(
    () => backward(loss),
    /backward: an earlier backward went through the tensor of shape \(\).*forward pass again/,
  );
  assert.throws(() => backward(F.sum(F.mul(h, h))), /tensor of shape \(2\) and used up what it came from/);
  backward(F.sum(F.exp(a)));
});

test("Device.open refuses options that it does not have", async () => {
  const error = await Device.open({ adaptor: "software" } as never).then(
    () => undefined,
    (e) => e,
  );
  assert.match(String(error), /Device\.open: there is no option "adaptor"; there are adapter/);
});

test("tensors of two devices do not meet", async () => {
  const other = await Device.open();
  assert.throws(() => F.matmul(gpu.ones([2, 2]), other.ones([2, 2])), /matmul: b lives on another device/);
  await other.close();
});

test.run();
