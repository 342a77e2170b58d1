/**
 * One WISH training step, nothing but the step: scenes with boxes, held in memory, whose true masks stand in for SAM's. At the sizes of
 * configs/scenes.yaml, or at the paper's.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import { type Device, optim } from "../index.ts";
import { parameterGroups, Wish } from "../model/index.ts";
import { packageRoot } from "../platform/root.ts";
import { type Config, resolveConfig } from "../train/config.ts";
import type { Sample } from "../train/data/loader.ts";
import { makeScene, sceneCategories } from "../train/data/scenes.ts";
import { modelConfig } from "../train/models.ts";
import { planMemory } from "../train/plan.ts";
import { openTeacher } from "../train/prepare.ts";
import { scalerOf, type Trainer, trainStep } from "../train/step.ts";
import type { Work } from "./bench-work.ts";

const SEED = 5;

/** Of four images at 96 px. */
export function wishStep(gpu: Device): Promise<Work> {
  return stepOf(gpu, resolveConfig(parse(readFileSync(join(packageRoot, "configs", "scenes.yaml"), "utf8"))));
}

/** ResNet-50, 100 queries, nine layers, one image at 1024 px: the defaults but for `settings`. */
export function paperStep(
  gpu: Device,
  settings: { precision?: Config["precision"]; memory?: Partial<Config["memory"]> } = {},
): Promise<Work> {
  return stepOf(gpu, resolveConfig({ batch: 1, cam: { warmup: 0 }, ...settings }));
}

async function stepOf(gpu: Device, config: Config): Promise<Work> {
  const teacher = await openTeacher(gpu, config);
  gpu.manualSeed(SEED);
  const model = new Wish(gpu, modelConfig(config, sceneCategories.length, teacher.promptDim)).train();
  const groups = parameterGroups(model, {
    lr: config.optim.lr,
    weightDecay: config.optim.weightDecay,
    backboneMultiplier: config.optim.backbone,
    camMultiplier: config.optim.cam,
  });
  const trainer: Trainer = {
    gpu,
    config,
    model,
    optimizer: new optim.AdamW(groups),
    scaler: scalerOf(config),
    rates: groups.map((group) => group.lr),
    teacher,
    items: [],
    proxies: [],
    hasTags: false,
  };
  const { width, maskStride } = config.data;
  const batch = Array.from({ length: config.batch }, (_, i) => sceneSample(i, width, maskStride));
  let step = 0;
  const { peak } = await planMemory(trainer, [batch], new Map());
  return { run: () => trainStep(trainer, [batch], step++), plannedBytes: peak };
}

function sceneSample(index: number, size: number, stride: number): Sample {
  const { image, instances } = makeScene(SEED, index, size);
  const side = size / stride;
  const shrink = (mask: Uint8Array): Uint8Array =>
    Uint8Array.from(
      { length: side * side },
      (_, i) => mask[Math.floor(i / side) * stride * size + (i % side) * stride]!,
    );
  return {
    imageId: index,
    item: index,
    rgb: image.data,
    width: size,
    height: size,
    valid: [size, size],
    kind: "boxes",
    tags: [...new Set(instances.map(({ category }) => category - 1))],
    classes: instances.map(({ category }) => category - 1),
    source: instances.map((_, i) => i),
    points: [],
    boxes: instances.map(({ bbox: [x, y, w, h] }) => [x, y, x + w, y + h]),
    masks: [],
    proxies: instances.map(({ mask }) => ({ masks: [1, 2, 3].map(() => shrink(mask)), iou: [1, 1, 1] })),
    affine: { scaleX: 1, scaleY: 1, offsetX: 0, offsetY: 0 },
    originalWidth: size,
    originalHeight: size,
  };
}
