/**
 * Writes configs/README.md, the tables of all settings, from the schemas:
 *
 *     node --import tsx scripts/settings.ts
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { packageRoot } from "../platform/root.ts";
import { settingsPage } from "../train/settings-page.ts";

writeFileSync(join(packageRoot, "configs", "README.md"), settingsPage());
