/**
 * Another model on the engine, with the public library alone: a small GPT (decoder-only transformer, pre-norm) that learns to write like a
 * text, letter by letter.
 *
 *     node --import tsx examples/gpt.ts [steps] [text file]
 */
import { readFileSync } from "node:fs";
import { backward, Device, F, nn, noGrad, optim, Random, scope, type Tensor } from "wgpu-wish";

const [CONTEXT, BATCH, DIM, HEADS, LAYERS] = [48, 8, 64, 4, 2];
const WIDTH = DIM / HEADS;

const block = (gpu: Device) => ({
  ln1: new nn.LayerNorm(gpu, DIM),
  qkv: new nn.Linear(gpu, DIM, 3 * DIM),
  proj: new nn.Linear(gpu, DIM, DIM),
  ln2: new nn.LayerNorm(gpu, DIM),
  up: new nn.Linear(gpu, DIM, 4 * DIM),
  down: new nn.Linear(gpu, 4 * DIM, DIM),
});

/** (B, T, C), causal (T, T) -> (B, T, C) */
function runBlock({ ln1, qkv, proj, ln2, up, down }: ReturnType<typeof block>, x: Tensor, causal: Tensor): Tensor {
  const [B, T] = x.shape as [number, number];
  const all = F.permute(F.reshape(qkv.forward(ln1.forward(x)), [B, T, 3, HEADS, WIDTH]), [2, 0, 3, 1, 4]);
  const [q, k, v] = [0, 1, 2].map((i) => F.reshape(F.slice(all, 0, i, i + 1), [B, HEADS, T, WIDTH]));
  const mixed = F.permute(F.scaledDotProductAttention(q!, k!, v!, { mask: causal }), [0, 2, 1, 3]); // (B, T, M, C / M)
  const y = F.add(x, proj.forward(F.reshape(mixed, [B, T, DIM])));
  return F.add(y, down.forward(F.gelu(up.forward(ln2.forward(y)))));
}

class GPT extends nn.Module {
  tokens: nn.Embedding;
  places: nn.Embedding;
  blocks: ReturnType<typeof block>[];
  norm: nn.LayerNorm;
  head: nn.Linear;

  constructor(gpu: Device, letters: number) {
    super();
    this.tokens = new nn.Embedding(gpu, letters, DIM);
    this.places = new nn.Embedding(gpu, CONTEXT, DIM);
    this.blocks = Array.from({ length: LAYERS }, () => block(gpu));
    this.norm = new nn.LayerNorm(gpu, DIM);
    this.head = new nn.Linear(gpu, DIM, letters);
  }

  /** (B, T) letters -> (B, T, letters) logits of the next one */
  forward(index: Tensor): Tensor {
    const T = index.shape[1]!;
    const allowed = Array.from({ length: T * T }, (_, i) => i % T <= Math.floor(i / T));
    const causal = index.device.tensor(allowed, [T, T], { dtype: "bool" });
    const x = F.add(this.tokens.forward(index), F.slice(this.places.weight, 0, 0, T));
    return this.head.forward(this.norm.forward(this.blocks.reduce((h, layers) => runBlock(layers, h, causal), x)));
  }
}

/** Trains on a text; gives the loss of every step and some letters that the model writes. */
export async function trainGpt(gpu: Device, text: string, steps: number) {
  const letters = [...new Set(text)].sort();
  const codes = Int32Array.from(text, (letter) => letters.indexOf(letter));
  gpu.manualSeed(1);
  const random = new Random(1);
  const model = new GPT(gpu, letters.length);
  const whole = { dtype: "i32" } as const;
  const adam = new optim.AdamW([{ params: model.parameters(), lr: 3e-3 }]);
  const losses: number[] = [];
  for (let step = 0; step < steps; step++) {
    const starts = Array.from({ length: BATCH }, () => random.int(codes.length - CONTEXT - 1));
    const rows = (shift: number) => starts.flatMap((at) => [...codes.subarray(at + shift, at + shift + CONTEXT)]);
    losses.push(
      await scope(async () => {
        const logits = model.forward(gpu.tensor(rows(0), [BATCH, CONTEXT], whole));
        const loss = F.crossEntropy(F.reshape(logits, [BATCH * CONTEXT, -1]), gpu.tensor(rows(1), undefined, whole));
        adam.zeroGrad();
        backward(loss);
        adam.step();
        return loss.item();
      }),
    );
  }
  const line = [...codes.subarray(0, 16)];
  for (let i = 0; i < 48; i++) {
    const seen = line.slice(-CONTEXT);
    const logits = scope(() => noGrad(() => model.forward(gpu.tensor(seen, [1, seen.length], whole))));
    line.push((await F.argmax(F.slice(logits, 1, -1, seen.length), 2).toArray())[0]!);
  }
  return { losses, written: line.map((code) => letters[code]).join("") };
}

if (process.argv[1]?.endsWith("gpt.ts")) {
  const [steps = "300", file = "README.md"] = process.argv.slice(2);
  const gpu = await Device.open();
  const { losses, written } = await trainGpt(gpu, readFileSync(file, "utf8"), Number(steps));
  console.log(`loss ${losses[0]!.toFixed(2)} -> ${losses.at(-1)!.toFixed(2)}\n${written}`);
  gpu.close();
}
