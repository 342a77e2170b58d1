// What a run is given and refuses before it works: data, sizes, folders. No teacher looks at an image here.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { encodeSafetensors, parseSafetensors } from "../../engine/index.ts";
import { wishMini } from "../../model/index.ts";
import { checkModel } from "../../train/inputs.ts";
import { quickstart } from "../../train/quickstart.ts";
import { findAsset } from "../../train/teacher.ts";
import { train } from "../../train/train.ts";
import { config, folder, gpu, labels, refused, removeFolder, sam, scenes, silent } from "./tiny-run.ts";

const test = suite("inputs");
let runs = 0;
const start = (...settings: string[]) =>
  train(gpu, config(`inputs${runs++}`, settings), { display: silent, file: "my.yaml" });

type Document = {
  images: { id: number; file_name: string; width: number }[];
  categories: { id: number; name: string }[];
};
/** A file of the data set with a change. */
function changed(name: string, from: string, change: (document: Document) => void): string {
  const document = JSON.parse(readFileSync(from, "utf8")) as Document;
  change(document);
  const path = join(folder, name);
  writeFileSync(path, JSON.stringify(document));
  return path;
}

/** Which kind of label each image has. */
function weakKinds(): Map<number, string> {
  const { weak } = JSON.parse(readFileSync(labels, "utf8")) as { weak: { image_id: number; kind: string }[] };
  return new Map(weak.map(({ image_id, kind }) => [image_id, kind]));
}

test("a setting that does not fit is named with its file", async () => {
  await refused(() => start("data.images="), /^my\.yaml: data\.images is empty/);
  await refused(() => start("data.labels="), /^my\.yaml: data\.labels is empty/);
  await refused(() => start("data.width=65"), /^my\.yaml: data\.width must be a multiple of 32; got 65/);
  await refused(
    () => start("memory.activations=f16"),
    /^my\.yaml: memory\.activations=f16 is how memory\.checkpoint=true/,
  );
  await refused(() => start("data.maskStride=3"), /^my\.yaml: data\.maskStride must divide/);
  await refused(() => start("model.hiddenDim=7"), /^my\.yaml: model\.groups must divide model\.hiddenDim; got 4 and 7/);
  await refused(() => start("model.groups=7"), /model\.groups must divide model\.hiddenDim; got 7 and 32/);
  await refused(() => start("model.decoder.heads=5"), /model\.decoder\.heads must divide .*; got 5 and 32/);
  await refused(() => start("model.encoder.heads=5", "model.encoder.layers=1"), /model\.encoder\.heads must divide/);
  assert.not.ok(existsSync(join(folder, "cache")), "SAM has not been asked");
  checkModel(wishMini(3), "config");
});

test("labels without an entry, and classes of one name, are refused by the labels' file", async () => {
  const empty = changed("empty.json", labels, (document) => Object.assign(document, { weak: [] }));
  await refused(() => start(`data.labels=${empty}`), /empty\.json: there are no labelled images/);
  const same = (document: Document) => {
    document.categories[1]!.name = document.categories[0]!.name;
  };
  await refused(
    () => start(`data.labels=${changed("same.json", labels, same)}`, "val.annotations="),
    /same\.json: the categories 1 and 2 are both called "\w+"; give each a name/,
  );
});

test("validation data is looked at before training: classes, files, sizes", async () => {
  const started = runs;
  const val = (name: string, change: (document: Document) => void) =>
    start(`val.annotations=${changed(name, scenes.annotations, change)}`);
  await refused(() => val("class.json", (d) => (d.categories[0]!.name = "other")), /class\.json: class 1 is "other"/);
  await refused(() => val("gone.json", (d) => (d.images[1]!.file_name = "gone.png")), /gone\.png: the image does not/);
  const wider = (d: Document) => {
    d.images[1]!.width = 128;
    Object.assign(d, { annotations: [] });
  };
  await refused(() => val("wide.json", wider), /\.png: is 64x64, but the labels are for 128x64 .*; give the image/);
  await refused(
    () => val("twice.json", (d) => d.categories.push({ id: 99, name: d.categories[0]!.name })),
    /twice\.json: two categories are called/,
  );
  for (let i = started; i < runs; i++) assert.not.ok(existsSync(join(folder, `inputs${i}`)), "no run was begun");
});

test("training images are looked at before training: files, headers, sizes, whatever their labels", async () => {
  const started = runs;
  const weak = (name: string, change: (document: Document) => void) =>
    start(`data.labels=${changed(name, labels, change)}`, "val.annotations=");
  const kinds = weakKinds();
  for (const kind of ["tags", "points", "boxes"]) {
    const rename = (d: Document) => (d.images.find(({ id }) => kinds.get(id) === kind)!.file_name = `${kind}.png`);
    await refused(() => weak("away.json", rename), new RegExp(`${kind}\\.png: the image does not exist`));
  }
  writeFileSync(join(scenes.imagesDir, "cut.png"), "\x89PNG\r\n");
  await refused(() => weak("cut.json", (d) => (d.images[0]!.file_name = "cut.png")), /cut\.png: cannot be read as an/);
  const supervised = changed("wide-train.json", scenes.annotations, (d) => {
    d.images[1]!.width = 128;
    Object.assign(d, { annotations: [] });
  });
  await refused(
    () => start("mode=supervised", `data.labels=${supervised}`, "val.annotations="),
    /\.png: is 64x64, but the labels are for 128x64/,
  );
  assert.not.ok(existsSync(join(folder, "cache")), "SAM has not been asked");
  for (let i = started; i < runs; i++) assert.not.ok(existsSync(join(folder, `inputs${i}`)), "no run was begun");
});

test("weights that cannot be used end a run before its folder is there", async () => {
  const broken = join(folder, "broken.safetensors");
  writeFileSync(broken, "no weights");
  const described = join(folder, "described.safetensors");
  const { tensors, metadata } = parseSafetensors(
    new Uint8Array(readFileSync(findAsset("assets/wish-scenes.safetensors"))),
  );
  const model = metadata.model!.replace("[1,1,1,1]", "[1e8,1,1,1]");
  writeFileSync(described, encodeSafetensors(tensors, { ...metadata, model }));
  const started = runs;
  for (const [key, file, reason] of [
    ["sam.checkpoint", broken, /broken\.safetensors: /],
    ["model.backboneWeights", broken, /broken\.safetensors: /],
    ["model.weights", broken, /broken\.safetensors: /],
    [
      "model.weights",
      described,
      /described\.safetensors: metadata: model\.backbone\.blocks: the file's 116 tensors cannot/,
    ],
    ["model.weights", sam, /sam\.safetensors: holds no Mask2Former/],
    ["sam.checkpoint", described, /described\.safetensors: no SAM checkpoint/],
  ] as const) {
    const cache = join(folder, `cache${runs}`);
    await refused(() => start(`${key}=${file}`, `sam.cache=${cache}`), reason);
    assert.not.ok(existsSync(cache), `${key}: no cache was begun`);
  }
  for (let i = started; i < runs; i++) assert.not.ok(existsSync(join(folder, `inputs${i}`)), "no run was begun");
});

test("a quickstart removes what an earlier one made, and nothing of anybody's else", async () => {
  const mine = join(folder, "mine");
  mkdirSync(join(mine, "data", "val"), { recursive: true });
  writeFileSync(join(mine, "data", "weak.json"), "{}");
  writeFileSync(join(mine, "data", "val", "photograph.jpg"), "dear");
  await refused(() => quickstart(gpu, { out: mine, display: silent }), /mine: is not empty and holds no quickstart/);
  assert.is(readFileSync(join(mine, "data", "val", "photograph.jpg"), "utf8"), "dear");
  writeFileSync(join(mine, "quickstart.json"), "[]");
  await refused(() => quickstart(gpu, { out: mine, display: silent }), /holds no quickstart/);

  // Interrupted at its first evaluation, it has left its mark.
  const out = join(folder, "quick");
  const abort = new AbortController();
  abort.abort();
  const options = { out, display: silent, signal: abort.signal };
  assert.ok((await quickstart(gpu, options)).interrupted);
  assert.equal(readdirSync(out).sort(), ["data", "quickstart.json"]);
  writeFileSync(join(out, "notes.txt"), "mine");
  writeFileSync(join(out, "report.html"), "old");
  assert.ok((await quickstart(gpu, options)).interrupted);
  assert.is(readFileSync(join(out, "notes.txt"), "utf8"), "mine");
  assert.not.ok(existsSync(join(out, "report.html")));
});

test.after(removeFolder);
test.run();
