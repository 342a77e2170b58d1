#!/usr/bin/env node
// In a checkout the TypeScript sources run as they are, through tsx. The published package holds JavaScript instead,
// because Node takes no TypeScript from node_modules.
import { existsSync } from "node:fs";

if (existsSync(new URL("../cli/main.ts", import.meta.url))) {
  const { register } = await import("tsx/esm/api").catch(() => {
    console.error("error: the packages are not installed; run: npm run setup");
    process.exit(1);
  });
  register();
  await import("../cli/main.ts");
} else {
  await import("../cli/main.js");
}
