/** TensorFlow.js on its WebGPU backend. */
import { browserGpu, classes, numbers } from "./common.mjs";

export async function open() {
  const adapter = await browserGpu();
  const tf = await import("@tensorflow/tfjs");
  await import("@tensorflow/tfjs-backend-webgpu");
  await tf.setBackend("webgpu");
  await tf.ready();
  const backend = tf.backend();
  const sync = async () => {
    // submitQueue alone leaves the pass open.
    backend.endComputePassEncoder();
    backend.submitQueue();
    await backend.queue.onSubmittedWorkDone();
  };
  const x = (shape, seed, scale) =>
    tf.tensor(
      numbers(
        shape.reduce((a, b) => a * b, 1),
        seed,
        scale,
      ),
      shape,
    );
  const forward = (compute) => async () => {
    tf.tidy(() => void compute());
    await sync();
  };
  const matmul = (n) => () => {
    const [a, b] = [x([n, n], 1), x([n, n], 2)];
    return forward(() => tf.matMul(a, b));
  };
  /** One SGD step whose loss is read. */
  const step = (loss) => {
    const sgd = tf.train.sgd(0.01);
    return async () => {
      const value = sgd.minimize(loss, true);
      await value.data();
      value.dispose();
    };
  };
  const rows = {
    "matmul-512": matmul(512),
    "matmul-1024": matmul(1024),
    attention: () => {
      const [q, k, v] = [1, 2, 3].map((seed) => x([8, 1024, 64], seed));
      return forward(() => tf.matMul(tf.softmax(tf.mul(tf.matMul(q, k, false, true), 1 / 8)), v));
    },
    conv3x3: () => {
      const [image, w] = [x([1, 128, 128, 64], 1), x([3, 3, 64, 64], 2)];
      return forward(() => tf.conv2d(image, w, 1, "same"));
    },
    layernorm: () => {
      const [a, w, b] = [x([4096, 256], 1), x([256], 2), x([256], 3)];
      return forward(() => {
        const { mean, variance } = tf.moments(a, 1, true);
        return tf.add(tf.mul(tf.mul(tf.sub(a, mean), tf.rsqrt(tf.add(variance, 1e-5))), w), b);
      });
    },
    softmax: () => {
      const a = x([4096, 1024], 1);
      return forward(() => tf.softmax(a));
    },
    pointwise: () => {
      const a = x([2 ** 20], 1);
      return forward(() => tf.add(tf.mul(tf.tanh(tf.add(tf.mul(a, 1.5), 0.5)), tf.sigmoid(a)), a));
    },
    additions: () => {
      const a = x([1024], 1);
      return forward(() => {
        let y = a;
        for (let i = 0; i < 100; i++) y = tf.add(y, a);
        return y;
      });
    },
    "mlp-step": () => {
      const [a, target] = [x([256, 256], 1), x([256, 256], 2)];
      const [w1, b1] = [tf.variable(x([256, 1024], 3, 0.06)), tf.variable(tf.zeros([1024]))];
      const [w2, b2] = [tf.variable(x([1024, 256], 4, 0.03)), tf.variable(tf.zeros([256]))];
      return step(() => {
        const y = tf.add(tf.matMul(tf.relu(tf.add(tf.matMul(a, w1), b1)), w2), b2);
        return tf.mean(tf.square(tf.sub(y, target)));
      });
    },
    "cnn-step": () => {
      const image = x([16, 32, 32, 3], 1);
      const labels = tf.oneHot(tf.tensor1d(classes(16), "int32"), 10);
      const [w1, b1] = [tf.variable(x([3, 3, 3, 16], 2, 0.2)), tf.variable(tf.zeros([16]))];
      const [w2, b2] = [tf.variable(x([3, 3, 16, 32], 3, 0.1)), tf.variable(tf.zeros([32]))];
      const [w3, b3] = [tf.variable(x([2048, 10], 4, 0.03)), tf.variable(tf.zeros([10]))];
      const block = (h, w, b) => tf.maxPool(tf.relu(tf.add(tf.conv2d(h, w, 1, "same"), b)), 2, 2, "valid");
      return step(() => {
        const h = block(block(image, w1, b1), w2, b2);
        return tf.losses.softmaxCrossEntropy(labels, tf.add(tf.matMul(tf.reshape(h, [16, 2048]), w3), b3));
      });
    },
  };
  return { adapter, rows };
}
