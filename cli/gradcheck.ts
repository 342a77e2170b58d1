/** `wgpu-wish gradcheck`: every function of F against its float64 twin. */
import { cases } from "../engine/cases/index.ts";
import { type CheckResult, gradcheck, TOLERANCE } from "../engine/gradcheck.ts";
import { BadInput } from "../train/errors.ts";
import type { Call } from "./command.ts";
import { short, table } from "./terminal.ts";

export async function run({ args, terminal, open }: Call): Promise<number> {
  const known = Object.keys(cases);
  const unknown = args.find((op) => !known.includes(op));
  if (unknown !== undefined) {
    throw new BadInput(`gradcheck: there is no function F.${unknown} to check; there are ${known.join(", ")}`);
  }
  const ops = args.length > 0 ? [...new Set(args)] : known;
  const gpu = await open();
  const results: CheckResult[] = [];
  const bar = terminal.progress(ops.length, "functions");
  for (const op of ops) {
    results.push(...(await gradcheck(gpu, [op])));
    bar.update(results.length, { checked: op });
  }
  bar.end();
  const failed = results.filter(({ pass }) => !pass);
  terminal.result(
    results.map(({ op, cases, maxRelError, pass }) => ({ op, cases, maxRelError: finite(maxRelError), pass })),
    `${describe(results)}\n${results.length - failed.length} of ${results.length} functions are within ${TOLERANCE} on ${gpu.name}`,
  );
  return failed.length > 0 ? 1 : 0;
}

/** JSON knows no infinity. */
function finite(error: number): number {
  return Number.isFinite(error) ? error : Number.MAX_VALUE;
}

function describe(results: readonly CheckResult[]): string {
  const rows = results.map(({ op, cases, maxRelError, pass, worst }) => [
    op,
    cases,
    short(maxRelError),
    pass ? "ok" : "FAILED",
    worst,
  ]);
  return table(["function", "cases", "worst error", "", "where"], rows);
}
