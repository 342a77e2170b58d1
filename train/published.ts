/** Mask2Formers that others have trained: detectron2's and transformers' checkpoints, and what `convert` makes of them. */
import type { Device } from "../engine/index.ts";
import { isMask2Former, loadMask2Former, type Wish } from "../model/index.ts";
import type { Category } from "./data/coco.ts";
import { areCocoNames, COCO_CATEGORIES } from "./data/coco-categories.ts";
import { BadInput } from "./errors.ts";
import { checkMask2FormerBeside, labelsBeside } from "./hub-config.ts";
import type { WeightFile } from "./weights.ts";

export interface Published {
  model: Wish;
  categories: Category[];
}

/** The model of the sizes that the tensors tell. Throws BadInput naming the file and what is missing, unexpected or misshaped. */
export function loadPublished(gpu: Device, weights: WeightFile): Published {
  const { tensors, file } = weights;
  if (!isMask2Former(tensors.keys()))
    throw new BadInput(
      `${file}: holds no Mask2Former and was not written by wgpu-wish; expected a checkpoint of either (SAM belongs to "wgpu-wish sam")`,
    );
  checkMask2FormerBeside(weights);
  try {
    const model = loadMask2Former(gpu, tensors);
    return { model, categories: categoriesOf(weights, model.config.classes) };
  } catch (error) {
    // What the layers and the engine say of sizes that do not go together is the file's doing, too.
    if (error instanceof Error && !gpu.isLost) throw new BadInput(`${file}: ${error.message.split("\n")[0]}`);
    throw error;
  }
}

/** transformers writes the classes' names beside the weights; 80 classes without names are COCO's; others are numbered. */
function categoriesOf(weights: WeightFile, classes: number): Category[] {
  const names = labelsBeside(weights, classes) ?? (classes === 80 ? COCO_CATEGORIES.map(({ name }) => name) : []);
  const isCoco = areCocoNames(names);
  return Array.from({ length: classes }, (_, i) => ({
    id: isCoco ? COCO_CATEGORIES[i]!.id : i + 1,
    name: names[i] ?? `class ${i + 1}`,
  }));
}
