/** COCO results: what a model found, one entry an instance. */
import { type Fields, type Instances, isFields, isId, show } from "../data/coco.ts";
import { readJsonList } from "../data/json.ts";
import { type Box, type Rle, runsOfRle } from "../data/mask.ts";
import { BadInput } from "../errors.ts";

export interface Result {
  imageId: number;
  categoryId: number;
  score: number;
  /** RLE, or polygons as a file may have them. */
  segmentation?: Rle | number[][];
  box?: Box;
}

/**
 * Reads and checks a COCO results file for the ground truth `truth`. Throws BadInput. Results of other classes than its own are kept: they
 * count for nothing, as with pycocotools.
 */
export function readResults(path: string, truth: Instances): Result[] {
  const document = readJsonList(path, "the results file");
  if (!Array.isArray(document)) {
    throw new BadInput(
      `${path}: expected a list of results [{image_id, category_id, score, segmentation or bbox}], got ${show(document)}`,
    );
  }
  const images = new Map(truth.images.map((image) => [image.id, image]));
  return document.map((entry: unknown, i): Result => {
    const at = `${path}: results[${i}]`;
    if (!isFields(entry)) throw new BadInput(`${at} must be an object, got ${show(entry)}`);
    const { image_id: imageId, category_id: categoryId, score, bbox, segmentation } = entry;
    const image = images.get(imageId as number);
    if (image === undefined) throw new BadInput(`${at}: image_id ${show(imageId)} names no image of ${truth.file}`);
    if (!isId(categoryId)) throw new BadInput(`${at}: "category_id" must be a whole number, got ${show(categoryId)}`);
    if (typeof score !== "number") throw new BadInput(`${at}: "score" must be a number, got ${show(score)}`);
    const result: Result = { imageId: image.id, categoryId, score };
    // pycocotools takes an empty list for no box.
    if (bbox !== undefined && !(Array.isArray(bbox) && bbox.length === 0)) result.box = boxField(bbox, at);
    if (segmentation !== undefined) result.segmentation = maskField(segmentation, image, at);
    if (result.box === undefined && result.segmentation === undefined) {
      throw new BadInput(`${at}: has neither "segmentation" nor "bbox"`);
    }
    return result;
  });
}

/** As pycocotools: a box may be turned inside out, and then meets nothing. */
function boxField(value: unknown, at: string): Box {
  if (Array.isArray(value) && value.length === 4 && value.every((v) => typeof v === "number" && Number.isFinite(v)))
    return value as Box;
  throw new BadInput(`${at}: "bbox" must be [x, y, width, height], got ${show(value)}`);
}

function maskField(value: unknown, image: { width: number; height: number }, at: string): Rle | number[][] {
  if (Array.isArray(value)) {
    const isPolygon = (p: unknown) =>
      Array.isArray(p) && p.length >= 6 && p.every((v) => typeof v === "number" && Math.abs(v) < 1e6);
    if (!value.every(isPolygon))
      throw new BadInput(`${at}: "segmentation" must be RLE or polygons, got ${show(value)}`);
    return value;
  }
  const { size, counts }: Fields = isFields(value) ? value : {};
  if (!Array.isArray(size) || !(typeof counts === "string" || Array.isArray(counts))) {
    throw new BadInput(`${at}: "segmentation" must be an RLE {size, counts} or polygons, got ${show(value)}`);
  }
  if (size[0] !== image.height || size[1] !== image.width) {
    throw new BadInput(
      `${at}: the mask is for ${show(size)} [height, width], the image is [${image.height}, ${image.width}]`,
    );
  }
  const rle: Rle = { size: [image.height, image.width], counts };
  try {
    runsOfRle(rle);
  } catch (error) {
    throw new BadInput(`${at}: ${(error as Error).message}`);
  }
  return rle;
}

/** Results as COCO's JSON has them. */
export function resultsDocument(results: readonly Result[]): object[] {
  return results.map(({ imageId, categoryId, score, segmentation, box }) => ({
    image_id: imageId,
    category_id: categoryId,
    score,
    ...(segmentation === undefined ? {} : { segmentation }),
    ...(box === undefined ? {} : { bbox: box }),
  }));
}
