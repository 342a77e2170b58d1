import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  decodeImage,
  encodePng,
  imageSize,
  readImage,
  resizeImage,
  writeMaskPng,
  writePng,
} from "../../train/data/image.ts";
import { decodeIndices } from "../../train/data/index-png.ts";
import { makeScene } from "../../train/data/scenes.ts";
import { BadInput } from "../../train/errors.ts";

const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-image-"));
const { image } = makeScene(0, 0, 64);
const raw = { width: 64, height: 64, channels: 3 as const };

async function refusal(work: Promise<unknown>): Promise<string> {
  try {
    await work;
  } catch (error) {
    assert.instance(error, BadInput);
    const { message } = error as Error;
    assert.not.match(message, /\n/);
    return message;
  }
  throw new Error("was not refused");
}

const test = suite("images");
test.after(() => rmSync(folder, { recursive: true }));

test("a PNG holds the pixels that were written", async () => {
  const path = join(folder, "a.png");
  await writePng(path, image);
  assert.equal(await readImage(path), image);
  assert.equal(await imageSize(path), { width: 64, height: 64 });
});

test("JPEG and WebP are read; grey, palette, transparent and 16-bit images become RGB", async () => {
  const jpeg = await sharp(image.data, { raw }).jpeg({ quality: 95, chromaSubsampling: "4:4:4" }).toBuffer();
  const webp = await sharp(image.data, { raw }).webp({ lossless: true }).toBuffer();
  const far = (a: Uint8Array) => a.reduce((worst, v, i) => Math.max(worst, Math.abs(v - image.data[i]!)), 0);
  assert.ok(far((await decodeImage(jpeg, "a.jpg")).data) < 60);
  assert.is(far((await decodeImage(webp, "a.webp")).data), 0);

  const grey = await decodeImage(await sharp(image.data, { raw }).greyscale().png().toBuffer(), "grey.png");
  for (let i = 0; i < grey.data.length; i += 3)
    assert.ok(grey.data[i] === grey.data[i + 1] && grey.data[i] === grey.data[i + 2]);
  const palette = await decodeImage(
    await sharp(image.data, { raw }).png({ palette: true, colours: 8 }).toBuffer(),
    "palette.png",
  );
  assert.is(palette.data.length, 64 * 64 * 3);
  const clear = await sharp(image.data, { raw }).ensureAlpha(0.5).png().toBuffer();
  assert.is(far((await decodeImage(clear, "clear.png")).data), 0);
  const deep = await sharp(image.data, { raw }).toColourspace("rgb16").png().toBuffer();
  assert.ok(far((await decodeImage(deep, "deep.png")).data) <= 1);
});

test("an image is turned as its EXIF orientation says", async () => {
  const wide = await sharp(image.data.slice(0, 64 * 32 * 3), { raw: { width: 64, height: 32, channels: 3 } })
    .withMetadata({ orientation: 6 })
    .png()
    .toBuffer();
  const path = join(folder, "turned.png");
  writeFileSync(path, wide);
  const upright = await readImage(path);
  assert.equal([upright.width, upright.height], [32, 64]);
  assert.equal(await imageSize(path), { width: 32, height: 64 });
  // Orientation 6: the stored image's lower left corner is the upright one's upper left.
  assert.equal([...upright.data.slice(0, 3)], [...image.data.slice(31 * 64 * 3, 31 * 64 * 3 + 3)]);
});

test("every kind of file gives Pillow's pixels: progressive, CMYK, turned, palette, 16 bits, alpha, interlaced", async () => {
  const recorded: { name: string; file: string; width: number; height: number; rgb: string }[] = JSON.parse(
    readFileSync(new URL("../parity/data/images.json", import.meta.url), "utf8"),
  );
  assert.ok(recorded.length > 30);
  for (const { name, file, width, height, rgb } of recorded) {
    const bytes = Buffer.from(file, "base64");
    const got = await decodeImage(bytes, name);
    assert.equal([got.width, got.height], [width, height], name);
    const want = Buffer.from(rgb, "base64");
    const worst = want.reduce((most, v, i) => Math.max(most, Math.abs(v - got.data[i]!)), 0);
    assert.is(worst, 0, name);
    const path = join(folder, name);
    writeFileSync(path, bytes);
    assert.equal(await imageSize(path), { width, height }, name);
    const cut = bytes.subarray(0, Math.floor(bytes.length * 0.6));
    assert.match(await refusal(decodeImage(cut, name)), new RegExp(`^${name}: cannot be read as an image`), name);
  }
});

test("an image that would fill the memory is refused by its header", async () => {
  const png = Buffer.from(await encodePng(image));
  png.writeUInt32BE(60_000, 16);
  png.writeUInt32BE(60_000, 20);
  png.writeInt32BE(crc32(png.subarray(12, 29)), 29);
  assert.match(await refusal(decodeImage(png, "huge.png")), /huge\.png: .*exceeds pixel limit/);
  const path = join(folder, "huge.png");
  writeFileSync(path, png);
  assert.match(await refusal(imageSize(path)), /huge\.png: .*exceeds pixel limit/);
});

function crc32(bytes: Uint8Array): number {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc;
}

test("numbers of a palette or grey PNG, whatever its colours and bits", async () => {
  const recorded: { name: string; bits: number; file: string; want: number[] }[] = JSON.parse(
    readFileSync(new URL("../parity/data/indices.json", import.meta.url), "utf8"),
  );
  for (const { name, file, want } of recorded) {
    const { width, height, data } = await decodeIndices(Buffer.from(file, "base64"), name);
    assert.equal([width, height, [...data]], [7, 5, want], name);
  }
  assert.is(recorded.length, 7);
});

test("a missing, empty, truncated, corrupt or foreign file is refused in one line that names it", async () => {
  const png = await encodePng(image);
  const jpeg = await sharp(image.data, { raw }).jpeg().toBuffer();
  const flipped = Uint8Array.from(png);
  for (let i = 200; i < 240; i++) flipped[i]! ^= 0x55;
  const files: [string, Uint8Array, RegExp][] = [
    ["empty.png", new Uint8Array(0), /empty/],
    ["cut.png", png.subarray(0, png.length / 2), /truncated or corrupt/],
    ["cut.jpg", jpeg.subarray(0, jpeg.length / 2), /truncated or corrupt/],
    ["flipped.png", flipped, /truncated or corrupt/],
    ["text.png", new TextEncoder().encode("not an image"), /cannot be read as an image/],
    [
      "drawing.svg",
      new TextEncoder().encode('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
      /holds SVG; expected JPEG, PNG or WebP/,
    ],
  ];
  for (const [name, bytes, reason] of files) {
    writeFileSync(join(folder, name), bytes);
    const message = await refusal(readImage(join(folder, name)));
    assert.match(message, reason, name);
    assert.ok(message.startsWith(join(folder, name)), message);
    if (name === "drawing.svg") assert.is(await refusal(imageSize(join(folder, name))), message);
  }
  assert.match(await refusal(readImage(join(folder, "none.png"))), /does not exist/);
  mkdirSync(join(folder, "folder.png"));
  assert.match(await refusal(readImage(join(folder, "folder.png"))), /is a folder/);
  assert.match(await refusal(imageSize(join(folder, "text.png"))), /cannot be read/);
});

test("resizing equals Pillow's bilinear filter, bit for bit, tall images too", () => {
  const cases: { from: [number, number]; to: [number, number]; pixels: string; want: string }[] = JSON.parse(
    readFileSync(new URL("../parity/data/resize.json", import.meta.url), "utf8"),
  );
  for (const { from, to, pixels, want } of cases) {
    const [width, height] = from;
    const got = resizeImage({ width, height, data: Buffer.from(pixels, "base64") }, ...to);
    const expected = Buffer.from(want, "base64");
    assert.equal([...got.data], [...expected], `${from} to ${to}`);
  }
});

test("a mask is written black and white", async () => {
  const path = join(folder, "mask.png");
  await writeMaskPng(path, Uint8Array.of(0, 1, 1, 0, 0, 1), 3, 2);
  const { data } = await readImage(path);
  assert.equal(
    [...data].filter((_, i) => i % 3 === 0),
    [0, 255, 255, 0, 0, 255],
  );
});

test.run();
