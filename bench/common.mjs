/** What the peers share: Dawn in a place where engines made for browsers look for it, and numbers to compute with. */
import { create, globals } from "webgpu";

/** Dawn crashes when these are collected while in use. */
const alive = [];

/** Puts `navigator.gpu` in place and returns the adapter's name. */
export async function browserGpu() {
  Object.assign(globalThis, globals);
  const gpu = create([]);
  alive.push(gpu);
  Object.defineProperty(globalThis, "navigator", {
    value: { gpu, userAgent: "node" },
    configurable: true,
    writable: true,
  });
  const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new Error("no adapter answers");
  alive.push(adapter);
  return adapter.info.device || adapter.info.description;
}

/** n numbers from -1 to 1, the same for a seed. */
export function numbers(n, seed, scale = 1) {
  const out = new Float32Array(n);
  let state = seed * 2654435761 + 1;
  for (let i = 0; i < n; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    out[i] = (state / 2 ** 31 - 1) * scale;
  }
  return out;
}

export const classes = (n) => Int32Array.from({ length: n }, (_, i) => i % 10);
