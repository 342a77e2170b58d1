/**
 * Matrix units: no adapter of a test machine has them. So their kernel runs here with its five lines of subgroup matrices replaced by loops,
 * which shows that all else in it is right, and is compiled as it stands by Dawn's null backend, which has every feature and computes nothing.
 */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { create } from "webgpu";
import { matrixUnits } from "../../engine/matrices.ts";
import { Device, F, platform, setPlatform, type Tensor } from "../../index.ts";
import { testDevice } from "../device.ts";

await testDevice();
const half = (x: Tensor): Tensor => F.cast(x, "f16");

/** Each lane does all of its subgroup's work: slow, and the same for all. */
const LOOPS = `
struct Left { v: array<f32, ROWS * STEPS> }
struct Right { v: array<f32, STEPS * COLUMNS> }
struct Sum { v: array<f32, ROWS * COLUMNS> }
fn left(at: u32) -> Left {
  var l: Left;
  for (var i = 0u; i < ROWS * STEPS; i++) { l.v[i] = f32(tile_a[at + i / STEPS * A_ROW + i % STEPS]); }
  return l;
}
fn right(at: u32) -> Right {
  var r: Right;
  for (var i = 0u; i < STEPS * COLUMNS; i++) { r.v[i] = f32(tile_b[at + i / COLUMNS * B_ROW + i % COLUMNS]); }
  return r;
}
fn add_product(l: Left, r: Right, sum: Sum) -> Sum {
  var s = sum;
  for (var i = 0u; i < ROWS * COLUMNS; i++) {
    for (var k = 0u; k < STEPS; k++) { s.v[i] += l.v[i / COLUMNS * STEPS + k] * r.v[k * COLUMNS + i % COLUMNS]; }
  }
  return s;
}
fn put(at: u32, sum: Sum) {
  for (var i = 0u; i < ROWS * COLUMNS; i++) { tile_y[at + i] = sum.v[i]; }
}
`;

function withoutMatrices(text: string): string {
  return text
    .replace("enable chromium_experimental_subgroup_matrix;\n", "")
    .replace(/\/\/ <matrices>[\s\S]*?\/\/ <\/matrices>/, LOOPS);
}

const loops = suite("products by matrix units, spelled out");

loops("ragged edges, flipped operands, batches, cut sums, bias, residual and activation", async () => {
  const before = platform();
  setPlatform({
    ...before,
    shader: (name) => (name === "matmul_matrices" ? withoutMatrices(before.shader(name)) : before.shader(name)),
  });
  const gpu = await Device.open();
  try {
    if (!gpu.hasHalves || gpu.subgroupSize === 0) {
      console.log("skipped: the adapter has no shader-f16 with subgroups of one size");
      return;
    }
    gpu.matrices = { rows: 8, columns: 4, steps: 16 };
    const used: string[] = [];
    const run = async (work: () => Tensor): Promise<Float32Array> => {
      const y = work();
      used.push([...gpu.cache.pipelines.keys()].some((key) => key.startsWith("matmul_matrices")) ? "matrices" : "");
      return Float32Array.from(await y.toArray());
    };
    const near = (got: Float32Array, want: ArrayLike<number>, name: string): void => {
      let [worst, most] = [0, 1];
      got.forEach((v, i) => {
        worst = Math.max(worst, Math.abs(v - want[i]!));
        most = Math.max(most, Math.abs(want[i]!));
      });
      assert.ok(worst < 2e-5 * most && got.length === want.length, `${name}: off by ${worst} of ${most}`);
    };
    const operand = (shape: number[], seed: number): [Tensor, Tensor] => {
      const x = half(gpu.randn(shape, { seed }));
      x.requiresGrad = true;
      return [x, F.cast(x, "f32")];
    };
    const [x, xFull] = operand([3, 100, 68], 1);
    const [y, yFull] = operand([3, 68, 92], 2);
    near(await run(() => F.matmul(x, y)), await F.matmul(xFull, yFull).toArray(), "batches");

    const [a, aFull] = operand([132, 68], 3);
    const [w, wFull] = operand([36, 68], 4);
    const bias = gpu.randn([36], { seed: 5 });
    const residual = gpu.randn([132, 36], { seed: 6 });
    const options = { residual, activation: "relu" } as const;
    near(
      await run(() => F.linear(a, w, bias, options)),
      await F.linear(aFull, wFull, bias, options).toArray(),
      "b flipped",
    );
    // A gradient's product: a flipped, and its sum cut in parts.
    const [long, longFull] = operand([16384, 32], 7);
    near(
      await run(() => F.matmul(F.cast(F.permute(longFull, [1, 0]), "f16"), long)),
      await F.matmul(F.permute(longFull, [1, 0]), longFull).toArray(),
      "a long sum",
    );
    assert.equal(new Set(used), new Set(["matrices"]));
  } finally {
    setPlatform(before);
    await gpu.close();
  }
});

loops.run();

const compiled = suite("the kernel of matrix units");

compiled("compiles as it stands for what adapters offer, and is left alone elsewhere", async () => {
  const gpu = create(["backend=null", "enable-dawn-features=allow_unsafe_apis"]);
  const adapter = (await gpu.requestAdapter())!;
  const features = ["shader-f16", "subgroups", "chromium-experimental-subgroup-matrix"] as GPUFeatureName[];
  const device = await adapter.requestDevice({ requiredFeatures: features });
  ((globalThis as Record<string, unknown>).kept ??= []) as unknown[];
  ((globalThis as Record<string, unknown>).kept as unknown[]).push(gpu, adapter, device);
  const infoOf = (...configs: [string, string, number, number, number][]): GPUAdapterInfo =>
    ({
      subgroupMatrixConfigs: configs.map(([componentType, resultType, M, N, K]) => ({
        componentType,
        resultType,
        M,
        N,
        K,
      })),
    }) as unknown as GPUAdapterInfo;
  const nvidia = infoOf(["f16", "f16", 16, 16, 16], ["f16", "f32", 16, 8, 16], ["f16", "f32", 16, 16, 16]);
  assert.equal(await matrixUnits(nvidia, device, 32), { rows: 16, columns: 16, steps: 16 });
  assert.equal(await matrixUnits(infoOf(["f16", "f32", 8, 16, 16]), device, 32), { rows: 8, columns: 16, steps: 16 });
  // Sums in f16, matrices that no tile can hold, no configuration, subgroups of no fixed size.
  assert.is(await matrixUnits(infoOf(["f16", "f16", 8, 8, 8], ["f32", "f32", 8, 8, 8]), device, 32), undefined);
  assert.is(await matrixUnits(infoOf(["f16", "f32", 64, 64, 64]), device, 32), undefined);
  assert.is(await matrixUnits({} as GPUAdapterInfo, device, 32), undefined);
  assert.is(await matrixUnits(nvidia, device, 0), undefined);
  // A Dawn with another syntax: said, and left unused.
  const before = platform();
  const said: unknown[] = [];
  const { error } = console;
  console.error = (line: unknown) => said.push(line);
  setPlatform({ ...before, shader: (name) => before.shader(name).replaceAll("row_major", "by_rows") });
  try {
    assert.is(await matrixUnits(nvidia, device, 32), undefined);
  } finally {
    setPlatform(before);
    console.error = error;
  }
  assert.match(String(said[0]), /^matrix units are left unused: .*by_rows/s);
});

compiled.run();
