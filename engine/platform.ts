/**
 * What the engine asks of the place it runs in. The engine itself knows neither Node nor the browser: `platform/node.ts` or
 * `platform/browser.ts` hands in a GPU entry point, the text of the shaders, the few file operations that `load` and `save` need, and a place for
 * small texts that may get lost.
 */
export interface Platform {
  /** Opens the GPU entry point and returns an adapter that fits the wish ("gpu", "software", a part of the adapter's name; undefined: the best there is). */
  requestAdapter(wish: string | undefined): Promise<{ gpu: GPU; adapter: GPUAdapter; name: string }>;
  /** Text of `shaders/<name>.wgsl`. Throws an error that names the file where it is missing. */
  shader(name: string): string;
  readFile(path: string): Promise<Uint8Array>;
  /** Atomic: after a crash either the old file or the new one is there, whole. */
  writeFile(path: string, bytes: Uint8Array): Promise<void>;
  environment(name: string): string | undefined;
  /**
   * Leaves the processor to others until the promise is settled, where waiting for one would keep it busy: Dawn in Node looks for finished
   * work in a loop. Never rejects.
   */
  doze?(until: Promise<unknown>): Promise<void>;
  /** Does `work` when the program has nothing left to do, where the place knows such a moment. */
  atEnd?(work: () => Promise<void>): void;
  /** What `writeCache` kept under the name; undefined where it kept nothing, or nothing can be kept here. Never rejects. */
  readCache(name: string): Promise<string | undefined>;
  /** Keeps a text from one process to the next where that is possible, atomically; where it is not, nothing happens. Never rejects. */
  writeCache(name: string, text: string): Promise<void>;
}

let current: Platform | undefined;

export function setPlatform(platform: Platform): void {
  current = platform;
}

export function platform(): Platform {
  if (!current)
    throw new Error(
      'engine: no platform is set; import from "wgpu-wish" (Node or browser entry), or call setPlatform() before Device.open()',
    );
  return current;
}
