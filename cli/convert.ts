/** `convert`: any file of weights to safetensors under the original repository's names. */
import { resolve } from "node:path";
import type { Device, Tensor } from "../engine/index.ts";
import { encodeSafetensors, fileNumbers, fileTensor } from "../engine/safetensors.ts";
import { loadMask2Former, mask2FormerNames } from "../model/index.ts";
import { readSam } from "../model/sam/index.ts";
import { CheckpointError, type HostTensor, nameTensors, readCheckpoint } from "../model/weights/index.ts";
import { BadInput } from "../train/errors.ts";
import { readNamed, writeWhole } from "../train/files.ts";
import type { Call } from "./command.ts";
import { bytes as size } from "./terminal.ts";

export async function run(call: Call): Promise<void> {
  const { args, terminal } = call;
  const [from, to] = args as [string, string];
  if (!to.endsWith(".safetensors")) throw new BadInput(`${to}: the output is a safetensors file; give it that ending`);
  if (resolve(from) === resolve(to)) throw new BadInput(`${to}: is the file to convert; name another output`);
  const bytes = await readNamed(from, "a file of weights");
  try {
    const { tensors: found, metadata, format } = readCheckpoint(bytes, from);
    const named = nameTensors(found, from);
    const { kind, unused } = named;
    const tensors =
      kind === "Mask2Former" ? await mask2FormerTensors(await call.open(), named.tensors, from) : named.tensors;
    // A SAM model's sizes are known from its shapes: what does not fit is said here, not when it is used.
    const config = kind.startsWith("SAM") || kind === "MobileSAM" ? readSam(bytes, from).config : undefined;
    const out = encodeSafetensors(tensors, {
      ...metadata,
      model: kind,
      ...(config ? { config: JSON.stringify(config) } : {}),
    });
    await writeWhole(to, out);
    const document = {
      from,
      to,
      format,
      model: kind,
      tensors: tensors.size,
      unused,
      bytes: out.length,
      ...(config ? { config } : {}),
    };
    const rest = unused.length > 0 ? `, ${unused.length} that inference does not use left out` : "";
    const note = kind === "unknown" ? "; the model is not one this program knows, so its names are as they were" : "";
    terminal.result(document, `${to}: ${kind}, ${tensors.size} tensors, ${size(out.length)}${rest}${note}`);
  } catch (error) {
    if (error instanceof CheckpointError) throw new BadInput(error.message);
    throw error;
  }
}

/** Under detectron2's names, checked against a model of the sizes that the tensors tell. */
async function mask2FormerTensors(
  gpu: Device,
  found: ReadonlyMap<string, HostTensor>,
  from: string,
): Promise<Map<string, HostTensor>> {
  const state = new Map(
    [...found].map(([key, tensor]) => [key, gpu.tensor(fileNumbers(tensor, `${from}: ${key}`), tensor.shape)]),
  );
  let names: Map<string, Tensor>;
  try {
    names = mask2FormerNames(state);
    loadMask2Former(gpu, names);
  } catch (error) {
    throw new BadInput(`${from}: ${error instanceof Error ? error.message : error}`);
  }
  const out = new Map<string, HostTensor>();
  for (const [key, x] of names) out.set(key, fileTensor(await x.toArray(), x.shape, x.dtype === "i32" ? "I32" : "F32"));
  return out;
}
