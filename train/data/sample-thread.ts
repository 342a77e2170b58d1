/** A thread of the pool: takes jobs, hands samples back. */
import { parentPort } from "node:worker_threads";
import { BadInput } from "../errors.ts";
import { loadSample, type Sample } from "./sample.ts";
import type { FromThread, ToThread } from "./sample-pool.ts";

const port = parentPort!;

port.on("message", async (message: ToThread) => {
  if (message === "end") {
    port.close();
    return;
  }
  const { id, job } = message;
  try {
    const sample = await loadSample(job);
    port.postMessage({ id, sample } satisfies FromThread, buffersOf(sample));
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    port.postMessage({ id, message: text, badInput: error instanceof BadInput } satisfies FromThread);
  }
});

/** Pixels and masks change hands; they are not copied. */
function buffersOf({ rgb, masks, proxies = [] }: Sample): ArrayBuffer[] {
  const arrays = [rgb, ...masks, ...proxies.flatMap((proxy) => proxy.masks)];
  return [...new Set(arrays.map((array) => array.buffer as ArrayBuffer))];
}
