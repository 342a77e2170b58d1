/**
 * The paper's experiments as one: every arm of study-arms.ts trained with every seed, evaluated and put in a table. Each run has a folder of
 * its own, <out>/<arm>/seed-<n>, that `train` writes and goes on with; its figures stand in <out>/<arm>/seed-<n>.json once it is done,
 * so that an interrupted study goes on where it was.
 */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import type { Device } from "../engine/index.ts";
import { claimRun } from "./claim.ts";
import { type Config, configSchema, resolveConfig } from "./config.ts";
import { readInstances } from "./data/coco.ts";
import { readJson } from "./data/json.ts";
import { COSTS, labelCounts, weaken, writeWeak } from "./data/weak.ts";
import type { Display } from "./display.ts";
import { BadInput } from "./errors.ts";
import type { Figure, Metrics } from "./eval/coco-ap.ts";
import { evaluateModel, latentKind } from "./evaluate.ts";
import { writeWhole } from "./files.ts";
import { loadRun } from "./models.ts";
import { option } from "./options.ts";
import { readSettings, refuseChanges, resolveSettings } from "./settings.ts";
import { type Arm, studyArms } from "./study-arms.ts";
import { type Row, studyMarkdown, studyPage } from "./study-table.ts";
import { loadTeacher } from "./teacher.ts";
import { train } from "./train.ts";

export const studySchema = z.strictObject({
  train: option(
    configSchema,
    "ours",
    "settings of `train` with data.images and val.*; labels, run and seed are the study's",
  ),
  annotations: option(
    z.string().min(1),
    "ours",
    'COCO instances JSON with the masks that weak labels are derived from, and that the arm "masks" learns',
  ),
  budget: option(
    z.number().int().min(1).optional(),
    "paper",
    "what the labels of an equal-budget arm cost: a tag 1, a point 6, a box 12 an image",
    "a tag for every image",
  ),
  point: option(
    z.enum(["center", "uniform"]).default("center"),
    "ours",
    "where a point is put: the mask's pixel nearest to its centroid, or any of its pixels",
  ),
  arms: option(z.array(z.string()).optional(), "ours", "names of the arms to run", "all"),
});

export type StudyConfig = z.infer<typeof studySchema>;

export interface StudyOptions {
  out: string;
  display: Display;
  seeds: number;
  resume: boolean;
  signal?: AbortSignal;
  file?: string;
}

export interface Study {
  rows: Row[];
  interrupted: boolean;
}

type Figures = Record<Figure, number>;

const figuresSchema = z.record(z.string(), z.number());
const outcomeSchema = z.object({ figures: figuresSchema, variantB: figuresSchema.optional() });

/** What one training came to, also with masks of SAM's decoder (variant b). */
interface Outcome {
  figures: Figures;
  variantB?: Figures;
}

/** By arm and seed. */
type Results = ReadonlyMap<string, Map<number, Outcome>>;

export function readStudy(path: string, settings: readonly string[] = []): StudyConfig {
  return readSettings(studySchema, path, settings);
}

/** Runs what is not done yet. Writes <out>/study.md, study.json and report.html after each run. */
export async function runStudy(gpu: Device, config: StudyConfig, options: StudyOptions): Promise<Study> {
  const { out, display, seeds, signal } = options;
  const claim = claimRun(out, "--out");
  try {
    const truth = readInstances(config.annotations, { supercategories: config.train.data.supercategories });
    const images = truth.images.length;
    const budget = config.budget ?? images * COSTS.tag;
    const all = studyArms(budget, images);
    const chosen = chosenArms(config, all);
    checkPlan(config, chosen, images);
    await checkOut(config, options);
    const results = finished(out, all);
    const rows = (): Row[] => rowsOf(all, results, chosen);
    const trained = chosen.filter((arm) => !arm.sameAs);
    let done = 0;
    for (let seed = 0; seed < seeds; seed++)
      for (const arm of trained) {
        display.log(`${arm.name}, seed ${seed} (${++done} of ${seeds * trained.length})`);
        const runs = results.get(arm.name)!;
        if (!runs.has(seed)) {
          const found = await runOnce(gpu, config, arm, seed, options);
          if (!found) return { rows: rows(), interrupted: true };
          runs.set(seed, found);
        }
        await writeTables(out, config, rows(), { budget, images });
        if (signal?.aborted) return { rows: rows(), interrupted: true };
      }
    return { rows: rows(), interrupted: false };
  } finally {
    claim.release();
  }
}

/** What would stop the study later, or would be ignored, is said before the first training. */
function checkPlan(config: StudyConfig, arms: readonly Arm[], images: number): void {
  const { train } = config;
  for (const key of ["images", "annotations"] as const)
    if (!train.val[key]) throw new BadInput(`train.val.${key}: is missing; a study needs images to evaluate on`);
  const own = ({ run, seed, mode, data }: Config) => ({ run, seed, mode, "data.labels": data.labels });
  const usual = own(resolveSettings(configSchema, {}, [], "train"));
  for (const [key, value] of Object.entries(own(train)))
    if (value !== usual[key as keyof typeof usual])
      throw new BadInput(`train.${key}: is the study's own, another one for each training; leave it out`);
  for (const { name, labels } of arms) {
    if (labels === "masks") continue;
    try {
      labelCounts(labels, images);
    } catch (error) {
      throw error instanceof BadInput ? new BadInput(`budget: ${name} cannot be had: ${error.message}`) : error;
    }
  }
}

/** What earlier runs of the study came to, by arm and seed, whether this time asks for them or not. */
function finished(out: string, arms: readonly Arm[]): Results {
  return new Map(
    arms.map(({ name }) => {
      const runs = new Map<number, Outcome>();
      const folder = join(out, name);
      for (const file of existsSync(folder) ? readdirSync(folder).sort() : []) {
        const seed = /^seed-(\d+)\.json$/.exec(file)?.[1];
        if (seed === undefined) continue;
        const path = join(folder, file);
        const found = outcomeSchema.safeParse(readJson(path, "a training's figures"));
        if (!found.success)
          throw new BadInput(
            `${path}: not what a study writes of a training; remove it, and the training is done again`,
          );
        runs.set(Number(seed), found.data as Outcome);
      }
      return [name, runs];
    }),
  );
}

/** The study's settings stay what they were; a folder with results is gone on with only where that is asked for. */
async function checkOut(config: StudyConfig, { out, resume, file = "config" }: StudyOptions): Promise<void> {
  const path = join(out, "config.json");
  if (existsSync(path)) {
    if (!resume) throw new BadInput(`${out}: already holds a study; give --resume to go on, or another --out`);
    const before = resolveSettings(studySchema, readJson(path, "a study's settings") as object, [], path);
    refuseChanges(before, config, ["train", "annotations", "budget", "point"], file, "another study with --out DIR");
  }
  await writeWhole(path, JSON.stringify(config, undefined, 1));
}

function chosenArms({ arms }: StudyConfig, all: readonly Arm[]): readonly Arm[] {
  if (!arms) return all;
  if (arms.length === 0) throw new BadInput("arms: is empty; name some, or leave it out for all");
  for (const name of arms)
    if (!all.some((arm) => arm.name === name))
      throw new BadInput(`arms: there is no "${name}"; there are ${all.map((arm) => arm.name).join(", ")}`);
  return all.filter(({ name, sameAs }) => arms.includes(name) || (sameAs && arms.includes(sameAs)));
}

/** One arm with one seed, trained to its end; undefined where it was interrupted. */
async function runOnce(
  gpu: Device,
  config: StudyConfig,
  arm: Arm,
  seed: number,
  { out, display, signal }: StudyOptions,
): Promise<Outcome | undefined> {
  const settled = await armConfig(config, arm, seed, out);
  const options = { display, resume: existsSync(join(settled.run, "last")), ...(signal ? { signal } : {}) };
  const result = await train(gpu, settled, options);
  if (result.interrupted || !result.evaluation) return undefined;
  const done: Outcome = {
    figures: figuresOf(result.evaluation.metrics),
    ...(arm.variantB ? { variantB: await throughSam(gpu, settled, display) } : {}),
  };
  await writeWhole(join(out, arm.name, `seed-${seed}.json`), JSON.stringify(done));
  return done;
}

/** The training run of an arm. Its labels are written beside it. */
async function armConfig(config: StudyConfig, arm: Arm, seed: number, out: string): Promise<Config> {
  const { train: base, annotations, point } = config;
  const run = join(out, arm.name, `seed-${seed}`);
  let labels = annotations;
  if (arm.labels !== "masks") {
    labels = join(out, arm.name, `labels-${seed}.json`);
    const truth = readInstances(annotations, { supercategories: base.data.supercategories });
    await writeWeak(labels, weaken(truth, arm.labels, { seed, point }));
  }
  const input = structuredClone(base) as Record<string, unknown>;
  const changes = Object.entries(arm.changes).map(([key, value]) => `${key}=${value}`);
  return resolveConfig(
    input,
    [
      ...changes,
      `run=${JSON.stringify(run)}`,
      `seed=${seed}`,
      `mode=${arm.labels === "masks" ? "supervised" : "wish"}`,
      `data.labels=${JSON.stringify(labels)}`,
      `sam.cache=${JSON.stringify(base.sam.cache || join(out, "cache"))}`,
    ],
    arm.name,
  );
}

/** Variant b: the run's model with SAM's decoder drawing the masks. */
async function throughSam(gpu: Device, config: Config, display: Display): Promise<Figures> {
  const { model, categories, kinds } = await loadRun(gpu, config.run, "last");
  const truth = readInstances(config.val.annotations, { supercategories: config.data.supercategories });
  const bar = display.progress(config.val.limit || truth.images.length, "img");
  const teacher = await loadTeacher(gpu, config.sam.checkpoint, { cache: config.sam.cache, memory: 0 });
  const { short, long, topk, limit } = config.val;
  const { metrics } = await evaluateModel(gpu, model, categories, truth, config.val.images, {
    ...{ short, long, topk, limit },
    onImage: (done) => bar.update(done, { evaluated: "variant b" }),
    sam: { teacher, kind: latentKind(kinds), recentre: config.prompt.distance !== "l2" },
  });
  bar.end();
  return figuresOf(metrics);
}

function figuresOf({ perClass: _, ...figures }: Metrics): Figures {
  return figures;
}

/** Those that are asked for, and those that were done before. A variant stands behind its arm. */
function rowsOf(all: readonly Arm[], results: Results, chosen: readonly Arm[]): Row[] {
  return all.flatMap((arm): Row[] => {
    const { name, title, group, sameAs, variantB } = arm;
    const runs = [...results.get(sameAs ?? name)!].sort(([a], [b]) => a - b).map(([, outcome]) => outcome);
    if (runs.length === 0 && !chosen.includes(arm)) return [];
    const row: Row = { name, title, group, runs: runs.map(({ figures }) => figures) };
    if (!variantB) return [row];
    const b = runs.flatMap((outcome) => (outcome.variantB ? [outcome.variantB] : []));
    return [row, { name: variantB, title: `${title}, masks by SAM's decoder (variant b)`, group, runs: b }];
  });
}

async function writeTables(
  out: string,
  { train: { steps, batch } }: StudyConfig,
  rows: readonly Row[],
  facts: { budget: number; images: number },
): Promise<void> {
  const about = `${facts.images} training images, ${steps} steps of ${batch} images; equal-budget rows: labels that cost ${facts.budget}`;
  await writeWhole(join(out, "study.json"), JSON.stringify({ ...facts, steps, batch, rows }, undefined, 1));
  await writeWhole(join(out, "study.md"), studyMarkdown(rows, about));
  await writeWhole(join(out, "report.html"), studyPage(rows, about));
}
