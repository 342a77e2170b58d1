/** A recorded step and its replays against the same steps run one by one: the same bits, little work for the host, memory that stays. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, Device, F, nn, optim, scope, type Tensor } from "../../index.ts";
import { testDevice } from "../device.ts";

const test = suite("recorded steps");

interface Model {
  x: Tensor;
  labels: Tensor;
  params: Tensor[];
  optimizer: optim.AdamW | optim.SGD;
  step: () => { loss: Tensor; norm: Tensor };
}

/** Convolution, pooling, batch norm, dropout and a linear layer: small and large parameters, state of every kind. */
function model(gpu: Device, kind: "AdamW" | "SGD" | "SGD without state"): Model {
  gpu.manualSeed(7);
  const x = gpu.empty([4, 3, 8, 8]);
  const labels = gpu.empty([4], { dtype: "i32" });
  const [conv, norm, wide, last] = [
    new nn.Conv2d(gpu, 3, 8, 3, { padding: 1 }),
    new nn.BatchNorm2d(gpu, 8),
    new nn.Linear(gpu, 128, 160),
    new nn.Linear(gpu, 160, 5),
  ];
  const params = [conv, norm, wide, last].flatMap((layer) => layer.parameters());
  const groups = [{ params, lr: 0.01, weightDecay: 0.05 }];
  const optimizer =
    kind === "AdamW" ? new optim.AdamW(groups) : new optim.SGD(groups, { momentum: kind === "SGD" ? 0.9 : 0 });
  const step = (): { loss: Tensor; norm: Tensor } => {
    optimizer.zeroGrad();
    const h = F.reshape(F.maxPool2d(F.relu(norm.forward(conv.forward(x))), 2), [4, 128]);
    const logits = last.forward(F.dropout(F.gelu(wide.forward(h)), 0.3));
    const loss = F.crossEntropy(logits, labels);
    backward(loss);
    const size = optim.clipGradNorm(params, 1);
    optimizer.step();
    return { loss, norm: size };
  };
  return { x, labels, params: [...params, norm.running_mean, norm.running_var], optimizer, step };
}

const batch = (gpu: Device, { x, labels }: Model, i: number): void => {
  gpu.upload(
    x,
    Float32Array.from({ length: x.size }, (_, k) => Math.sin(k * (i + 1.3))),
  );
  gpu.upload(
    labels,
    Int32Array.from({ length: 4 }, (_, k) => (i + k) % 5),
  );
};

const numbers = async (xs: readonly Tensor[]): Promise<number[][]> => {
  const out: number[][] = [];
  for (const x of xs) out.push([...(await x.toArray())]);
  return out;
};

for (const kind of ["AdamW", "SGD"] as const)
  test(`replays of a step with ${kind} give the bits of the steps themselves, whatever their rates and their dropout`, async () => {
    const gpu = await testDevice();
    const rate = (i: number): number => 0.01 / (i + 1);
    const losses: number[][] = [[], []];
    const plain = model(gpu, kind);
    for (let i = 0; i < 5; i++) {
      batch(gpu, plain, i);
      plain.optimizer.groups[0]!.lr = rate(i);
      losses[0]!.push(await scope(() => plain.step().loss.item()));
    }
    const recorded = model(gpu, kind);
    batch(gpu, recorded, 0);
    recorded.optimizer.groups[0]!.lr = rate(0);
    const recording = gpu.record(recorded.step);
    losses[1]!.push(await recording.result.loss.item());
    for (let i = 1; i < 5; i++) {
      batch(gpu, recorded, i);
      recorded.optimizer.groups[0]!.lr = rate(i);
      losses[1]!.push(await recording.replay().loss.item());
    }
    assert.equal(losses[1], losses[0]);
    assert.ok(new Set(losses[0]).size === 5);
    assert.is(recorded.optimizer.steps, 5);
    assert.equal(await numbers(recorded.params), await numbers(plain.params));
    recording.free();
    assert.throws(() => recording.replay(), /replay: the recording was freed/);
  });

test("replays keep their buffers to themselves, their memory flat, and give it back", async () => {
  const gpu = await Device.open(); // Whose memory nothing else shares.
  // The tables of its convolutions stay.
  scope(() => {
    model(gpu, "SGD without state").step();
  });
  const before = gpu.memory.liveBytes;
  await scope(async () => {
    const m = model(gpu, "SGD without state");
    batch(gpu, m, 0);
    const recording = scope(() => gpu.record(m.step));
    const held = gpu.memory;
    const groups = gpu.cache.bindGroups.size;
    const first = await recording.result.loss.item();
    for (let i = 0; i < 40; i++) {
      // What others compute meanwhile gets other buffers.
      const other = scope(() => F.add(gpu.full([4, 128], i), 1));
      recording.replay();
      assert.is((await other.toArray())[100], i + 1);
      await gpu.throttle();
    }
    const end = await recording.result.loss.item();
    assert.ok(end < first, `${end} after ${first}`);
    assert.is(gpu.memory.liveBuffers - held.liveBuffers, 40, "but for the others, which are still there");
    assert.ok(gpu.cache.bindGroups.size - groups <= 90);
    recording.free();
    recording.free();
  });
  assert.is(gpu.memory.liveBytes, before);
  await gpu.close();
});

test("what is returned and not worked out yet is part of the recording", async () => {
  const gpu = await testDevice();
  const x = gpu.tensor([1, 2]);
  const recording = gpu.record(() => ({ y: [F.mul(F.add(x, 1), 2)] }));
  gpu.upload(x, new Float32Array([5, 6]));
  assert.equal([...(await recording.replay().y[0]!.toArray())], [12, 14]);
  gpu.upload(x, new Float32Array([7, 8]));
  assert.equal([...(await recording.replay().y[0]!.toArray())], [16, 18]);
});

test("what waits from before the recording is the step's input, with fusion and without", async () => {
  const gpu = await testDevice();
  const [x, ten] = [gpu.tensor([1, 2]), gpu.tensor([10, 10])];
  const [before, sum] = [F.add(x, 1), F.sum(F.mul(x, 3))];
  const recording = gpu.record(() => [F.mul(before, ten), F.mul(sum, 2)]);
  gpu.upload(x, new Float32Array([5, 6]));
  const [y, z] = recording.replay();
  assert.equal([...(await y!.toArray()), await z!.item()], [20, 30, 18]);
  assert.equal([...(await before.toArray())], [2, 3]);
});

test("a step that reads, waits or records is refused, and the device is as before", async () => {
  const gpu = await testDevice();
  const x = gpu.tensor([1, 2]);
  assert.throws(() => gpu.record(() => gpu.record(() => x)), /record: a step is being recorded already/);
  const inner = gpu.record(() => F.add(x, 1));
  assert.throws(() => gpu.record(() => inner.replay()), /replay: a step is being recorded/);
  const weight = nn.parameter(gpu.ones([2]));
  weight.grad = gpu.ones([2]);
  assert.throws(() => gpu.record(() => backward(F.sum(weight))), /record: a replay would not add .*zeroGrad/);
  let reading: Promise<unknown> | undefined;
  gpu.record(() => {
    reading = F.add(x, 1).toArray();
  });
  const refusal = await reading!.then(
    () => "",
    (error: Error) => error.message,
  );
  assert.match(refusal, /record: values cannot be read while a step is recorded/);
  assert.throws(() => gpu.record(async () => x), /record: the step must not be async/);
  // What the step's promise comes to does not end the program.
  assert.throws(() => gpu.record(async () => F.add(x, 1).toArray()), /record: the step must not be async/);
  assert.throws(
    () =>
      gpu.record(() => {
        throw new Error("mine");
      }),
    /mine/,
  );
  assert.equal([...(await F.add(x, 1).toArray())], [2, 3]);
});

test.run();
