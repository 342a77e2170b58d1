/** jax-js on WebGPU. A value is used up by what takes it; `.ref` keeps it for another use. Everything is compiled by `jit` but the additions. */
import { browserGpu, classes, numbers } from "./common.mjs";

export async function open() {
  const adapter = await browserGpu();
  const { blockUntilReady, defaultDevice, init, jit, lax, nn, numpy: np, valueAndGrad } = await import("@jax-js/jax");
  await init("webgpu");
  defaultDevice("webgpu");
  const x = (shape, seed, scale) =>
    np
      .array(
        numbers(
          shape.reduce((a, b) => a * b, 1),
          seed,
          scale,
        ),
      )
      .reshape(shape);
  const forward = (f, inputs) => {
    const compiled = jit(f);
    return async () => {
      const y = compiled(...inputs.map((input) => input.ref));
      await blockUntilReady(y);
      y.dispose();
    };
  };
  const matmul = (n) => () => forward((a, b) => np.matmul(a, b), [x([n, n], 1), x([n, n], 2)]);
  /** One SGD step whose loss is read; `loss` takes the parameters. */
  const step = (loss, parameters) => {
    let state = parameters;
    const compiled = jit((...ps) => {
      const [value, gradients] = valueAndGrad((...qs) => loss(qs), { argnums: ps.map((_, i) => i) })(
        ...ps.map((p) => p.ref),
      );
      return [value, ps.map((p, i) => p.sub(gradients[i].mul(0.01)))];
    });
    return async () => {
      const [value, next] = compiled(...state);
      state = next;
      await value.data();
    };
  };
  const rows = {
    "matmul-512": matmul(512),
    "matmul-1024": matmul(1024),
    attention: () =>
      forward(
        (q, k, v) => np.matmul(nn.softmax(np.matmul(q, np.transpose(k, [0, 2, 1])).mul(1 / 8), -1), v),
        [1, 2, 3].map((seed) => x([8, 1024, 64], seed)),
      ),
    conv3x3: () => forward((a, w) => lax.conv(a, w, [1, 1], "SAME"), [x([1, 64, 128, 128], 1), x([64, 64, 3, 3], 2)]),
    layernorm: () =>
      forward(
        (a, w, b) => {
          const centred = a.ref.sub(np.mean(a, 1, { keepdims: true }));
          const variance = np.mean(centred.ref.mul(centred.ref), 1, { keepdims: true });
          return centred
            .div(np.sqrt(variance.add(1e-5)))
            .mul(w)
            .add(b);
        },
        [x([4096, 256], 1), x([256], 2), x([256], 3)],
      ),
    softmax: () => forward((a) => nn.softmax(a, -1), [x([4096, 1024], 1)]),
    pointwise: () => forward((a) => np.tanh(a.ref.mul(1.5).add(0.5)).mul(nn.sigmoid(a.ref)).add(a), [x([2 ** 20], 1)]),
    additions: () => {
      const a = x([1024], 1);
      return async () => {
        let y = a.ref;
        for (let i = 0; i < 100; i++) y = y.add(a.ref);
        await blockUntilReady(y);
        y.dispose();
      };
    },
    "mlp-step": () => {
      const [a, target] = [x([256, 256], 1), x([256, 256], 2)];
      return step(
        ([w1, b1, w2, b2]) => {
          const h = nn.relu(np.matmul(a.ref, w1).add(b1));
          const miss = np.matmul(h, w2).add(b2).sub(target.ref);
          return np.mean(miss.ref.mul(miss));
        },
        [x([256, 1024], 3, 0.06), np.zeros([1024]), x([1024, 256], 4, 0.03), np.zeros([256])],
      );
    },
    "cnn-step": () => {
      const image = x([16, 3, 32, 32], 1);
      const labels = nn.oneHot(np.array(classes(16), { dtype: np.int32 }), 10);
      const block = (h, w, b) =>
        lax.reduceWindow(nn.relu(lax.conv(h, w, [1, 1], "SAME").add(b.reshape([-1, 1, 1]))), np.max, [2, 2], [2, 2]);
      return step(
        ([w1, b1, w2, b2, w3, b3]) => {
          const h = block(block(image.ref, w1, b1), w2, b2).reshape([16, 2048]);
          const logP = nn.logSoftmax(np.matmul(h, w3).add(b3), -1);
          return np.sum(logP.mul(labels.ref)).mul(-1 / 16);
        },
        [
          x([16, 3, 3, 3], 2, 0.2),
          np.zeros([16]),
          x([32, 16, 3, 3], 3, 0.1),
          np.zeros([32]),
          x([2048, 10], 4, 0.03),
          np.zeros([10]),
        ],
      );
    },
  };
  return { adapter, rows };
}
