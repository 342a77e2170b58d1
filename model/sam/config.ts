// The sizes of a model of SAM's architecture. SAM's own are spelled out by three functions, MobileSAM's by a fourth; a checkpoint of any
// other size says its own: shapes tell most, and what shapes do not show stands in the metadata under `config`.

export interface VitSizes {
  readonly kind: "vit";
  readonly dim: number;
  readonly depth: number;
  readonly heads: number;
  readonly patch: number;
  readonly mlp: number;
  readonly window: number;
  /** Indices of the blocks that attend to the whole grid. */
  readonly globalBlocks: readonly number[];
}

/** Four numbers a stage; stage 0 is convolutional, so its head count and window are not used. */
export interface TinyVitSizes {
  readonly kind: "tiny-vit";
  readonly dims: readonly number[];
  readonly depths: readonly number[];
  readonly heads: readonly number[];
  readonly windows: readonly number[];
  /** Stride of the merging between stage i and i + 1: 2, or 1 where the grid keeps its size. One fewer than stages. */
  readonly strides: readonly number[];
}

export interface SamConfig {
  /** Side of the square input in pixels. */
  readonly imageSize: number;
  /** Width of image and prompt embeddings. */
  readonly promptDim: number;
  readonly encoder: VitSizes | TinyVitSizes;
  /** Channels of the mask prompt's convolutions. */
  readonly maskChannels: number;
  readonly decoder: {
    readonly depth: number;
    readonly heads: number;
    readonly mlp: number;
    readonly iouHidden: number;
    readonly iouDepth: number;
    /** Candidates beside the single mask. */
    readonly candidates: number;
  };
}

/** What an image encoder alone needs to know. */
export type EncoderConfig = Pick<SamConfig, "imageSize" | "promptDim" | "encoder">;

const SAM = {
  imageSize: 1024,
  promptDim: 256,
  maskChannels: 16,
  decoder: { depth: 2, heads: 8, mlp: 2048, iouHidden: 256, iouDepth: 3, candidates: 3 },
} as const;

function samVit(dim: number, depth: number, heads: number, globalBlocks: readonly number[]): SamConfig {
  return { ...SAM, encoder: { kind: "vit", dim, depth, heads, patch: 16, mlp: 4 * dim, window: 14, globalBlocks } };
}

export const samVitB = (): SamConfig => samVit(768, 12, 12, [2, 5, 8, 11]);
export const samVitL = (): SamConfig => samVit(1024, 24, 16, [5, 11, 17, 23]);
export const samVitH = (): SamConfig => samVit(1280, 32, 16, [7, 15, 23, 31]);

export const mobileSam = (): SamConfig => ({
  ...SAM,
  encoder: {
    kind: "tiny-vit",
    dims: [64, 128, 160, 320],
    depths: [2, 2, 6, 2],
    heads: [2, 4, 5, 10],
    windows: [7, 7, 14, 7],
    strides: [2, 2, 1],
  },
});

/** The small teacher of the embedded default: TinyViT of three stages at 128 px, stride 16. */
export const samMini = (): SamConfig => ({
  imageSize: 128,
  promptDim: 64,
  encoder: {
    kind: "tiny-vit",
    dims: [24, 48, 96],
    depths: [1, 1, 2],
    heads: [1, 2, 4],
    windows: [8, 8, 8],
    strides: [2, 2],
  },
  maskChannels: 16,
  decoder: { depth: 2, heads: 4, mlp: 256, iouHidden: 64, iouDepth: 3, candidates: 3 },
});

/** Pixels between the image embedding's cells. */
export function encoderStride(encoder: SamConfig["encoder"]): number {
  return encoder.kind === "vit" ? encoder.patch : encoder.strides.reduce((product, stride) => product * stride, 4);
}

/** Side of the square grid of the image embedding. */
export function gridSize({ imageSize, encoder }: EncoderConfig): number {
  return imageSize / encoderStride(encoder);
}

/** Throws where sizes contradict each other, before any buffer is made. */
export function checkConfig(config: SamConfig): void {
  const { encoder, decoder, promptDim, maskChannels, imageSize } = config;
  const fail = (text: string): never => {
    throw new Error(`SAM configuration: ${text}`);
  };
  if (!Number.isInteger(gridSize(config)))
    fail(`imageSize ${imageSize} must be a multiple of the encoder's stride ${encoderStride(encoder)}`);
  if (promptDim % 8 !== 0) fail(`promptDim must be a multiple of 8; got ${promptDim}`);
  if (maskChannels % 4 !== 0) fail(`maskChannels must be a multiple of 4; got ${maskChannels}`);
  if ((promptDim / 2) % decoder.heads !== 0)
    fail(`decoder.heads ${decoder.heads} must divide promptDim / 2 = ${promptDim / 2}`);
  if (encoder.kind === "vit") {
    if (encoder.dim % encoder.heads !== 0)
      fail(`encoder.heads ${encoder.heads} must divide encoder.dim ${encoder.dim}`);
    return;
  }
  const stages = encoder.dims.length;
  for (const key of ["depths", "heads", "windows"] as const) {
    if (encoder[key].length !== stages)
      fail(`encoder.${key} must have ${stages} numbers as encoder.dims; got ${encoder[key].length}`);
  }
  if (encoder.strides.length !== stages - 1)
    fail(`encoder.strides must have ${stages - 1} numbers; got ${encoder.strides.length}`);
  encoder.dims.forEach((dim, i) => {
    if (i > 0 && dim % encoder.heads[i]! !== 0)
      fail(`encoder.heads[${i}] = ${encoder.heads[i]} must divide encoder.dims[${i}] = ${dim}`);
  });
}
