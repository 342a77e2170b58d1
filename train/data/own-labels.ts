/**
 * A person's own weak labels: boxes, points and tags as they were drawn, one kind an image. Nothing is derived here; what holds masks is
 * weakened by `weaken`.
 */
import { BadInput } from "../errors.ts";
import { type Category, type ImagesDocument, imagesDocument } from "./coco.ts";
import { checkArea, identified, type Labelled, type LabelledImage } from "./labelled.ts";
import { COSTS, type Kind } from "./weak.ts";

export interface OwnWeakDocument extends ImagesDocument {
  info: { description: string; costs: typeof COSTS; counts: Record<Kind, number>; spent: number };
  weak: object[];
}

/** The weak labels file. Throws BadInput naming the image whose labels are masks, of two kinds, or beside the image. */
export function ownWeakLabels(labelled: Labelled, categories: readonly Category[]): OwnWeakDocument {
  const idOf = new Map(categories.map(({ id, name }) => [name, id]));
  const images = identified(labelled.images);
  const counts = { tags: 0, points: 0, boxes: 0 };
  const weak = images.map((image) => {
    const kind = kindOf(image);
    counts[kind]++;
    return { image_id: image.id, kind, ...labelsOf(image, kind, idOf) };
  });
  return {
    info: {
      description: "weak labels drawn by hand: tags, points or boxes, one kind an image",
      costs: COSTS,
      counts,
      spent: counts.tags * COSTS.tag + counts.points * COSTS.point + counts.boxes * COSTS.box,
    },
    ...imagesDocument(images, categories),
    weak,
  };
}

/** Tags count where nothing is drawn; an image with neither is one without objects, which empty boxes say. */
function kindOf({ at, objects, tags }: LabelledImage): Kind {
  const mask = objects.find(({ segmentation, crowd }) => segmentation !== undefined && !crowd);
  if (mask !== undefined)
    throw new BadInput(
      `${at}: "${mask.label}" is a mask, which weak labels have none of; convert without --weak, then derive them: wgpu-wish weaken --ann instances.json --out weak.json --boxes 1`,
    );
  const drawn = objects.filter(({ crowd }) => !crowd);
  const points = drawn.filter(({ point }) => point !== undefined).length;
  if (points > 0 && points < drawn.length)
    throw new BadInput(
      `${at}: has ${points} points and ${drawn.length - points} boxes; an image has one kind of labels: keep the points or the boxes`,
    );
  if (points > 0) return "points";
  return drawn.length === 0 && tags !== undefined ? "tags" : "boxes";
}

function labelsOf(image: LabelledImage, kind: Kind, idOf: ReadonlyMap<string, number>): object {
  const { at, width, height, tags = [] } = image;
  if (kind === "tags") return { category_ids: [...new Set(tags.map((tag) => idOf.get(tag)!))] };
  const drawn = image.objects.filter(({ crowd }) => !crowd);
  if (kind === "points")
    return {
      points: drawn.map(({ label, point }) => {
        const [x, y] = point!;
        if (!(x >= -0.5 && y >= -0.5 && x <= width - 0.5 && y <= height - 0.5))
          throw new BadInput(
            `${at}: the point on "${label}" lies at ${x}, ${y}, outside the image (${width}x${height})`,
          );
        return { category_id: idOf.get(label)!, x, y };
      }),
    };
  return {
    boxes: drawn.map(({ label, box }) => {
      checkArea(box!, label, image);
      return { category_id: idOf.get(label)!, bbox: box };
    }),
  };
}
