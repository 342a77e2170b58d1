/** What is compared with what: the ground truths and the results of one class in one image, and how they overlap. */
import { type ImageEntry, type Instance, type Instances, runsOfSegmentation } from "../data/coco.ts";
import { areaOfRuns, type Box, boxOfRuns, iouOfBoxes, iouOfRuns, type Runs } from "../data/mask.ts";
import { BadInput } from "../errors.ts";
import type { Result } from "./results.ts";

export interface EvaluateOptions {
  /** Masks (the default) or boxes are compared. */
  iou?: "segm" | "bbox";
  /** Only these images count (default: all). */
  imageIds?: readonly number[];
}

/** One class in one image: what is there, what was found (by falling score), and how they overlap. */
export interface Group {
  imageId: number;
  truths: { id: number; area: number; crowd: boolean }[];
  found: { score: number; area: number }[];
  /** (found.length * truths.length) */
  iou: Float64Array;
}

interface Listed {
  truths: Instance[];
  results: Result[];
}

/** Ground truth and results, sorted into classes and images. Results of classes that the ground truth does not know are left out. */
export class Groups {
  readonly #truth: Instances;
  readonly #options: EvaluateOptions;
  readonly #images: readonly ImageEntry[];
  /** Class -> image's place -> what is there and what was found. */
  readonly #lists: Map<number, Map<number, Listed>>;
  /** As pycocotools' loadRes: the first result decides whether areas are those of the boxes, also where masks are compared. */
  readonly #areaFromBox: boolean;

  constructor(truth: Instances, results: readonly Result[], options: EvaluateOptions) {
    const wanted = options.imageIds && new Set(options.imageIds);
    const images = truth.images.filter(({ id }) => wanted?.has(id) ?? true).sort((a, b) => a.id - b.id);
    const place = new Map(images.map(({ id }, i) => [id, i]));
    const known = new Set(truth.images.map(({ id }) => id));
    const lists = new Map(truth.categories.map(({ id }) => [id, new Map<number, Listed>()]));
    const listOf = (imageId: number, categoryId: number): Listed | undefined => {
      const [at, ofClass] = [place.get(imageId), lists.get(categoryId)];
      if (at === undefined || ofClass === undefined) return undefined;
      let list = ofClass.get(at);
      if (list === undefined) ofClass.set(at, (list = { truths: [], results: [] }));
      return list;
    };
    for (const instance of truth.instances) listOf(instance.imageId, instance.categoryId)?.truths.push(instance);
    for (const result of results) {
      if (Number.isNaN(result.score)) throw new BadInput(`a result on image ${result.imageId} has the score NaN`);
      if (!known.has(result.imageId))
        throw new BadInput(`a result is on image ${result.imageId}, which ${truth.file} does not have`);
      listOf(result.imageId, result.categoryId)?.results.push(result);
    }
    this.#truth = truth;
    this.#options = options;
    this.#images = images;
    this.#lists = lists;
    this.#areaFromBox = results[0]?.box !== undefined;
  }

  /**
   * A class's images with anything in them, by ascending image id.
   * @param most the surest results of an image that count
   */
  ofClass(categoryId: number, most: number): Group[] {
    const lists = [...(this.#lists.get(categoryId) ?? [])].sort(([a], [b]) => a - b);
    return lists.map(([at, { truths, results }]) => {
      const surest = [...results].sort((a, b) => b.score - a.score).slice(0, most);
      return this.#compare(this.#images[at]!, truths, surest);
    });
  }

  #compare(image: ImageEntry, truths: readonly Instance[], results: readonly Result[]): Group {
    const masks = results.map((result) => maskOf(result, image));
    const crowd = truths.map((instance) => instance.crowd);
    const iou =
      truths.length === 0 || results.length === 0
        ? new Float64Array(0)
        : this.#options.iou === "bbox"
          ? iouOfBoxes(
              results.map(({ box }, i) => box ?? boxOfRuns(masks[i]!())),
              truths.map(({ box }) => box),
              crowd,
            )
          : iouOfRuns(
              masks.map((mask) => mask()),
              truths.map((instance) => this.#maskOfTruth(instance, image)),
              crowd,
            );
    return {
      imageId: image.id,
      truths: truths.map(({ id, area }, i) => ({ id, area, crowd: crowd[i]! })),
      found: results.map((result, i) => ({ score: result.score, area: this.#areaOf(result, masks[i]!) })),
      iou,
    };
  }

  #areaOf({ box, imageId }: Result, mask: () => Runs): number {
    if (!this.#areaFromBox) return areaOfRuns(mask());
    if (box === undefined)
      throw new BadInput(`the first result has a bbox, so all must; one on image ${imageId} has none`);
    return box[2] * box[3];
  }

  #maskOfTruth({ segmentation, id }: Instance, image: ImageEntry): Runs {
    if (segmentation !== undefined) return runsOfSegmentation(segmentation, image);
    throw new BadInput(
      `${this.#truth.file}: annotation ${id} has no segmentation; compare boxes (--iou bbox) or give masks`,
    );
  }
}

/** The result's mask, made when it is first asked for; where it has a box alone, the box filled, as pycocotools' loadRes. */
export function maskOf(result: Result, image: { width: number; height: number }): () => Runs {
  let runs: Runs | undefined;
  return () => (runs ??= runsOfSegmentation(result.segmentation ?? [cornersOf(result.box!)], image));
}

function cornersOf([x, y, width, height]: Box): number[] {
  return [x, y, x, y + height, x + width, y + height, x + width, y];
}
