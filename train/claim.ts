/**
 * A run's folder while something writes to it: it is there, it may be written to, and no other process uses it. The lock names its owner;
 * that of a process that is gone is taken over, so that a killed run can go on.
 */
import { existsSync, linkSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join, resolve } from "node:path";
import { BadInput } from "./errors.ts";
import { makeFolders, removeEmpty } from "./folders.ts";

export const LOCK = "lock";

interface Owner {
  pid: number;
  host: string;
  /** When the process began, where the system tells: a number may belong to another process by now. */
  born?: string;
}

export interface Claim {
  /** Lets go of the folder. One that was made for the claim and in which nothing is goes, too: nothing came of the work. */
  release(): void;
}

const held = new Set<string>();

/** Makes the folder where it is missing and locks it. Throws BadInput. @param option what names the folder, for the errors */
export function claimRun(run: string, option = "run=DIR"): Claim {
  const made = makeWritable(run, option);
  const path = resolve(run, LOCK);
  const born = birth(process.pid);
  const mine: Owner = { pid: process.pid, host: hostname(), ...(born === undefined ? {} : { born }) };
  take(run, path, JSON.stringify(mine), option);
  held.add(path);
  const release = (): void => {
    process.off("exit", release);
    if (!held.delete(path)) return;
    rmSync(path, { force: true });
    removeEmpty(made);
  };
  process.on("exit", release);
  return { release };
}

/**
 * Makes a folder and looks whether files can be made in it. Throws BadInput. Returns the folders that it made. @param option what names the
 * folder
 */
export function makeWritable(path: string, option: string): string[] {
  try {
    const made = makeFolders(path);
    const probe = join(path, `.probe.${process.pid}.tmp`);
    writeFileSync(probe, "");
    rmSync(probe);
    return made;
  } catch (cause) {
    throw new BadInput(
      `${path}: a folder is needed that can be made and written to (${(cause as Error).message}); name another one with ${option}`,
    );
  }
}

function take(run: string, path: string, owner: string, option: string): void {
  // Written beside and linked: the lock is there with its owner's name or not at all.
  const beside = `${path}.${process.pid}.tmp`;
  writeFileSync(beside, owner);
  try {
    while (!linked(beside, path)) {
      const other = ownerOf(path);
      if (other && lives(other, path))
        throw new BadInput(
          `${run}: process ${other.pid} on ${other.host} is working in this folder; wait for it, or name another folder with ${option} (if that process is gone, delete ${path})`,
        );
      rmSync(path, { force: true });
    }
  } finally {
    rmSync(beside, { force: true });
  }
}

function linked(from: string, to: string): boolean {
  try {
    linkSync(from, to);
    return true;
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "EEXIST") return false;
    if (existsSync(to)) return false;
    // A file system without links, such as exFAT.
    writeFileSync(to, readFileSync(from), { flag: "wx" });
    return true;
  }
}

function ownerOf(path: string): Owner | undefined {
  try {
    const owner = JSON.parse(readFileSync(path, "utf8")) as Owner;
    return Number.isSafeInteger(owner.pid) && typeof owner.host === "string" ? owner : undefined;
  } catch {
    return undefined;
  }
}

function lives({ pid, host, born }: Owner, path: string): boolean {
  // What runs on another machine that shares the folder cannot be seen from here.
  if (host !== hostname()) return true;
  // A restarted container may give this process the number of the one that was killed.
  if (pid === process.pid) return held.has(path);
  try {
    process.kill(pid, 0);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ESRCH") return false;
  }
  return born === undefined || birth(pid) === born;
}

/** Field 22 of /proc/PID/stat, the start in clock ticks; undefined where there is no such file. */
function birth(pid: number): string | undefined {
  try {
    // The second field is a name in brackets, which may hold spaces.
    return readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)?.split(" ")[19];
  } catch {
    return undefined;
  }
}
