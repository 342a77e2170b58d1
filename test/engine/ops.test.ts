import { suite } from "uvu";
import * as assert from "uvu/assert";
import { cases } from "../../engine/cases/index.ts";
import { gradcheck, TOLERANCE } from "../../engine/gradcheck.ts";
import { testDevice } from "../device.ts";

const test = suite("operations against their float64 twins");
const gpu = await testDevice();

for (const op of Object.keys(cases))
  test(op, async () => {
    const [result] = await gradcheck(gpu, [op]);
    assert.ok(result!.pass, `${op}: ${result!.worst} is off by ${result!.maxRelError}, more than ${TOLERANCE}`);
  });

test.run();
