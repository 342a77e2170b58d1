// SAM as a whole (segment-anything: modeling/sam.py, predictor.py): image encoder, prompt encoder, mask decoder and the way back to pixels.
import { type Device, F, free, keep, nn, noGrad, scope, type Tensor } from "../../engine/index.ts";
import { checkConfig, gridSize, type SamConfig } from "./config.ts";
import { ImageEncoderViT } from "./image-encoder.ts";
import { type DecodedMasks, MaskDecoder } from "./mask-decoder.ts";
import { MASK_THRESHOLD, maskOfLogits } from "./postprocess.ts";
import { type PreparedImage, prepareImage, type RgbImage, type Size } from "./preprocess.ts";
import { type EncodedPrompts, PromptEncoder, type Prompts } from "./prompt-encoder.ts";
import { TinyViT } from "./tiny-vit.ts";

export class Sam extends nn.Module {
  image_encoder: ImageEncoderViT | TinyViT;
  prompt_encoder: PromptEncoder;
  mask_decoder: MaskDecoder;
  readonly #config: SamConfig;

  /** `seed` draws the prompt encoder's frequencies; the other parameters follow `gpu.manualSeed`. */
  constructor(gpu: Device, config: SamConfig, { seed = 0 }: { seed?: number } = {}) {
    super();
    checkConfig(config);
    const { encoder, promptDim, imageSize, maskChannels } = config;
    this.image_encoder =
      encoder.kind === "vit"
        ? new ImageEncoderViT(gpu, encoder, imageSize, promptDim)
        : new TinyViT(gpu, encoder, promptDim);
    this.prompt_encoder = new PromptEncoder(
      gpu,
      { dim: promptDim, grid: gridSize(config), imageSize, maskChannels },
      seed,
    );
    this.mask_decoder = new MaskDecoder(gpu, promptDim, config.decoder);
    this.#config = config;
  }

  /** Sizes, and with them the frame of the prompts: pixels of an imageSize x imageSize square. */
  get config(): SamConfig & { readonly grid: number } {
    return { ...this.#config, grid: gridSize(this.#config) };
  }

  /** Where its weights live. */
  get device(): Device {
    return this.prompt_encoder.no_mask_embed.weight.device;
  }

  /** (B, 3, S, S) as `prepareImage` makes it -> (B, C, g, g) */
  encodeImage(image: Tensor): Tensor {
    const side = this.#config.imageSize;
    const [, channels, H, W] = image.shape;
    if (image.shape.length !== 4 || channels !== 3 || H !== side || W !== side) {
      throw new Error(
        `Sam.encodeImage: image must be (B, 3, ${side}, ${side}); got (${image.shape.join(", ")}); see prepareImage`,
      );
    }
    return this.image_encoder.forward(image);
  }

  /** Prompts in pixels of the resized frame. */
  encodePrompts(prompts: Prompts): EncodedPrompts {
    return this.prompt_encoder.forward(prompts);
  }

  /** The dense embedding that goes with prompts without a mask: (1, C, g, g). */
  noMaskEmbedding(): Tensor {
    return this.prompt_encoder.noMask();
  }

  /** The token that stands in for a missing box beside points: (1, C). */
  notAPointEmbedding(): Tensor {
    return this.prompt_encoder.not_a_point_embed.weight;
  }

  /**
   * Mean over channels and places of each token of a point or a box: (1, 2, 1). Places hardly move it (the means of 256 sines and cosines
   * spread by some 0.04), so that it stands in for that of an unknown prompt.
   */
  tokenMeans(kind: "point" | "box"): Tensor {
    const { imageSize, grid } = this.config;
    const centres = Array.from({ length: grid * grid }, (_, i) =>
      [i % grid, Math.trunc(i / grid)].map((cell) => ((cell + 0.5) * imageSize) / grid),
    );
    const { sparse } =
      kind === "point"
        ? this.encodePrompts({
            points: { coords: centres.flat(), labels: centres.map(() => 1), count: centres.length },
          })
        : this.encodePrompts({ boxes: centres.flatMap((centre) => [...centre, ...centre]) });
    return F.mean(sparse, [0, 2], { keepdim: true });
  }

  /**
   * @param embedding (B, C, g, g)
   * @param sparse (P, T, C), P a multiple of B, an image's prompts side by side
   * @param dense (1 or P, C, g, g)
   * @returns three candidates a prompt, or one: masks (P, 3, 4g, 4g) logits, iou (P, 3)
   */
  decode(
    embedding: Tensor,
    sparse: Tensor,
    dense: Tensor,
    { multimask = true }: { multimask?: boolean } = {},
  ): DecodedMasks {
    return this.mask_decoder.forward(embedding, this.prompt_encoder.densePe(), sparse, dense, multimask);
  }

  /** All four masks, the single one first, for training: (P, 4, 4g, 4g) and (P, 4). */
  decodeAll(embedding: Tensor, sparse: Tensor, dense: Tensor): DecodedMasks {
    return this.mask_decoder.predictMasks(embedding, this.prompt_encoder.densePe(), sparse, dense);
  }

  /** Logits of the low-resolution masks (P, M, 4g, 4g) at the size of the image: up to S, cut to what is image, up to `originalSize`. */
  postprocess(masks: Tensor, inputSize: Size, originalSize: Size): Tensor {
    const side = this.#config.imageSize;
    const [h, w] = inputSize;
    let x = F.interpolate(masks, { size: [side, side], mode: "bilinear" });
    if (h < side) x = F.slice(x, 2, 0, h);
    if (w < side) x = F.slice(x, 3, 0, w);
    return F.interpolate(x, { size: [...originalSize], mode: "bilinear" });
  }
}

/** Prompts in pixels of the original image. */
export interface ImagePrompts {
  /** (k, n, 2) and (k, n), see PointPrompts. */
  readonly points?: Prompts["points"];
  /** (k, 4) x0, y0, x1, y1 */
  readonly boxes?: ArrayLike<number> | undefined;
}

export interface PromptedMasks {
  /** masks[prompt][candidate]: originalHeight * originalWidth zeros and ones. */
  readonly masks: Uint8Array[][];
  /** iou[prompt][candidate] */
  readonly iou: number[][];
  /** (k, M, 4g, 4g) */
  readonly lowRes: Float32Array;
  /** (k, T, C) and (k, C, g, g) */
  readonly sparse: Float32Array;
  readonly dense: Float32Array;
  readonly tokens: number;
}

/** An image, encoded once, and any number of prompts for it (the reference's SamPredictor). */
export class SamPredictor {
  readonly sam: Sam;
  #prepared: PreparedImage | undefined;
  #embedding: Tensor | undefined;

  constructor(sam: Sam) {
    this.sam = sam;
  }

  /** Encodes; the embedding (1, C, g, g) stays until the next image, whatever scope this is called in. */
  setImage(image: RgbImage): Tensor {
    const side = this.sam.config.imageSize;
    const prepared = prepareImage(image, side);
    const { device } = this.sam;
    const embedding = scope(() => noGrad(() => this.sam.encodeImage(device.tensor(prepared.data, [1, 3, side, side]))));
    this.resetImage();
    this.#prepared = prepared;
    this.#embedding = keep(embedding);
    return embedding;
  }

  /** Forgets the image; its embedding is freed. */
  resetImage(): void {
    if (this.#embedding) free(this.#embedding);
    this.#prepared = undefined;
    this.#embedding = undefined;
  }

  /** Prompts in the image's own pixels -> masks of its size. */
  async predict(prompts: ImagePrompts, { multimask = true }: { multimask?: boolean } = {}): Promise<PromptedMasks> {
    const prepared = this.#prepared;
    const embedding = this.#embedding;
    if (!prepared || !embedding) throw new Error("SamPredictor.predict: call setImage first");
    return scope(async () => {
      const run = noGrad(() => {
        const { sparse, dense } = this.sam.encodePrompts(toFrame(prompts, prepared.scale));
        return { sparse, dense, ...this.sam.decode(embedding, sparse, dense, { multimask }) };
      });
      const scores = await run.iou.toArray();
      const [k, M] = run.iou.shape as [number, number];
      const masks: Uint8Array[][] = [];
      for (let prompt = 0; prompt < k; prompt++) {
        const candidates = Array.from({ length: M }, (_, m) =>
          F.slice(F.slice(run.masks, 0, prompt, prompt + 1), 1, m, m + 1),
        );
        masks.push(await this.#fullSize(candidates, prepared));
      }
      return {
        masks,
        iou: Array.from({ length: k }, (_, i) => Array.from(scores.subarray(i * M, (i + 1) * M))),
        lowRes: (await run.masks.toArray()) as Float32Array,
        sparse: (await run.sparse.toArray()) as Float32Array,
        dense: (await run.dense.toArray()) as Float32Array,
        tokens: run.sparse.shape[1]!,
      };
    });
  }

  /** Masks (1, 1, 4g, 4g) at the image's size. One at a time, and on the host where not even one fits a binding. */
  async #fullSize(masks: readonly Tensor[], { inputSize, originalSize }: PreparedImage): Promise<Uint8Array[]> {
    const { device, config } = this.sam;
    const [height, width] = originalSize;
    const fits = 4 * height * width <= device.gpu.limits.maxStorageBufferBindingSize;
    const full: Uint8Array[] = [];
    for (const low of masks) {
      if (!fits) {
        const logits = (await low.toArray()) as Float32Array;
        full.push(maskOfLogits(logits, 4 * config.grid, config.imageSize, inputSize, originalSize));
        continue;
      }
      const logits = await scope(() => noGrad(() => this.sam.postprocess(low, inputSize, originalSize)).toArray());
      full.push(Uint8Array.from(logits, isMask));
    }
    return full;
  }
}

function isMask(logit: number): number {
  return logit > MASK_THRESHOLD ? 1 : 0;
}

/** From the original's pixels to the resized frame's. */
function toFrame({ points, boxes }: ImagePrompts, scale: readonly [number, number]): Prompts {
  const scaled = (values: ArrayLike<number>) => Float32Array.from(values, (v, i) => v * scale[i % 2]!);
  return {
    points: points && { ...points, coords: scaled(points.coords) },
    boxes: boxes && scaled(boxes),
  };
}
