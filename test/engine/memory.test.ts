import { suite } from "uvu";
import * as assert from "uvu/assert";
import { run } from "../../engine/kernel.ts";
import {
  autocast,
  backward,
  checkpoint,
  Device,
  detach,
  F,
  free,
  keep,
  nn,
  noGrad,
  optim,
  scope,
  type Tensor,
} from "../../index.ts";
import { testDevice } from "../device.ts";

const gpu = await testDevice();
const tape = suite("tape");

tape("a tensor used twice collects both gradients", async () => {
  const x = gpu.tensor([2, 3], [2], { requiresGrad: true });
  backward(F.sum(F.add(F.mul(x, x), F.mul(x, 5))));
  assert.equal([...(await x.grad!.toArray())], [9, 11]);
});

tape("a second backward adds to the gradient, and the tape is used up", async () => {
  const x = gpu.tensor([2], [1], { requiresGrad: true });
  const once = F.mul(x, 3);
  backward(once);
  backward(F.mul(x, 4));
  assert.equal(await x.grad!.item(), 7);
});

tape("noGrad and detach cut the tape", async () => {
  const x = gpu.tensor([2], [1], { requiresGrad: true });
  assert.not(noGrad(() => F.mul(x, 3)).requiresGrad);
  backward(F.mul(x, detach(F.mul(x, x))));
  assert.equal(await x.grad!.item(), 4);
  assert.throws(() => backward(detach(x)), /does not depend/);
});

tape("a loss that is not one number needs its gradient", () => {
  const x = gpu.tensor([1, 2], [2], { requiresGrad: true });
  assert.throws(() => backward(F.mul(x, 2)), /pass its gradient/);
});

tape("a diamond of shared values is walked in the right order", async () => {
  const x = gpu.tensor([1.5], [1], { requiresGrad: true });
  const a = F.mul(x, x); // x²
  const b = F.mul(a, x); // x³
  const c = F.add(F.mul(a, b), a); // x⁵ + x²
  backward(c);
  assert.ok(Math.abs((await x.grad!.item()) - (5 * 1.5 ** 4 + 3)) < 1e-4);
});

tape("what is written between forward and backward is refused, not differentiated wrongly", async () => {
  const w = nn.parameter(gpu.tensor([3, 4]));
  const uploaded = F.sum(F.mul(w, w));
  gpu.upload(w, new Float32Array([10, 10]));
  assert.throws(
    () => backward(uploaded),
    /backward: mul was made from a tensor of shape \(2\) that has been written since/,
  );
  const stepped = F.sum(F.matmul(w, gpu.ones([2])));
  w.grad = gpu.ones([2]);
  new optim.SGD([{ params: [w], lr: 1 }]).step();
  assert.throws(() => backward(stepped), /backward: matmul was made from .* written since/);
});

tape("checkpoint omits the same elements both times, and leaves a parameter that is handed through alone", async () => {
  const x = gpu.ones([1000], { requiresGrad: true });
  const y = checkpoint((v) => F.dropout(v, 0.5), x);
  const values = await y.toArray();
  backward(F.sum(y));
  assert.equal([...(await x.grad!.toArray())], [...values]);
  const w = gpu.ones([2]);
  checkpoint(() => w, x);
  assert.not(w.requiresGrad);
  assert.throws(
    () => checkpoint(() => [x] as never, x),
    /checkpoint: the function must return one tensor; got an array/,
  );
});

tape("checkpoint gives the gradients of plain recording, parameters included", async () => {
  const w = gpu.randn([4, 4], { seed: 3, requiresGrad: true });
  const gradients = async (wrap: boolean): Promise<number[][]> => {
    const x = gpu.randn([3, 4], { seed: 5, requiresGrad: true });
    w.grad = undefined;
    const f = (v: Tensor): Tensor => F.tanh(F.matmul(F.tanh(F.matmul(v, w)), w));
    backward(F.sum(wrap ? checkpoint(f, x) : f(x)));
    return [[...(await x.grad!.toArray())], [...(await w.grad!.toArray())]];
  };
  assert.equal(await gradients(true), await gradients(false));
});

tape.run();

const memory = suite("memory");

memory("live bytes do not grow over training steps", async () => {
  gpu.manualSeed(1);
  const model = new nn.Linear(gpu, 16, 16);
  const optimizer = new optim.AdamW([{ params: model.parameters() }]);
  const step = (): Promise<number> =>
    scope(async () => {
      const loss = F.mean(F.pow(model.forward(gpu.randn([8, 16], { seed: 1 })), 2));
      optimizer.zeroGrad();
      backward(loss);
      optim.clipGradNorm(model.parameters(), 1);
      optimizer.step();
      return loss.item();
    });
  const first = await step();
  await step();
  const { liveBytes, liveBuffers, freeBytes } = gpu.memory;
  let last = first;
  for (let i = 0; i < 10; i++) last = await step();
  assert.equal(
    [gpu.memory.liveBytes, gpu.memory.liveBuffers, gpu.memory.freeBytes],
    [liveBytes, liveBuffers, freeBytes],
  );
  assert.ok(last < first, `the loss fell from ${first} to ${last}`);
});

memory("a tensor is freed before its scope ends, and what was made from it stays", async () => {
  const own = await Device.open();
  await scope(async () => {
    const x = own.tensor(new Float32Array(4096).fill(2));
    const done = F.mul(x, 3);
    await done.toArray();
    const before = own.memory.liveBytes;
    free(x);
    free(x);
    assert.is(own.memory.liveBytes, before - 4 * 4096);
    const unread = F.neg(done);
    free(done);
    assert.is((await unread.toArray())[4095], -6);
    assert.throws(() => F.neg(x), /freed/);
  });
  assert.is(own.memory.liveBytes, 0);
  assert.throws(() => free(5 as never), /free: a tensor is wanted; got number/);
  await own.close();
});

memory("a freed tensor that its scope returns is given back once, and a freed loss has no gradient", async () => {
  const own = await Device.open();
  scope(() => {
    scope(() => {
      const t = own.ones([1024]);
      free(t);
      return { t };
    });
  });
  assert.equal([own.memory.liveBytes, own.memory.liveBuffers], [0, 0]);
  const [a, b] = [own.tensor(new Float32Array(1024).fill(5)), own.tensor(new Float32Array(1024).fill(7))];
  assert.equal([(await a.toArray())[0], (await b.toArray())[0]], [5, 7]);
  const before = own.memory.liveBytes;
  const w = own.ones([32, 32], { requiresGrad: true });
  scope(() => {
    const y = autocast(() => F.linear(w, w));
    free(y);
    assert.is(own.memory.liveBytes - before, 4 * 32 * 32);
    const loss = F.sum(w);
    free(loss);
    assert.throws(() => backward(loss), /backward: the loss of shape \(\) was freed/);
  });
  await own.close();
});

memory("what was freed is neither written nor kept, and an upload fills its tensor exactly", () => {
  const freed = scope(() => [gpu.zeros([64])].map((x) => ({ get: () => x })))[0]!;
  const [x, bytes] = [freed.get(), new Float32Array(64)];
  assert.throws(() => gpu.upload(x, bytes), /upload: the tensor of shape \(64\) was freed/);
  assert.throws(() => gpu.clear(x), /clear: the tensor of shape \(64\) was freed/);
  assert.throws(() => keep(x), /keep: the tensor of shape \(64\) was freed/);
  const y = gpu.zeros([4]);
  const wrong: [unknown, RegExp][] = [
    [
      new Float32Array(2),
      /upload: a f32 tensor of shape \(4\) takes a Float32Array of 16 bytes; got Float32Array of 8/,
    ],
    [new Float32Array(64), /got Float32Array of 256/],
    [new Float64Array(2), /got Float64Array of 16/],
    [[1, 2, 3, 4], /got an array/],
  ];
  for (const [data, message] of wrong) assert.throws(() => gpu.upload(y, data as never), message);
});

memory("sizes that change from step to step do not fill the memory with buffers that wait", async () => {
  const own = await Device.open();
  const most = 100e6; // 450 MB without a limit
  let seen = 0;
  for (let i = 0; i < 60; i++) {
    const n = 100_000 + i * 40_000;
    await scope(async () => {
      const y = F.add(F.mul(own.full([n], 2), 3), F.cat([own.full([n - 1], i), own.zeros([1])], 0));
      assert.equal([...(await F.slice(y, 0, n - 2, n).toArray())], [6 + i, 6], `step ${i}`);
    });
    seen = Math.max(seen, own.memory.freeBytes);
    own.flush();
  }
  assert.ok(seen > most / 2 && own.memory.freeBytes <= most, `${seen}, ${own.memory.freeBytes}`);
  await own.close();
});

memory("what a scope returns lives on, the rest is refused by name", async () => {
  let inner: Tensor | undefined;
  const kept = scope(() => {
    inner = gpu.tensor([1, 2], [2]);
    return { list: [F.mul(inner, 2)] };
  });
  assert.equal([...(await kept.list[0]!.toArray())], [2, 4]);
  assert.throws(() => F.add(inner!, 1), /freed, by free or when its scope ended/);
  assert.throws(() => F.reshape(inner!, [1, 2]), /freed, by free or when its scope ended/);
});

memory("an error inside a scope frees what it had made", () => {
  const before = gpu.memory.liveBuffers;
  assert.throws(() =>
    scope(() => {
      gpu.zeros([100]);
      throw new Error("planted");
    }),
  );
  assert.is(gpu.memory.liveBuffers, before);
});

memory("an upload into a recycled buffer does not overtake the kernels that still read it", async () => {
  for (let round = 0; round < 20; round++) {
    const sums = scope(() =>
      Array.from({ length: 5 }, (_, i) => scope(() => F.sum(gpu.tensor(new Float32Array(64).fill(i + round), [64])))),
    );
    const got = await Promise.all(sums.map((s) => s.item()));
    assert.equal(
      got,
      [0, 1, 2, 3, 4].map((i) => 64 * (i + round)),
    );
  }
});

memory.run();

const device = suite("device");

device("more than 65,535 workgroups are spread over two dimensions", async () => {
  const n = 65536 * 64 * 4 + 4096;
  const total = await scope(() => F.sum(F.mul(gpu.ones([n]), 0.5)).item());
  assert.is(total, n / 2);
});

device(
  "a command that the GPU refuses makes the next read fail with the kernel's name, and only that one",
  async () => {
    const own = await Device.open();
    const x = own.ones([4]);
    await x.toArray();
    const stderr = console.error;
    console.error = () => {};
    try {
      run(own, "accumulate", "in_place", {
        bind: { y: own.ones([4]), b: x },
        params: { n: 1 },
        constants: { PLANTED: 1 },
        groups: [1],
      });
      let message = "";
      await x.toArray().catch((error: Error) => {
        message = error.message;
      });
      assert.match(message, /the GPU refused a command/);
      assert.match(message, /accumulate/);
      // What was asked for together with the refused command did not happen.
      await x.toArray().then(
        () => assert.unreachable(),
        (error: Error) => assert.match(error.message, /refused/),
      );
      assert.equal([...(await own.ones([2]).toArray())], [1, 1]);
    } finally {
      console.error = stderr;
      own.close();
    }
  },
);

device("a kernel may not write a buffer that it also reads", () => {
  const x = gpu.ones([4]);
  assert.throws(
    () => run(gpu, "accumulate", "in_place", { bind: { y: x, b: x }, params: { n: 1 }, groups: [1] }),
    /y is written and shares its memory with b/,
  );
});

device("a closed device refuses work", async () => {
  const own = await Device.open();
  const x = own.ones([4]);
  own.close();
  let message = "";
  await x.toArray().catch((error: Error) => {
    message = error.message;
  });
  assert.match(message, /closed/);
});

device("operands of two devices are refused", async () => {
  const own = await Device.open();
  assert.throws(() => F.add(own.ones([1]), gpu.ones([1])), /another device/);
  const [x, w] = [gpu.ones([1, 1, 4, 4]), gpu.ones([1, 1, 3, 3])];
  assert.throws(() => F.conv2d(x, w, { bias: own.ones([1]) }), /conv2d: bias lives on another device/);
  assert.throws(() => F.conv2d(x, w, { residual: own.ones([1, 1, 2, 2]) }), /conv2d: residual lives on another device/);
  assert.throws(() => F.scaledDotProductAttention(x, x, x, { mask: own.ones([4, 4]) }), /mask lives on another device/);
  const p = nn.parameter(gpu.ones([4]));
  p.grad = own.ones([4]);
  assert.throws(() => new optim.SGD([{ params: [p] }]).step(), /another device/);
  own.close();
});

device("too large a tensor is refused before anything is dispatched", () => {
  assert.throws(() => gpu.empty([gpu.gpu.limits.maxStorageBufferBindingSize / 4 + 1024]), /larger than/);
});

device("shared memory is copied before it is uploaded", async () => {
  const shared = new Float32Array(new SharedArrayBuffer(16));
  shared.set([1, 2, 3, 4]);
  assert.equal([...(await gpu.tensor(shared, [4]).toArray())], [1, 2, 3, 4]);
});

device("a device survives garbage collection while in use", async () => {
  const { gc } = globalThis as { gc?: () => void };
  for (let i = 0; i < 5; i++) {
    gc?.();
    assert.is(await F.sum(gpu.ones([10])).item(), 10);
  }
});

device("the same seed gives the same bits", async () => {
  const curve = async (): Promise<number[]> => {
    gpu.manualSeed(7);
    const model = new nn.Linear(gpu, 33, 17);
    const optimizer = new optim.AdamW([{ params: model.parameters(), lr: 0.01 }]);
    const losses: number[] = [];
    for (let i = 0; i < 5; i++)
      losses.push(
        await scope(async () => {
          const loss = F.mean(F.gelu(model.forward(gpu.randn([65, 33], { seed: i }))));
          optimizer.zeroGrad();
          backward(loss);
          optimizer.step();
          return loss.item();
        }),
      );
    return losses;
  };
  assert.equal(await curve(), await curve());
});

device(
  "backward refuses a graph whose scope has ended, and checkpoint an input handed through keeps its place",
  async () => {
    const leaf = nn.parameter(gpu.tensor([1, -2, 3]));
    for (const fn of [(x: Tensor) => F.relu(x), (x: Tensor) => F.softmax(x, -1), (x: Tensor) => F.mul(F.exp(x), 2)]) {
      const loss = scope(() => F.sum(fn(F.mul(leaf, 2))));
      assert.throws(
        () => backward(loss),
        /freed, by free or when its scope ended; call backward inside that scope|was freed/,
      );
      assert.is(leaf.grad, undefined);
    }
    const same = checkpoint((x) => x, leaf);
    backward(F.sum(F.mul(same, 3)));
    assert.equal([...(await leaf.grad!.toArray())], [3, 3, 3]);
    leaf.grad = undefined;
    backward(F.sum(leaf));
    assert.equal([...(await (leaf as Tensor).grad!.toArray())], [1, 1, 1]);
  },
);

device.run();
