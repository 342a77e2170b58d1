/**
 * A child process of `wgpu-wish bench --compare`: measures one peer. It is told a row by name and for how long, and answers with the median.
 *
 *     node peer.mjs tfjs|jax-js|onnxruntime
 */
const peers = { tfjs: "./tfjs.mjs", "jax-js": "./jax.mjs", onnxruntime: "./onnx.mjs" };
const name = process.argv[2];
const { open } = await import(peers[name]);
/** rows[name](): prepares, and gives a function that does the work once and waits for it. */
const { adapter, rows } = await open();
const prepared = new Map();

async function measure(row, budgetMs) {
  if (!(row in rows)) return { missing: true };
  let work = prepared.get(row);
  if (!work) {
    work = await rows[row]();
    prepared.set(row, work);
  }
  const once = async () => {
    const start = performance.now();
    await work();
    return performance.now() - start;
  };
  const first = await once();
  const times = [];
  for (let total = 0; times.length < 5 || (total < budgetMs && times.length < 50); total += times.at(-1))
    times.push(await once());
  return { first, ms: times.sort((a, b) => a - b)[Math.floor(times.length / 2)] };
}

process.on("message", async ({ row, budgetMs }) => {
  try {
    process.send({ row, ...(await measure(row, budgetMs)) });
  } catch (error) {
    process.send({ row, error: String(error?.message ?? error) });
  }
});
process.on("disconnect", () => process.exit(0));
process.send({ adapter });
