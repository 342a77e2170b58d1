/** A trained model on the user's images: overlays, masks of each instance, COCO results, and the raw outputs for comparisons. */
import { join } from "node:path";
import { type Device, encode, F, noGrad, scope, type Tensor } from "../engine/index.ts";
import { attentionLogits, maskLogits, type Instance as Predicted, type Wish, type WishOutput } from "../model/index.ts";
import { type Category, imagesDocument } from "./data/coco.ts";
import { type Image, readImage, writeMaskPng, writePng } from "./data/image.ts";
import { makeFolder } from "./data/json.ts";
import { evalSample } from "./data/loader.ts";
import { checkDump } from "./dump.ts";
import { BadInput } from "./errors.ts";
import { resultsDocument } from "./eval/coco-ap.ts";
import { type InferenceOptions, predictionOverlay, resultsOf, segment } from "./evaluate.ts";
import { writeWhole } from "./files.ts";
import { FileNames, keepApart } from "./folders.ts";
import type { Trained } from "./models.ts";
import { drawOverlay } from "./pictures.ts";
import { imageTensor } from "./step.ts";

export interface PredictImagesOptions extends InferenceOptions {
  out: string;
  /** Safetensors file for class_logits, mask_logits, prompt_latents, cam and attention_logits of the (only) image. */
  dump?: string;
  onImage?: (done: number, total: number) => void;
  /** Told of images that cannot be read, which are then left out; where it is not given, the first of them ends the work. */
  onUnreadable?: (reason: string) => void;
  signal?: AbortSignal;
}

export interface PredictedImage {
  /** In results.json and images.json. */
  id: number;
  /** The file, as it was named. */
  image: string;
  width: number;
  height: number;
  overlay: string;
  instances: { category: string; categoryId: number; score: number; box: number[]; area: number; mask: string }[];
}

/**
 * Image ids in results.json are 1, 2, … in the order given; images.json says which file each of them is. Throws BadInput where no image can be
 * read.
 */
export async function predictImages(
  gpu: Device,
  { model, categories }: Trained,
  paths: readonly string[],
  options: PredictImagesOptions,
): Promise<PredictedImage[]> {
  const { out, onImage, onUnreadable, signal } = options;
  keepApart(out, paths);
  if (options.dump !== undefined) checkDump(options.dump, out, paths);
  await makeFolder(out);
  const names = new FileNames();
  const overlays = names.ofImages(paths);
  const predicted: PredictedImage[] = [];
  const results: ReturnType<typeof resultsOf> = [];
  let raw: Uint8Array | undefined;
  const onOutput = async (output: WishOutput): Promise<void> => {
    raw = await encodeOutput(output, paths[0]!);
  };
  for (const [i, path] of paths.entries()) {
    if (signal?.aborted) break;
    const image = await readable(path, onUnreadable);
    if (image) {
      const found = await segment(gpu, model, image, { ...options, ...(options.dump ? { onOutput } : {}) });
      const overlay = join(out, `${overlays[i]}.png`);
      await writePng(overlay, await drawOverlay(image, predictionOverlay(found, categories, options.score ?? 0.3)));
      const instances = await writeMasks(found, image, categories, (suffix) =>
        join(out, `${names.free(`${overlays[i]}-${suffix}`)}.png`),
      );
      const [id, { width, height }] = [i + 1, image];
      results.push(...resultsOf(found, id, categories));
      predicted.push({ id, image: path, width, height, overlay, instances });
    }
    onImage?.(i + 1, paths.length);
  }
  if (predicted.length === 0 && !signal?.aborted)
    throw new BadInput(`none of the ${paths.length} images could be read; give at least one that can`);
  const entries = predicted.map((one) => ({ ...one, fileName: one.image }));
  await writeWhole(join(out, "images.json"), JSON.stringify(imagesDocument(entries, categories)));
  await writeWhole(join(out, "results.json"), JSON.stringify(resultsDocument(results)));
  if (options.dump) await writeWhole(options.dump, raw ?? (await rawOutputs(gpu, model, paths[0]!, options)));
  return predicted;
}

/** A file for each instance. `fileOf` makes a file's path of what tells it from the others of its image. */
async function writeMasks(
  found: readonly Predicted[],
  { width, height }: Image,
  categories: readonly Category[],
  fileOf: (suffix: string) => string,
): Promise<PredictedImage["instances"]> {
  const instances: PredictedImage["instances"] = [];
  for (const [n, { mask: pixels, label, score, box, area }] of found.entries()) {
    const { name: category, id: categoryId } = categories[label]!;
    const mask = fileOf(`${String(n + 1).padStart(3, "0")}-${fileName(category)}`);
    await writeMaskPng(mask, pixels, width, height);
    instances.push({ category, categoryId, score, box, area, mask });
  }
  return instances;
}

async function readable(path: string, onUnreadable?: (reason: string) => void): Promise<Image | undefined> {
  try {
    return await readImage(path);
  } catch (error) {
    if (!onUnreadable || !(error instanceof BadInput)) throw error;
    onUnreadable(error.message);
    return undefined;
  }
}

/** The raw outputs of a model whose masks SAM drew, so that they were not at hand. */
async function rawOutputs(
  gpu: Device,
  model: Wish,
  path: string,
  { short, long }: InferenceOptions,
): Promise<Uint8Array> {
  const sample = await evalSample(await readImage(path), { short, long });
  return scope(() =>
    encodeOutput(
      noGrad(() => model.forward(imageTensor(gpu, [sample]))),
      path,
    ),
  );
}

function encodeOutput({ predictions, cam }: WishOutput, image: string): Promise<Uint8Array> {
  const last = predictions.at(-1)!;
  const { classLogits, promptLatents } = last;
  const tensors = new Map<string, Tensor>([
    ["class_logits", classLogits],
    ["mask_logits", noGrad(() => maskLogits(last))],
  ]);
  if (promptLatents) tensors.set("prompt_latents", promptLatents);
  if (cam) tensors.set("cam", F.detach(cam));
  // By whose signs the decoder's layers attended: where they differ from another implementation's, so do the outputs.
  for (const [i, prediction] of predictions.entries()) {
    const { attends } = prediction;
    if (attends)
      tensors.set(
        `attention_logits.${i}`,
        noGrad(() => attentionLogits(prediction, attends)),
      );
  }
  return encode(tensors, { image });
}

function fileName(text: string): string {
  return text.replaceAll(/[^\p{L}\p{N}]+/gu, "-");
}
