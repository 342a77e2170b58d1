// The shipped teacher: it loads, is as small as promised, and finds unseen scenes' objects about as well as its model card says.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { parseSafetensors } from "../../engine/index.ts";
import { loadSam } from "../../model/sam/index.ts";
import { packageRoot } from "../../platform/root.ts";
import { scene } from "../../train/sam/data.ts";
import { evaluateSam } from "../../train/sam/evaluate.ts";
import { testDevice } from "../device.ts";

const test = suite("sam-mini");
const file = join(packageRoot, "assets/sam-mini.safetensors");
const MOST_BYTES = 12e6;
const SCENES = 6;
/** The card's figures less what six scenes scatter. */
const LEAST = { box: 0.5, point: 0.4 };

test("sam-mini is small, half precision, and says its sizes", () => {
  const bytes = new Uint8Array(readFileSync(file));
  assert.ok(bytes.length <= MOST_BYTES);
  const { tensors, metadata } = parseSafetensors(bytes, file);
  assert.ok([...tensors.values()].every(({ dtype }) => dtype === "F16"));
  assert.is(JSON.parse(metadata.config!).imageSize, 128);
});

test("sam-mini finds the objects of unseen scenes from a box and from a point", async () => {
  const sam = await loadSam(await testDevice(), new Uint8Array(readFileSync(file)), file);
  const { box, point, instances } = await evaluateSam(sam, SCENES, (i) => scene(424242, i, sam.config.imageSize));
  assert.ok(instances >= 10);
  assert.ok(box.selected >= LEAST.box, `box ${box.selected}`);
  assert.ok(point.selected >= LEAST.point, `point ${point.selected}`);
});

test.run();
