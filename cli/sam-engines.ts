/** What can answer `sam`: the WebGPU engine, or ONNX Runtime on an export. */
import type { Device, Tensor } from "../index.ts";
import { type ImagePrompts, type PromptedMasks, type Sam, SamPredictor } from "../model/sam/index.ts";
import type { Image } from "../train/data/image.ts";
import { BadInput } from "../train/errors.ts";
import { frameOf, OnnxDecoder, OnnxEncoder } from "../train/sam/onnx.ts";
import type { Embedding, Values } from "../train/sam/onnx-forms.ts";
import { findAsset } from "../train/teacher.ts";
import { loadSamFile, readSamFile, type WeightFile } from "../train/weights.ts";
import type { Call } from "./command.ts";

export interface EngineOptions {
  checkpoint: string;
  engine: "webgpu" | "onnx";
  encoder?: string;
  half?: boolean;
}

/** One prompt's answer; an export keeps the prompt's embedding to itself. */
export type Answer = Pick<PromptedMasks, "masks" | "iou" | "lowRes"> &
  Partial<Pick<PromptedMasks, "sparse" | "dense" | "tokens">>;

/** An engine with an image. */
export interface Segmenter {
  readonly embedding: Values;
  predict(prompt: ImagePrompts, multimask: boolean): Promise<Answer>;
  /** What the GPU's tensors took, where one was at work. */
  memory(): { liveBytes: number; highWaterBytes: number } | undefined;
  close(): Promise<void>;
}

/** The files that an answer needs, as paths. */
export function weightFiles({ checkpoint, encoder }: EngineOptions): string[] {
  return [checkpoint, ...(encoder ? [encoder] : [])].map(findAsset);
}

/** Checks all files that are named before the image is encoded. */
export async function openSegmenter(call: Call<EngineOptions>, image: Image): Promise<Segmenter> {
  const { checkpoint, engine, encoder, half } = call.options;
  if (engine === "onnx") {
    if (!isOnnx(checkpoint))
      throw new BadInput(
        `${checkpoint}: --engine onnx runs an ONNX export of SAM's decoder; name an .onnx file, or leave --engine out for these weights`,
      );
    if (!encoder)
      throw new BadInput(
        "sam --engine onnx: an export of the decoder holds no image encoder; name it with --encoder: its own .onnx, or the weights that were exported",
      );
    if (half && isOnnx(encoder)) throw new BadInput("sam --half: is for weights that this engine runs; leave it out");
    return openOnnx(call, encoder, image);
  }
  if (encoder)
    throw new BadInput("sam --encoder: goes with --engine onnx; the weights of --checkpoint hold the encoder");
  const { gpu, sam } = await load(call, checkpoint);
  const predictor = new SamPredictor(sam);
  const embedding = predictor.setImage(image);
  return {
    embedding: await valuesOf(embedding),
    predict: (prompt, multimask) => predictor.predict(prompt, { multimask }),
    memory: () => memoryOf(gpu),
    close: async () => {},
  };
}

async function openOnnx(call: Call<EngineOptions>, encoder: string, image: Image): Promise<Segmenter> {
  const decoder = await OnnxDecoder.open(call.options.checkpoint);
  const { embedding, memory } = isOnnx(encoder)
    ? { embedding: await encodeOnnx(encoder, image), memory: undefined }
    : await encodeHere(call, encoder, image, decoder);
  decoder.checkFits(embedding.shape);
  return {
    embedding,
    async predict(prompt, multimask) {
      const { masks, iou, lowRes } = await decoder.predict(embedding, prompt, { multimask });
      return { masks: [masks], iou: [iou], lowRes };
    },
    memory: () => memory,
    close: () => decoder.close(),
  };
}

async function encodeOnnx(file: string, image: Image): Promise<Embedding> {
  const encoder = await OnnxEncoder.open(file);
  const embedding = await encoder.encode(image);
  await encoder.close();
  return embedding;
}

/** The image's embedding by this package's engine, for a decoder that another runs. */
async function encodeHere(call: Call<EngineOptions>, file: string, image: Image, decoder: OnnxDecoder) {
  const { gpu, sam } = await load(call, file);
  const { promptDim, grid, imageSize } = sam.config;
  decoder.checkFits([1, promptDim, grid, grid]);
  const embedding: Embedding = {
    ...(await valuesOf(new SamPredictor(sam).setImage(image))),
    positions: await valuesOf(sam.prompt_encoder.densePe()),
    frame: frameOf(image, imageSize),
  };
  return { embedding, memory: memoryOf(gpu) };
}

async function valuesOf(x: Tensor): Promise<Values> {
  return { values: (await x.toArray()) as Float32Array, shape: x.shape };
}

async function load(call: Call<EngineOptions>, name: string): Promise<{ gpu: Device; sam: Sam }> {
  const file = findAsset(name);
  let weights: WeightFile;
  try {
    weights = await readSamFile(file, "weights of SAM or MobileSAM");
  } catch (error) {
    const hint = isOnnx(file)
      ? "; exports are run as they are by --engine onnx --checkpoint DECODER --encoder ENCODER"
      : "";
    if (error instanceof BadInput) throw new BadInput(error.message + hint);
    throw error;
  }
  const gpu = await call.open();
  return { gpu, sam: await loadSamFile(gpu, weights, { dtype: call.options.half ? "f16" : "f32" }) };
}

function memoryOf(gpu: Device): { liveBytes: number; highWaterBytes: number } {
  const { liveBytes, highWaterBytes } = gpu.memory;
  return { liveBytes, highWaterBytes };
}

function isOnnx(file: string): boolean {
  return /\.onnx$/i.test(file);
}
