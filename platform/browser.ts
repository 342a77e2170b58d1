/** The library in a browser page: navigator.gpu, shaders by URL or from a bundler, files by fetch. */
import { type Platform, setPlatform } from "../engine/platform.ts";

export interface BrowserOptions {
  /**
   * The shaders: the URL of the folder shaders/ (each is read when it is first used), or their texts by name, as a bundler's
   * glob import gives them. Default: the folder shaders/ beside this module's own.
   */
  shaders?: string | URL | Readonly<Record<string, string>>;
}

/** A platform for Device.open() in a page or a worker. Importing this module sets one with the defaults. */
export function browserPlatform({ shaders = new URL("../shaders/", import.meta.url) }: BrowserOptions = {}): Platform {
  return {
    async requestAdapter(wish) {
      if (!("gpu" in navigator)) {
        throw new Error("this browser offers no WebGPU (navigator.gpu); use a current one over https or localhost");
      }
      const software = wish === "software" || wish === "swiftshader";
      const adapter = await navigator.gpu.requestAdapter(
        software ? { forceFallbackAdapter: true } : { powerPreference: "high-performance" },
      );
      if (adapter === null) throw new Error("the browser finds no GPU adapter; see chrome://gpu or about:support");
      const { device, description, vendor } = adapter.info;
      return { gpu: navigator.gpu, adapter, name: device || description || vendor || "unnamed adapter" };
    },

    shader(name) {
      if (!(shaders instanceof URL) && typeof shaders === "object") {
        const text = shaders[name];
        if (text === undefined) throw new Error(`shaders/${name}.wgsl: not among the shaders that were handed over`);
        return text;
      }
      return fetchNow(new URL(`${name}.wgsl`, new URL(shaders, location.href)));
    },

    async readFile(path) {
      const response = await fetch(path);
      if (!response.ok) throw new Error(`${path}: the server answers ${response.status} ${response.statusText}`);
      return new Uint8Array(await response.arrayBuffer());
    },

    async writeFile(path) {
      throw new Error(`${path}: a page cannot write files; encode the tensors and offer them as a download`);
    },

    environment: () => undefined,

    async readCache(name) {
      try {
        return localStorage.getItem(`wgpu-wish/${name}`) ?? undefined;
      } catch {
        return undefined; // A worker has none, and a page may be denied it.
      }
    },

    async writeCache(name, text) {
      try {
        localStorage.setItem(`wgpu-wish/${name}`, text);
      } catch {
        // Denied or full: then it is not kept.
      }
    },
  };
}

/** A kernel is compiled in the midst of synchronous code, so its text is fetched synchronously, once for each file. */
function fetchNow(url: URL): string {
  const request = new XMLHttpRequest();
  request.open("GET", url, false);
  request.send();
  if (request.status !== 200) throw new Error(`${url}: the server answers ${request.status} ${request.statusText}`);
  return request.responseText;
}

setPlatform(browserPlatform());

export * from "../engine/index.ts";
