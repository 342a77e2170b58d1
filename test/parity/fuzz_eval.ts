/** For fuzz_eval.py: evaluates the files 0.gt.json, 0.dt.json, … of a folder and prints a list of what came out. */
import { join } from "node:path";
import { readInstances } from "../../train/data/coco.ts";
import { evaluate, readResults } from "../../train/eval/coco-ap.ts";
import { evaluateVoc } from "../../train/eval/voc.ts";

const [folder = "", count = "0"] = process.argv.slice(2);

function figuresOf(i: number): object {
  try {
    const truth = readInstances(join(folder, `${i}.gt.json`), { bare: true });
    const results = readResults(join(folder, `${i}.dt.json`), truth);
    const hasBoxes = results.every(({ box, segmentation }) => box !== undefined || segmentation !== undefined);
    const hasMasks = truth.instances.every(({ segmentation }) => segmentation !== undefined);
    return {
      ...(hasBoxes ? { bbox: evaluate(truth, results, { iou: "bbox" }) } : {}),
      ...(hasMasks ? { segm: evaluate(truth, results), voc: evaluateVoc(truth, results) } : {}),
    };
  } catch (error) {
    return { error: String((error as Error).stack) };
  }
}

console.log(JSON.stringify(Array.from({ length: Number(count) }, (_, i) => figuresOf(i))));
