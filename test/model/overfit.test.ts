import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, F, optim, scope, type Tensor } from "../../engine/index.ts";
import { maskLogits, parameterGroups, predict, Wish, wishMini } from "../../model/index.ts";
import { testDevice } from "../device.ts";

const test = suite("overfit");

const SIDE = 64;
const OBJECTS = [
  { label: 0, x: 6, y: 8, width: 24, height: 30, colour: [220, 60, 40] },
  { label: 1, x: 36, y: 28, width: 22, height: 32, colour: [40, 90, 230] },
];

test("the small model learns two objects by heart and predicts them as instances", async () => {
  const gpu = await testDevice();
  gpu.manualSeed(7);
  const sizes = { hiddenDim: 32, groups: 8, queries: 4, encoder: { heads: 2 }, decoder: { heads: 2, layers: 2 } };
  const model = new Wish(gpu, wishMini(2, { ...sizes, prompt: { mode: "none" } }));
  const optimizer = new optim.AdamW(parameterGroups(model, { lr: 2e-3, weightDecay: 0.01, backboneMultiplier: 1 }));

  const inside = (o: (typeof OBJECTS)[number], x: number, y: number) =>
    x >= o.x && x < o.x + o.width && y >= o.y && y < o.y + o.height;
  const pixel = (i: number) => ({ channel: Math.floor(i / SIDE ** 2), y: Math.floor(i / SIDE) % SIDE, x: i % SIDE });
  const image = gpu.tensor(
    Float32Array.from({ length: 3 * SIDE * SIDE }, (_, i) => {
      const { channel, x, y } = pixel(i);
      return OBJECTS.find((o) => inside(o, x, y))?.colour[channel] ?? 120 + ((x * 7 + y * 13) % 20);
    }),
    [1, 3, SIDE, SIDE],
  );
  const full = gpu.tensor(
    Float32Array.from({ length: 2 * SIDE * SIDE }, (_, i) =>
      Number(inside(OBJECTS[pixel(i).channel]!, pixel(i).x, pixel(i).y)),
    ),
    [1, 2, SIDE, SIDE],
  );
  // Query 0 shall be the first object, query 1 the second, the others nothing: the matching is fixed, so that only the model is tried.
  const classes = gpu.tensor(Int32Array.from([0, 1, 2, 2]), [4], { dtype: "i32" });
  const masks = F.reshape(F.interpolate(full, { size: [16, 16], mode: "bilinear" }), [2, 256]);
  const step = () =>
    scope(() => {
      const { predictions } = model.forward(image);
      const terms = predictions.flatMap((p): Tensor[] => {
        const drawn = F.reshape(F.slice(maskLogits(p), 1, 0, 2), [2, 256]);
        return [
          F.crossEntropy(F.reshape(p.classLogits, [4, 3]), classes),
          F.binaryCrossEntropyWithLogits(drawn, masks),
          F.dice(drawn, masks),
        ];
      });
      const loss = F.div(
        terms.reduce((a, b) => F.add(a, b)),
        predictions.length,
      );
      backward(loss);
      optim.clipGradNorm(model.parameters(), 1);
      optimizer.step();
      optimizer.zeroGrad();
      return loss;
    });
  const first = await step().item();
  for (let i = 0; i < 38; i++) step();
  const last = await step().item();
  assert.ok(last < 0.25 * first, `the loss goes from ${first} to ${last}`);

  const instances = await predict(model, image, { original: [SIDE, SIDE], score: 0.5 });
  assert.equal(instances.map((i) => i.label).sort(), [0, 1]);
  for (const { label, mask, box } of instances) {
    const o = OBJECTS[label]!;
    let [both, either] = [0, 0];
    for (let i = 0; i < mask.length; i++) {
      const truth = inside(o, i % SIDE, Math.floor(i / SIDE));
      both += Number(mask[i] === 1 && truth);
      either += Number(mask[i] === 1 || truth);
    }
    assert.ok(both / either > 0.8, `object ${label}: IoU ${both / either}, box ${box}`);
  }
});

test.run();
