/** All that commands write: results to stdout; log lines, warnings and progress to stderr. */

export interface TerminalOptions {
  json?: boolean | undefined;
  quiet?: boolean | undefined;
  verbose?: boolean | undefined;
}

export type Cell = string | number;

export class Terminal {
  readonly json: boolean;
  readonly quiet: boolean;
  readonly verbose: boolean;
  /** stderr is a terminal that may be coloured and redrawn. */
  readonly live: boolean;
  #bar: Progress | undefined;

  constructor(options: TerminalOptions = {}) {
    this.json = options.json ?? false;
    this.quiet = options.quiet ?? false;
    this.verbose = options.verbose ?? false;
    this.live = process.stderr.isTTY === true && !process.env.NO_COLOR && process.env.TERM !== "dumb";
  }

  /** A line about what is going on; --quiet leaves it out. */
  log(line: string): void {
    if (!this.quiet) this.#line(line);
  }

  /** A line that only --verbose shows. */
  detail(line: string): void {
    if (this.verbose) this.#line(this.#paint(2, line));
  }

  /** A line that is shown even with --quiet. */
  warn(line: string): void {
    this.#line(`${this.#paint(33, "warning:")} ${line}`);
  }

  error(line: string): void {
    this.#line(`${this.#paint(31, "error:")} ${line}`);
  }

  /** The command's outcome: `document` with --json, `text` otherwise. Call it once. */
  result(document: unknown, text: string): void {
    this.#bar?.end();
    const out = this.json ? JSON.stringify(document, null, 2) : text;
    if (out !== "") process.stdout.write(out.endsWith("\n") ? out : `${out}\n`);
  }

  /** A bar for `total` things, drawn on a terminal; where there is none, a line now and then. */
  progress(total: number, unit = "img"): Progress {
    this.#bar?.end();
    const bar = new Progress(total, unit, this.live && !this.quiet, (line) => {
      if (!this.quiet) process.stderr.write(line);
    });
    this.#bar = bar;
    return bar;
  }

  #line(line: string): void {
    this.#bar?.clear();
    process.stderr.write(`${line}\n`);
  }

  #paint(code: number, text: string): string {
    return this.live ? `\u001b[${code}m${text}\u001b[0m` : text;
  }
}

/** Without a terminal a line is written this often, so that a log file stays readable. */
const SECONDS_BETWEEN_LINES = 15;
const SECONDS_BETWEEN_FRAMES = 0.1;

export class Progress {
  #total: number;
  #unit: string;
  #live: boolean;
  #write: (text: string) => void;
  #started = performance.now();
  #first: number | undefined;
  #drawn = 0;
  #shown = false;
  #ended = false;
  #complete = false;
  #line = "";

  constructor(total: number, unit: string, live: boolean, write: (text: string) => void) {
    this.#total = total;
    this.#unit = unit;
    this.#live = live;
    this.#write = write;
    this.#drawn = this.#started;
  }

  /**
   * `done` things are finished. `terms` are shown as they are (numbers in four digits), `each` is what one of the things
   * holds (images in a step) for the rate.
   */
  update(done: number, terms: Record<string, Cell> = {}, each = 1): void {
    const now = performance.now();
    // The first call may come after a resume, so the rate counts from there.
    this.#first ??= done > 0 ? done - 1 : 0;
    const seconds = (now - this.#started) / 1000;
    const rate = (done - this.#first) / Math.max(seconds, 1e-9);
    const left = rate > 0 ? (this.#total - done) / rate : Number.POSITIVE_INFINITY;
    const shown = Object.entries(terms).map(
      ([name, value]) => `${name} ${typeof value === "number" ? short(value) : value}`,
    );
    const speed = `${short(rate * each)} ${this.#unit}/s`;
    this.#line = [
      `${done}/${this.#total}`,
      ...shown,
      speed,
      done < this.#total ? `${duration(left)} left` : duration(seconds),
    ].join("  ");
    const wait = this.#live ? SECONDS_BETWEEN_FRAMES : SECONDS_BETWEEN_LINES;
    if (done < this.#total ? now - this.#drawn < wait * 1000 : this.#complete) return;
    this.#complete = done >= this.#total;
    this.#drawn = now;
    this.#draw(done);
  }

  /** Leaves the last state standing. */
  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    if (this.#live && this.#shown) this.#write("\n");
    this.#shown = false;
  }

  /** Takes the bar away so that a line can be written; the next update draws it again. */
  clear(): void {
    if (this.#live && this.#shown && !this.#ended) this.#write("\r\u001b[2K");
    this.#shown = false;
  }

  #draw(done: number): void {
    if (this.#ended) return;
    if (!this.#live) {
      this.#write(`${this.#line}\n`);
      return;
    }
    const width = 20;
    const filled = Math.min(width, Math.round((width * done) / Math.max(1, this.#total)));
    const bar = `${"━".repeat(filled)}${"─".repeat(width - filled)}`;
    // Some pseudo-terminals say 0.
    const columns = process.stderr.columns || 80;
    this.#write(`\r\u001b[2K${`${bar} ${this.#line}`.slice(0, Math.max(20, columns - 1))}`);
    this.#shown = true;
  }
}

/** Columns padded to one width; numbers stand right. */
export function table(headers: readonly string[], rows: readonly (readonly Cell[])[]): string {
  const text = rows.map((row) => row.map((cell) => (typeof cell === "number" ? short(cell) : cell)));
  const widths = headers.map((header, i) => Math.max(header.length, ...text.map((row) => row[i]?.length ?? 0)));
  const right = headers.map((_, i) => rows.length > 0 && rows.every((row) => typeof row[i] === "number"));
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, i) => (right[i] ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0)))
      .join("  ")
      .trimEnd();
  return [line(headers), line(widths.map((width) => "─".repeat(width))), ...text.map(line)].join("\n");
}

/** Four significant digits; integers as they are. */
export function short(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e9)) return value.toExponential(2);
  return value.toFixed(Math.max(0, Math.min(4, 3 - Math.floor(Math.log10(size)))));
}

/** `0:07`, `12:34`, `1:02:03`. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "?";
  const whole = Math.round(seconds);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n: number) => String(n).padStart(2, "0");
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** Bytes in the unit that leaves the fewest digits. */
export function bytes(count: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, count > 0 ? Math.floor(Math.log2(count) / 10) : 0);
  const value = count / 2 ** (10 * power);
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${units[power]}`;
}
