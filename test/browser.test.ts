/** The engine and the models run in a browser page as they are: Chromium from node_modules, on its own software adapter. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { brotliDecompressSync } from "node:zlib";
import { build } from "esbuild";
import { type Browser, chromium } from "playwright-core";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { packageRoot } from "../platform/root.ts";
import { readTar } from "../platform/tar.ts";

const test = suite("browser");
const supported = process.platform === "linux" && process.arch === "x64";

/** What runs in the page: values, a gradient, a model's module. */
const PAGE = `
  import { backward, Device, F, nn } from "./platform/browser.ts";
  import * as model from "./model/index.ts";
  globalThis.check = async () => {
    const gpu = await Device.open();
    const x = gpu.tensor([1, 2, 3, 4, 5, 6], [2, 3], { requiresGrad: true });
    const y = F.matmul(x, F.permute(x, [1, 0]));
    backward(F.sum(F.mul(y, 0.5)));
    const linear = new nn.Linear(gpu, 3, 2);
    const shape = linear.forward(x).shape;
    const result = { y: [...(await y.toArray())], grad: [...(await x.grad.toArray())], shape, models: Object.keys(model).length };
    gpu.close();
    return result;
  };`;

test("a page computes values and gradients", async () => {
  if (!supported) {
    console.log("skipped: the Chromium of the npm package is for Linux on x64");
    return;
  }
  const bundle = await build({
    stdin: { contents: PAGE, resolveDir: packageRoot, loader: "ts" },
    bundle: true,
    write: false,
    format: "esm",
    platform: "browser",
    target: "es2022",
  });
  const script = bundle.outputFiles[0]?.text ?? "";
  const server = createServer((request, response) => {
    const path = request.url ?? "/";
    const shader = /^\/shaders\/(\w+)\.wgsl$/.exec(path)?.[1];
    if (path === "/")
      response.setHeader("content-type", "text/html").end('<script type="module" src="/dist/page.js"></script>');
    else if (path === "/dist/page.js") response.setHeader("content-type", "text/javascript").end(script);
    else if (shader !== undefined) response.end(readFileSync(join(packageRoot, "shaders", `${shader}.wgsl`)));
    else response.writeHead(404).end();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const libraries = mkdtempSync(join(tmpdir(), "wgpu-wish-browser-"));
  let browser: Browser | undefined;
  try {
    browser = await launch(libraries);
    const page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
    await page.waitForFunction("globalThis.check !== undefined");
    const result = (await page.evaluate("globalThis.check()")) as Record<string, unknown>;
    assert.equal(result.y, [14, 32, 32, 77]);
    // The sum of x xᵀ over all entries, halved, has the gradient sum over rows, for each row.
    assert.equal(result.grad, [5, 7, 9, 5, 7, 9]);
    assert.equal(result.shape, [2, 2]);
    assert.ok((result.models as number) > 0);
  } finally {
    await browser?.close();
    server.close();
    rmSync(libraries, { recursive: true, force: true });
  }
});

/** The package's Chromium, with the package's libnss3 beside it for machines that have none. */
async function launch(libraries: string): Promise<Browser> {
  const { default: packaged } = await import("@sparticuz/chromium");
  const executablePath = await packaged.executablePath();
  const archive = join(packageRoot, "node_modules", "@sparticuz", "chromium", "bin", "al2023.tar.br");
  mkdirSync(join(libraries, "lib"));
  for (const { name, bytes } of readTar(brotliDecompressSync(readFileSync(archive)))) {
    writeFileSync(join(libraries, "lib", basename(name)), bytes);
  }
  const path = [process.env.LD_LIBRARY_PATH, join(libraries, "lib")].filter(Boolean).join(":");
  return await chromium.launch({
    executablePath,
    args: ["--no-sandbox", "--enable-unsafe-webgpu"],
    env: { ...process.env, LD_LIBRARY_PATH: path } as Record<string, string>,
  });
}

test.run();
