import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { parse } from "yaml";
import { z } from "zod";
import { Wish } from "../../model/index.ts";
import { packageRoot } from "../../platform/root.ts";
import { configText, readConfig, resolveConfig, settings } from "../../train/config.ts";
import { BadInput } from "../../train/errors.ts";
import { checkModel } from "../../train/inputs.ts";
import { modelConfig } from "../../train/models.ts";
import { settingsOf } from "../../train/options.ts";
import { readSamTrainConfig, samTrainSchema } from "../../train/sam/config.ts";
import { settingsPage } from "../../train/settings-page.ts";
import { readStudy, studySchema } from "../../train/study.ts";
import { testDevice } from "../device.ts";

const test = suite("config");

const refused = (make: () => unknown, pattern: RegExp) =>
  assert.throws(
    make,
    (error: Error) => error instanceof BadInput && pattern.test(error.message) && !error.message.includes("\n"),
  );

test("defaults are the paper's and the reference's", () => {
  const config = resolveConfig({});
  assert.is(config.match.class, 2);
  assert.is(config.match.prompt, 5);
  assert.is(config.match.points, 12544);
  assert.is(config.optim.clip, 0.01);
  assert.is(config.loss.noObject, 0.1);
  assert.throws(() => ((config as { steps: number }).steps = 1), "frozen");
});

test("every setting of every config has a default's origin and a line of help, also within others and of each kind", () => {
  const all = [settings(), settingsOf(studySchema), settingsOf(samTrainSchema)].flat();
  for (const s of all) assert.ok(s.help.length > 4 && ["paper", "reference", "ours"].includes(s.origin), s.key);
  const helpOf = (key: string) => all.filter((s) => s.key === key).map(({ help }) => help);
  for (const key of ["model.encoder.points", "model.decoder.ffn", "annotations", "budget", "point", "arms"])
    assert.ok(helpOf(key).length > 0, key);
  assert.equal(
    helpOf("model.backbone.outputStride").map((help) => help.split(":", 1)[0]),
    ["kind mini", "kind mobilenetV2", "kind resnet"],
  );
  assert.ok(helpOf("model.encoder.globalBlocks")[0]!.startsWith("kind vit: "));
  assert.throws(
    () => settingsOf(z.strictObject({ a: z.strictObject({ b: z.number().default(1) }).prefault({}) })),
    /the setting a\.b has no line of help/,
  );
});

test("configs/README.md says what the schema says", () => {
  const page = readFileSync(join(packageRoot, "configs", "README.md"), "utf8");
  assert.is(page, settingsPage(), "run: node --import tsx scripts/settings.ts");
});

const shipped = readdirSync(join(packageRoot, "configs")).filter((name) => name.endsWith(".yaml"));
const others = {
  "sam-mini.yaml": readSamTrainConfig,
  "scenes-study.yaml": readStudy,
  "scenes-study-imagenet.yaml": readStudy,
};

test("every shipped configuration is valid, and its model can be built", async () => {
  const kinds = ["", "-tags", "-points", "-boxes", "-supervised"];
  for (const name of ["voc-r50", "coco-r50", "scenes"].flatMap((base) => kinds.map((kind) => `${base}${kind}.yaml`)))
    assert.ok(shipped.includes(name), name);
  const dry = (await testDevice()).dry();
  const built = new Set<string>();
  for (const name of shipped) {
    const path = join(packageRoot, "configs", name);
    const other = others[name as keyof typeof others];
    if (other) {
      other(path, []);
      continue;
    }
    const config = readConfig(path);
    assert.ok(config.run.startsWith("runs/") && config.data.labels !== "" && config.val.annotations !== "", name);
    const sizes = modelConfig(config, 20, 256);
    checkModel(sizes, name);
    assert.is(sizes.prompt.mode !== "none", config.mode === "wish", name);
    // Many are of one size, and drawing 44 M numbers takes its time.
    if (built.has(JSON.stringify(sizes))) continue;
    built.add(JSON.stringify(sizes));
    const model = new Wish(dry, sizes);
    const count = model.parameters().reduce((sum, x) => sum + x.size, 0);
    // Mask2Former's R50 has 44.0 M parameters; a prompt and a CAM head are little more.
    if (name.includes("r50")) assert.ok(count > 43.5e6 && count < 45e6, `${name}: ${count}`);
  }
  assert.ok(built.size >= 4);
});

test("the configurations for R50 have the paper's numbers", () => {
  const [coco, voc] = ["coco-r50.yaml", "voc-r50.yaml"].map((name) => readConfig(join(packageRoot, "configs", name)));
  for (const config of [coco!, voc!]) {
    assert.is(config.batch * config.accumulate, 16);
    assert.is(config.optim.lr, 1e-4);
    const { class: c, prompt, bce, dice } = config.match;
    assert.equal([c, prompt, bce, dice], [2, 5, 5, 5]);
  }
  assert.equal([coco!.steps, coco!.cam.warmup], [368750, 30000]);
  assert.equal([voc!.steps, voc!.cam.warmup], [Math.round((50 * 10582) / 16), Math.round((3 * 10582) / 16)]);
});

test("a file takes what another one says where it says nothing itself", () => {
  const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-config-"));
  const write = (name: string, text: string): string => {
    writeFileSync(join(folder, name), text);
    return join(folder, name);
  };
  write("base.yaml", "steps: 7\ndata: { width: 64, scale: [1, 2] }\nloss: { cam: 3 }");
  write("middle.yaml", "extends: base.yaml\ndata: { height: 96 }");
  const path = write("top.yaml", "extends: middle.yaml\ndata: { scale: [1, 1] }\nbatch: 2");
  const { steps, batch, data, loss } = readConfig(path, ["loss.cam=4"]);
  assert.equal([steps, batch, data.width, data.height, data.scale, loss.cam], [7, 2, 64, 96, [1, 1], 4]);
  refused(
    () => readConfig(write("ring.yaml", "extends: ring.yaml")),
    /ring\.yaml: extends: ring\.yaml leads back to itself/,
  );
  refused(() => readConfig(write("list.yaml", "extends: [a]")), /extends: must name a YAML file; got \["a"\]/);
  refused(() => readConfig(write("lost.yaml", "extends: none.yaml")), /none\.yaml: there is no such file/);
  rmSync(folder, { recursive: true });
});

test("a resolved configuration reads back as itself", () => {
  const config = resolveConfig({ steps: 5, model: { preset: "mini", decoder: { layers: 2 } } });
  assert.equal(resolveConfig(parse(configText(config))), config);
});

test("the command line changes single settings, in YAML's notation", () => {
  const config = resolveConfig({ optim: { lr: 1 } }, [
    "optim.lr=5e-4",
    "data.scale=[0.5, 1.5]",
    "mode=supervised",
    "val.images=a=b",
  ]);
  assert.is(config.optim.lr, 5e-4);
  assert.equal(config.data.scale, [0.5, 1.5]);
  assert.is(config.mode, "supervised");
  assert.is(config.val.images, "a=b");
});

test("what loadBackbone says to give is a setting", () => {
  const { model } = resolveConfig({}, ["model.backbone={kind: mobilenetV2, norm: folded, origin: pytorch}"]);
  assert.equal(model.backbone, { kind: "mobilenetV2", norm: "folded", origin: "pytorch", outputStride: 32, width: 1 });
});

test("an unknown setting is refused with the nearest name", () => {
  refused(() => resolveConfig({}, ["optim.lrr=1"]), /no setting "optim\.lrr"; did you mean "optim\.lr"/);
  refused(() => resolveConfig({ promt: { mode: "typed" } }), /did you mean "prompt"/);
  refused(() => resolveConfig({ lr: 1 }), /no setting "lr"/);
  refused(() => resolveConfig({}, ["__proto__.x=1"]), /no such setting/);
  refused(() => resolveConfig({}, ["optim.__proto__=5"]), /optim\.__proto__=5: there is no such setting/);
  refused(() => resolveConfig(parse("optim: { __proto__: 5 }")), /no setting "optim\.__proto__"/);
});

test("a wrong value is refused with its place", () => {
  refused(() => resolveConfig({ steps: "many" }), /steps: .*got "many"/);
  refused(() => resolveConfig({ data: { scale: [2, 1] } }), /data\.scale/);
  refused(() => resolveConfig({ prompt: { mode: "other" } }), /prompt\.mode/);
  refused(() => resolveConfig({}, ["optim.lr=.nan"]), /optim\.lr: .*; got NaN/);
  refused(() => resolveConfig({}, ["optim.betas=[0.9, 1]"]), /optim\.betas\.1: .*<1; got 1/);
  refused(() => resolveConfig({}, ["steps"]), /key=value/);
  refused(() => resolveConfig([]), /got a list/);
});

test("an error names the setting that brings it in, or else the file", () => {
  const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-config-"));
  const path = join(folder, "own.yaml");
  const from = (text: string, ...given: string[]) => {
    writeFileSync(path, text);
    return () => readConfig(path, given);
  };
  const swin = "model.backbone={kind: swin}";
  const mobile = "model.backbone={kind: mobilenetV2}";
  refused(from("optim: { lr: -1 }", "steps=5"), /own\.yaml: optim\.lr: .*; got -1$/);
  refused(from("optim: { lr: 1 }", "steps=5", "optim.lr=-1"), /^optim\.lr=-1: optim\.lr: .*; got -1$/);
  refused(from("steps: 1", "steps=-1", "batch=2", "steps=-2"), /^steps=-2: steps: .*; got -2$/);
  refused(from("steps: 1", "batch=0", "steps=0", "batch=1"), /^steps=0: steps: /);
  refused(from("steps: 1", "optim={lr: -1}", "optim.lr=1", "optim.lr=-1"), /^optim\.lr=-1: optim\.lr: /);
  // The file's own mistake, that a setting leaves where it is, and one that a setting mends.
  refused(
    from("model: { backbone: { kind: swin } }", "model.backbone.window=7"),
    /own\.yaml: model\.backbone\.embedDim: /,
  );
  refused(from("steps: many", "optim.lr=-1", "steps=5"), /^optim\.lr=-1: optim\.lr: /);
  refused(from("stps: 5", "steps=5"), /own\.yaml: there is no setting "stps"/);
  refused(from("steps: 5", "stps=6"), /^stps=6: there is no setting "stps"; did you mean "steps"\?$/);
  refused(from("steps: 5", swin), /^model\.backbone=\{kind: swin\}: model\.backbone\.embedDim: /);
  refused(
    from("steps: 5", mobile, "model.backbone.origin=foo"),
    /^model\.backbone\.origin=foo: model\.backbone\.origin: .*"pytorch"; got "foo"$/,
  );
  for (const setting of ["model.backbone.origin=pytorch", "model.backbone=mobilenetV2", "model.backbone.kind=vgg"])
    refused(
      from("steps: 5", setting),
      new RegExp(`^${setting}: .* a backbone is \\{kind: mini, mobilenetV2, resnet or swin\\}`),
    );
  rmSync(folder, { recursive: true });
});

test("files that are missing or no YAML are named", () => {
  refused(() => readConfig("no/such.yaml"), /no\/such\.yaml: there is no such file/);
  const path = join(mkdtempSync(join(tmpdir(), "wish-")), "bad.yaml");
  writeFileSync(path, "a: [1\nb: 2");
  refused(() => readConfig(path), /bad\.yaml: is not YAML/);
});

test.run();
