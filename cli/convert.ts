/** `convert`: any file of weights to safetensors under the original repository's names. */
import { encodeSafetensors } from "../engine/safetensors.ts";
import { readSam } from "../model/sam/index.ts";
import { CheckpointError, nameTensors, readCheckpoint } from "../model/weights/index.ts";
import { BadInput } from "../train/errors.ts";
import { readNamed, writeWhole } from "../train/files.ts";
import type { Call } from "./command.ts";
import { bytes as size } from "./terminal.ts";

export async function run({ args, terminal }: Call): Promise<void> {
  const [from, to] = args as [string, string];
  if (!to.endsWith(".safetensors")) throw new BadInput(`${to}: the output is a safetensors file; give it that ending`);
  const bytes = await readNamed(from, "a file of weights");
  try {
    const { tensors: found, metadata, format } = readCheckpoint(bytes, from);
    const { tensors, kind, unused } = nameTensors(found, from);
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
