/** The library in Node: opens Dawn, reads shaders from the package's folder. In a browser page use platform/browser.ts. */
import { setPlatform } from "./engine/platform.ts";
import { nodePlatform } from "./platform/node.ts";

setPlatform(nodePlatform);

export * from "./engine/index.ts";
