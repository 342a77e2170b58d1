import { suite } from "uvu";
import * as assert from "uvu/assert";
import { resolveConfig } from "../../train/config.ts";
import { rateFactor } from "../../train/schedule.ts";

const test = suite("schedule");
const at = (settings: string[], steps: number[]) => {
  const { optim } = resolveConfig({}, settings);
  return steps.map((step) => Number(rateFactor(optim, step, 100).toFixed(6)));
};

test("step drops tenfold at the reference's two shares", () => {
  assert.equal(at([], [0, 88, 89, 96, 97]), [1, 1, 0.1, 0.1, 0.01]);
});

test("poly and cosine fall from one to zero", () => {
  assert.equal(at(["optim.schedule=poly", "optim.power=1"], [0, 50, 100]), [1, 0.5, 0]);
  assert.equal(at(["optim.schedule=cosine"], [0, 50, 100]), [1, 0.5, 0]);
  assert.equal(at(["optim.schedule=constant"], [0, 99]), [1, 1]);
});

test("the warm-up rises linearly and reaches the rate with its last step", () => {
  assert.equal(at(["optim.schedule=constant", "optim.warmup=4"], [0, 1, 3, 4]), [0.25, 0.5, 1, 1]);
});

test.run();
