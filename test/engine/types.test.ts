/** Types of results, as PyTorch promotes them, and whole numbers that f32 cannot hold. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type DType, F, type Tensor } from "../../index.ts";
import { testDevice } from "../device.ts";

const gpu = await testDevice();
const test = suite("types");

const i32 = (...v: number[]): Tensor => gpu.tensor(Int32Array.from(v));
const u32 = (...v: number[]): Tensor => gpu.tensor(Uint32Array.from(v));
const f32 = (...v: number[]): Tensor => gpu.tensor(v);
const bool = (...v: number[]): Tensor => gpu.tensor(v, [v.length], { dtype: "bool" });

async function gives(y: Tensor, dtype: DType, ...want: number[]): Promise<void> {
  assert.equal([y.dtype, ...(await y.toArray())], [dtype, ...want]);
}

test("whole numbers stay whole, and exact", async () => {
  await gives(F.add(i32(2147483647), 0), "i32", 2147483647);
  await gives(F.mul(i32(100003), i32(1009)), "i32", 100903027);
  await gives(F.sub(5, i32(16777217)), "i32", -16777212);
  await gives(F.add(u32(4294967295), 0), "u32", 4294967295);
  await gives(F.eq(i32(16777217), 16777216), "bool", 0);
  await gives(F.lt(u32(4294967294), u32(4294967295)), "bool", 1);
  await gives(F.clamp(i32(16777217, -7), { min: 0 }), "i32", 16777217, 0);
  await gives(F.clamp(u32(4294967295, 7), { max: 2 ** 40 }), "u32", 4294967295, 7);
  await gives(F.where(bool(1, 0), i32(16777217, 2), -5), "i32", 16777217, -5);
  await gives(F.where(f32(0.5, Number.NaN, -0), i32(1, 2, 3), 0), "i32", 1, 2, 0);
});

test("whole numbers become f32 where torch makes them so", async () => {
  await gives(F.div(i32(3), 2), "f32", 1.5);
  await gives(F.div(i32(4), i32(2)), "f32", 2);
  await gives(F.add(i32(1), 0.5), "f32", 1.5);
  await gives(F.exp(i32(0)), "f32", 1);
  await gives(F.sigmoid(u32(0)), "f32", 0.5);
  await gives(F.pow(i32(3), 2), "f32", 9);
  await gives(F.where(bool(1, 0), i32(3, 3), 0.5), "f32", 3, 0.5);
  await gives(F.clamp(i32(3), { max: 2.5 }), "f32", 2.5);
  await gives(F.mul(i32(3), f32(0.5)), "f32", 1.5);
  await gives(F.maximum(i32(3), Number.NEGATIVE_INFINITY), "f32", 3);
});

test("truth values count as whole numbers beside such, and are chosen as they are", async () => {
  await gives(F.add(i32(16777217), bool(1)), "i32", 16777218);
  await gives(F.sub(1, bool(1, 0)), "i32", 0, 1);
  await gives(F.where(bool(1, 0), bool(1, 1), bool(0, 0)), "bool", 1, 0);
  await gives(F.eq(bool(1, 0), bool(1, 1)), "bool", 1, 0);
  await gives(F.mul(bool(1, 0), f32(2.5, 2.5)), "f32", 2.5, 0);
});

test("casts between whole types are exact", async () => {
  await gives(F.cast(i32(2147483647, -1), "u32"), "u32", 2147483647, 4294967295);
  await gives(F.cast(u32(4294967295), "i32"), "i32", -1);
  await gives(F.cast(i32(-3, 0), "bool"), "bool", 1, 0);
  await gives(F.cast(bool(1, 0), "i32"), "i32", 1, 0);
  await gives(F.cast(f32(-2.7, 2.7), "i32"), "i32", -2, 2);
  await gives(F.cast(i32(-3), "f32"), "f32", -3);
});

test("reductions of whole numbers are exact, those of truth values count", async () => {
  await gives(F.sum(i32(16777216, 1, 1, 1)), "i32", 16777219);
  await gives(F.sum(bool(1, 0, 1)), "i32", 2);
  await gives(F.max(u32(1, 4294967295, 4294967294)), "u32", 4294967295);
  await gives(F.min(i32(16777217, 16777218)), "i32", 16777217);
  await gives(F.max(bool(0, 1)), "bool", 1);
  assert.throws(() => F.mean(i32(1, 2)), /mean: x must be f32; got i32: F\.cast/);
});

test("a whole number that the type cannot hold is refused, but compared", async () => {
  assert.throws(() => F.add(i32(1), 2 ** 31), /add: 2147483648 does not fit the i32 of the tensor/);
  assert.throws(() => F.sub(u32(1), -1), /sub: -1 does not fit the u32/);
  await gives(F.lt(u32(1), -1), "bool", 0);
});

test("only numbers with fractions take gradients", () => {
  assert.throws(() => gpu.tensor(Int32Array.of(1), [1], { requiresGrad: true }), /requiresGrad: only f32 .* is i32/);
  assert.throws(() => gpu.zeros([2], { dtype: "bool", requiresGrad: true }), /requiresGrad/);
  assert.throws(() => (gpu.zeros([2], { dtype: "u32" }).requiresGrad = true), /requiresGrad/);
  assert.is(gpu.empty([2], { requiresGrad: true }).requiresGrad, true);
});

test("reductions over no named dimension take them all, and none twice", async () => {
  const x = gpu.tensor([1, 2, 3, 4], [2, 2]);
  await gives(F.sum(x, []), "f32", 10);
  await gives(F.mean(x, []), "f32", 2.5);
  await gives(F.max(x, []), "f32", 4);
  assert.equal([...F.min(x, [], { keepdim: true }).shape], [1, 1]);
  assert.throws(() => F.sum(x, [0, -2]), /sum: each dimension is named once/);
  assert.equal([...F.argmax(x, 1, { keepdim: true }).shape], [2, 1]);
});

test.run();
