// Installs Mesa's software Vulkan (lavapipe) on Debian and Ubuntu. It computes four to nine times faster than SwiftShader.
// Debian 12's own Mesa is too old for Dawn, so its backports are added, from the mirror that the machine already uses.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const OLDEST_MESA = 24;
const ADDED = "/etc/apt/sources.list.d/wgpu-wish-backports.sources";

/** Returns "" when it is installed, else in a few words why not. */
export function installMesa() {
  const release = readRelease();
  if (!/debian|ubuntu/.test(`${release.ID} ${release.ID_LIKE}`))
    return "only Debian and Ubuntu are known to the set-up";
  if (!existsSync("/usr/bin/apt-get")) return "there is no apt-get";
  const codename = release.VERSION_CODENAME;
  if (!codename) return "the release's name is not known";
  try {
    apt(["update"], 120_000);
    let suite;
    if (candidate() < OLDEST_MESA && release.ID === "debian") {
      suite = `${codename}-backports`;
      if (candidate(suite) < OLDEST_MESA) {
        addSuite(codename, suite);
        apt(["update"], 120_000);
      }
    }
    if (candidate(suite) < OLDEST_MESA)
      throw new Error("apt offers none that is new enough; are its mirrors reachable?");
    const target = suite ? ["-t", suite] : [];
    apt(["install", "-y", "--no-install-recommends", ...target, "mesa-vulkan-drivers", "libvulkan1"], 300_000);
    return "";
  } catch (error) {
    rmSync(ADDED, { force: true });
    return error.message;
  }
}

function readRelease() {
  const fields = { ID: "", ID_LIKE: "", VERSION_CODENAME: "" };
  try {
    for (const line of readFileSync("/etc/os-release", "utf8").split("\n")) {
      const [, key, value] = /^(\w+)="?([^"]*)"?$/.exec(line) ?? [];
      if (key in fields) fields[key] = value;
    }
  } catch {
    // Not a Linux of the usual kind: the fields stay empty.
  }
  return fields;
}

function apt(args, timeout) {
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive", LC_ALL: "C" };
  const { status, stderr, error } = spawnSync("apt-get", ["-q", "-o", "DPkg::Lock::Timeout=30", ...args], {
    env,
    timeout,
    encoding: "utf8",
    stdio: ["ignore", "ignore", "pipe"],
  });
  if (status === 0) return;
  const line = stderr?.split("\n").find((text) => text.startsWith("E:"));
  throw new Error(`apt-get ${args[0]}: ${line?.slice(3) ?? error?.code ?? `exit code ${status}`}`);
}

/** Major version of the Mesa that apt would install, 0 when it knows none. */
function candidate(suite) {
  const target = suite ? ["-t", suite] : [];
  const { stdout } = spawnSync("apt-cache", [...target, "policy", "mesa-vulkan-drivers"], {
    encoding: "utf8",
    env: { ...process.env, LC_ALL: "C" },
  });
  return Number(/Candidate: (?:\d+:)?(\d+)/.exec(stdout ?? "")?.[1] ?? 0);
}

/** Names `suite` beside the source that serves the release itself: the same mirror, the same signing key. */
function addSuite(codename, suite) {
  const source = sources().find(({ suites, components }) => suites.includes(codename) && components.includes("main"));
  if (!source) throw new Error(`apt's sources name no mirror of ${codename}`);
  const lines = ["Types: deb", `URIs: ${source.uri}`, `Suites: ${suite}`, "Components: main"];
  if (source.signedBy) lines.push(`Signed-By: ${source.signedBy}`);
  writeFileSync(ADDED, `${lines.join("\n")}\n`);
}

/** apt's sources in both forms: one line each (.list), and paragraphs of fields (.sources). */
function sources() {
  const folder = "/etc/apt/sources.list.d";
  const names = existsSync(folder) ? readdirSync(folder).map((name) => join(folder, name)) : [];
  const found = [];
  for (const file of ["/etc/apt/sources.list", ...names].filter((name) => existsSync(name))) {
    const text = readFileSync(file, "utf8");
    if (file.endsWith(".sources")) {
      for (const paragraph of text.split(/\n\s*\n/)) {
        const field = (name) => new RegExp(`^${name}:\\s*(.*)$`, "mi").exec(paragraph)?.[1]?.trim() ?? "";
        if (/\bdeb\b/.test(field("Types")) && field("Enabled") !== "no") {
          found.push({
            uri: field("URIs").split(/\s+/)[0],
            suites: field("Suites").split(/\s+/),
            components: field("Components").split(/\s+/),
            signedBy: field("Signed-By"),
          });
        }
      }
    } else if (file.endsWith(".list")) {
      for (const line of text.split("\n")) {
        const [, options = "", uri, suite, rest] =
          /^deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.*)$/.exec(line.trim()) ?? [];
        if (!uri) continue;
        const signedBy = /signed-by=(\S+)/.exec(options)?.[1] ?? "";
        found.push({ uri, suites: [suite], components: rest.split(/\s+/), signedBy });
      }
    }
  }
  return found;
}
