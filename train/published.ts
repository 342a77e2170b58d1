/** Mask2Formers that others have trained: detectron2's and transformers' checkpoints, and what `convert` makes of them. */
import { type Device, fileNumbers } from "../engine/index.ts";
import { IMAGENET_PIXELS, isMask2Former, loadMask2Former, type Wish } from "../model/index.ts";
import type { Category } from "./data/coco.ts";
import { areCocoNames, COCO_CATEGORIES } from "./data/coco-categories.ts";
import { categoriesOf } from "./description.ts";
import { BadInput } from "./errors.ts";
import { checkMask2FormerBeside, labelsBeside } from "./hub-config.ts";
import { refusal, type WeightFile } from "./weights.ts";

export interface Published {
  model: Wish;
  categories: Category[];
}

/** What the metadata that convert writes call the model. */
const MASK2FORMER = "Mask2Former";

/**
 * The model of the sizes that the tensors tell. Throws BadInput naming the file and what is missing, unexpected or misshaped.
 * @param tensors the file's, where they have been named or chosen
 */
export function loadPublished(
  gpu: Device,
  weights: WeightFile,
  tensors: WeightFile["tensors"] = weights.tensors,
): Published {
  const { file } = weights;
  if (!isMask2Former(tensors.keys()))
    throw new BadInput(
      `${file}: holds no Mask2Former and was not written by wgpu-wish; expected a checkpoint of either (SAM belongs to "wgpu-wish sam")`,
    );
  checkMask2FormerBeside(weights);
  checkPixels(weights);
  const model = loaded(gpu, tensors, file);
  const { classes } = model.config;
  return { model, categories: namedClasses(weights, classes) ?? unnamedClasses(classes) };
}

/** Throws BadInput where detectron2's model normalises images by other numbers than the ones that are built here. */
function checkPixels({ tensors, file }: WeightFile): void {
  for (const [name, wanted] of Object.entries(IMAGENET_PIXELS)) {
    const key = `pixel_${name}`;
    const tensor = tensors.get(key);
    const found = tensor && [...fileNumbers(tensor, `${file}: ${key}`)];
    if (!found || wanted.every((value, c) => Math.abs(found[c]! - value) < 0.01)) continue;
    throw new BadInput(
      `${file}: ${key} is (${found.join(", ")}); here images are always normalised by (${wanted.join(", ")}), RGB: this model cannot be built`,
    );
  }
}

function loaded(gpu: Device, tensors: WeightFile["tensors"], file: string): Wish {
  try {
    return loadMask2Former(gpu, tensors);
  } catch (error) {
    // What the layers and the engine say of sizes that do not go together is the file's doing, too.
    if (error instanceof Error && !gpu.isLost) throw refusal(`${file}: ${error.message}`);
    throw error;
  }
}

/** convert writes the classes into the file, transformers their names beside it; undefined where there are none. Throws BadInput. */
export function namedClasses(weights: WeightFile, classes: number): Category[] | undefined {
  const { model, categories } = weights.metadata;
  // Another's file may mean another thing by the word.
  if (model === MASK2FORMER && categories !== undefined) return categoriesOf(weights.file, categories, classes);
  const names = labelsBeside(weights, classes);
  const isCoco = names && areCocoNames(names);
  return names?.map((name, i) => ({ id: isCoco ? COCO_CATEGORIES[i]!.id : i + 1, name }));
}

/** 80 classes without names are COCO's; others are numbered. */
function unnamedClasses(classes: number): Category[] {
  if (classes === COCO_CATEGORIES.length) return [...COCO_CATEGORIES];
  return Array.from({ length: classes }, (_, i) => ({ id: i + 1, name: `class ${i + 1}` }));
}
