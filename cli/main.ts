/** The command line: options for all commands, exit codes, errors as one line. Commands are loaded when they are called. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Argument, CommanderError, Command as Parser, Option as ParserOption } from "commander";
import type { Device } from "../index.ts";
import { packageRoot } from "../platform/root.ts";
import { BadInput } from "../train/errors.ts";
import type { Call, Command, Option } from "./command.ts";
import { commands } from "./commands.ts";
import { Terminal, type TerminalOptions } from "./terminal.ts";

const DONE = 0;
const FAILED = 1;
const BAD_INPUT = 2;
const NO_ADAPTER = 3;
const INTERRUPTED = 130;

type Globals = TerminalOptions & { adapter?: string };

let terminal = new Terminal();
let outcome = DONE;

function buildParser(): Parser {
  const program = new Parser("wgpu-wish");
  program
    .description("Instance segmentation from tags, points and boxes: WISH, Mask2Former and SAM on a WebGPU engine.")
    .version(version(), "--version", "print the version")
    .helpOption("--help", "print this help")
    .helpCommand("help [command]", "print a command's help")
    .enablePositionalOptions()
    .showSuggestionAfterError()
    .addHelpText(
      "after",
      "\nExamples:\n  $ wgpu-wish doctor\n  $ wgpu-wish quickstart\n  $ wgpu-wish train --help\n\n" +
        "Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 no GPU adapter, 130 interrupted.",
    )
    .configureHelp({ subcommandTerm: (command) => command.name() })
    .configureOutput({ outputError: () => {} });
  addGlobals(program);
  program.exitOverride();
  for (const command of commands) if (command.load !== undefined) addCommand(program, command);
  return program;
}

function addGlobals(parser: Parser): void {
  parser
    .option("--json", "print one JSON document on stdout, all else on stderr")
    .option("--quiet", "print no log lines and no progress")
    .option("--verbose", "print more, and the stack of an error")
    .option("--adapter <name>", "gpu, software, lavapipe, swiftshader or a part of an adapter's name");
}

function addCommand(program: Parser, command: Command): void {
  const parser = program.command(command.name).summary(command.summary);
  parser.description(sentence(command.summary) + (command.notes === undefined ? "" : `\n\n${command.notes}`));
  for (const [name, help, choices] of command.args ?? []) {
    const argument = new Argument(name, help);
    parser.addArgument(choices === undefined ? argument : argument.choices(choices));
  }
  for (const option of command.options ?? []) parser.addOption(parserOption(option));
  parser.optionsGroup("Options for all commands:");
  addGlobals(parser);
  parser.helpOption("--help", "print this help");
  parser.addHelpText("after", `\nExamples:\n${command.examples.map((line) => `  $ ${line}`).join("\n")}`);
  parser.allowExcessArguments(false);
  parser.action(async () => {
    outcome = await runCommand(command, parser);
  });
}

function parserOption({ flags, help, parse, default: fallback, required, repeat, choices }: Option): ParserOption {
  const option = new ParserOption(flags, required === true ? `${help} (required)` : help);
  const flag = option.long ?? flags;
  if (choices !== undefined) option.choices(choices);
  const read = parse ?? ((text: string) => text);
  if (repeat === true) {
    option.argParser<unknown[]>((text, before) => [...(before ?? []), read(text, flag)]);
  } else if (parse !== undefined) {
    option.argParser((text) => read(text, flag));
  }
  if (fallback !== undefined) option.default(fallback);
  option.makeOptionMandatory(required ?? false);
  return option;
}

async function runCommand(command: Command, parser: Parser): Promise<number> {
  const options = parser.optsWithGlobals<Globals & Record<string, unknown>>();
  terminal = new Terminal(options);
  for (const option of command.options ?? []) {
    const name = parserOption(option).attributeName();
    if (option.repeat === true) options[name] ??= [];
  }
  const devices: Device[] = [];
  let interrupt: AbortController | undefined;
  const onSignal = () => {
    if (interrupt === undefined || interrupt.signal.aborted) process.exit(INTERRUPTED);
    terminal.log("interrupted: saving; press Ctrl-C again to leave at once");
    interrupt.abort();
  };
  process.on("SIGINT", onSignal).on("SIGTERM", onSignal);
  const call: Call<Record<string, unknown>> = {
    args: parser.args,
    options,
    terminal,
    async open() {
      const { Device } = await import("../index.ts");
      const device = await Device.open({ adapter: options.adapter });
      devices.push(device);
      terminal.detail(`adapter: ${device.name}`);
      return device;
    },
    interruptible() {
      interrupt ??= new AbortController();
      return interrupt.signal;
    },
  };
  try {
    await import("../index.ts"); // Hands Node's files and GPU to the engine; commands without a GPU save through it, too.
    const module = await command.load?.();
    return (await module?.run(call as Call<never>)) ?? DONE;
  } finally {
    for (const device of devices) await device.close();
    process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
  }
}

/** Prints what went wrong in one line and returns the exit code. */
function report(error: unknown): number {
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return DONE;
    if (error.code === "commander.help") return BAD_INPUT;
    terminal.error(error.message.replace(/^error: /, "").replaceAll("\n", " "));
    return BAD_INPUT;
  }
  const { message, stack, code }: NodeJS.ErrnoException = error instanceof Error ? error : new Error(String(error));
  const bad = error instanceof BadInput ? message : fileTrouble(error);
  const line = bad ?? message;
  terminal.error(terminal.verbose ? (stack ?? line) : line.split("\n", 1)[0] || "the command failed");
  if (bad !== undefined) return BAD_INPUT;
  if (code === "NO_ADAPTER") return NO_ADAPTER;
  if (code === "BAD_PROFILE") return BAD_INPUT;
  if (!terminal.verbose) terminal.log("run the command again with --verbose for the place in the code");
  return FAILED;
}

/** A path of the user's that cannot be opened is wrong input, wherever it came to light. */
function fileTrouble(error: unknown): string | undefined {
  const { code, path } = error as NodeJS.ErrnoException;
  if (typeof path !== "string") return undefined;
  if (code === "ENOENT") return `${path}: there is no such file or folder`;
  if (code === "EISDIR") return `${path}: is a folder, expected a file`;
  if (code === "EEXIST") return `${path}: is a file, expected a folder`;
  if (code === "ENOTDIR") return `${path}: a part of the path is a file, expected a folder`;
  if (code === "EACCES" || code === "EPERM") return `${path}: permission denied`;
  if (code === "EROFS") return `${path}: cannot be written there: the file system is read-only`;
  if (code === "ENOSPC") return `${path}: cannot be written: no space is left on the disk`;
  return undefined;
}

function version(): string {
  const { version } = JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8")) as { version: string };
  return version;
}

function sentence(summary: string): string {
  return `${summary.charAt(0).toUpperCase()}${summary.slice(1)}.`;
}

/** `wgpu-wish … | head` closes the pipe early; that is no failure. */
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(DONE);
  throw error;
});

try {
  // --verbose and --quiet count for errors that come before a command runs, too.
  const flags = process.argv.slice(2);
  terminal = new Terminal({ verbose: flags.includes("--verbose"), quiet: flags.includes("--quiet") });
  const program = buildParser();
  // Of a command that does not exist there is no help either: without the flag it is refused as usual.
  const [asked] = program.parseOptions(flags).operands;
  const known = asked === undefined || asked === "help" || commands.some(({ name }) => name === asked);
  await program.parseAsync(known ? flags : flags.filter((flag) => flag !== "--help"), { from: "user" });
} catch (error) {
  outcome = report(error);
}
process.exitCode = outcome;
