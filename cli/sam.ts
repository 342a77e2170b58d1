/** `sam`: promptable segmentation of one image. */
import { access } from "node:fs/promises";
import { join } from "node:path";
import { encodeSafetensors, type FileTensor, fileTensor } from "../engine/safetensors.ts";
import type { ImagePrompts } from "../model/sam/index.ts";
import { type Image, readImage, writeMaskPng, writePng } from "../train/data/image.ts";
import { makeFolder } from "../train/data/json.ts";
import { encodeMask } from "../train/data/mask.ts";
import { checkDump } from "../train/dump.ts";
import { BadInput } from "../train/errors.ts";
import { writeWhole } from "../train/files.ts";
import { keepApart } from "../train/folders.ts";
import { contactSheet, drawOverlay, type Overlay } from "../train/pictures.ts";
import { filesOf } from "../train/weights.ts";
import type { Call } from "./command.ts";
import { type Answer, type EngineOptions, openSegmenter, type Segmenter, weightFiles } from "./sam-engines.ts";
import { bytes, table } from "./terminal.ts";
import type { PointPrompt } from "./values.ts";

interface Options extends EngineOptions {
  image: string;
  point: PointPrompt[];
  box: [number, number, number, number][];
  single?: boolean;
  out: string;
  dump?: string;
}

/** One prompt of the command line: all points together, or a box. */
interface Prompt {
  readonly given: ImagePrompts;
  readonly overlay: Pick<Overlay, "points" | "boxes">;
}

interface MaskEntry {
  readonly prompt: number;
  readonly candidate: number;
  readonly iou: number;
  readonly area: number;
  readonly rle: { size: [number, number]; counts: string };
}

export async function run(call: Call<Options>): Promise<void> {
  const { options, terminal } = call;
  if (options.point.length === 0 && options.box.length === 0)
    throw new BadInput("sam: give at least one --point X,Y or --box X0,Y0,X1,Y1");
  const image = await readImage(options.image);
  const prompts = promptsOf(options, image);
  const weights = weightFiles(options);
  for (const file of weights) await access(file);
  keepApart(options.out, [options.image]);
  if (options.dump !== undefined) {
    const read = await Promise.all(weights.map((file) => filesOf(file, "weights of SAM or MobileSAM")));
    checkDump(options.dump, options.out, [options.image, ...read.flat()]);
  }
  const segmenter = await openSegmenter(call, image);
  await makeFolder(options.out);
  const results: Answer[] = [];
  for (const { given } of prompts) results.push(await segmenter.predict(given, !options.single));
  const memory = segmenter.memory();
  await segmenter.close();
  if (memory) terminal.detail(`GPU memory: ${bytes(memory.highWaterBytes)} at most`);

  const entries = results.flatMap(({ masks, iou }, prompt) =>
    masks[0]!.map((mask, candidate): MaskEntry => {
      const area = mask.reduce((sum, value) => sum + value, 0);
      return { prompt, candidate, iou: iou[0]![candidate]!, area, rle: encodeMask(mask, image.width, image.height) };
    }),
  );
  const files = await writePictures(options.out, image, prompts, results);
  if (options.dump) {
    await writeWhole(options.dump, encodeSafetensors(dumpOf(results, segmenter.embedding)));
    files.push(options.dump);
  }
  const rows = entries.map(({ prompt, candidate, iou, area }) => [prompt, candidate, iou.toFixed(3), area]);
  terminal.result(
    { image: { width: image.width, height: image.height }, masks: entries, files, ...(memory ? { memory } : {}) },
    `${table(["prompt", "candidate", "predicted IoU", "pixels"], rows)}\n${files.length} files in ${options.out}`,
  );
}

function promptsOf({ point, box, image: name }: Options, { width, height }: Image): Prompt[] {
  const outside = (x: number, y: number) => x < 0 || y < 0 || x > width || y > height;
  for (const { x, y } of point) {
    if (outside(x, y))
      throw new BadInput(`--point ${x},${y}: lies outside of ${name}, which has ${width}x${height} pixels`);
  }
  for (const [x0, y0, x1, y1] of box) {
    if (outside(x0, y0) || outside(x1, y1))
      throw new BadInput(`--box ${[x0, y0, x1, y1]}: reaches beyond ${name}, which has ${width}x${height} pixels`);
  }
  const prompts: Prompt[] = [];
  if (point.length > 0) {
    prompts.push({
      given: {
        points: { coords: point.flatMap(({ x, y }) => [x, y]), labels: point.map(({ label }) => label), count: 1 },
      },
      overlay: { points: point.map(({ x, y, label }) => ({ x, y, classIndex: label === 1 ? 4 : 0 })) },
    });
  }
  for (const [x0, y0, x1, y1] of box) {
    prompts.push({
      given: { boxes: [x0, y0, x1, y1] },
      overlay: { boxes: [{ box: [x0, y0, x1 - x0, y1 - y0], classIndex: 2 }] },
    });
  }
  return prompts;
}

/** A mask's PNG for each candidate, and one picture of all of them, a row a prompt. */
async function writePictures(
  out: string,
  image: Image,
  prompts: readonly Prompt[],
  results: readonly Answer[],
): Promise<string[]> {
  const files: string[] = [];
  const overlays: Image[] = [];
  for (const [p, { masks, iou }] of results.entries()) {
    for (const [c, mask] of masks[0]!.entries()) {
      const file = join(out, `mask-${p}-${c}.png`);
      await writeMaskPng(file, mask, image.width, image.height);
      files.push(file);
      const caption = `prompt ${p}, candidate ${c}: ${iou[0]![c]!.toFixed(3)}`;
      overlays.push(
        await drawOverlay(image, { masks: [{ mask, classIndex: p + 1 }], ...prompts[p]!.overlay, caption }),
      );
    }
  }
  const sheet = join(out, "overlay.png");
  await writePng(sheet, contactSheet(overlays, { columns: results[0]!.masks[0]!.length }));
  return [...files, sheet];
}

/** The raw tensors; prompts of fewer tokens are padded with zeros. */
function dumpOf(results: readonly Answer[], { values, shape }: Segmenter["embedding"]): Map<string, FileTensor> {
  const [, C, h, w] = shape as [number, number, number, number];
  const P = results.length;
  const M = results[0]!.iou[0]!.length;
  const dump = new Map([["image_embeddings", fileTensor(values, shape)]]);
  const put = (key: string, shape: number[], pick: (result: Answer) => ArrayLike<number>) => {
    dump.set(key, fileTensor(Float32Array.from(results.flatMap((result) => Array.from(pick(result)))), shape));
  };
  const T = Math.max(...results.map(({ tokens = 0 }) => tokens));
  if (T > 0) {
    put("sparse_embeddings", [P, T, C], ({ sparse }) => [
      ...sparse!,
      ...new Array<number>(T * C - sparse!.length).fill(0),
    ]);
    put("dense_embeddings", [P, C, h, w], ({ dense }) => dense!);
  }
  put("low_res_masks", [P, M, 4 * h, 4 * w], ({ lowRes }) => lowRes);
  put("iou_predictions", [P, M], ({ iou }) => iou[0]!);
  return dump;
}
