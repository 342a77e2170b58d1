/** Ten thousand training steps: what would leak a little at each of them shows here. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, F, nn, optim, scope } from "../../index.ts";
import { testDevice } from "../device.ts";

const STEPS = 10_000;
/** By then every buffer, pipeline and bind group is there, and V8 has compiled what is hot. */
const WARM_UP = 2_000;
const READ_EVERY = 10;
/** 32 bytes of heap a step, and 4 KiB of the process, whose size goes up and down by 10 MiB with the driver's and V8's own habits. */
const MOST_HEAP = 2 ** 18;
const MOST_PROCESS = 2 ** 25;

const gpu = await testDevice();
const test = suite("long run");

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

interface Held {
  gpu: object;
  heap: number;
  process: number;
}

async function held(): Promise<Held> {
  // What is collected gives its GPU memory back a turn later.
  for (let i = 0; i < 3; i++) {
    collect();
    await new Promise((resolve) => setImmediate(resolve));
  }
  const { heapUsed, rss } = process.memoryUsage();
  const { pipelines, bindGroups } = gpu.cache;
  return {
    gpu: { ...gpu.memory, pipelines: pipelines.size, bindGroups: bindGroups.size },
    heap: heapUsed,
    process: rss,
  };
}

test("10,000 training steps of a small model leave memory as it was", async () => {
  gpu.manualSeed(1);
  const [up, down] = [new nn.Linear(gpu, 8, 16), new nn.Linear(gpu, 16, 4)];
  const params = [...up.parameters(), ...down.parameters()];
  const optimizer = new optim.AdamW([{ params, lr: 1e-3 }]);
  const [x, target] = [gpu.randn([8, 8], { seed: 1 }), gpu.randn([8, 4], { seed: 2 })];
  const step = (index: number): Promise<number | undefined> =>
    scope(async () => {
      const loss = F.mean(F.pow(F.sub(down.forward(F.relu(up.forward(x))), target), 2));
      optimizer.zeroGrad();
      backward(loss);
      optim.clipGradNorm(params, 1);
      optimizer.step();
      if (index % READ_EVERY === 0) return loss.item();
      await gpu.throttle();
      return undefined;
    });
  const first = (await step(0))!;
  let last = first;
  for (let i = 1; i < WARM_UP; i++) last = (await step(i)) ?? last;
  await gpu.sync();
  const warm = await held();
  for (let i = WARM_UP; i < STEPS; i++) last = (await step(i)) ?? last;
  await gpu.sync();
  const end = await held();
  assert.equal(end.gpu, warm.gpu);
  assert.ok(end.heap - warm.heap < MOST_HEAP, `the heap grew from ${warm.heap} to ${end.heap} bytes`);
  assert.ok(end.process - warm.process < MOST_PROCESS, `the process grew from ${warm.process} to ${end.process} bytes`);
  assert.ok(last < first / 2, `the loss fell from ${first} to ${last}`);
});

test.run();
