/**
 * What a command is. To add one:
 *   1. cli/commands.ts holds its name, arguments, options and examples: help is made from them without loading anything heavy.
 *   2. cli/<name>.ts exports `run(call: Call<Options>)`, where Options names the options' parsed values in camelCase.
 *   3. In cli/commands.ts its entry gets `load: () => import("./<name>.ts")`; an entry without `load` is not offered.
 * `run` writes its outcome with `call.terminal.result(document, text)`, throws BadInput (exit 2) for what the user has to
 * mend and any other error (exit 1) for work that failed, and may return another exit code.
 */
import type { Device } from "../index.ts";
import type { Terminal } from "./terminal.ts";

export interface Call<Options = Record<string, unknown>> {
  /** Positional arguments, in the order of the command's `args`; a last `[name...]` adds all that follow. */
  readonly args: string[];
  readonly options: Options;
  readonly terminal: Terminal;
  /** Opens the adapter that --adapter names. main.ts closes the device after `run`. */
  open(): Promise<Device>;
  /**
   * A command that saves its state when it is interrupted asks for this signal, looks at `aborted` between steps, saves and
   * returns 130. Without it Ctrl-C ends the process at once; a second Ctrl-C always does.
   */
  interruptible(): AbortSignal;
}

export interface Option {
  /** commander's form: `--seed <n>` takes a value, `--resume` is a switch. */
  readonly flags: string;
  readonly help: string;
  readonly parse?: (text: string, name: string) => unknown;
  readonly default?: unknown;
  readonly required?: boolean;
  /** May be given several times; the value is an array (empty when absent). */
  readonly repeat?: boolean;
  readonly choices?: readonly string[];
}

export interface Command {
  readonly name: string;
  readonly summary: string;
  /** [`<name>` | `[name]` | `[name...]`, help, choices?] */
  readonly args?: readonly (readonly [name: string, help: string, choices?: readonly string[]])[];
  readonly options?: readonly Option[];
  /** Further paragraphs of --help. */
  readonly notes?: string;
  readonly examples: readonly string[];
  // `never` lets each command declare its own Options; commands.ts promises that the two agree.
  readonly load?: () => Promise<{ run(call: Call<never>): Promise<number | undefined> | Promise<void> }>;
}
