// A SAM model from a file of weights: original SAM and MobileSAM, transformers' SamModel, sam-mini and anything of that architecture.
import { type Device, scope } from "../../engine/index.ts";
import { fileNumbers } from "../../engine/safetensors.ts";
import { checkTensors, type NamedTensors, nameTensors } from "../weights/names.ts";
import { type Checkpoint, readCheckpoint } from "../weights/read.ts";
import { CheckpointError, type HostTensor } from "../weights/tensors.ts";
import { checkConfig, type SamConfig } from "./config.ts";
import { Sam } from "./sam.ts";
import { samShapes } from "./shapes.ts";
import { samConfigOf } from "./sizes.ts";

/** Sizes and tensors of a SAM checkpoint, compared with each other before any memory of the GPU is taken. */
export interface SamCheckpoint extends NamedTensors {
  readonly config: SamConfig;
}

/** A file's bytes, or what was read of it, which may be several files. */
export type SamSource = Uint8Array | Pick<Checkpoint, "tensors" | "metadata">;

/** A frozen model in evaluation mode. Throws CheckpointError naming the file and what is missing, unexpected or misshaped. */
export async function loadSam(gpu: Device, source: SamSource, file: string): Promise<Sam> {
  const { config, tensors } = readSam(source, file);
  const sam = new Sam(gpu, config);
  loadSamTensors(sam, tensors, file);
  await gpu.sync();
  sam.eval();
  sam.freeze();
  return sam;
}

export function readSam(source: SamSource, file: string): SamCheckpoint {
  const read = source instanceof Uint8Array ? readCheckpoint(source, file) : source;
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
  const config = samConfigOf(tensors, file, metadata);
  try {
    checkConfig(config);
    checkBlocks(config, tensors.size);
  } catch (error) {
    const what = error instanceof TypeError ? 'metadata "config" lacks sizes of a SAM' : (error as Error).message;
    throw new CheckpointError(`${file}: ${what}`);
  }
  checkTensors(samShapes(config), tensors, file);
  return { ...named, config };
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
  const depth = encoder.kind === "vit" ? encoder.depth : encoder.depths.reduce((sum, n) => sum + n, 0);
  const blocks = depth + decoder.depth + decoder.iouDepth + decoder.candidates;
  if (!(blocks <= tensors)) throw new Error(`${blocks} blocks do not fit ${tensors} tensors`);
}

/** Copies a checkpoint's tensors into a model of the same sizes, one at a time, so that memory holds the model once. */
export function loadSamTensors(sam: Sam, tensors: ReadonlyMap<string, HostTensor>, file: string): void {
  const own = sam.stateDict();
  checkTensors(own, tensors, file);
  for (const [key, tensor] of tensors) {
    scope(() => {
      const { device } = own.get(key)!;
      sam.loadStateDict(new Map([[key, device.tensor(fileNumbers(tensor, `${file}: ${key}`), tensor.shape)]]), {
        strict: false,
      });
    });
  }
}
