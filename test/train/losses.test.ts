// Matcher and every loss term against transformers' Mask2Former and an independent twin of WISH: test/parity/make_losses.py.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, F, fileNumbers, parseSafetensors, Random, scope, type Tensor } from "../../engine/index.ts";
import { camLoss, selfLoss } from "../../train/cam.ts";
import { segmentationLosses } from "../../train/criterion.ts";
import { type LatentOptions, labelSide, latentTargets, matched, predictedSide } from "../../train/latents.ts";
import { assignAll, costs, type LayerStack, type MatchOptions, match, type Pair } from "../../train/matching.ts";
import { type ImageTargets, randomPoints, uploadTargets } from "../../train/targets.ts";
import { testDevice } from "../device.ts";

const test = suite("losses");
const gpu = await testDevice();

const file = parseSafetensors(readFileSync(fileURLToPath(new URL("../parity/losses.safetensors", import.meta.url))));
const numbers = (name: string) => fileNumbers(file.tensors.get(name)!);
const shape = (name: string) => file.tensors.get(name)!.shape;
const meta = <T>(name: string): T => JSON.parse(file.metadata[name]!) as T;
interface Expected {
  pairs: [layer: number, image: number, query: number, target: number, candidate: number][];
  terms: Record<string, number>;
}
const expected = meta<Record<"mask2former" | "teacher" | "student" | "l2", Expected>>("expected");
const counts = meta<number[]>("counts");
const weights = meta<Record<"class" | "prompt" | "bce" | "dice", number>>("weights");
const { points, oversample, importance, tau } = meta<Record<string, number>>("options") as Record<
  "points" | "oversample" | "importance" | "tau",
  number
>;

const [L, B, N, h, w] = shape("mask_logits") as [number, number, number, number, number];
const K = shape("class_logits")[3]! - 1;
const [H, W] = shape("masks").slice(2) as [number, number];
const matchOptions: MatchOptions = { ...weights, points, candidate: "adaptive" };
const lossOptions = { noObject: 0.1, points, oversample, importance };

/** (L, B, N, …) as the reference has it -> (B, L * N, …) as the layers are stacked. */
function layers(name: string, requiresGrad = false): Tensor {
  const rest = shape(name).slice(3);
  const x = gpu.tensor(numbers(name), [...shape(name)]);
  const turned = F.permute(x, [1, 0, 2, ...rest.map((_, i) => i + 3)]);
  const y = F.reshape(turned, [B, L * N, ...rest]);
  y.requiresGrad = requiresGrad;
  return y;
}

const stack = (requiresGrad = false): LayerStack => ({
  layers: L,
  queries: N,
  classLogits: layers("class_logits", requiresGrad),
  // Query q's embedding picks channel q of the features: these are the masks themselves.
  maskEmbedding: gpu.tensor(
    Float32Array.from({ length: B * (L * N) ** 2 }, (_, i) =>
      Number(i % (L * N) === Math.floor(i / (L * N)) % (L * N)),
    ),
    [B, L * N, L * N],
  ),
  maskFeatures: layers("mask_logits", requiresGrad),
  latents: layers("latents", requiresGrad),
});

/** The objects with all three candidates, or with the first as the true mask. */
function images(candidates: 1 | 3): ImageTargets[] {
  const masks = Uint8Array.from(numbers("masks"));
  let row = 0;
  return counts.map((count, b) => ({
    supervised: true,
    tags: [...new Set(Array.from({ length: count }, (_, j) => numbers("classes")[row + j]!))],
    // Image 1 is three quarters as wide and half as high as the input.
    valid: b === 0 ? [W, H] : [(W * 3) / 4, H / 2],
    targets: Array.from({ length: count }, () => {
      const at = row++;
      return {
        classIndex: numbers("classes")[at]!,
        candidates: Array.from({ length: candidates }, (_, n) =>
          masks.subarray((at * 3 + n) * H * W, (at * 3 + n + 1) * H * W),
        ),
        iou: Array.from(numbers("iou").subarray(at * 3, at * 3 + candidates)),
        // The coordinates do not matter: the encoder below looks the fixture's embeddings up.
        ...(candidates === 3
          ? { prompt: { kind: b === 0 ? ("box" as const) : ("point" as const), coords: [0, 0] } }
          : {}),
      };
    }),
  }));
}

const encode = (kind: "point" | "box"): Tensor => gpu.tensor(numbers(`sparse.${kind}`), [...shape(`sparse.${kind}`)]);
const latentOptions = (kind: "teacher" | "student" | "l2"): LatentOptions => ({
  mode: "typed",
  distance: kind === "l2" ? "l2" : "kl",
  direction: kind === "student" ? "student" : "teacher",
  tau,
});

/** Hands the recorded random points out in the order in which they are drawn. Those of pairs were recorded layer by layer and are drawn image by image. */
function replay(...names: string[]): Random {
  const queue = names.flatMap((name) => (name === "points.match" ? Array.from(numbers(name)) : byImage(name)));
  return { uniform: () => queue.shift()! } as unknown as Random;
}

function byImage(name: string): number[] {
  const all = numbers(name);
  const objects = counts.reduce((a, b) => a + b, 0);
  const each = all.length / (L * objects);
  return counts.flatMap((count, b) => {
    const before = counts.slice(0, b).reduce((a, n) => a + n, 0);
    return Array.from({ length: L }, (_, layer) => {
      const from = layer * objects + before;
      return Array.from(all.subarray(from * each, (from + count) * each));
    }).flat();
  });
}

function close(got: number, want: number, what: string): void {
  assert.ok(Math.abs(got - want) <= 1e-3 * Math.max(0.1, Math.abs(want)), `${what}: got ${got}, want ${want}`);
}

const flat = (pairs: readonly (readonly Pair[])[]) =>
  pairs.flatMap((list, layer) => list.map((p) => [layer, p.image, p.query, p.target, p.candidate]));

test("Mask2Former: costs' assignment and losses are transformers'", async () => {
  await scope(async () => {
    const targets = uploadTargets(gpu, images(1), [W, H]);
    const pairs = await match(gpu, stack(), targets, undefined, matchOptions, replay("points.match"));
    assert.equal(flat(pairs), expected.mask2former.pairs);
    const losses = segmentationLosses(
      gpu,
      stack(),
      targets,
      pairs,
      undefined,
      lossOptions,
      replay("points.candidates", "points.random"),
    );
    for (const term of ["class", "bce", "dice"] as const)
      close(await losses[term]!.item(), expected.mask2former.terms[term]!, term);
    assert.is(losses.prompt, undefined);
  });
});

for (const kind of ["teacher", "student", "l2"] as const) {
  test(`WISH (${kind}): costs, candidates, assignment and losses are the twin's`, async () => {
    await scope(async () => {
      const all = stack();
      const targets = uploadTargets(gpu, images(3), [W, H]);
      const options = latentOptions(kind);
      const latents = { targets: latentTargets(gpu, targets, encode, options)!, options };
      const host = await costs(gpu, all, targets, latents, matchOptions, Float32Array.from(numbers("points.match")));
      const pairs = assignAll(host, all, targets, matchOptions);
      assert.equal(flat(pairs), expected[kind].pairs);

      const want = numbers(`cost.${kind}`); // (L, B, N, most)
      for (const [layer, b, q, t] of cells()) {
        const at = ((b * L + layer) * N + q) * targets.most + t;
        const masks = host.masks.subarray(at * 3, at * 3 + 3);
        const target = targets.images[b]!.targets[t]!;
        const got =
          -weights.class * host.classes[((b * L + layer) * N + q) * (K + 1) + target.classIndex]! +
          Math.min(...masks) +
          weights.prompt * host.prompts![at]!;
        close(got, want[((layer * B + b) * N + q) * targets.most + t]!, `cost ${layer} ${b} ${q} ${t}`);
      }

      const losses = segmentationLosses(
        gpu,
        all,
        targets,
        pairs,
        latents,
        lossOptions,
        replay("points.candidates", "points.random"),
      );
      for (const term of ["class", "prompt", "bce", "dice"] as const)
        close(await losses[term]!.item(), expected[kind].terms[term]!, term);

      const cam = gpu.tensor(numbers("cam"), [...shape("cam")]);
      close(await camLoss(gpu, cam, targets.images, [H, W]).item(), expected[kind].terms.cam!, "cam");
      for (const raw of [false, true]) {
        const self = selfLoss(gpu, cam, all, targets, pairs.at(-1)!, [H, W], { raw, clamp: 1e-4, divergence: false })!;
        close(await self.item(), expected[kind].terms[raw ? "selfRaw" : "self"]!, `self, raw ${raw}`);
      }
    });
  });
}

function* cells(): Generator<[number, number, number, number]> {
  for (let layer = 0; layer < L; layer++)
    for (let b = 0; b < B; b++) for (let q = 0; q < N; q++) for (let t = 0; t < counts[b]!; t++) yield [layer, b, q, t];
}

test("the fixture can fail: predictions of other queries change every term", async () => {
  await scope(async () => {
    const all = stack();
    const targets = uploadTargets(gpu, images(3), [W, H]);
    const options = latentOptions("teacher");
    const latents = { targets: latentTargets(gpu, targets, encode, options)!, options };
    const wrong = expected.teacher.pairs.map(([layer, image, query, target, candidate]) => ({
      layer,
      image,
      query: (query + 3) % N,
      target,
      candidate,
    }));
    const pairs = Array.from({ length: L }, (_, layer) => wrong.filter((p) => p.layer === layer));
    const losses = segmentationLosses(
      gpu,
      all,
      targets,
      pairs,
      latents,
      lossOptions,
      replay("points.candidates", "points.random"),
    );
    for (const term of ["class", "prompt", "bce", "dice"] as const)
      assert.ok(Math.abs((await losses[term]!.item()) - expected.teacher.terms[term]!) > 0.05, term);
  });
});

test("the losses reach class, mask and latent predictions, and none of the targets", async () => {
  await scope(async () => {
    const all = stack(true);
    const targets = uploadTargets(gpu, images(3), [W, H]);
    const options = latentOptions("teacher");
    const latents = { targets: latentTargets(gpu, targets, encode, options)!, options };
    const pairs = await match(gpu, all, targets, latents, matchOptions, replay("points.match"));
    const losses = segmentationLosses(
      gpu,
      all,
      targets,
      pairs,
      latents,
      lossOptions,
      replay("points.candidates", "points.random"),
    );
    backward(F.add(F.add(losses.class!, losses.prompt!), F.add(losses.bce!, losses.dice!)));
    for (const x of [all.classLogits, all.maskFeatures, all.latents!]) {
      const gradient = await x.grad!.toArray();
      assert.ok(gradient.some((v) => v !== 0) && gradient.every(Number.isFinite));
    }
    // Queries that were not matched learn their class alone.
    const rows = new Set(pairs.flatMap((list, layer) => list.map((p) => (p.image * L + layer) * N + p.query)));
    const masks = await all.maskFeatures.grad!.toArray();
    for (let row = 0; row < B * L * N; row++)
      assert.is(
        masks.subarray(row * h * w, (row + 1) * h * w).some((v) => v !== 0),
        rows.has(row),
        `row ${row}`,
      );
  });
});

test("the divergence of latents from themselves is zero, and the nearest target is the own one", async () => {
  await scope(async () => {
    const z = gpu.randn([4, 3, 16], { seed: 2 });
    const even = gpu.tensor(new Float32Array(12).fill(1 / 3), [4, 3]);
    for (const kind of ["teacher", "student", "l2"] as const) {
      const options = latentOptions(kind);
      const side = labelSide(z, even, options);
      const own = await matched(predictedSide(z, options), side, gpu.tensor(Int32Array.of(0, 1, 2, 3))).toArray();
      for (const v of own) assert.ok(Math.abs(v) < 1e-5, `${kind}: ${v}`);
      const other = await matched(predictedSide(z, options), side, gpu.tensor(Int32Array.of(1, 2, 3, 0))).toArray();
      for (const v of other) assert.ok(v > 0.05, `${kind}: ${v}`);
    }
  });
});

test("costs are the same bits in pieces, none of which is larger than the adapter can bind", async () => {
  await scope(async () => {
    const [Q, P] = [80, 5000];
    const all: LayerStack = {
      layers: 2,
      queries: Q / 2,
      classLogits: gpu.randn([B, Q, K + 1]),
      maskEmbedding: gpu.randn([B, Q, 4]),
      maskFeatures: gpu.randn([B, 4, 8, 8]),
      latents: undefined,
    };
    const at = randomPoints(B * P * 2, new Random(3));
    const { pool } = gpu;
    const allocate = pool.allocate.bind(pool);
    for (const list of [images(3), [...images(3).slice(0, 1), { ...images(3)[1]!, targets: [] }]]) {
      const targets = uploadTargets(gpu, list, [W, H]);
      const within = async (rows: number) => {
        let most = 0;
        pool.allocate = (bytes) => {
          most = Math.max(most, bytes);
          return allocate(bytes);
        };
        const { masks } = await costs(gpu, all, targets, undefined, matchOptions, at, 4 * P * rows);
        pool.allocate = allocate;
        return { masks, most: most / (4 * P) };
      };
      const whole = await within(2 ** 20);
      assert.ok(whole.most >= B * Q);
      // One image at a time, then some of its queries.
      for (const rows of [B * Q - 1, Q - 1, 18]) {
        const parts = await within(rows);
        assert.equal(parts.masks, whole.masks, `${rows} rows`);
        assert.ok(parts.most <= rows, `a tensor of ${parts.most} rows of ${rows}`);
      }
    }
  });
});

test("many objects' masks are compared at as many points in pieces", async () => {
  const count = 250;
  const dry = gpu.dry();
  const all: LayerStack = {
    layers: 1,
    queries: count,
    classLogits: dry.randn([1, count, K + 1]),
    maskEmbedding: dry.randn([1, count, 4]),
    maskFeatures: dry.randn([1, 4, 8, 8]),
    latents: undefined,
  };
  const [image] = images(1);
  const targets = uploadTargets(dry, [{ ...image!, targets: new Array(count).fill(image!.targets[0]!) }], [W, H]);
  const pairs = targets.images[0]!.targets.map((_, i): Pair => ({ image: 0, query: i, target: i, candidate: 0 }));
  let most = 0;
  const allocate = dry.pool.allocate.bind(dry.pool);
  dry.pool.allocate = (bytes) => {
    most = Math.max(most, bytes);
    return allocate(bytes);
  };
  const options = { ...lossOptions, points: 12544, oversample: 3 };
  segmentationLosses(dry, all, targets, [pairs], undefined, options, new Random(1));
  assert.ok(most > 2 ** 25 && most <= 2 ** 26, `a tensor of ${most} bytes`);
});

test("permuting the objects permutes the matching", async () => {
  await scope(async () => {
    const options = latentOptions("l2");
    const pairsOf = async (list: ImageTargets[]) => {
      const targets = uploadTargets(gpu, list, [W, H]);
      return match(gpu, stack(), targets, undefined, matchOptions, replay("points.match"));
    };
    const before = await pairsOf(images(3));
    const turned = images(3);
    turned[0]!.targets = [2, 0, 1].map((j) => turned[0]!.targets[j]!);
    const after = await pairsOf(turned);
    const undo = (pairs: Pair[][]) =>
      pairs.map((list) => list.map((p) => (p.image === 0 ? { ...p, target: [2, 0, 1][p.target]! } : p)));
    assert.equal(undo(after), before);
    assert.is(options.mode, "typed");
  });
});

test("an empty candidate is never chosen, and the rule iou takes what SAM rates best", async () => {
  await scope(async () => {
    const list = images(3);
    for (const image of list)
      for (const target of image.targets)
        target.candidates = target.candidates.map((m, n) => (n === 2 ? m : new Uint8Array(m.length)));
    const only = await match(
      gpu,
      stack(),
      uploadTargets(gpu, list, [W, H]),
      undefined,
      matchOptions,
      replay("points.match"),
    );
    assert.ok(only.flat().every((p) => p.candidate === 2));
    const best = await match(
      gpu,
      stack(),
      uploadTargets(gpu, images(3), [W, H]),
      undefined,
      { ...matchOptions, candidate: "iou" },
      replay("points.match"),
    );
    for (const p of best.flat()) {
      const { iou } = images(3)[p.image]!.targets[p.target]!;
      assert.is(iou[p.candidate], Math.max(...iou));
    }
  });
});

test("an image whose objects are unknown teaches nothing, one without objects teaches no object", async () => {
  await scope(async () => {
    const of = async (supervised: boolean) => {
      const list: ImageTargets[] = images(1).map((image, b) =>
        b === 0 ? image : { ...image, targets: [], supervised },
      );
      const all = stack(true);
      const targets = uploadTargets(gpu, list, [W, H]);
      const pairs = await match(gpu, all, targets, undefined, matchOptions, new Random(1));
      const losses = segmentationLosses(gpu, all, targets, pairs, undefined, lossOptions, new Random(2));
      backward(losses.class!);
      return (await all.classLogits.grad!.toArray()).subarray(L * N * (K + 1));
    };
    assert.ok((await of(false)).every((v) => v === 0));
    assert.ok((await of(true)).some((v) => v !== 0));
    const none = images(1).map((image) => ({ ...image, targets: [], supervised: false }));
    const targets = uploadTargets(gpu, none, [W, H]);
    assert.equal(await match(gpu, stack(), targets, undefined, matchOptions, new Random(1)), [[], []]);
    assert.equal(segmentationLosses(gpu, stack(), targets, [[], []], undefined, lossOptions, new Random(2)), {});
  });
});

test.run();
