/** SAM on one image at 1,024 pixels: image encoder, a box's prompt, mask decoder. Random weights: how long it takes does not depend on them. */
import { type Device, noGrad, type Tensor } from "../index.ts";
import { mobileSam, Sam, type SamConfig, samVitB, samVitH, samVitL } from "../model/sam/index.ts";
import type { Bench, Work } from "./bench-work.ts";

const BOX = [200, 300, 800, 900];

function prepare(gpu: Device, config: SamConfig): Work {
  gpu.manualSeed(1);
  const sam = new Sam(gpu, config).eval().freeze();
  const side = config.imageSize;
  const image = gpu.randn([1, 3, side, side], { seed: 2 });
  const masks = (): Tensor => {
    const { sparse, dense } = sam.encodePrompts({ boxes: BOX });
    return sam.decode(sam.encodeImage(image), sparse, dense).masks;
  };
  return { run: () => noGrad(masks) };
}

const row = (name: string, model: string, config: () => SamConfig): Bench => ({
  name,
  note: `${model}, one image at 1024 px and a box`,
  slow: true,
  prepare: (gpu) => prepare(gpu, config()),
});

export const samModels: readonly Bench[] = [
  row("sam-vit-b", "SAM ViT-B", samVitB),
  row("sam-vit-l", "SAM ViT-L", samVitL),
  row("sam-vit-h", "SAM ViT-H", samVitH),
  row("mobile-sam", "MobileSAM", mobileSam),
];
