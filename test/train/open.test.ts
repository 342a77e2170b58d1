// Files that the user names, of other kinds than files: devices, which never end, and pipes, to which nobody may write.
import { execFileSync, spawn } from "node:child_process";
import {
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { packageRoot } from "../../platform/root.ts";
import { readImage, writePng } from "../../train/data/image.ts";
import { readBytes, readText, readWhole } from "../../train/data/open.ts";
import { makeScene } from "../../train/data/scenes.ts";
import { BadInput } from "../../train/errors.ts";
import { readNamed, readWeightBytes } from "../../train/files.ts";
import { readWeightFile } from "../../train/weights.ts";

const test = suite("files and what is none");
const folder = mkdtempSync(join(tmpdir(), "wgpu-wish-open-"));
const at = (name: string) => join(folder, name);
const WEIGHTS = fileURLToPath(new URL("../parity/sam-vit.pt", import.meta.url));
test.after(() => rmSync(folder, { recursive: true }));

const isWindows = process.platform === "win32";

function pipe(name: string): string {
  execFileSync("sh", ["-c", 'mkfifo "$0"', at(name)]);
  return at(name);
}

/** Another process writes a file into a pipe. */
function writeInto(path: string, from: string): void {
  spawn("sh", ["-c", 'cat "$0" > "$1"', from, path], { stdio: "ignore" });
}

async function refused(reading: () => unknown): Promise<string> {
  try {
    await reading();
  } catch (error) {
    assert.instance(error, BadInput);
    return (error as Error).message;
  }
  return "nothing was thrown";
}

test("a folder is none, and an empty file is one", async () => {
  for (const read of [readNamed, readWeightBytes, readBytes, readText])
    assert.match(await refused(() => read(folder, "weights")), /is a folder/);
  writeFileSync(at("empty"), "");
  assert.is((await readNamed(at("empty"), "weights")).length, 0);
  assert.is((await readWhole(WEIGHTS)).length, readFileSync(WEIGHTS).length);
});

if (!isWindows) {
  test("devices are refused, also behind links and as shards", async () => {
    symlinkSync("/dev/zero", at("zero.safetensors"));
    for (const path of ["/dev/zero", at("zero.safetensors")])
      for (const read of [readNamed, readWeightBytes, readBytes, readText]) {
        const told = await refused(() => read(path, "weights"));
        assert.ok(told.startsWith(`${path}: `) && /is no regular file/.test(told), told);
      }
    writeFileSync(at("index.json"), JSON.stringify({ weight_map: { w: "zero.safetensors" } }));
    assert.match(
      await refused(() => readWeightFile(at("index.json"), "weights")),
      /zero\.safetensors: is no regular file; expected a part of .*index\.json$/,
    );
    assert.match(await refused(() => readImage("/dev/zero")), /^\/dev\/zero: the image is no regular file$/);
  });

  test("pipes are read to their end: weights and images", async () => {
    const whole = new Uint8Array(readFileSync(WEIGHTS));
    for (const [i, read] of [readNamed, readWeightBytes, readBytes].entries()) {
      const path = pipe(`whole${i}`);
      writeInto(path, WEIGHTS);
      assert.equal(await read(path, "weights"), whole);
    }
    // Who reads comes first.
    const path = pipe("weights");
    const reading = readWeightFile(path, "weights");
    await new Promise((resolve) => setTimeout(resolve, 50));
    writeInto(path, WEIGHTS);
    assert.ok((await reading).tensors.size > 100);
    await writePng(at("scene.png"), makeScene(5, 1, 64).image);
    writeInto(pipe("image"), at("scene.png"));
    assert.equal(await readImage(at("image")), await readImage(at("scene.png")));
    writeInto(pipe("nothing"), "/dev/null");
    assert.is((await readBytes(at("nothing"), "weights")).length, 0);
  });

  test("a shell's pipe has no path of its own, and is read", async () => {
    const line = 'cat "$1" | "$0" "$2" convert /dev/stdin "$3" --quiet';
    const args = [process.execPath, join(packageRoot, "bin", "wgpu-wish.mjs"), WEIGHTS, at("piped.safetensors")];
    const [node, program, ...files] = args as [string, string, string, string];
    execFileSync("sh", ["-c", line, node, files[0], program, files[1]], { stdio: ["ignore", "ignore", "inherit"] });
    assert.ok((await readWeightFile(at("piped.safetensors"), "weights")).tensors.size > 100);
  });

  test("predict takes an image, or a model's weights, from a shell's pipe", async () => {
    const model = fileURLToPath(new URL("../../assets/wish-scenes.safetensors", import.meta.url));
    await writePng(at("one.png"), makeScene(5, 1, 64).image);
    const program = [process.execPath, join(packageRoot, "bin", "wgpu-wish.mjs")] as const;
    for (const [line, piped] of [
      [`cat "$2" | "$0" "$1" predict --checkpoint "$3" /dev/stdin --out "$4" --quiet`, "image"],
      [`cat "$3" | "$0" "$1" predict --checkpoint /dev/stdin "$2" --out "$4" --quiet`, "model"],
    ] as const) {
      const out = at(`of-${piped}`);
      const stdio = ["ignore", "ignore", "inherit"] as const;
      execFileSync("sh", ["-c", line, ...program, at("one.png"), model, out], { stdio: [...stdio] });
      assert.ok(existsSync(join(out, "results.json")), piped);
    }
  });

  test("a pipe that does not end is left at a bound", async () => {
    writeInto(pipe("endless"), "/dev/zero");
    const error: unknown = await readWhole(at("endless"), undefined, 1e6).catch((cause: unknown) => cause);
    assert.is((error as Error).message, "gives more than 1000000 bytes, which is the most that is read from a pipe");
  });

  test("signals end a command that waits for a pipe", async () => {
    copyFileSync(WEIGHTS, at("sam.pt"));
    const ended = async (signal: NodeJS.Signals, silent: string, ...args: string[]): Promise<number | null> => {
      const child = spawn(process.execPath, [join(packageRoot, "bin", "wgpu-wish.mjs"), ...args], { stdio: "ignore" });
      const end = new Promise<number | null>((resolve) => child.on("close", resolve));
      const writer = await opened(silent);
      child.kill(signal);
      const late = setTimeout(() => child.kill("SIGKILL"), 5000);
      const code = await end;
      clearTimeout(late);
      closeSync(writer);
      return code;
    };
    const [weights, image] = [pipe("silent weights"), pipe("silent image")];
    const options = ["--checkpoint", at("sam.pt"), "--image", image, "--point", "1,1", "--out", at("out")];
    assert.equal(
      await Promise.all([
        ended("SIGTERM", weights, "convert", weights, at("out.safetensors")),
        ended("SIGINT", image, "sam", ...options),
      ]),
      [130, 130],
    );
  });
}

/** For writing, as soon as another process reads. */
async function opened(path: string): Promise<number> {
  for (;;) {
    try {
      return openSync(path, constants.O_WRONLY | constants.O_NONBLOCK);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENXIO") throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

test.run();
