/**
 * The frozen SAM that turns weak labels into masks and latents. Masks of points and boxes never change, so they are computed once on the
 * original image and kept on disk; peaks of the CAM change at every step, so for images with tags the embedding is what is kept.
 */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type Device,
  encodeSafetensors,
  F,
  fileNumbers,
  firstBeyondHalf,
  halfBits,
  halfValue,
  nn,
  noGrad,
  parseSafetensors,
  scope,
  type Tensor,
} from "../engine/index.ts";
import { longestSide, maskOfLogits, prepareImage, Sam } from "../model/sam/index.ts";
import { packageRoot } from "../platform/root.ts";
import type { Image } from "./data/image.ts";
import { BadInput } from "./errors.ts";
import { readNamed, writeWhole } from "./files.ts";
import { samHeadsBeside } from "./hub-config.ts";
import type { EncodePrompts } from "./latents.ts";
import { loadSamFile, readSamFile } from "./weights.ts";

/** SAM's answer to one point or box. */
export interface Prompted {
  /** Three masks of the image's size, 0 or 1. */
  masks: Uint8Array[];
  /** SAM's rating of each. */
  iou: number[];
  /** Three maps of side * side logits over SAM's square input. */
  logits: Float32Array[];
  side: number;
}

/** What SAM says about points of an image whose embedding is kept: logits over SAM's square input. */
export interface PointMasks {
  /** logits[point][candidate], side * side each */
  logits: Float32Array[][];
  iou: number[][];
  side: number;
}

export interface TeacherOptions {
  /** Folder of the embeddings: embeddings-<weights' key>/<image's hash>.safetensors, so that several data sets may share it. Default: none. */
  cache?: string;
  /** Bytes of embeddings held in memory. */
  memory: number;
  /** The images' files by their ids: where one is known its bytes stand for it, else its pixels. */
  images?: ReadonlyMap<number, string>;
  /** Its weights' file, for the errors. */
  file?: string;
}

/** Prompts of one pass at most; SAM's decoder shares its work between a few dozen well enough. */
const MOST_PROMPTS = 32;

export class Teacher {
  readonly sam: Sam;
  /** Identifies the weights. */
  readonly key: string;
  readonly #gpu: Device;
  readonly #options: TeacherOptions;
  /** Insertion order is order of use. */
  readonly #embeddings = new Map<number, Uint16Array>();
  #held = 0;

  constructor(gpu: Device, sam: Sam, key: string, options: TeacherOptions) {
    this.#gpu = gpu;
    this.sam = sam;
    this.key = key;
    this.#options = options;
  }

  /** How many prompts fit one pass: what the decoder unfolds for each must fit a binding together. */
  get promptsAtOnce(): number {
    const { promptDim, grid } = this.sam.config;
    // The largest are the last upscaling's maps: promptDim / 8 channels at four times the grid's side.
    const bytes = 4 * (promptDim / 8) * (4 * grid) ** 2;
    const fitting = Math.floor(this.#gpu.gpu.limits.maxStorageBufferBindingSize / bytes);
    return Math.max(1, Math.min(MOST_PROMPTS, fitting));
  }

  /** GPU memory of its weights. */
  get bytes(): number {
    return [...this.sam.namedTensors()].reduce((sum, [, x]) => sum + x.storage.bytes, 0);
  }

  /** Width of its prompt embedding. */
  get promptDim(): number {
    return this.sam.config.promptDim;
  }

  /**
   * The prompt encoder for labels in pixels of a network input of [width, height]: SAM's frame is a square, so that the network's longer
   * side fills it.
   */
  promptEncoder([width, height]: readonly [number, number]): EncodePrompts {
    const scale = this.sam.config.imageSize / Math.max(width, height);
    return (kind, coords) => {
      const inFrame = coords.map((v) => v * scale);
      if (kind === "box") return this.sam.encodePrompts({ boxes: inFrame }).sparse;
      const count = coords.length / 2;
      return this.sam.encodePrompts({ points: { coords: inFrame, labels: new Int32Array(count).fill(1), count } })
        .sparse;
    };
  }

  /**
   * Masks for points (pixels) or boxes (x0, y0, x1, y1), each a prompt of its own: for several images at once.
   * Prompts of one call are of one kind; where they are too many for one pass they are taken in several.
   */
  async prompt(
    images: readonly Image[],
    kind: "point" | "box",
    prompts: readonly (readonly (readonly number[])[])[],
  ): Promise<Prompted[][]> {
    const { imageSize: S, grid } = this.sam.config;
    const most = Math.max(0, ...prompts.map((list) => list.length));
    if (most === 0) return prompts.map(() => []);
    const prepared = images.map((image) => prepareImage(image, S));
    const numbers = kind === "point" ? 2 : 4;
    const side = grid * 4;
    const out: Prompted[][] = prompts.map(() => []);
    await scope(async () => {
      const pixels = new Float32Array(images.length * 3 * S * S);
      for (const [b, { data }] of prepared.entries()) pixels.set(data, b * 3 * S * S);
      const embedding = noGrad(() => this.sam.encodeImage(this.#gpu.tensor(pixels, [images.length, 3, S, S])));
      const atOnce = Math.max(1, Math.floor(this.promptsAtOnce / images.length));
      for (let first = 0; first < most; first += atOnce) {
        const count = Math.min(atOnce, most - first);
        // Images with fewer prompts repeat a corner of the image; what comes of it is not looked at.
        const coords = new Float32Array(images.length * count * numbers);
        for (const [b, list] of prompts.entries())
          for (const [i, values] of list.slice(first, first + count).entries())
            for (const [n, v] of values.entries())
              coords[(b * count + i) * numbers + n] = v * prepared[b]!.scale[n % 2]!;
        const answers = await this.#decode(embedding, kind, coords);
        for (const [b, list] of prompts.entries()) {
          const { inputSize, originalSize } = prepared[b]!;
          for (let i = 0; i < Math.min(count, list.length - first); i++) {
            const { logits, iou } = answers[b * count + i]!;
            const masks = logits.map((low) => maskOfLogits(low, side, S, inputSize, originalSize));
            out[b]!.push({ masks, iou, logits, side });
          }
        }
      }
    });
    return out;
  }

  /** SAM's logits and ratings for prompts in its frame, in one pass; an image's prompts stand side by side. */
  async #decode(
    embedding: Tensor,
    kind: "point" | "box",
    coords: Float32Array,
  ): Promise<{ logits: Float32Array[]; iou: number[] }[]> {
    return scope(async () => {
      const { masks, iou } = noGrad(() => {
        const count = coords.length / 2;
        const { sparse, dense } = this.sam.encodePrompts(
          kind === "point" ? { points: { coords, labels: new Int32Array(count).fill(1), count } } : { boxes: coords },
        );
        return this.sam.decode(embedding, sparse, dense, { multimask: true });
      });
      const flat = noGrad(() => F.cat([F.reshape(masks, [masks.size]), F.reshape(iou, [iou.size])], 0));
      const values = (await flat.toArray()) as Float32Array;
      const [count, each] = iou.shape as [number, number];
      const area = masks.size / iou.size;
      return Array.from({ length: count }, (_, i) => ({
        logits: Array.from({ length: each }, (_, c) => values.slice((i * each + c) * area, (i * each + c + 1) * area)),
        iou: Array.from(values.subarray(masks.size + i * each, masks.size + (i + 1) * each)),
      }));
    });
  }

  /**
   * Masks for points of an image of the data set, given in pixels of the original, from its kept embedding. `read` brings the image where
   * there is none yet.
   */
  async promptPoints(
    imageId: number,
    size: readonly [width: number, height: number],
    read: () => Promise<Image>,
    points: readonly (readonly [number, number])[],
  ): Promise<PointMasks> {
    const { grid, imageSize, promptDim } = this.sam.config;
    const side = grid * 4;
    const [h, w] = longestSide(size[1], size[0], imageSize);
    const coords = Float32Array.from(points.flatMap(([x, y]) => [(x * w) / size[0], (y * h) / size[1]]));
    const halves = await this.#embedding(imageId, read);
    const answers: { logits: Float32Array[]; iou: number[] }[] = [];
    await scope(async () => {
      const embedding = this.#gpu.tensor(Float32Array.from(halves, halfValue), [1, promptDim, grid, grid]);
      const step = 2 * this.promptsAtOnce;
      for (let i = 0; i < coords.length; i += step)
        answers.push(...(await this.#decode(embedding, "point", coords.slice(i, i + step))));
    });
    return { logits: answers.map(({ logits }) => logits), iou: answers.map(({ iou }) => iou), side };
  }

  /** Sees to it that an image's embedding is kept, so that the next question about it needs no encoder. */
  async embed(imageId: number, read: () => Promise<Image>): Promise<void> {
    await this.#embedding(imageId, read);
  }

  /** One of the same sizes on a device that computes nothing: what it is asked takes the memory it would, and its answers are zeros. */
  dry(gpu: Device): Teacher {
    const sam = nn.init.skip(() => new Sam(gpu, this.sam.config));
    return new Teacher(gpu, sam, this.key, { memory: Number.POSITIVE_INFINITY });
  }

  /** An image's embedding in half precision, from memory, disk or the encoder; the same bits from each. */
  async #embedding(imageId: number, read: () => Promise<Image>): Promise<Uint16Array> {
    const held = this.#embeddings.get(imageId);
    if (held) {
      this.#embeddings.delete(imageId);
      this.#embeddings.set(imageId, held);
      return held;
    }
    const { cache } = this.#options;
    const halves = cache === undefined ? await this.#encode(await read()) : await this.#stored(cache, imageId, read);
    this.#embeddings.set(imageId, halves);
    this.#held += halves.byteLength;
    for (const [id, old] of this.#embeddings) {
      if (this.#held <= this.#options.memory || id === imageId) break;
      this.#embeddings.delete(id);
      this.#held -= old.byteLength;
    }
    return halves;
  }

  /** From a folder, which gets it where it lacks it. */
  async #stored(cache: string, imageId: number, read: () => Promise<Image>): Promise<Uint16Array> {
    const file = this.#options.images?.get(imageId);
    const image = file === undefined ? await read() : undefined;
    const name = hashOf(image ? image.data : await readNamed(file!, "an image"));
    const path = join(cache, `embeddings-${this.key}`, `${name}.safetensors`);
    const { grid, promptDim } = this.sam.config;
    const stored = await readEmbedding(path, promptDim * grid * grid);
    if (stored) return stored;
    const halves = await this.#encode(image ?? (await read()));
    const data = new Uint8Array(halves.buffer);
    await writeWhole(path, encodeSafetensors(new Map([["embedding", { dtype: "F16", shape: [halves.length], data }]])));
    return halves;
  }

  async #encode(image: Image): Promise<Uint16Array> {
    const { imageSize: side } = this.sam.config;
    const { data } = prepareImage(image, side);
    const values = await scope(async () =>
      noGrad(() => this.sam.encodeImage(this.#gpu.tensor(data, [1, 3, side, side]))).toArray(),
    );
    // As infinities they would give masks of nothing.
    const beyond = firstBeyondHalf(values);
    if (beyond >= 0)
      throw new BadInput(
        `${this.#options.file ?? "SAM"}: its embedding of an image holds ${values[beyond]}, which half precision, in which embeddings are kept, cannot (it ends at 65504); take other weights`,
      );
    return Uint16Array.from(values, halfBits);
  }
}

/** Loads the teacher that a configuration names; a path that is not there is looked up in the package (assets/). */
export async function loadTeacher(gpu: Device, checkpoint: string, options: TeacherOptions): Promise<Teacher> {
  const path = findAsset(checkpoint);
  const weights = await readSamFile(path, "a SAM or MobileSAM checkpoint (sam.checkpoint)");
  const heads = samHeadsBeside(weights);
  // Loading gives the bytes up.
  const key = hashOf(...weights.bytes, heads === undefined ? "" : `${heads} heads`);
  return new Teacher(gpu, await loadSamFile(gpu, weights), key, { file: path, ...options });
}

/** The path itself where it exists, else the same path inside the package. */
export function findAsset(path: string): string {
  const shipped = join(packageRoot, path);
  return !existsSync(path) && existsSync(shipped) ? shipped : path;
}

export function hashOf(...parts: (Uint8Array | string)[]): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest("hex").slice(0, 16);
}

async function readEmbedding(path: string, size: number): Promise<Uint16Array | undefined> {
  if (!existsSync(path)) return undefined;
  try {
    const { tensors } = parseSafetensors(await readFile(path), path);
    const halves = Uint16Array.from(fileNumbers(tensors.get("embedding")!), halfBits);
    return halves.length === size ? halves : undefined;
  } catch {
    return undefined; // A damaged file of a cache is made again.
  }
}
