// Run by `npm pack`: writes the JavaScript and the type declarations beside the sources, so that `exports`, imports and the
// paths to shaders/ are the same in the checkout and in the tarball. `--clean` takes them away again afterwards.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const layers = ["platform", "engine", "model", "train", "cli"];

/** Files made from a source that stands beside them, or did: whatever is .js or .d.ts in the layers' folders. */
export function removeBuilt() {
  const inLayers = layers
    .filter((layer) => existsSync(join(root, layer)))
    .flatMap((layer) => readdirSync(join(root, layer), { recursive: true }).map((name) => join(layer, String(name))));
  for (const name of [...inLayers, "index.js", "index.d.ts"]) {
    if (/\.(js|d\.ts)$/.test(name)) rmSync(join(root, name), { force: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  removeBuilt();
  if (!process.argv.includes("--clean")) {
    const tsc = join(root, "node_modules", "typescript", "bin", "tsc");
    const { status } = spawnSync(process.execPath, [tsc, "-p", "tsconfig.build.json"], {
      cwd: root,
      stdio: ["ignore", 2, 2],
    });
    if (status !== 0) {
      removeBuilt();
      console.error("error: the package is not built: see the compiler's messages above");
      process.exit(1);
    }
  }
}
