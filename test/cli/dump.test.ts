// --dump of sam and predict: what may not be written over, and places that cannot be written to, are refused before any work.
import {
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { writePng } from "../../train/data/image.ts";
import { makeScene } from "../../train/data/scenes.ts";
import { checkDump } from "../../train/dump.ts";
import { BadInput } from "../../train/errors.ts";
import { runFiles } from "../../train/models.ts";
import { filesOf } from "../../train/weights.ts";
import { wish } from "./run.ts";

const test = suite("cli dump");
const folder = mkdtempSync(join(tmpdir(), "cli-dump-"));
const at = (...names: string[]) => join(folder, ...names);
const fixture = (name: string) => fileURLToPath(new URL(`../parity/${name}`, import.meta.url));
const OUT = at("out");

test.before(async () => {
  mkdirSync(at("model"));
  copyFileSync(fixture("sam-hf.safetensors"), at("sam.safetensors"));
  copyFileSync(at("sam.safetensors"), at("model", "model-1.safetensors"));
  const index = { weight_map: { a: "model-1.safetensors", b: "model-2.safetensors" } };
  writeFileSync(at("model", "model.safetensors.index.json"), JSON.stringify(index));
  writeFileSync(at("model", "config.json"), "{}");
  await writePng(at("photo.png"), makeScene(5, 1, 64).image);
});
test.after(() => rmSync(folder, { recursive: true }));

/** All that is in the folder, and what the files hold. */
const contents = () =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .map((entry) => [
      entry.name,
      entry.isFile() ? readFileSync(join(entry.parentPath ?? entry.path, entry.name), "base64") : "",
    ])
    .sort();

const sam = (dump: string, ...more: string[]) => {
  const files = ["--checkpoint", at("sam.safetensors"), "--image", at("photo.png"), "--out", OUT, "--dump", dump];
  return wish(["sam", ...files, "--point", "20,20", ...more]);
};
const predict = (dump: string, checkpoint: string) =>
  wish(["predict", at("photo.png"), "--checkpoint", checkpoint, "--out", OUT, "--dump", dump]);

test("neither command writes over a file that it reads, or into nowhere, and nothing is left of the try", async () => {
  const before = contents();
  const read = /: is one of the files that are read; name another output with --dump\n$/;
  for (const [run, reason] of [
    [() => sam(at("sam.safetensors")), read],
    [() => sam(at("photo.png")), read],
    [() => predict(at("photo.png"), at("model")), read],
    [() => predict(at("model", "config.json"), at("model")), read],
    [() => predict(at("model", "model-2.safetensors"), at("model")), read],
    [() => sam(at("model")), /model: is a folder; name another file with --dump\n$/],
    [() => predict(at("photo.png", "x.safetensors"), at("model")), /photo\.png: a folder is needed that can be made/],
    [() => sam(join(OUT, "overlay.png")), /overlay\.png: may be what is written to --out/],
  ] as const) {
    const { code, stderr } = await run();
    assert.is(code, 2, stderr);
    assert.is(stderr.trim().split("\n").length, 1, stderr);
    assert.match(stderr, reason);
    assert.equal(contents(), before);
  }
});

test("the files that are read: a folder's, an index's shards, what lies beside, an export's, a run's", async () => {
  const beside = at("model", "config.json");
  const index = at("model", "model.safetensors.index.json");
  const shards = [1, 2].map((i) => at("model", `model-${i}.safetensors`));
  assert.equal(await filesOf(at("model"), "weights"), [at("model"), index, beside, ...shards]);
  assert.equal(await filesOf(index, "weights"), [index, index, beside, ...shards]);
  const single = at("sam.safetensors");
  assert.equal(await filesOf(single, "weights"), [single, single, at("config.json")]);
  const onnx = fixture("weights/external.onnx");
  assert.ok((await filesOf(onnx, "weights")).includes(fixture("weights/external.data")));
  mkdirSync(at("run", "checkpoints"), { recursive: true });
  const checkpoint = at("run", "checkpoints", "step-00000001.safetensors");
  writeFileSync(checkpoint, "");
  assert.equal(runFiles(at("run")), [checkpoint, at("run", "best"), at("run", "last"), at("run", "config.yaml")]);
});

const refused = (dump: string, out = OUT, inputs: readonly string[] = []): string => {
  try {
    checkDump(dump, out, inputs);
  } catch (error) {
    assert.instance(error, BadInput);
    return (error as Error).message;
  }
  return "not refused";
};

test("links are followed; other files, and folders that are not there yet, are no obstacle", () => {
  const input = at("sam.safetensors");
  symlinkSync(input, at("link.safetensors"));
  symlinkSync(folder, at("here"));
  for (const path of [at("link.safetensors"), at("here", "sam.safetensors"), at("model", "..", "sam.safetensors")]) {
    assert.match(refused(path, OUT, [input]), /is one of the files that are read/);
    assert.match(refused(input, OUT, [path]), /is one of the files that are read/);
  }
  linkSync(input, at("twin.safetensors"));
  for (const path of [
    at("old.safetensors"),
    at("twin.safetensors"), // its name alone is given to another file
    at("new", "er", "x.safetensors"),
    join(OUT, "x.safetensors"),
    join(OUT, "more", "x.safetensors"),
    at("overlay.png"),
  ])
    assert.is(refused(path, OUT, [input]), "not refused", path);
  assert.not.ok(existsSync(at("new")));
  assert.not.ok(existsSync(OUT));
});

test("no file takes the place of what goes to --out, nor of the folder itself", () => {
  for (const name of ["overlay.png", "mask-0-0.PNG", "results.json", "images.json"]) {
    assert.match(refused(join(OUT, name)), /: may be what is written to --out/);
    assert.match(refused(join(OUT, name, "x.safetensors")), /: may be what is written to --out/);
    assert.match(refused(at("here", "out", name)), /: may be what is written to --out/);
  }
  assert.match(refused(OUT), /out: stands where the folder --out .*out is to be; name another file/);
  assert.match(refused(at("a"), at("a", "b")), /a: stands where the folder --out .*b is to be/);
  assert.match(refused(at("a", "b/"), OUT), /is a folder/);
  if (process.platform !== "win32") assert.match(refused("/dev/null"), /^\/dev\/null: is no regular file/);
});

test.run();
