import { suite } from "uvu";
import * as assert from "uvu/assert";
import { commands as all } from "../../cli/commands.ts";
import { wish } from "./run.ts";

const test = suite("help and wrong usage");
const commands = all.filter(({ load }) => load !== undefined);

test("--help lists every command and ends with 0", async () => {
  const { code, stdout, stderr } = await wish(["--help"]);
  assert.is(code, 0);
  assert.is(stderr, "");
  for (const { name } of commands) assert.match(stdout, new RegExp(`^  ${name}\\b`, "m"));
});

test("each command's --help shows its options and its examples", async () => {
  await Promise.all(
    commands.map(async ({ name, options, examples }) => {
      const { code, stdout } = await wish([name, "--help"]);
      assert.is(code, 0, name);
      for (const { flags } of options ?? []) assert.ok(stdout.includes(flags), `${name}: ${flags}`);
      for (const line of examples) assert.ok(stdout.includes(line), `${name}: ${line}`);
    }),
  );
});

const wrong: [what: string, args: string[], message: RegExp][] = [
  ["an unknown command names the nearest", ["docter"], /^error: unknown command 'docter' \(Did you mean doctor\?\)\n$/],
  [
    "an unknown option names the nearest",
    ["doctor", "--jsn"],
    /^error: unknown option '--jsn' \(Did you mean --json\?\)\n$/,
  ],
  ["too many arguments", ["doctor", "now"], /^error: too many arguments for 'doctor'.*\n$/],
  [
    "a size that no image has",
    ["predict", "x.png", "--out", "never", "--short", "1e12"],
    /^error: --short: expected a whole number from 1 to 16384, got "1e12"\n$/,
  ],
  ["an unknown function", ["gradcheck", "noSuch"], /^error: gradcheck: there is no function F\.noSuch.*\n$/],
];
for (const [what, args, message] of wrong) {
  test(`${what}: one line on stderr, exit code 2`, async () => {
    const { code, stdout, stderr } = await wish(args);
    assert.is(code, 2);
    assert.is(stdout, "");
    assert.match(stderr, message);
  });
}

test("no command at all prints the help on stderr and ends with 2", async () => {
  const { code, stdout, stderr } = await wish([]);
  assert.is(code, 2);
  assert.is(stdout, "");
  assert.match(stderr, /^Usage: wgpu-wish/);
});

test("--verbose shows where an error comes from", async () => {
  const { code, stderr } = await wish(["gradcheck", "noSuch", "--verbose"]);
  assert.is(code, 2);
  assert.match(stderr, /\n {4}at /);
});

test.run();
