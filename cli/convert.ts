/** `convert`: any file of weights to safetensors under the original repository's names. */
import type { Device } from "../engine/index.ts";
import { encodeSafetensors } from "../engine/safetensors.ts";
import { checkSamEncoder, isSamEncoder } from "../model/sam/index.ts";
import { checkTensors, type HostTensor, listKeys, nameTensors } from "../model/weights/index.ts";
import { hostTensors } from "../train/checkpoint.ts";
import { weightsMetadata } from "../train/description.ts";
import { BadInput } from "../train/errors.ts";
import { writeWhole } from "../train/files.ts";
import { keepInputs } from "../train/folders.ts";
import { trainedOf } from "../train/models.ts";
import { loadPublished, namedClasses } from "../train/published.ts";
import { readSamOf, readWeightFile, refusing, type WeightFile } from "../train/weights.ts";
import type { Call } from "./command.ts";
import { bytes as size, table } from "./terminal.ts";

const MOST_ROWS = 24;

type Tensors = Map<string, HostTensor>;

/** What is written, and what was found out about it. */
interface Converted {
  readonly kind: string;
  readonly tensors: Tensors;
  readonly metadata: Record<string, string>;
  /** The model's sizes, where they are known. */
  readonly config?: object;
  /** Keys that inference does not use. */
  readonly unused: readonly string[];
}

interface Options {
  any?: boolean;
}

export async function run(call: Call<Options>): Promise<void> {
  const { args, terminal } = call;
  const [from, to] = args as [string, string];
  if (!to.endsWith(".safetensors")) throw new BadInput(`${to}: the output is a safetensors file; give it that ending`);
  keepInputs(to, [from]);
  const weights = await readWeightFile(from, "a file of weights");
  keepInputs(to, weights.files);
  const { kind, tensors, metadata, config, unused } = await converted(call, weights);
  const out = encodeSafetensors(tensors, metadata);
  await writeWhole(to, out);
  const modules = summary(tensors);
  const document = {
    from,
    to,
    format: weights.format,
    model: kind,
    tensors: tensors.size,
    modules,
    missing: [],
    unexpected: [],
    misshaped: [],
    unused,
    bytes: out.length,
    ...(config ? { config } : {}),
  };
  const rows = modules
    .slice(0, MOST_ROWS)
    .map((row) => [row.module, row.tensors, row.parameters, row.types.join(", ")]);
  if (modules.length > MOST_ROWS) rows.push([`${modules.length - MOST_ROWS} more`, "", "", ""]);
  // Batch norm's counters last: there are dozens.
  const counters = unused.filter((key) => key.endsWith(".num_batches_tracked"));
  const names = [...unused.filter((key) => !counters.includes(key)), ...counters];
  const rest = names.length > 0 ? `; inference does not use ${listKeys(names)}` : "";
  const note = kind === "unknown" ? "; the model is not one this program knows, so its names are as they were" : "";
  const head = `${to}: ${kind}, ${tensors.size} tensors, ${size(out.length)}${note}${rest}`;
  terminal.result(document, `${head}\n${table(["module", "tensors", "parameters", "type"], rows)}`);
}

/** Throws where the tensors are not all of a model's, before anything is written. */
async function converted(call: Call<Options>, weights: WeightFile): Promise<Converted> {
  const { file, metadata } = weights;
  const isTraining = metadata.format?.startsWith("wgpu-wish checkpoint") === true;
  const hasSam = [...weights.tensors.keys()].some((key) => key.startsWith("model.mask_decoder."));
  if (metadata.format?.startsWith("wgpu-wish model") || (isTraining && !hasSam))
    return wishTensors(await call.open(), weights, isTraining);
  const named = await refusing(() => nameTensors(weights.tensors, file));
  if (isSamEncoder(named)) {
    await checking(weights, () => checkSamEncoder(named, file));
    const kind = `${named.kind}, its image encoder alone`;
    const text = { ...metadata, model: kind };
    return { kind, tensors: merged(named.tensors, named.spare), metadata: text, unused: named.unused };
  }
  if (named.family === "sam" || isTraining) {
    const { config, tensors, spare, kind, unused } = await readSamOf(weights);
    const text = { ...(isTraining ? {} : metadata), model: kind, config: JSON.stringify(config) };
    return { kind, tensors: merged(tensors, spare), metadata: text, config, unused };
  }
  const { kind, spare, unused, expected, keyOf } = named;
  if (named.family === "unknown" && !call.options.any) throw new BadInput(`${file}: ${notKnown(weights)}`);
  if (expected) await checking(weights, () => checkTensors(expected, named.tensors, file, keyOf));
  const text = { ...metadata, model: kind };
  if (named.family !== "mask2former") return { kind, tensors: merged(named.tensors, spare), metadata: text, unused };
  // Under detectron2's names, whose frozen norms have no counters.
  const { model } = loadPublished(await call.open(), weights, named.tensors);
  const { config } = model;
  const tensors = await hostTensors(model.stateDict());
  const categories = namedClasses(weights, config.classes);
  const known = categories ? { categories: JSON.stringify(categories) } : {};
  return { kind, tensors, metadata: { ...text, ...known }, config, unused };
}

/** An export that lacks weights may have merged them with others, or changed them. */
async function checking<T>({ format }: WeightFile, work: () => T): Promise<T> {
  try {
    return await refusing(work);
  } catch (error) {
    if (format !== "onnx" || !(error instanceof BadInput)) throw error;
    const hint = "the export may have merged or changed weights in ways that its graph does not tell";
    throw new BadInput(`${error.message}; ${hint}: take the original checkpoint`);
  }
}

/** A model that is not known cannot be checked. */
function notKnown({ tensors, format }: WeightFile): string {
  const keys = [...tensors.keys()];
  const folded = format === "onnx" ? ", or were folded into others by the export: take the original checkpoint" : "";
  return (
    `its keys (${listKeys(keys)}) are those of no model that is known here: SAM, MobileSAM, Mask2Former, WISH, ResNet, Swin, MobileNetV2${folded}; ` +
    "convert --any writes its tensors as they are, unchecked"
  );
}

const merged = (a: Tensors, b: Tensors): Tensors => new Map([...a, ...b]);

/** A model of `train`, from its weights alone or from a checkpoint, without what only training needs. */
async function wishTensors(gpu: Device, weights: WeightFile, isTraining: boolean): Promise<Converted> {
  const { tensors, metadata } = weights;
  const trained = await trainedOf(gpu, weights);
  const own = trained.model.stateDict();
  const kept = [...own.keys()].map((key) => [key, tensors.get(isTraining ? `model.${key}` : key)!] as const);
  return {
    kind: "WISH",
    tensors: new Map(kept),
    metadata: isTraining ? weightsMetadata(trained) : metadata,
    config: trained.model.config,
    unused: [...tensors.keys()].filter((key) => !own.has(isTraining ? key.replace(/^model\./, "") : key)),
  };
}

interface ModuleRow {
  readonly module: string;
  readonly tensors: number;
  readonly parameters: number;
  readonly types: string[];
}

/** How many tensors and numbers the parts of a model have; parts are the names up to their first dot, of Mask2Former's head to the second. */
function summary(tensors: ReadonlyMap<string, HostTensor>): ModuleRow[] {
  const modules = new Map<string, { tensors: number; parameters: number; types: Set<string> }>();
  for (const [key, { dtype, shape }] of tensors) {
    const module = (/^(sem_seg_head\.[^.]+|[^.]+)/.exec(key)?.[0] ?? key).replace(/\p{Cc}/gu, "?");
    const row = modules.get(module) ?? { tensors: 0, parameters: 0, types: new Set<string>() };
    modules.set(module, row);
    row.tensors++;
    row.parameters += shape.reduce((product, d) => product * d, 1);
    row.types.add(dtype);
  }
  return [...modules].map(([module, { types, ...counts }]) => ({ module, ...counts, types: [...types] }));
}
