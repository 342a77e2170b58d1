import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/**
 * The folder that holds package.json, shaders/, assets/ and configs/: the checkout, or the installed package. This file
 * stands in platform/ in both, so one step up is enough; the check turns a broken copy into a clear message.
 */
export const packageRoot: string = (() => {
  const root = dirname(dirname(fileURLToPath(import.meta.url)));
  if (!existsSync(join(root, "shaders"))) {
    throw new Error(`${root}: the package's folder shaders/ is missing; install the package again`);
  }
  return root;
})();
