/**
 * The frozen SAM that turns weak labels into masks and latents. Masks of points and boxes never change, so they are computed once on the
 * original image and kept on disk; peaks of the CAM change at every step, so for images with tags the embedding is what is kept.
 */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { type Device, F, fileNumbers, halfBits, halfValue, noGrad, parseSafetensors, scope, encodeSafetensors } from "../engine/index.ts";
import { loadSam, longestSide, prepareImage, type Sam, SamPredictor } from "../model/sam/index.ts";
import { packageRoot } from "../platform/root.ts";
import type { Image } from "./data/image.ts";
import { readNamed, writeWhole } from "./files.ts";
import { BadInput } from "./errors.ts";
import type { EncodePrompts } from "./latents.ts";

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
  /** Folder of the embeddings; they are kept under the weights' key. */
  cache: string;
  /** Bytes of embeddings held in memory. */
  memory: number;
}

export class Teacher {
  readonly sam: Sam;
  /** Identifies the weights. */
  readonly key: string;
  readonly #gpu: Device;
  readonly #predictor: SamPredictor;
  readonly #options: TeacherOptions;
  /** Insertion order is order of use. */
  readonly #embeddings = new Map<number, Uint16Array>();
  #held = 0;

  constructor(gpu: Device, sam: Sam, key: string, options: TeacherOptions) {
    this.#gpu = gpu;
    this.sam = sam;
    this.key = key;
    this.#predictor = new SamPredictor(sam);
    this.#options = options;
  }

  /** Width of its prompt embedding. */
  get promptDim(): number {
    return this.sam.config.promptDim;
  }

  /**
   * The prompt encoder for labels in pixels of a network input of [width, height]: SAM's frame is a square, so that the network's longer
   * side fills it (wish.md 6.2).
   */
  promptEncoder([width, height]: readonly [number, number]): EncodePrompts {
    const scale = this.sam.config.imageSize / Math.max(width, height);
    return (kind, coords) => {
      const inFrame = coords.map((v) => v * scale);
      if (kind === "box") return this.sam.encodePrompts({ boxes: inFrame }).sparse;
      const count = coords.length / 2;
      return this.sam.encodePrompts({ points: { coords: inFrame, labels: new Int32Array(count).fill(1), count } }).sparse;
    };
  }

  /** Masks for points (pixels) or boxes (x0, y0, x1, y1) of an image, each a prompt of its own. */
  async prompt(image: Image, prompts: { points: readonly (readonly [number, number])[] } | { boxes: readonly (readonly number[])[] }): Promise<Prompted[]> {
    const list = "points" in prompts ? prompts.points : prompts.boxes;
    if (list.length === 0) return [];
    return scope(async () => {
      this.#predictor.setImage(image);
      const flat = list.flat();
      const { masks, iou, lowRes } = await this.#predictor.predict(
        "points" in prompts ? { points: { coords: flat, labels: new Int32Array(list.length).fill(1), count: list.length } } : { boxes: flat },
      );
      const side = this.sam.config.grid * 4;
      const area = side * side;
      const each = iou[0]!.length;
      return masks.map((candidates, i) => ({
        masks: candidates,
        iou: iou[i]!,
        logits: candidates.map((_, c) => lowRes.slice((i * each + c) * area, (i * each + c + 1) * area)),
        side,
      }));
    });
  }

  /**
   * Masks for points of an image of the data set, given in pixels of the original, from its kept embedding. `read` brings the image where
   * there is none yet.
   */
  async promptPoints(imageId: number, size: readonly [width: number, height: number], read: () => Promise<Image>, points: readonly (readonly [number, number])[]): Promise<PointMasks> {
    const { grid, imageSize, promptDim } = this.sam.config;
    const side = grid * 4;
    const [h, w] = longestSide(size[1], size[0], imageSize);
    const coords = Float32Array.from(points.flatMap(([x, y]) => [(x * w) / size[0], (y * h) / size[1]]));
    const embedding = await this.#embedding(imageId, read);
    return scope(async () => {
      const { masks, iou } = noGrad(() => {
        const e = this.#gpu.tensor(Float32Array.from(embedding, halfValue), [1, promptDim, grid, grid]);
        const labels = new Int32Array(points.length).fill(1);
        const { sparse, dense } = this.sam.encodePrompts({ points: { coords, labels, count: points.length } });
        return this.sam.decode(e, sparse, dense, { multimask: true });
      });
      const [n, each] = iou.shape as [number, number];
      const both = (await noGrad(() => F.cat([F.reshape(masks, [masks.size]), F.reshape(iou, [iou.size])], 0)).toArray()) as Float32Array;
      const ratings = both.subarray(masks.size);
      const area = side * side;
      return {
        logits: Array.from({ length: n }, (_, i) => Array.from({ length: each }, (_, c) => both.slice((i * each + c) * area, (i * each + c + 1) * area))),
        iou: Array.from({ length: n }, (_, i) => Array.from(ratings.subarray(i * each, (i + 1) * each))),
        side,
      };
    });
  }

  /** An image's embedding in half precision, from memory, disk or the encoder; the same bits from each. */
  async #embedding(imageId: number, read: () => Promise<Image>): Promise<Uint16Array> {
    const held = this.#embeddings.get(imageId);
    if (held) {
      this.#embeddings.delete(imageId);
      this.#embeddings.set(imageId, held);
      return held;
    }
    const path = join(this.#options.cache, `embeddings-${this.key}`, `${imageId}.safetensors`);
    let halves = await readEmbedding(path);
    if (!halves) {
      const side = this.sam.config.imageSize;
      const prepared = prepareImage(await read(), side);
      const values = await scope(async () => noGrad(() => this.sam.encodeImage(this.#gpu.tensor(prepared.data, [1, 3, side, side]))).toArray());
      halves = Uint16Array.from(values, halfBits);
      const data = new Uint8Array(halves.buffer);
      await writeWhole(path, encodeSafetensors(new Map([["embedding", { dtype: "F16", shape: [halves.length], data }]])));
    }
    this.#embeddings.set(imageId, halves);
    this.#held += halves.byteLength;
    for (const [id, old] of this.#embeddings) {
      if (this.#held <= this.#options.memory || id === imageId) break;
      this.#embeddings.delete(id);
      this.#held -= old.byteLength;
    }
    return halves;
  }
}

/** Loads the teacher that a configuration names; a path that is not there is looked up in the package (assets/). */
export async function loadTeacher(gpu: Device, checkpoint: string, options: TeacherOptions): Promise<Teacher> {
  const path = findAsset(checkpoint);
  const bytes = await readNamed(path, "a SAM or MobileSAM checkpoint (sam.checkpoint)");
  try {
    const sam = await loadSam(gpu, bytes, path);
    return new Teacher(gpu, sam, hashOf(bytes), options);
  } catch (cause) {
    if ((cause as Error).name === "CheckpointError") throw new BadInput((cause as Error).message);
    throw cause;
  }
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

async function readEmbedding(path: string): Promise<Uint16Array | undefined> {
  if (!existsSync(path)) return undefined;
  try {
    const { tensors } = parseSafetensors(await readFile(path), path);
    return Uint16Array.from(fileNumbers(tensors.get("embedding")!), halfBits);
  } catch {
    return undefined; // A damaged file of a cache is made again.
  }
}
