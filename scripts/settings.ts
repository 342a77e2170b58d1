/**
 * Writes configs/README.md, the table of all settings of `wgpu-wish train`, from the schema in train/config.ts:
 *
 *     node --import tsx scripts/settings.ts
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { packageRoot } from "../platform/root.ts";
import { settingsPage } from "../train/config.ts";

writeFileSync(join(packageRoot, "configs", "README.md"), settingsPage());
