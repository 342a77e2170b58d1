import { suite } from "uvu";
import * as assert from "uvu/assert";
import { Random } from "../../engine/index.ts";
import { assign } from "../../train/hungarian.ts";

const test = suite("hungarian");

/** Least cost over all injections, by trying each. */
function bruteForce(cost: number[], rows: number, columns: number): number {
  if (rows > columns) {
    const turned = Array.from({ length: rows * columns }, (_, i) => cost[(i % rows) * columns + Math.floor(i / rows)]!);
    return bruteForce(turned, columns, rows);
  }
  const visit = (row: number, used: number): number => {
    if (row === rows) return 0;
    let best = Number.POSITIVE_INFINITY;
    for (let c = 0; c < columns; c++)
      if (!(used & (1 << c))) best = Math.min(best, cost[row * columns + c]! + visit(row + 1, used | (1 << c)));
    return best;
  };
  return visit(0, 0);
}

test("finds the least total cost on rectangles of all kinds", () => {
  const random = new Random(5);
  for (let trial = 0; trial < 300; trial++) {
    const [rows, columns] = [1 + random.int(6), 1 + random.int(6)];
    // Whole numbers in a third of the trials: ties.
    const cost = Array.from({ length: rows * columns }, () => (trial % 3 === 0 ? random.int(4) - 2 : random.normal()));
    const pairs = assign(cost, rows, columns);
    assert.is(pairs.length, Math.min(rows, columns));
    assert.is(new Set(pairs.map(([r]) => r)).size, pairs.length);
    assert.is(new Set(pairs.map(([, c]) => c)).size, pairs.length);
    const total = pairs.reduce((sum, [r, c]) => sum + cost[r * columns + c]!, 0);
    assert.ok(Math.abs(total - bruteForce(cost, rows, columns)) < 1e-9, `${rows} x ${columns}: ${total}`);
  }
});

test("permuting the columns permutes the assignment", () => {
  const random = new Random(6);
  const [rows, columns] = [20, 7];
  const cost = Array.from({ length: rows * columns }, () => random.normal());
  const order = random.shuffle([...Array(columns).keys()]);
  const turned = cost.map((_, i) => cost[Math.floor(i / columns) * columns + order[i % columns]!]!);
  const want = new Map(assign(cost, rows, columns).map(([r, c]) => [r, c]));
  for (const [r, c] of assign(turned, rows, columns)) assert.is(order[c], want.get(r));
});

test("avoids what is not a number", () => {
  assert.equal(assign([Number.NaN, 1, 2, Number.POSITIVE_INFINITY], 2, 2), [
    [0, 1],
    [1, 0],
  ]);
  assert.is(assign(new Array(12).fill(Number.NaN), 3, 4).length, 3);
  assert.equal(assign([], 0, 5), []);
});

test("refuses a cost matrix of another size", () => {
  assert.throws(() => assign([1, 2, 3], 2, 2), /2 x 2 costs expected; got 3/);
});

test.run();
