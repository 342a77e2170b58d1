// A SAM model from a file of weights: original SAM and MobileSAM, transformers' SamModel, sam-mini and anything of that architecture.
import { type Device, firstBeyondHalf, nn, scope } from "../../engine/index.ts";
import { fileNumbers } from "../../engine/safetensors.ts";
import { checkTensors } from "../weights/compare.ts";
import { type NamedTensors, nameTensors } from "../weights/names.ts";
import { type Checkpoint, readCheckpoint } from "../weights/read.ts";
import { CheckpointError, type HostTensor } from "../weights/tensors.ts";
import { checkConfig, type SamConfig } from "./config.ts";
import { bindingExcess, largestTensor } from "./memory.ts";
import { Sam } from "./sam.ts";
import { samEncoderShapes, samShapes } from "./shapes.ts";
import { samConfigOf, samEncoderOf } from "./sizes.ts";

/** Sizes and tensors of a SAM checkpoint, compared with each other before any memory of the GPU is taken. */
export interface SamCheckpoint extends NamedTensors {
  readonly config: SamConfig;
}

/** A file's bytes, or what was read of it, which may be several files. */
export type SamSource = Uint8Array | SamFile;

interface SamFile extends Pick<Checkpoint, "tensors" | "metadata"> {
  /** Of the mask decoder, where something beside the file tells: shapes do not. */
  readonly decoderHeads?: number | undefined;
}

export interface LoadOptions {
  /** How the weights of linear and convolution layers are stored, as by `Module.to`; f16 takes half the memory. */
  readonly dtype?: "f32" | "f16" | undefined;
}

/**
 * A frozen model in evaluation mode. Bytes in a resizable buffer are given up: they shrink as they go to the GPU. Throws CheckpointError
 * naming the file and what is missing, unexpected, misshaped or too large for f16, or which tensor is larger than the adapter can bind.
 */
export async function loadSam(
  gpu: Device,
  source: SamSource,
  file: string,
  { dtype = "f32" }: LoadOptions = {},
): Promise<Sam> {
  const { config, tensors, keyOf } = readSam(source, file);
  const excess = bindingExcess(gpu, largestTensor(config));
  if (excess) throw new CheckpointError(`${file}: ${excess}`);
  const sam = nn.init.skip(() => new Sam(gpu, config), { dtype });
  await loadSamTensors(sam, tensors, file, keyOf);
  sam.eval();
  sam.freeze();
  return sam;
}

export function readSam(source: SamSource, file: string): SamCheckpoint {
  const read: SamFile = source instanceof Uint8Array ? readCheckpoint(source, file) : source;
  const { tensors: found, metadata } = ofTraining(read, file);
  const named = nameTensors(found, file);
  const { tensors, family, kind } = named;
  if (family !== "sam")
    throw new CheckpointError(
      `${file}: no SAM checkpoint: its keys are those of ${family === "unknown" ? "a model that is not known here" : kind}`,
    );
  if (![...tensors.keys()].some((key) => key.startsWith("image_encoder.")))
    throw new CheckpointError(
      `${file}: a SAM without image encoder, as its export to ONNX is; take the original checkpoint`,
    );
  if (isSamEncoder(named))
    throw new CheckpointError(
      `${file}: holds a SAM's image encoder alone; masks need its prompt encoder and mask decoder, too: take the original checkpoint`,
    );
  const config = samConfigOf(tensors, file, metadata, named.keyOf, read.decoderHeads);
  try {
    checkConfig(config);
    checkBlocks(config, tensors.size);
  } catch (error) {
    const where = metadata.config === undefined ? "" : 'metadata "config": ';
    throw new CheckpointError(`${file}: ${where}${(error as Error).message}`);
  }
  checkTensors(samShapes(config), tensors, file, named.keyOf);
  return { ...named, config };
}

/** Of an export, the matrix of its positions may come with it. */
const POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix";

/** Is it an image encoder without the rest of its SAM? */
export function isSamEncoder({ family, tensors }: NamedTensors): boolean {
  return family === "sam" && [...tensors.keys()].every((key) => key.startsWith("image_encoder.") || key === POSITIONS);
}

/** Throws where an image encoder alone lacks tensors, has others, or such of another shape than the rest tells. */
export function checkSamEncoder({ tensors, keyOf }: NamedTensors, file: string): void {
  const config = samEncoderOf(tensors, file, keyOf);
  const shapes = samEncoderShapes(config);
  if (tensors.has(POSITIONS)) shapes.set(POSITIONS, { shape: [2, config.promptDim / 2] });
  checkTensors(shapes, tensors, file, keyOf);
}

/** A checkpoint of sam-train holds its model under `model.`, beside the optimizer, and the sizes in the run's configuration. */
function ofTraining(
  { tensors, metadata }: Pick<Checkpoint, "tensors" | "metadata">,
  file: string,
): Pick<Checkpoint, "tensors" | "metadata"> {
  if (!metadata.format?.startsWith("wgpu-wish checkpoint")) return { tensors, metadata };
  const model = [...tensors].flatMap(([key, x]) => (key.startsWith("model.") ? [[key.slice(6), x] as const] : []));
  if (!model.some(([key]) => key.startsWith("mask_decoder.")))
    throw new CheckpointError(`${file}: is a checkpoint of another model's training; expected one of sam-train`);
  try {
    const { model: sizes } = JSON.parse(metadata.config ?? "{}") as { model?: SamConfig };
    return { tensors: new Map(model), metadata: sizes ? { config: JSON.stringify(sizes) } : {} };
  } catch {
    throw new CheckpointError(`${file}: the run's configuration in its metadata is damaged`);
  }
}

/** Sizes may come from the file's metadata: whatever they are, the list of shapes stays as long as the file deserves. */
function checkBlocks({ encoder, decoder }: SamConfig, tensors: number): void {
  const sizes = {
    ...(encoder.kind === "vit"
      ? { "encoder.depth": encoder.depth }
      : { "encoder.depths": encoder.depths.reduce((sum, n) => sum + n, 0) }),
    "decoder.depth": decoder.depth,
    "decoder.iouDepth": decoder.iouDepth,
    "decoder.candidates": decoder.candidates,
  };
  for (const [key, blocks] of Object.entries(sizes))
    if (!(blocks <= tensors))
      throw new Error(`${key}: the file's ${tensors} tensors cannot be that many; got ${blocks}`);
}

/** Bytes that may be on their way to the GPU; more would stand in memory beside the file and the model. */
const MOST_UNDERWAY = 64 * 2 ** 20;

/**
 * Copies a checkpoint's tensors into a model of the same sizes, one at a time, so that memory holds the model once. Those that lie in a
 * resizable buffer go last to first, and what lies behind them is given back. Throws CheckpointError where a number is too large for the
 * type that the model stores it in; `keyOf` gives the file's keys for the message.
 */
export async function loadSamTensors(
  sam: Sam,
  tensors: ReadonlyMap<string, HostTensor>,
  file: string,
  keyOf: (name: string) => string = (name) => name,
): Promise<void> {
  const own = sam.stateDict();
  checkTensors(own, tensors, file);
  const { device } = sam;
  const end = ({ data }: HostTensor) => data.byteOffset + data.byteLength;
  const order = [...tensors].sort(([, a], [, b]) => end(b) - end(a));
  let underway = 0;
  for (const [i, [key, tensor]] of order.entries()) {
    const numbers = fileNumbers(tensor, `${file}: ${key}`);
    if (own.get(key)!.dtype === "f16") checkHalves(numbers, `${file}: tensor ${keyOf(key)}`);
    scope(() => {
      const full = device.tensor(numbers, tensor.shape);
      sam.loadStateDict(new Map([[key, full]]), { strict: false });
    });
    underway += 4 * own.get(key)!.size;
    if (underway < MOST_UNDERWAY && i < order.length - 1) continue;
    await device.sync();
    underway = 0;
    const { buffer } = tensor.data;
    const next = order.slice(i + 1).find(([, { data }]) => data.buffer === buffer)?.[1];
    if (buffer instanceof ArrayBuffer && buffer.resizable) buffer.resize(next ? end(next) : 0);
  }
}

/** In f16 they would be infinite, and every mask empty. */
function checkHalves(numbers: ArrayLike<number>, where: string): void {
  const at = firstBeyondHalf(numbers);
  if (at >= 0)
    throw new CheckpointError(
      `${where} holds ${numbers[at]}, which half precision cannot (it ends at 65504); leave --half out`,
    );
}
