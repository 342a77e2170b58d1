import { suite } from "uvu";
import * as assert from "uvu/assert";
import { cases } from "../../engine/cases/index.ts";
import { gradcheck, TOLERANCE } from "../../engine/gradcheck.ts";
import { gemm } from "../../engine/ops/matmul.ts";
import { Tuner } from "../../engine/tuner.ts";
import { backward, F, type HostArray, type Measured, scope, setPlatform, type Tensor, tune } from "../../index.ts";
import { nodePlatform } from "../../platform/node.ts";
import { testDevice } from "../device.ts";

const test = suite("kernels that stand in for each other");
const gpu = await testDevice();
const VARIANTS = ["plain", "tiled", "rows", "columns", "packed"];

/** The platform's cache, in memory: neither read from earlier measurements of this machine nor mixed into them. */
const cache = new Map<string, string>();
test.before(() =>
  setPlatform({
    ...nodePlatform,
    readCache: async (name) => cache.get(name),
    writeCache: async (name, text) => void cache.set(name, text),
  }),
);
test.after.each(() => {
  gpu.tuner.prefer = undefined;
  delete process.env.WGPU_WISH_TUNE;
});
test.after(() => setPlatform(nodePlatform));

/** Without the large ones, whose twins in float64 take the most time. */
const table = {
  matmul: cases.matmul!.filter(({ name }) => name !== "real"),
  linear: cases.linear!.filter(({ name }) => name !== "real"),
};
for (const variant of VARIANTS)
  test(`${variant}: every product and its gradients agree with their float64 twins`, async () => {
    gpu.tuner.prefer = variant;
    for (const result of await gradcheck(gpu, ["matmul", "linear"], table))
      assert.ok(result.pass, `${result.op}: ${result.worst} is off by ${result.maxRelError}, more than ${TOLERANCE}`);
  });

/** [batch, m, k, n] */
const SHAPES = [
  [1, 1, 1, 1],
  [1, 1, 64, 64],
  [2, 9, 17, 36],
  [1, 65, 33, 67],
  [3, 70, 36, 12],
  [1, 130, 8, 129],
  [1, 128, 66, 66],
  [2, 8, 0, 9],
  [2, 3, 16390, 5],
  [1, 8, 20000, 32],
] as const;

function product(shape: readonly [number, number, number, number], aFlipped: boolean, bFlipped: boolean): Tensor {
  const [batch, m, k, n] = shape;
  const a = { x: gpu.randn([batch, m, k], { seed: 1 }), flipped: aFlipped };
  const b = { x: gpu.randn([batch, k, n], { seed: 2 }), flipped: bFlipped };
  const rest = gpu.randn([batch, m, n], { seed: 4 });
  const activation = { name: "tanh", expression: "tanh_(a)" };
  return gemm(a, b, batch, m, k, n, { bias: gpu.randn([n], { seed: 3 }), rest, activation });
}

test("all variants give the same bits, whatever the sizes and the order of the operands", async () => {
  for (const shape of SHAPES)
    for (const flips of [0, 1, 2, 3])
      await scope(async () => {
        const [aFlipped, bFlipped] = [(flips & 1) === 1, (flips & 2) === 2];
        gpu.tuner.prefer = undefined;
        const want = await product(shape, aFlipped, bFlipped).toArray();
        for (const variant of VARIANTS) {
          gpu.tuner.prefer = variant;
          const got = await product(shape, aFlipped, bFlipped).toArray();
          const differs = got.findIndex((v, i) => !Object.is(v, want[i]));
          assert.is(differs, -1, `${variant} of (${shape}), flips ${flips}`);
        }
      });
});

test("products of f16 operands give the bits of the same numbers in f32, in every variant", async () => {
  for (const shape of SHAPES) {
    const [batch, m, k, n] = shape;
    for (const flips of [0, 1, 2, 3])
      await scope(async () => {
        const [a, b] = [batch * m * k, batch * k * n].map((size, i) => F.cast(gpu.randn([size], { seed: i }), "f16"));
        const of = (a: Tensor, b: Tensor): Promise<HostArray> =>
          gemm({ x: a, flipped: (flips & 1) === 1 }, { x: b, flipped: (flips & 2) === 2 }, batch, m, k, n).toArray();
        gpu.tuner.prefer = undefined;
        const [fullA, fullB] = [F.cast(a!, "f32"), F.cast(b!, "f32")];
        const want = await of(fullA, fullB);
        const storedA = flips % 2 === 1; // b always is.
        for (const variant of VARIANTS) {
          gpu.tuner.prefer = variant;
          const got = await of(storedA ? a! : fullA, b!);
          const differs = got.findIndex((v, i) => !Object.is(v, want[i]));
          assert.is(differs, -1, `${variant} of (${shape}), flips ${flips}`);
        }
      });
  }
});

test("the same product twice gives the same bits, cut into parts or not", async () => {
  for (const shape of SHAPES) {
    const [first, second] = [await product(shape, true, false).toArray(), await product(shape, true, false).toArray()];
    assert.equal(first, second);
  }
});

test("infinities and NaN of one row or column stay there", async () => {
  const [m, k, n] = [10, 18, 12];
  const a = Float32Array.from({ length: m * k }, (_, i) => (i === 3 * k + 17 ? Number.POSITIVE_INFINITY : 1));
  const b = Float32Array.from({ length: k * n }, (_, i) => (i === 17 * n + 5 ? Number.NaN : 1));
  for (const variant of VARIANTS) {
    gpu.tuner.prefer = variant;
    const operands = [gpu.tensor(a, [1, m, k]), gpu.tensor(b, [1, k, n])] as const;
    const y = await gemm({ x: operands[0], flipped: false }, { x: operands[1], flipped: false }, 1, m, k, n).toArray();
    for (let i = 0; i < m * n; i++) {
      const want = i % n === 5 ? Number.NaN : Math.floor(i / n) === 3 ? Number.POSITIVE_INFINITY : k;
      assert.ok(Object.is(y[i], want), `${variant}: element ${i} is ${y[i]}, not ${want}`);
    }
  }
});

// ---- measuring and remembering ----

const WORK = [2, 24, 16, 20] as const;
const work = (): Tensor => product(WORK, false, true);
interface File {
  version: number;
  adapter: string;
  choices: Record<string, unknown>;
}
const file = (): File => JSON.parse([...cache.values()][0]!) as File;
const write = (text: string): void => void cache.set([...cache.keys()][0]!, text);
const fresh = async (): Promise<Tuner> => {
  const tuner = new Tuner(gpu.name, gpu.info);
  await tuner.load();
  return tuner;
};
/** What a tuner takes for `work`'s class; measurements are not asked for. */
const taken = (tuner: Tuner, variants: readonly string[]): string =>
  tuner.pick("matmul", WORK, "plain x flipped", variants, () => () => work());

test("tune measures every class that the work asks for once, and its work stays the same", async () => {
  const want = await work().toArray();
  const measured = await tune(gpu, () => {
    work();
    work();
  });
  assert.is(measured.length, 1);
  const [{ key, rule, chosen, ms }] = measured as [Measured];
  assert.match(key, /^matmul 2x32x16x32 plain x flipped: /);
  assert.ok([rule, chosen].every((variant) => typeof ms[variant] === "number"));
  assert.ok(Object.values(ms).every((time) => time !== null && time > 0));
  assert.equal(await work().toArray(), want);
});

test("tune measures convolutions and their gradients, a strided one's phase by phase, and no kernel gives other bits", async () => {
  const measured = await tune(gpu, () => {
    const x = gpu.randn([2, 16, 9, 8], { seed: 1, requiresGrad: true });
    const w = gpu.randn([16, 8, 3, 3], { seed: 2, requiresGrad: true });
    backward(F.sum(F.conv2d(x, w, { groups: 2, stride: 2, bias: gpu.ones([16]) })));
  });
  const convolutions = measured.filter(({ key }) => key.startsWith("conv2d "));
  assert.equal(
    convolutions.map(({ key }) => key.replace(/:.*/, "")),
    [
      "conv2d 32x8x16x8x2 windows apart",
      "conv2d 64x8x4x8x2 windows",
      "conv2d 64x8x2x8x2 windows",
      "conv2d 32x8x2x8x2 windows",
      "conv2d 32x8x1x8x2 windows",
      "conv2d 32x8x16x8x2 weights apart",
    ],
  );
  for (const { ms } of convolutions) {
    assert.ok("plain" in ms && "tiled" in ms);
    assert.ok(Object.values(ms).every((time) => time !== null));
  }
});

test("a variant with other bits is never chosen, nor one that fails", async () => {
  const tuner = new Tuner("some adapter", gpu.info);
  const slow = (): Tensor =>
    gemm({ x: gpu.ones([64, 64]), flipped: false }, { x: gpu.ones([64, 64]), flipped: false }, 1, 64, 64, 64);
  const trial = () => (variant: string) => {
    if (variant === "fails") throw new Error("refused");
    return variant === "wrong" ? gpu.zeros([1, 64, 64]) : slow();
  };
  const [result] = await tuner.tune(gpu, () => tuner.pick("made up", [1], "", ["rule", "wrong", "fails"], trial));
  assert.is(result!.chosen, "rule");
  assert.equal([result!.ms.wrong, result!.ms.fails], [null, null]);
});

/** Measures the work's class; its key and its variants, the rule's first. */
async function measureWork(): Promise<{ key: string; variants: string[] }> {
  const [{ key, rule, ms }] = (await tune(gpu, work)) as [Measured];
  return { key, variants: [rule, ...Object.keys(ms).filter((variant) => variant !== rule)] };
}

test("a choice is kept for other processes, and WGPU_WISH_TUNE=0 leaves it unused", async () => {
  cache.clear();
  const { key, variants } = await measureWork();
  const [rule, other] = variants as [string, string];
  assert.equal(Object.keys(file().choices), [key]);
  write(JSON.stringify({ ...file(), choices: { [key]: other, "another class": "plain" } }));
  assert.is(taken(await fresh(), variants), other);
  for (const off of ["0", "off"]) {
    process.env.WGPU_WISH_TUNE = off;
    assert.is(taken(await fresh(), variants), rule);
  }
  delete process.env.WGPU_WISH_TUNE;
  await tune(gpu, work);
  assert.equal(Object.keys(file().choices), ["another class", key], "other classes stay");
  assert.is(cache.size, 1);
});

test("a damaged or older file is as good as none, and is written anew", async () => {
  const { key, variants } = await measureWork();
  const good = file();
  const other = { ...good, choices: { [key]: variants[1] } };
  for (const bad of [
    "",
    JSON.stringify(good).slice(0, 20),
    "[]",
    "null",
    "7",
    JSON.stringify({ ...other, version: 0 }),
    JSON.stringify({ ...other, adapter: "another" }),
    JSON.stringify({ ...other, choices: { [key]: 7 } }),
    JSON.stringify({ ...other, choices: { [key]: "no such" } }),
    JSON.stringify({ ...other, choices: "none" }),
    JSON.stringify({ ...other, choices: null }),
  ]) {
    write(bad);
    assert.is(taken(await fresh(), variants), variants[0], bad);
  }
  write("damaged");
  await tune(gpu, work);
  assert.equal(Object.keys(file().choices), [key]);
});

test.run();
