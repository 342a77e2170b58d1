/** COCO's 80 classes of things, in the order in which models number them. Their ids run to 90: some classes were left out of the release. */
import type { Category } from "./coco.ts";

const NAMES = [
  "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking meter, bench",
  "bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis",
  "snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork",
  "knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant",
  "bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book",
  "clock, vase, scissors, teddy bear, hair drier, toothbrush",
].flatMap((line) => line.split(", "));
const LEFT_OUT = new Set([12, 26, 29, 30, 45, 66, 68, 69, 71, 83]);

const IDS = Array.from({ length: 90 }, (_, i) => i + 1).filter((id) => !LEFT_OUT.has(id));

export const COCO_CATEGORIES: readonly Category[] = NAMES.map((name, i) => ({ id: IDS[i]!, name }));

/** Darknet's list has VOC's words for these, and so do the models that were trained with it. */
const OTHER_WORDS = new Map([
  ["aeroplane", "airplane"],
  ["motorbike", "motorcycle"],
  ["sofa", "couch"],
  ["tvmonitor", "tv"],
]);

/** Case and what stands between words aside. */
function wordOf(name: string): string {
  const word = name.toLowerCase().replaceAll(/[\s_-]+/g, "");
  return OTHER_WORDS.get(word) ?? word;
}

/** Are these the 80 classes in their order, however they are spelt? */
export function areCocoNames(names: readonly string[]): boolean {
  return names.length === NAMES.length && names.every((name, i) => wordOf(name) === wordOf(NAMES[i]!));
}
