/** `predict`: segments images with a trained model. */
import { statSync } from "node:fs";
import { join } from "node:path";
import { checkSeen, type Photograph } from "../train/binding.ts";
import { imageSize } from "../train/data/image.ts";
import { readEach } from "../train/data/labelled.ts";
import { checkDump } from "../train/dump.ts";
import { BadInput } from "../train/errors.ts";
import { latentKind } from "../train/evaluate.ts";
import { imagePaths } from "../train/image-paths.ts";
import { loadRun, loadTrained, runFiles } from "../train/models.ts";
import { predictImages } from "../train/predict.ts";
import { findAsset, loadTeacher } from "../train/teacher.ts";
import { filesOf } from "../train/weights.ts";
import type { Call } from "./command.ts";
import { table } from "./terminal.ts";

interface Options {
  run?: string;
  checkpoint?: string;
  out: string;
  short?: number;
  long?: number;
  score?: number;
  inference: "mask2former" | "sam";
  dump?: string;
}

/** detectron2's test-time size, where neither the run nor the weights say anything else. */
const SIZE = { short: 800, long: 1333, topk: 100 };
const LEAST_SCORE = 0.3;
const DEFAULT_TEACHER = "assets/sam-mini.safetensors";
const FAILED = 1;
const INTERRUPTED = 130;

export async function run(call: Call<Options>): Promise<number | undefined> {
  const { args, options, terminal } = call;
  const { run: folder, checkpoint, out, score = LEAST_SCORE, dump } = options;
  if ((folder === undefined) === (checkpoint === undefined))
    throw new BadInput("predict: give --run or --checkpoint, one of them");
  const paths = imagePaths(args);
  if (dump !== undefined && paths.length !== 1) throw new BadInput(`--dump: takes one image, got ${paths.length}`);
  if (dump !== undefined) checkDump(dump, out, [...paths, ...(await filesRead(options))]);
  const gpu = await call.open();
  const trained = folder !== undefined ? await loadRun(gpu, folder) : await loadTrained(gpu, findAsset(checkpoint!));
  const { mode } = trained.model.config.prompt;
  if (options.inference === "sam" && (mode === "none" || mode === "mean"))
    throw new BadInput(
      `--inference sam: ${trained.file} predicts no SAM prompt (prompt.mode is ${mode}); use --inference mask2former`,
    );
  const { topk, ...size } = trained.inference ?? SIZE;
  const { short = size.short, long = size.long } = options;
  const teacher = trained.config?.sam.checkpoint ?? DEFAULT_TEACHER;
  if (dump !== undefined && options.inference === "sam")
    checkDump(dump, out, await filesOf(findAsset(teacher), "a SAM"));
  const named = `--short ${short} and --long ${long}`;
  await checkSeen(gpu, trained.model.config, await readable(paths), { short, long }, named, dump !== undefined);
  const sam =
    options.inference === "sam"
      ? {
          teacher: await loadTeacher(gpu, teacher, { cache: out, memory: 0 }),
          kind: latentKind(trained.kinds),
          recentre: trained.config?.prompt.distance !== "l2",
        }
      : undefined;
  const signal = call.interruptible();
  const bar = terminal.progress(paths.length);
  const skipped: string[] = [];
  const onUnreadable = (reason: string): void => {
    skipped.push(reason);
    terminal.warn(`skipped: ${reason}`);
  };
  const predicted = await predictImages(gpu, trained, paths, {
    short,
    long,
    topk,
    score,
    out,
    signal,
    ...(sam ? { sam } : {}),
    ...(dump === undefined ? {} : { dump }),
    onImage: (done) => bar.update(done),
    ...(paths.length === 1 ? {} : { onUnreadable }),
  });
  bar.end();
  if (signal.aborted) return INTERRUPTED;
  const rows = predicted.flatMap(({ image, instances }) =>
    instances.map(({ category, score: s, area }) => [image, category, s.toFixed(3), area]),
  );
  terminal.result(
    { images: predicted, results: join(out, "results.json"), skipped },
    `${table(["image", "class", "score", "pixels"], rows)}\n${predicted.length} overlays, masks, results.json and images.json in ${out}`,
  );
  return skipped.length > 0 ? FAILED : undefined;
}

/** Of the files whose size can be read beforehand, which a pipe's cannot; what cannot be read at all is told of in its turn. */
async function readable(paths: readonly string[]): Promise<Photograph[]> {
  const files = paths.filter((path) => statSync(path, { throwIfNoEntry: false })?.isFile());
  const sizes = await readEach(files, (path) => imageSize(path).catch(() => undefined));
  return sizes.flatMap((size, i) => (size ? [{ fileName: files[i]!, ...size }] : []));
}

/** Of the model. */
async function filesRead({ run, checkpoint }: Options): Promise<string[]> {
  return run !== undefined ? runFiles(run) : filesOf(findAsset(checkpoint!), "weights of a segmentation model");
}
