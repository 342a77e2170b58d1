import { suite } from "uvu";
import * as assert from "uvu/assert";
import { Random } from "../../engine/random.ts";
import {
  type AugmentOptions,
  applyAugment,
  boxToNetwork,
  drawAugment,
  fitAugment,
  isInside,
  pointToNetwork,
  pointToOriginal,
  toNetwork,
  toOriginal,
  warpMask,
} from "../../train/data/augment.ts";
import { type Image, resizeImage } from "../../train/data/image.ts";
import { areaOfRuns, runsOfMask } from "../../train/data/mask.ts";
import { makeScene } from "../../train/data/scenes.ts";

const jitter: AugmentOptions = { width: 64, height: 48, flip: true, scale: [0.1, 2] };

/** A black image with one bright square of 9 pixels. */
function square(width: number, height: number, x: number, y: number): Image {
  const data = new Uint8Array(width * height * 3);
  for (let j = y - 4; j <= y + 4; j++) data.fill(255, (j * width + x - 4) * 3, (j * width + x + 5) * 3);
  return { width, height, data };
}

const test = suite("augmentation");

test("image, point, box and mask move together, there and back", () => {
  const random = new Random(1);
  const [x, y] = [60, 25];
  const image = square(90, 70, x, y);
  const runs = runsOfMask(
    Uint8Array.from({ length: 90 * 70 }, (_, i) => (image.data[i * 3] === 255 ? 1 : 0)),
    90,
    70,
  );
  let [seen, flipped] = [0, 0];
  for (let n = 0; n < 300; n++) {
    const augment = drawAugment(image, { ...jitter, scale: [0.5, 2] }, "points", random);
    const point = pointToNetwork(augment.affine, x, y);
    const [backX, backY] = pointToOriginal(augment.affine, ...point);
    assert.ok(Math.abs(backX - x) < 1e-9 && Math.abs(backY - y) < 1e-9);
    const box = boxToNetwork(augment.affine, [x - 4, y - 4, 9, 9], augment.valid);
    const mask = warpMask(runs, augment.affine, 64, 48);
    if (!isInside(point, augment.valid)) continue;
    seen++;
    flipped += augment.flipped ? 1 : 0;
    const rgb = applyAugment(image, augment, jitter);
    const at = Math.round(point[1]) * 64 + Math.round(point[0]);
    assert.ok(rgb[at * 3]! > 128, `pixel under the point is ${rgb[at * 3]}`);
    assert.is(mask[at], 1);
    assert.ok(
      box !== undefined && point[0] > box[0] - 0.5 && point[0] < box[2] && point[1] > box[1] - 0.5 && point[1] < box[3],
    );
    // The mask is bright in the image and fills the box.
    let [inside, bright] = [0, 0];
    mask.forEach((value, i) => {
      if (value === 1) inside++;
      if (rgb[i * 3]! > 128 && i % 64 < augment.valid[0] && Math.floor(i / 64) < augment.valid[1])
        bright += value === 1 ? 1 : 0;
    });
    // At the rim of a few pixels the nearest one may be a dark one.
    assert.ok(bright >= 0.9 * inside - 4, `${bright} of ${inside}`);
    const area = (box[2] - box[0]) * (box[3] - box[1]);
    assert.ok(Math.abs(inside - area) <= 2 * (box[2] - box[0] + box[3] - box[1]) + 4, `${inside} of ${area}`);
  }
  assert.ok(seen > 80 && flipped > 20 && flipped < seen - 20, `${flipped} of ${seen}`);
});

test("what lies outside the crop is padding, and the valid region says so", () => {
  const random = new Random(2);
  const image: Image = { width: 40, height: 60, data: new Uint8Array(40 * 60 * 3).fill(7) };
  for (let n = 0; n < 50; n++) {
    const augment = drawAugment(image, jitter, "boxes", random);
    const rgb = applyAugment(image, augment, jitter);
    assert.is(rgb.length, 64 * 48 * 3);
    for (let i = 0; i < 64 * 48; i++) {
      const valid = i % 64 < augment.valid[0] && Math.floor(i / 64) < augment.valid[1];
      assert.is(rgb[i * 3], valid ? 7 : 128);
    }
  }
});

test("scales stay in their range; images with tags may have their own", () => {
  const random = new Random(3);
  const image = { width: 64, height: 48 };
  const scales = (kind: "tags" | "boxes") =>
    Array.from(
      { length: 400 },
      () => drawAugment(image, { ...jitter, tagScale: [0.5, 1] }, kind, random).affine.scaleY,
    );
  const [tags, boxes] = [scales("tags"), scales("boxes")];
  assert.ok(Math.min(...tags) > 0.48 && Math.max(...tags) <= 1.01);
  assert.ok(Math.min(...boxes) < 0.2 && Math.max(...boxes) > 1.8 && Math.max(...boxes) <= 2.01);
});

test("a crop of an enlargement shows the pixels that enlarging first would", () => {
  const { image } = makeScene(5, 1, 64);
  const augment = drawAugment(image, { ...jitter, flip: false, scale: [1.7, 1.7] }, "boxes", new Random(4));
  const rgb = applyAugment(image, augment, jitter);
  const whole = resizeImage(image, ...augment.resized);
  for (let y = 0; y < augment.valid[1]; y++) {
    for (let x = 0; x < augment.valid[0] * 3; x++) {
      const want = whole.data[((y + augment.crop[1]) * whole.width + augment.crop[0]) * 3 + x]!;
      assert.ok(Math.abs(rgb[y * 64 * 3 + x]! - want) <= 1);
    }
  }
});

test("boxes are clipped, and dropped when nothing is left", () => {
  const affine = { scaleX: 2, offsetX: -10, scaleY: 1, offsetY: 0 };
  assert.equal(boxToNetwork(affine, [3, 2, 10, 5], [12, 6]), [0, 2, 12, 6]);
  assert.is(boxToNetwork(affine, [0, 0, 5, 5], [12, 6]), undefined);
  assert.is(boxToNetwork(affine, [0, 0, 5.000001, 5], [12, 6]), undefined);
  assert.is(boxToNetwork({ ...affine, offsetX: Number.NaN }, [0, 0, 5, 5], [12, 6]), undefined);
});

test("one pixel and empty masks survive warping, at a stride too", () => {
  const dot = Uint8Array.from({ length: 25 }, (_, i) => (i === 7 ? 1 : 0));
  const runs = runsOfMask(dot, 5, 5);
  const plain = { scaleX: 1, offsetX: 0, scaleY: 1, offsetY: 0 };
  assert.equal(warpMask(runs, plain, 5, 5), dot);
  const large = { scaleX: -4, offsetX: 20, scaleY: 4, offsetY: 0 };
  const grown = warpMask(runs, large, 20, 20);
  assert.is(areaOfRuns(runsOfMask(grown, 20, 20)), 16);
  // Column 2 of 5 stays in the middle when flipped.
  assert.is(grown[6 * 20 + 9], 1);
  assert.equal([...warpMask(runs, large, 20, 20, 4)], [...dot]);
  assert.is(areaOfRuns(runsOfMask(warpMask(runsOfMask(new Uint8Array(25), 5, 5), plain, 5, 5), 5, 5)), 0);
});

test("fitting shows the whole image, and coordinates map both ways", () => {
  const augment = fitAugment({ width: 640, height: 480 }, { width: 128, height: 128 });
  assert.equal(augment.valid, [128, 96]);
  assert.equal(toNetwork(augment.affine, 640, 480), [128, 96]);
  assert.equal(toOriginal(augment.affine, 64, 48), [320, 240]);
  assert.equal(fitAugment({ width: 2000, height: 1 }, { width: 64, height: 64 }).valid, [64, 1]);
});

test("colour changes stay in range and keep the shape", () => {
  const { image } = makeScene(6, 0, 48);
  const options = { width: 48, height: 48, flip: false, scale: [1, 1] as const, colour: 1 };
  const before = applyAugment(image, fitAugment(image, options), options);
  const after = applyAugment(image, drawAugment(image, options, "boxes", new Random(9)), options);
  assert.not.equal(after, before);
  assert.equal(
    applyAugment(image, drawAugment(image, { ...options, colour: 0 }, "boxes", new Random(9)), options),
    before,
  );
});

test.run();
