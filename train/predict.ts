/** A trained model on the user's images: overlays, masks of each instance, COCO results, and the raw outputs for comparisons. */
import { basename, dirname, extname, join } from "node:path";
import { type Device, encode, F, noGrad, scope, type Tensor } from "../engine/index.ts";
import { attentionLogits, maskLogits, type Wish, type WishOutput } from "../model/index.ts";
import { readImage, writeMaskPng, writePng } from "./data/image.ts";
import { makeFolder } from "./data/json.ts";
import { evalSample } from "./data/loader.ts";
import { resultsDocument } from "./eval/coco-ap.ts";
import { type InferenceOptions, predictionOverlay, resultsOf, segment } from "./evaluate.ts";
import { writeWhole } from "./files.ts";
import { keepApart } from "./folders.ts";
import type { Trained } from "./models.ts";
import { drawOverlay } from "./pictures.ts";
import { imageTensor } from "./step.ts";

export interface PredictImagesOptions extends InferenceOptions {
  out: string;
  /** Safetensors file for class_logits, mask_logits, prompt_latents, cam and attention_logits of the (only) image. */
  dump?: string;
  onImage?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

export interface PredictedImage {
  image: string;
  width: number;
  height: number;
  overlay: string;
  instances: { category: string; categoryId: number; score: number; box: number[]; area: number; mask: string }[];
}

/** Image ids in results.json are 1, 2, … in the order given. */
export async function predictImages(
  gpu: Device,
  { model, categories }: Trained,
  paths: readonly string[],
  options: PredictImagesOptions,
): Promise<PredictedImage[]> {
  const { out, onImage, signal } = options;
  keepApart(out, paths);
  await makeFolder(out);
  if (options.dump) await makeFolder(dirname(options.dump));
  const names = distinctNames(paths);
  const predicted: PredictedImage[] = [];
  const results: ReturnType<typeof resultsOf> = [];
  let raw: Uint8Array | undefined;
  const onOutput = async (output: WishOutput): Promise<void> => {
    raw = await encodeOutput(output, paths[0]!);
  };
  for (const [i, path] of paths.entries()) {
    if (signal?.aborted) break;
    const image = await readImage(path);
    const found = await segment(gpu, model, image, { ...options, ...(options.dump ? { onOutput } : {}) });
    const name = names[i]!;
    const overlay = join(out, `${name}.png`);
    await writePng(overlay, drawOverlay(image, predictionOverlay(found, categories, options.score ?? 0.3)));
    const instances: PredictedImage["instances"] = [];
    for (const [n, { mask, label, score, box, area }] of found.entries()) {
      const file = join(out, `${name}-${String(n + 1).padStart(3, "0")}-${fileName(categories[label]!.name)}.png`);
      await writeMaskPng(file, mask, image.width, image.height);
      instances.push({
        category: categories[label]!.name,
        categoryId: categories[label]!.id,
        score,
        box,
        area,
        mask: file,
      });
    }
    results.push(...resultsOf(found, i + 1, categories));
    predicted.push({ image: path, width: image.width, height: image.height, overlay, instances });
    onImage?.(i + 1, paths.length);
  }
  await writeWhole(join(out, "results.json"), JSON.stringify(resultsDocument(results)));
  if (options.dump) await writeWhole(options.dump, raw ?? (await rawOutputs(gpu, model, paths[0]!, options)));
  return predicted;
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

/** Images of one name in different folders must not overwrite each other. */
function distinctNames(paths: readonly string[]): string[] {
  const seen = new Map<string, number>();
  return paths.map((path) => {
    const name = basename(path, extname(path));
    const count = (seen.get(name) ?? 0) + 1;
    seen.set(name, count);
    return count === 1 ? name : `${name}-${count}`;
  });
}

function fileName(text: string): string {
  return text.replaceAll(/[^\p{L}\p{N}]+/gu, "-");
}
