import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { parse } from "yaml";
import { packageRoot } from "../../platform/root.ts";
import { configText, readConfig, resolveConfig, settings, settingsPage } from "../../train/config.ts";
import { BadInput } from "../../train/errors.ts";

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

test("every setting has a default's origin and a line of help", () => {
  const all = settings();
  assert.ok(all.length > 70);
  for (const s of all) assert.ok(s.help.length > 8 && ["paper", "reference", "ours"].includes(s.origin), s.key);
});

test("configs/README.md says what the schema says", () => {
  const page = readFileSync(join(packageRoot, "configs", "README.md"), "utf8");
  assert.is(page, settingsPage(), "run: node --import tsx scripts/settings.ts");
});

test("the shipped configurations are valid", () => {
  for (const name of ["scenes.yaml", "coco-mini.yaml", "own.yaml"])
    assert.ok(readConfig(join(packageRoot, "configs", name)).steps > 0, name);
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

test("files that are missing or no YAML are named", () => {
  refused(() => readConfig("no/such.yaml"), /no\/such\.yaml: there is no such file/);
  const path = join(mkdtempSync(join(tmpdir(), "wish-")), "bad.yaml");
  writeFileSync(path, "a: [1\nb: 2");
  refused(() => readConfig(path), /bad\.yaml: is not YAML/);
});

test.run();
