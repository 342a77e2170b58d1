/** GradScaler in PyTorch's order: scale, backward, unscale, clip, step, update. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { backward, F, optim, type Tensor } from "../../index.ts";
import { testDevice } from "../device.ts";

const test = suite("scaler");
const gpu = await testDevice();
const values = async (x: Tensor): Promise<number[]> => [...(await x.toArray())];

const leaf = (numbers: number[]): Tensor => gpu.tensor(numbers, [numbers.length], { requiresGrad: true });
const rejected = async (work: Promise<unknown>, pattern: RegExp): Promise<void> => {
  const error = await work.catch((cause: Error) => cause);
  assert.match((error as Error).message, pattern);
};
const sgdOf = (w: Tensor): optim.SGD => new optim.SGD([{ params: [w], lr: 0.5 }]);
/** A loss whose gradient is (3, 4) times `by`: of length 5. */
const lossOf = (w: Tensor, by = 1): Tensor => F.sum(F.mul(w, gpu.tensor([3 * by, 4 * by])));

test("steps, and the scale after them, are those of torch.amp.GradScaler", async () => {
  const w = leaf([1, -2]);
  const sgd = sgdOf(w);
  const scaler = new optim.GradScaler({ initScale: 8, growthInterval: 2 });
  const [scales, steps, weights]: [number[], boolean[], number[][]] = [[], [], []];
  for (const by of [1, 1, Infinity, 1, Number.NaN, 1, 1, 1]) {
    sgd.zeroGrad();
    backward(scaler.scale(lossOf(w, by)));
    scaler.unscale(sgd);
    optim.clipGradNorm([w], 1);
    steps.push(await scaler.step(sgd));
    scaler.update();
    scales.push(scaler.getScale());
    weights.push(await values(w));
  }
  // torch 2.13, with unscale_, clip_grad_norm_(1), step and update.
  assert.equal(scales, [8, 16, 8, 8, 4, 4, 8, 8]);
  assert.equal(steps, [true, true, false, true, false, true, true, true]);
  const second = [0.7, 0.4, 0.4, 0.1, 0.1, -0.2, -0.5, -0.8];
  for (const [i, [x, y]] of weights.entries()) {
    assert.ok(Math.abs(x! - second[i]!) < 1e-5, `step ${i}: ${x}`);
    assert.ok(Math.abs(y! - [-2.4, -2.8, -2.8, -3.2, -3.2, -3.6, -4, -4.4][i]!) < 1e-5, `step ${i}: ${y}`);
  }
  assert.is(sgd.steps, 6);
  assert.is(scaler.stateDict().good, 1);
});

test("gradients are divided by the scale once, whether or not they were before the step", async () => {
  const run = async (scaler: optim.GradScaler | undefined, clip: number): Promise<number[]> => {
    const w = leaf([0.1, 0.7]);
    const adamw = new optim.AdamW([{ params: [w], lr: 0.1 }], { eps: 1 }); // In which a gradient's size counts.
    for (let i = 0; i < 3; i++) {
      adamw.zeroGrad();
      backward(scaler ? scaler.scale(lossOf(w)) : lossOf(w));
      if (clip > 0) scaler?.unscale(adamw);
      if (clip > 0) optim.clipGradNorm([w], clip);
      if (scaler) assert.ok(await scaler.step(adamw));
      else adamw.step();
      scaler?.update();
    }
    return values(w);
  };
  for (const clip of [0, 2]) {
    const plain = await run(undefined, clip);
    assert.equal(await run(new optim.GradScaler({ initScale: 2 ** 12 }), clip), plain, `clipped to ${clip}`);
  }
  assert.not.equal(await run(undefined, 2), await run(undefined, 0));
});

test("of several optimizers each steps by its own gradients, and the scale falls where one does not", async () => {
  const [a, b] = [leaf([1, 1]), leaf([1, 1])];
  const [first, second] = [sgdOf(a), sgdOf(b)];
  const scaler = new optim.GradScaler({ initScale: 4 });
  backward(scaler.scale(F.add(lossOf(a), lossOf(b, Infinity))));
  assert.is(await scaler.step(first), true);
  assert.is(await scaler.step(second), false);
  assert.is(scaler.update(), false);
  assert.equal(await values(a), [-0.5, -1]);
  assert.equal(await values(b), [1, 1]);
  assert.is(scaler.getScale(), 2);
});

test("a state goes round, through JSON too, and one of scale and count alone leaves the settings", () => {
  const saved = new optim.GradScaler({ initScale: 8, growthFactor: 4, backoffFactor: 0.25, growthInterval: 3 });
  saved.update(true);
  const again = new optim.GradScaler();
  again.loadStateDict(JSON.parse(JSON.stringify(saved.stateDict())));
  assert.equal(again.stateDict(), { scale: 8, good: 1, growthFactor: 4, backoffFactor: 0.25, growthInterval: 3 });
  for (const finite of [true, true, false]) {
    saved.update(finite);
    again.update(finite);
    assert.is(again.getScale(), saved.getScale());
  }
  assert.is(again.getScale(), 8);
  again.loadStateDict({ scale: 2, good: 0 });
  assert.equal(again.stateDict(), { scale: 2, good: 0, growthFactor: 4, backoffFactor: 0.25, growthInterval: 3 });
  assert.throws(
    () => again.loadStateDict({ scale: 4, good: 0, growthFactor: 1 }),
    /growthFactor must be above 1 and finite; got 1/,
  );
  assert.is(again.getScale(), 2, "nothing of what is refused is taken over");
});

test("calls out of order are refused by name", async () => {
  const w = leaf([1, 1]);
  const sgd = sgdOf(w);
  const scaler = new optim.GradScaler();
  await rejected(
    scaler.step(sgd),
    /^GradScaler: step: no parameter has a gradient; call backward\(scaler\.scale\(loss\)\)/,
  );
  assert.throws(() => scaler.unscale(sgd), /^GradScaler: unscale: no parameter has a gradient/);
  assert.throws(() => scaler.update(), /update wants to know whether .*; await step\(optimizer\) before it/);
  backward(scaler.scale(lossOf(w)));
  scaler.unscale(sgd);
  assert.throws(() => scaler.unscale(sgd), /unscale: .* were unscaled since the last update; call update\(\)/);
  assert.throws(() => scaler.update(), /await step\(optimizer\) before it/);
  const stepping = scaler.step(sgd);
  assert.throws(() => scaler.update(), /await step\(optimizer\) before it/);
  assert.is(await stepping, true);
  await rejected(scaler.step(sgd), /step: this optimizer has stepped since the last update; call update\(\)/);
  assert.throws(() => scaler.unscale(sgd), /call update\(\) after each step/);
  assert.is(scaler.update(), true);
  assert.equal(await values(w), [-0.5, -1], "one step of lr 0.5");
});

test("one that is not enabled leaves losses, gradients and steps alone, and keeps the state that it was given", async () => {
  const train = async (scaler: optim.GradScaler | undefined): Promise<number[]> => {
    const w = leaf([1, -2]);
    const sgd = sgdOf(w);
    for (const by of [1, Infinity, 1]) {
      sgd.zeroGrad();
      backward(scaler ? scaler.scale(lossOf(w, by)) : lossOf(w, by));
      scaler?.unscale(sgd);
      if (scaler) assert.is(await scaler.step(sgd), true);
      else sgd.step();
      if (scaler) assert.is(scaler.update(), true);
    }
    return values(w);
  };
  const scaler = new optim.GradScaler({ enabled: false, initScale: 8, growthInterval: 1 });
  assert.equal(await train(scaler), await train(undefined));
  const loss = lossOf(leaf([1, 1]));
  assert.is(scaler.scale(loss), loss);
  assert.equal([scaler.enabled, scaler.getScale(), new optim.GradScaler().enabled], [false, 1, true]);
  // What the caller found is what a caller of an enabled one is told.
  assert.equal([scaler.update(true), scaler.update(false)], [true, false]);
  assert.is(scaler.stateDict().scale, 8);
  scaler.loadStateDict({ scale: 4, good: 3 });
  assert.equal(scaler.stateDict(), { scale: 4, good: 3, growthFactor: 2, backoffFactor: 0.5, growthInterval: 1 });
  assert.is(scaler.getScale(), 1);
});

test("a step that fails counts as none, and may be tried again", async () => {
  const w = leaf([1, 1]);
  const sgd = sgdOf(w);
  const failing = {
    groups: sgd.groups,
    step: (): void => {
      throw new Error("the weights were freed");
    },
  };
  const scaler = new optim.GradScaler({ growthInterval: 2 });
  backward(scaler.scale(lossOf(w)));
  await rejected(scaler.step(failing), /the weights were freed/);
  assert.throws(() => scaler.update(), /await step\(optimizer\) before it/);
  assert.is(scaler.stateDict().good, 0);
  failing.step = () => sgd.step();
  assert.is(await scaler.step(failing), true);
  assert.equal(await values(w), [-0.5, -1], "the gradients are not divided by the scale again");
  assert.is(scaler.update(), true);
  assert.is(scaler.stateDict().good, 1);
});

test("what is no loss, no optimizer or no state is refused by name, and nothing of it is kept", async () => {
  const scaler = new optim.GradScaler();
  const before = scaler.stateDict();
  const w = leaf([1, 1]);
  for (const [loss, got] of [
    [5, "number 5"],
    [[lossOf(w)], "an array"],
    [undefined, "nothing"],
  ])
    assert.throws(
      () => scaler.scale(loss as never),
      new RegExp(`^GradScaler: scale: loss must be a tensor; got ${got}`),
    );
  assert.throws(() => scaler.scale(gpu.tensor([1], [1], { dtype: "i32" })), /loss must be f32; got i32/);
  for (const enabled of [true, false]) {
    const one = new optim.GradScaler({ enabled });
    for (const [optimizer, got] of [
      [undefined, "nothing"],
      [{}, "an object \\(Object\\)"],
      [[w], "an array"],
    ]) {
      await rejected(
        one.step(optimizer as never),
        new RegExp(`^GradScaler: step: an optimizer is wanted.*; got ${got}`),
      );
      assert.throws(
        () => one.unscale(optimizer as never),
        new RegExp(`^GradScaler: unscale: an optimizer is wanted.*; got ${got}`),
      );
    }
  }
  for (const [state, problem] of [
    [undefined, /GradScaler: loadStateDict: .*scale, good.*; got nothing/],
    [{ scale: 8 }, /the state's good must be a whole number from 0 up; got nothing/],
    [{ good: 1 }, /the state's scale must be above 0 and at most 2\^40; got nothing/],
    [{ scale: Infinity, good: 0 }, /the state's scale must be above 0 and at most 2\^40; got number Infinity/],
    [{ scale: "8", good: 0 }, /loadStateDict: scale must be a number; got "8"/],
    [{ scale: 8, good: 1.5 }, /the state's good must be a whole number .*; got number 1\.5/],
    [
      { scale: 8, good: 0, growth_factor: 2 },
      /there is no option "growth_factor"; there are scale, good, growthFactor/,
    ],
    [{ scale: 8, good: 0, growthInterval: 1.5 }, /growthInterval must be a whole number from 1 up; got 1\.5/],
  ] as const)
    assert.throws(() => scaler.loadStateDict(state as never), problem);
  assert.equal(scaler.stateDict(), before);
  assert.throws(
    () => new optim.GradScaler({ enabled: 1 as never }),
    /GradScaler: enabled must be a boolean; got number 1/,
  );
  assert.throws(() => new optim.GradScaler({ initScale: 2 ** 41 }), /initScale must be .* at most 2\^40/);
});

test.run();
