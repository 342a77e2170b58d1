import { suite } from "uvu";
import * as assert from "uvu/assert";
import { wish } from "./run.ts";

const test = suite("gradcheck");

test("--json prints one entry for each function asked for", async () => {
  const { code, stdout } = await wish(["gradcheck", "neg", "sum", "neg", "--json"]);
  assert.is(code, 0);
  const results = JSON.parse(stdout) as { op: string; cases: number; maxRelError: number; pass: boolean }[];
  assert.equal(
    results.map(({ op }) => op),
    ["neg", "sum"],
  );
  for (const { op, cases, maxRelError, pass } of results) {
    assert.ok(cases > 0, op);
    assert.ok(maxRelError <= 1e-5, op);
    assert.is(pass, true);
  }
});

test.run();
