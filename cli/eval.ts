/** `wgpu-wish eval`: COCO's metrics, and VOC's on request, of a results file. */
import { overlapOf, readInstances } from "../train/data/coco.ts";
import { writeJson } from "../train/data/json.ts";
import { BadInput } from "../train/errors.ts";
import { evaluateDetailed, type Metrics, readResults } from "../train/eval/coco-ap.ts";
import { judge } from "../train/eval/confusion.ts";
import { evaluateVoc, type VocMetrics } from "../train/eval/voc.ts";
import { evaluateRun } from "../train/run-tools.ts";
import type { Call } from "./command.ts";
import { table } from "./terminal.ts";

const INTERRUPTED = 130;

export interface EvalOptions {
  run?: string;
  data?: string;
  images?: string;
  gt?: string;
  dt?: string;
  iou?: "segm" | "bbox";
  protocol: "coco" | "voc";
  details?: string;
}

export async function run(call: Call<EvalOptions>): Promise<number | undefined> {
  const { options, terminal } = call;
  const { run: folder, gt, dt, data, images, protocol, details } = options;
  if (folder !== undefined) return evaluateModelOf(folder, call);
  if (gt === undefined || dt === undefined) throw new BadInput("eval: give --run, or --gt and --dt");
  if (data !== undefined || images !== undefined)
    throw new BadInput(
      `eval: ${data === undefined ? "--images" : "--data"} goes with --run; --dt is judged without images`,
    );
  const truth = readInstances(gt, { bare: true });
  const { iou = overlapOf(truth) } = options;
  const results = readResults(dt, truth);
  const known = new Set(truth.categories.map(({ id }) => id));
  const strange = results.filter(({ categoryId }) => !known.has(categoryId));
  if (strange.length > 0) {
    terminal.warn(
      `${dt}: ${strange.length} of ${results.length} results are of categories that ${gt} does not have, such as ${strange[0]!.categoryId}; they count for nothing`,
    );
  }
  const { metrics, curves } = evaluateDetailed(truth, results, { iou });
  if (details !== undefined) writeJson(details, { curves, confusion: judge(truth, results, { iou }).confusion });
  const voc = protocol === "voc" ? evaluateVoc(truth, results, { iou }) : undefined;
  terminal.result({ ...metrics, ...voc }, describeMetrics(metrics, voc));
  return undefined;
}

/** Predicts with a run's model, then as above. */
async function evaluateModelOf(folder: string, call: Call<EvalOptions>): Promise<number | undefined> {
  const { options, terminal } = call;
  const { data, images, gt, dt, iou, protocol, details } = options;
  if (gt !== undefined || dt !== undefined)
    throw new BadInput("eval: --run brings its own results; give --data to evaluate it on another file");
  const gpu = await call.open();
  const signal = call.interruptible();
  let bar: ReturnType<typeof terminal.progress> | undefined;
  const { metrics, voc, file, curves, confusion } = await evaluateRun(gpu, {
    run: folder,
    protocol,
    signal,
    ...(iou === undefined ? {} : { iou }),
    ...(data === undefined ? {} : { data }),
    ...(images === undefined ? {} : { images }),
    onImage: (done, total) => {
      bar ??= terminal.progress(total);
      bar.update(done);
    },
  });
  bar?.end();
  if (signal.aborted) return INTERRUPTED;
  if (details !== undefined) writeJson(details, { curves, confusion });
  terminal.log(`weights: ${file}`);
  terminal.result({ ...metrics, ...voc }, describeMetrics(metrics, voc));
  return undefined;
}

/** Two tables: the figures, then AP by class. */
export function describeMetrics({ perClass, ...figures }: Metrics, voc?: VocMetrics): string {
  const show = (value: number) => (value < 0 ? "-" : value.toFixed(4));
  const rows = Object.entries({ ...figures, ...voc }).map(([name, value]) => [name, show(value)]);
  const classes = Object.entries(perClass).map(([name, value]) => [name, show(value)]);
  return `${table(["metric", "value"], rows)}\n\n${table(["class", "AP"], classes)}`;
}
