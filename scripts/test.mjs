// Runs every test/**/*.test.ts, each file in a process of its own (a crashed driver then fails one file, not the run), two
// at a time. Arguments choose files by a part of their path. --checks runs types, lint and unused code first.
// The last line is "N passed, N failed", with ", N skipped" where tests left themselves out.
import { spawn } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { stripVTControlCharacters } from "node:util";

const AT_ONCE = 2;
const HANGS_MS = 15 * 60_000;
const SLOW_MS = 1000;

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const args = process.argv.slice(2);
const filters = args.filter((arg) => !arg.startsWith("--"));
const totals = { passed: 0, failed: 0, skipped: 0 };
const times = [];
// What each file took the last time: the longest start first, so that none of them runs alone at the end.
const timesFile = join(root, "node_modules", ".cache", "wgpu-wish", "test-times.json");
const lastTimes = readTimes();

if (args.includes("--checks") && filters.length === 0) {
  await check("types", ["typescript/bin/tsc", "--noEmit", "-p", "."]);
  await check("format and lint", ["@biomejs/biome/bin/biome", "check", ".", "--max-diagnostics=50"]);
  await check("unused code", ["knip/bin/knip.js"]);
}

const files = readdirSync(join(root, "test"), { recursive: true })
  .map((name) => `test/${String(name).replaceAll("\\", "/")}`)
  .filter((name) => name.endsWith(".test.ts"))
  .filter((name) => filters.length === 0 || filters.some((filter) => name.includes(filter)))
  .sort((a, b) => (lastTimes[b] ?? 0) - (lastTimes[a] ?? 0) || a.localeCompare(b));

if (files.length === 0) {
  console.log(`no test file matches ${filters.join(" ") || "test/**/*.test.ts"}`);
  totals.failed++;
}
const waiting = [...files];
await Promise.all(
  Array.from({ length: AT_ONCE }, async () => {
    for (let file = waiting.shift(); file !== undefined; file = waiting.shift()) await runFile(file);
  }),
);

for (const { file, ms } of times) lastTimes[file] = Math.round(ms);
mkdirSync(dirname(timesFile), { recursive: true });
writeFileSync(timesFile, JSON.stringify(lastTimes));

const slowest = times.filter(({ ms }) => ms > SLOW_MS).sort((a, b) => b.ms - a.ms);
if (slowest.length > 0) {
  const list = slowest.slice(0, 8).map(({ file, ms }) => `${file} ${seconds(ms)}`);
  console.log(`\nslowest: ${list.join(", ")}`);
}
const skipped = totals.skipped > 0 ? `, ${totals.skipped} skipped` : "";
console.log(`${totals.passed} passed, ${totals.failed} failed${skipped}`);
process.exitCode = totals.failed > 0 ? 1 : 0;

async function check(name, [tool, ...rest]) {
  const { code, output, ms } = await runNode([join(root, "node_modules", tool), ...rest]);
  const passed = code === 0;
  totals[passed ? "passed" : "failed"]++;
  console.log(`${passed ? "ok  " : "FAIL"} ${name} ${seconds(ms)}`);
  if (!passed) console.log(indent(output));
}

async function runFile(file) {
  const { code, output, ms } = await runNode(["--import", "tsx", file]);
  times.push({ file, ms });
  // Dawn writes two such lines whenever it looks for an adapter.
  const plain = stripVTControlCharacters(output).replace(/^Warning: maxDynamic.*\n/gm, "");
  const total = count(plain, "Total");
  const passed = count(plain, "Passed");
  const skipped = count(plain, "Skipped");
  // uvu's total leaves out what was skipped.
  let failed = total - passed;
  let trouble = "";
  if (total + skipped === 0) trouble = "no test ran: does the file end with test.run()?";
  else if (code !== 0 && failed === 0) trouble = `the process ended with ${code}`;
  if (trouble !== "") failed++;
  totals.passed += passed;
  totals.failed += failed;
  totals.skipped += skipped;
  const left = skipped > 0 ? `, ${skipped} skipped` : "";
  console.log(`${failed > 0 ? "FAIL" : "ok  "} ${file}  ${passed} passed${left}  ${seconds(ms)}`);
  if (failed > 0) console.log(indent(trouble === "" ? plain : `${plain}\n${trouble}`));
  else for (const line of plain.matchAll(/^skipped: .*$/gm)) console.log(`     ${line[0]}`);
}

function readTimes() {
  try {
    return JSON.parse(readFileSync(timesFile, "utf8"));
  } catch {
    return {};
  }
}

/** uvu prints one block of totals for each suite of a file. */
function count(output, word) {
  return [...output.matchAll(new RegExp(`^\\s*${word}:\\s+(\\d+)`, "gm"))].reduce(
    (sum, match) => sum + Number(match[1]),
    0,
  );
}

function runNode(nodeArgs) {
  const started = performance.now();
  return new Promise((resolve) => {
    const child = spawn(process.execPath, nodeArgs, {
      cwd: root,
      stdio: ["ignore", "pipe", "pipe"],
      timeout: HANGS_MS,
    });
    let output = "";
    const take = (chunk) => {
      output += chunk;
    };
    child.stdout.setEncoding("utf8").on("data", take);
    child.stderr.setEncoding("utf8").on("data", take);
    child.on("error", (error) => {
      output += `${error.message}\n`;
    });
    child.on("close", (code, signal) => resolve({ code: code ?? signal, output, ms: performance.now() - started }));
  });
}

function indent(text) {
  return text.trimEnd().replace(/^/gm, "     ");
}

function seconds(ms) {
  return `${(ms / 1000).toFixed(1)} s`;
}
