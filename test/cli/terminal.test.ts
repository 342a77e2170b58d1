import { suite } from "uvu";
import * as assert from "uvu/assert";
import { bytes, duration, Progress, short, table } from "../../cli/terminal.ts";

const test = suite("terminal");

test("numbers are short", () => {
  assert.equal([0, 3, 1234567, 0.5, 12.3456, 1234.5678, 0.00012345, -2.5].map(short), [
    "0",
    "3",
    "1234567",
    "0.5000",
    "12.35",
    "1235",
    "1.23e-4",
    "-2.500",
  ]);
  assert.is(short(Number.NaN), "NaN");
});

test("durations and bytes", () => {
  assert.equal([0, 7.4, 754, 3723, Number.POSITIVE_INFINITY].map(duration), ["0:00", "0:07", "12:34", "1:02:03", "?"]);
  assert.equal([0, 512, 1024, 1536, 2 ** 27].map(bytes), ["0 B", "512 B", "1 KiB", "1.5 KiB", "128 MiB"]);
});

test("a table lines up, numbers at the right", () => {
  assert.is(
    table(
      ["name", "ms"],
      [
        ["matmul", 12],
        ["add", 3],
      ],
    ),
    "name    ms\n──────  ──\nmatmul  12\nadd      3",
  );
  assert.is(table(["name"], []), "name\n────");
});

test("a bar on a terminal redraws one line that fits and ends with a line break", () => {
  let written = "";
  const bar = new Progress(4, "img", true, (text) => {
    written += text;
  });
  bar.update(4, { loss: 1.25, stage: "train" }, 2);
  bar.end();
  bar.end();
  assert.ok(written.startsWith(`\r\u001b[2K${"━".repeat(20)} 4/4  loss 1.250  stage train  `), written);
  assert.is(written.split("\n").length, 2);
});

test("a terminal that does not know its width gets a whole line", () => {
  const before = Object.getOwnPropertyDescriptor(process.stderr, "columns");
  Object.defineProperty(process.stderr, "columns", { value: 0, configurable: true });
  try {
    let written = "";
    new Progress(2, "img", true, (text) => {
      written += text;
    }).update(2);
    assert.match(written, /━ 2\/2 {2}.* img\/s {2}0:00/);
  } finally {
    if (before) Object.defineProperty(process.stderr, "columns", before);
    else Reflect.deleteProperty(process.stderr, "columns");
  }
});

test("without a terminal the last state is one plain line", () => {
  let written = "";
  const bar = new Progress(2, "img", false, (text) => {
    written += text;
  });
  bar.update(1, { loss: 2 });
  bar.update(2, { loss: 1 });
  bar.update(2, { loss: 1 });
  bar.end();
  assert.match(written, /^2\/2 {2}loss 1 {2}\S+ img\/s {2}0:00\n$/);
});

test.run();
