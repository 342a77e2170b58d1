/** What `wgpu-wish bench` measures. */
import { backward, type Device, F, nn, optim, type Tensor } from "../index.ts";
import { samModels } from "./bench-sam.ts";
import { paperStep, wishStep } from "./bench-step.ts";
import { wishKernels } from "./bench-wish.ts";
import { type Bench, gradients } from "./bench-work.ts";

/** The operands that are stored as f16, by name. */
const matmul = (n: number, halves: "" | "b" | "ab" = ""): Bench => ({
  name: `matmul-${n}${halves === "" ? "" : halves === "b" ? "-f16" : "-f16-f16"}`,
  note: `${n} x ${n} x ${n}${halves === "" ? "" : halves === "b" ? ", b stored as f16" : ", a and b stored as f16"}`,
  flops: 2 * n ** 3,
  prepare: (gpu) => {
    const operand = (name: string, seed: number): Tensor => {
      const full = gpu.randn([n, n], { seed });
      return halves.includes(name) ? F.cast(full, "f16") : full;
    };
    const [a, b] = [operand("a", 1), operand("b", 2)];
    return { run: () => F.matmul(a, b) };
  },
});

/** A training step as it is called, and recorded and replayed. */
function training(name: string, note: string, prepare: (gpu: Device) => () => Tensor, flops?: number): Bench[] {
  const common = flops === undefined ? {} : { flops };
  return [
    {
      ...{ name, note, ...common },
      prepare: (gpu) => {
        const step = prepare(gpu);
        return { run: () => step().item() };
      },
    },
    {
      ...{ name: `${name}-replayed`, note: "the same, recorded once", ...common },
      prepare: (gpu) => {
        const recording = gpu.record(prepare(gpu));
        return { run: () => recording.replay().item() };
      },
    },
  ];
}

function mlpStep(gpu: Device): () => Tensor {
  const [x, target] = [gpu.randn([256, 256], { seed: 1 }), gpu.randn([256, 256], { seed: 2 })];
  gpu.manualSeed(1);
  const [up, down] = [new nn.Linear(gpu, 256, 1024), new nn.Linear(gpu, 1024, 256)];
  const sgd = new optim.SGD([{ params: [...up.parameters(), ...down.parameters()], lr: 0.01 }]);
  return () => {
    sgd.zeroGrad();
    const loss = F.mean(F.pow(F.sub(down.forward(up.forward(x, { activation: "relu" })), target), 2));
    backward(loss);
    sgd.step();
    return loss;
  };
}

function cnnStep(gpu: Device): () => Tensor {
  gpu.manualSeed(1);
  const x = gpu.randn([16, 3, 32, 32], { seed: 1 });
  const labels = gpu.tensor(Int32Array.from({ length: 16 }, (_, i) => i % 10));
  const [a, b, c] = [
    new nn.Conv2d(gpu, 3, 16, 3, { padding: 1 }),
    new nn.Conv2d(gpu, 16, 32, 3, { padding: 1 }),
    new nn.Linear(gpu, 2048, 10),
  ];
  const params = [...a.parameters(), ...b.parameters(), ...c.parameters()];
  const sgd = new optim.SGD([{ params, lr: 0.01 }]);
  const relu = { activation: "relu" } as const;
  return () => {
    const h = F.maxPool2d(b.forward(F.maxPool2d(a.forward(x, relu), 2), relu), 2);
    sgd.zeroGrad();
    const loss = F.crossEntropy(c.forward(F.reshape(h, [16, -1])), labels);
    backward(loss);
    sgd.step();
    return loss;
  };
}

export const benches: readonly Bench[] = [
  matmul(512),
  matmul(1024),
  matmul(1024, "b"),
  matmul(1024, "ab"),
  {
    name: "attention",
    note: "8 heads x 1024 x 64",
    flops: 4 * 8 * 1024 * 1024 * 64,
    prepare: (gpu) => {
      const [q, k, v] = [1, 2, 3].map((seed) => gpu.randn([1, 8, 1024, 64], { seed })) as [Tensor, Tensor, Tensor];
      return { run: () => F.scaledDotProductAttention(q, k, v) };
    },
  },
  {
    name: "conv3x3",
    note: "64 -> 64 at 128 x 128",
    flops: 2 * 128 * 128 * 64 * 64 * 9,
    prepare: (gpu) => {
      const [x, w] = [gpu.randn([1, 64, 128, 128], { seed: 1 }), gpu.randn([64, 64, 3, 3], { seed: 2 })];
      return { run: () => F.conv2d(x, w, { padding: 1 }) };
    },
  },
  {
    name: "conv3x3-train",
    note: "the same with its gradients",
    flops: 6 * 128 * 128 * 64 * 64 * 9,
    prepare: (gpu) =>
      gradients(
        gpu,
        [gpu.randn([1, 64, 128, 128], { seed: 1 }), gpu.randn([64, 64, 3, 3], { seed: 2 })],
        (x, w) => F.conv2d(x!, w!, { padding: 1 }),
        { withForward: true },
      ),
  },
  {
    name: "layernorm",
    note: "4096 x 256",
    bytes: 2 * 4 * 4096 * 256,
    prepare: (gpu) => {
      const [x, w, b] = [gpu.randn([4096, 256], { seed: 1 }), gpu.ones([256]), gpu.zeros([256])];
      return { run: () => F.layerNorm(x, w, b) };
    },
  },
  {
    name: "softmax",
    note: "4096 x 1024",
    bytes: 2 * 4 * 4096 * 1024,
    prepare: (gpu) => {
      const x = gpu.randn([4096, 1024], { seed: 1 });
      return { run: () => F.softmax(x, -1) };
    },
  },
  {
    name: "pointwise",
    note: "tanh(1.5 x + 0.5) * sigmoid(x) + x on 1 M",
    bytes: 2 * 4 * 2 ** 20,
    prepare: (gpu) => {
      const x = gpu.randn([2 ** 20], { seed: 1 });
      return { run: () => F.add(F.mul(F.tanh(F.add(F.mul(x, 1.5), 0.5)), F.sigmoid(x)), x) };
    },
  },
  {
    name: "additions",
    note: "100 dependent ones on 1,024 numbers",
    prepare: (gpu) => {
      const x = gpu.randn([1024], { seed: 1 });
      const run = (): unknown => {
        let y = x;
        for (let i = 0; i < 100; i++) y = F.add(y, x);
        return y;
      };
      return { run };
    },
  },
  ...training(
    "mlp-step",
    "256-1024-256, batch 256, squared error, SGD, loss read",
    mlpStep,
    6 * 256 * (256 * 1024 * 2),
  ),
  ...training("cnn-step", "conv 3-16-32 with pooling + linear, 16 x 32 x 32, cross entropy, SGD, loss read", cnnStep),
  ...wishKernels,
  {
    name: "wish-step",
    note: "a training step of configs/scenes.yaml: 4 scenes of 96 x 96 with boxes",
    prepare: wishStep,
  },
  // For GPUs: on a software adapter these take minutes.
  { ...matmul(4096), slow: true },
  { ...matmul(4096, "ab"), slow: true },
  {
    name: "r50-step",
    note: "a WISH training step, ResNet-50, one image at 1024 px",
    slow: true,
    prepare: (gpu) => paperStep(gpu),
  },
  {
    name: "r50-step-checkpoint",
    note: "the same with memory.checkpoint",
    slow: true,
    prepare: (gpu) => paperStep(gpu, { memory: { checkpoint: true } }),
  },
  {
    name: "r50-step-mixed",
    note: "the same with precision=mixed",
    slow: true,
    prepare: (gpu) => paperStep(gpu, { precision: "mixed" }),
  },
  ...samModels,
];
