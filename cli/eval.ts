/** `wgpu-wish eval`: COCO's metrics, and VOC's on request, of a results file. */
import { readInstances } from "../train/data/coco.ts";
import { BadInput } from "../train/errors.ts";
import { evaluate, type Metrics, readResults } from "../train/eval/coco-ap.ts";
import { evaluateVoc, type VocMetrics } from "../train/eval/voc.ts";
import type { Call } from "./command.ts";
import { table } from "./terminal.ts";

export interface EvalOptions {
  run?: string;
  data?: string;
  gt?: string;
  dt?: string;
  iou: "segm" | "bbox";
  protocol: "coco" | "voc";
}

export async function run({ options, terminal }: Call<EvalOptions>): Promise<void> {
  const { run: folder, gt, dt, iou, protocol } = options;
  if (folder !== undefined || gt === undefined || dt === undefined) throw new BadInput("eval: give --gt and --dt");
  const truth = readInstances(gt);
  const results = readResults(dt, truth);
  const metrics = evaluate(truth, results, { iou });
  const voc = protocol === "voc" ? evaluateVoc(truth, results, { iou }) : undefined;
  terminal.result({ ...metrics, ...voc }, describeMetrics(metrics, voc));
}

/** Two tables: the figures, then AP by class. */
export function describeMetrics({ perClass, ...figures }: Metrics, voc?: VocMetrics): string {
  const show = (value: number) => (value < 0 ? "-" : value.toFixed(4));
  const rows = Object.entries({ ...figures, ...voc }).map(([name, value]) => [name, show(value)]);
  const classes = Object.entries(perClass).map(([name, value]) => [name, show(value)]);
  return `${table(["metric", "value"], rows)}\n\n${table(["class", "AP"], classes)}`;
}
