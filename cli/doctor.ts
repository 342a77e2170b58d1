import type { Call } from "./command.ts";
export async function run(call: Call): Promise<void> {
  call.terminal.result({ ok: true }, "ok");
}
