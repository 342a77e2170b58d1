/** What a run trains with: the teacher and its masks, the model and its optimizer, the loader. */
import { join } from "node:path";
import { type Device, optim } from "../engine/index.ts";
import { parameterGroups, type WishConfig } from "../model/index.ts";
import { sampleOptions } from "./augmented.ts";
import { checkSeen, checkStep } from "./binding.ts";
import type { Config } from "./config.ts";
import { type Item, Loader } from "./data/loader.ts";
import type { Display } from "./display.ts";
import { checkMemory, checkModel, type TrainData } from "./inputs.ts";
import { modelConfig, newModel } from "./models.ts";
import { filledBoxes, makeProxies, type SamProxy } from "./proxies.ts";
import { scalerOf, type Trainer } from "./step.ts";
import { loadTeacher, type Teacher } from "./teacher.ts";

interface PrepareOptions {
  display: Display;
  /** Stops the making of SAM's masks. */
  signal?: AbortSignal;
  /** The configuration's file, for the errors. */
  file?: string;
}

export interface Prepared {
  trainer: Trainer;
  loader: Loader;
  sizes: WishConfig;
  /** What the model started from. */
  notes: string[];
}

/** Throws BadInput where the configuration makes no model, or one whose steps the adapter cannot take. */
export async function prepare(
  gpu: Device,
  config: Config,
  data: TrainData,
  { display, signal, file = "config" }: PrepareOptions,
): Promise<Prepared> {
  const teacher = config.mode === "wish" ? await openTeacher(gpu, config, data.items) : undefined;
  const sizes = modelConfig(config, data.categories.length, teacher?.promptDim ?? 1);
  checkModel(sizes, file);
  checkMemory(config, file);
  const { model, notes } = await newModel(gpu, config, sizes);
  const { lr, weightDecay, backbone, cam, betas } = config.optim;
  const groups = parameterGroups(model, { lr, weightDecay, backboneMultiplier: backbone, camMultiplier: cam });
  const optimizer = new optim.AdamW(groups, { betas });
  const unproxied: Trainer = {
    gpu,
    config,
    model,
    optimizer,
    scaler: scalerOf(config),
    rates: groups.map((group) => group.lr),
    teacher,
    items: data.items,
    proxies: [],
    hasTags: data.items.some((item) => item.kind === "tags"),
  };
  await checkStep(unproxied, file);
  const { short, long, limit } = config.val;
  const judged = data.validation?.images.slice(0, limit || undefined) ?? [];
  await checkSeen(gpu, sizes, judged, config.val, `${file}: val.short=${short} and val.long=${long}`);
  const proxies = teacher ? await proxiesOf(teacher, data, config, display, signal) : [];
  const trainer: Trainer = { ...unproxied, proxies };
  return { trainer, loader: newLoader(config, data.items, proxies), sizes, notes };
}

/** @param items the images whose embeddings may be asked for */
export async function openTeacher(gpu: Device, config: Config, items: readonly Item[] = []): Promise<Teacher> {
  const { checkpoint, memory } = config.sam;
  const images = new Map(items.map(({ imageId, path }) => [imageId, path]));
  return loadTeacher(gpu, checkpoint, { cache: cacheFolder(config), memory: memory * 2 ** 20, images });
}

function cacheFolder(config: Config): string {
  return config.sam.cache || join(config.run, "cache");
}

/** SAM's masks of all images that have points or boxes, from the cache where they are there. */
export async function proxiesOf(
  teacher: Teacher,
  data: TrainData,
  config: Config,
  display: Display,
  signal?: AbortSignal,
): Promise<(SamProxy[] | undefined)[]> {
  if (config.proxy.source === "box") return data.items.map(filledBoxes);
  let bar: ReturnType<Display["progress"]> | undefined;
  const proxies = await makeProxies(
    teacher,
    data.items,
    { cache: cacheFolder(config), labels: data.labels, ...config.proxy },
    (done, total) => {
      if (!bar) display.log(`SAM's masks of points and boxes: computed once, kept in ${cacheFolder(config)}`);
      (bar ??= display.progress(total, "img")).update(done);
    },
    signal,
  );
  bar?.end();
  return proxies;
}

function newLoader(
  config: Config,
  items: readonly Item[],
  proxies: readonly (readonly SamProxy[] | undefined)[],
): Loader {
  const { threads, balance } = config.data;
  const options = config.mode === "wish" ? { proxies: (_: Item, index: number) => proxies[index] } : {};
  const { batch, seed } = config;
  return new Loader({
    items,
    batch,
    seed,
    ...sampleOptions(config),
    balance,
    threads: threads === "auto" ? undefined : threads,
    ...options,
  });
}
