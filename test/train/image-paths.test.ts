import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { BadInput } from "../../train/errors.ts";
import { FileNames, keepApart } from "../../train/folders.ts";
import { imagePaths } from "../../train/image-paths.ts";

const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-paths-"));
mkdirSync(join(folder, "deep", "er"), { recursive: true });
mkdirSync(join(folder, "none"));
for (const name of [
  "b.png",
  "a.jpg",
  "c.JPEG",
  "notes.txt",
  "[1].png",
  join("deep", "d.webp"),
  join("deep", "er", "e.png"),
])
  writeFileSync(join(folder, name), "");

const test = suite("names of images");
test.after(() => rmSync(folder, { recursive: true }));

const of = (...names: string[]) =>
  imagePaths(names.map((name) => join(folder, name))).map((path) => relative(folder, path));

test("files, folders and patterns become images, each once, by name", () => {
  assert.equal(of("b.png", "a.jpg"), ["b.png", "a.jpg"]);
  assert.equal(of("."), ["[1].png", "a.jpg", "b.png", "c.JPEG"]);
  assert.equal(of("b.png", ".", "b.png"), ["b.png", "[1].png", "a.jpg", "c.JPEG"]);
  assert.equal(of("*.png"), ["[1].png", "b.png"]);
  assert.equal(of("{a,b}.*"), ["a.jpg", "b.png"]);
  assert.equal(of("**/*.{webp,png}"), ["[1].png", "b.png", join("deep", "d.webp"), join("deep", "er", "e.png")]);
  assert.equal(of("[1].png"), ["[1].png"]);
});

test("patterns relative to the working folder give paths relative to it", () => {
  const before = process.cwd();
  process.chdir(folder);
  try {
    assert.equal(imagePaths(["deep/*", "./*.jpg"]), [join("deep", "d.webp"), "a.jpg"]);
  } finally {
    process.chdir(before);
  }
});

test("pictures of images get names of their own, whatever their folders, suffixes and capitals", () => {
  const names = new FileNames(["sheet"]);
  const paths = ["a/x.jpg", "b/X.jpg", "b/x.png", "x-2.jpg", "c/x-2.png", "Sheet.png"];
  assert.equal(names.ofImages(paths), ["x", "X-3", "x-4", "x-2", "x-2-2", "Sheet-2"]);
  assert.is(names.free("x-4"), "x-4-2");
});

test("pictures do not go where the images lie, by whatever path", () => {
  symlinkSync(folder, join(folder, "none", "link"));
  const image = join(folder, "b.png");
  for (const out of [folder, join(folder, "none", ".."), join(folder, "none", "link")])
    assert.throws(
      () => keepApart(out, [image]),
      ({ message }: Error) => message.includes(`: holds the image ${image}, which a picture could overwrite`),
    );
  keepApart(join(folder, "none"), [image]);
  rmSync(join(folder, "none", "link"));
});

test("what names no image is refused in one line", () => {
  for (const [name, reason] of [
    ["z.png", /z\.png: the image does not exist/],
    ["none", /none: the folder holds no image \(JPEG, PNG or WebP\)/],
    ["*.gif", /\*\.gif: matches no image/],
    ["*.txt", /\*\.txt: matches no image/],
  ] as const)
    assert.throws(
      () => of(name),
      (error: Error) => error instanceof BadInput && reason.test(error.message),
      name,
    );
});

test.run();
