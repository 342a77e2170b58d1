/** What shows progress; cli/terminal.ts is one. */
export interface Display {
  log(line: string): void;
  warn(line: string): void;
  progress(
    total: number,
    unit?: string,
  ): { update(done: number, terms?: Record<string, number | string>, each?: number): void; end(): void };
}
