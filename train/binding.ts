/**
 * What the adapter cannot bind is refused before any work: a step and an evaluation are tried on a device that computes nothing, by the
 * code that would do them.
 */
import { type Device, nn, noGrad, scope, TooLarge } from "../engine/index.ts";
import { padding } from "../model/backbone.ts";
import { instancesOf, maskLogits, Wish, type WishConfig } from "../model/index.ts";
import type { Config } from "./config.ts";
import { type Item, type Sample, shortestEdge } from "./data/loader.ts";
import { BadInput } from "./errors.ts";
import { rehearse } from "./plan.ts";
import { maskSizeOf } from "./pseudo.ts";
import type { Trainer } from "./step.ts";

/** Does the work. Throws BadInput where it takes a tensor that the adapter cannot bind; `words` make a sentence of which tensor that is. */
export async function bindable<T>(gpu: Device, work: () => Promise<T>, words: (tensor: string) => string): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (!(cause instanceof TooLarge)) throw cause;
    const { bytes, limit } = cause;
    throw new BadInput(words(`a tensor of ${bytes} bytes, more than the ${limit} that ${gpu.name} can bind at once`));
  }
}

/** Tries a step of the configuration's sizes, with as many objects as images have in the mean. Throws BadInput. @param file for the errors */
export async function checkStep(trainer: Trainer, file: string): Promise<void> {
  const { gpu, config } = trainer;
  const { data, batch } = config;
  await bindable(
    gpu,
    async () => {
      // Before the host makes images of that size.
      const dry = gpu.dry();
      scope(() => dry.empty([batch, 3, data.height, data.width]));
      await rehearse(trainer, [new Array<Sample>(batch).fill(usualSample(trainer))], new Map(), 1);
    },
    (tensor) =>
      `${file}: a step with batch=${batch}, data.width=${data.width} and data.height=${data.height} takes ${tensor}; make them smaller (accumulate adds up several batches), or use another --adapter`,
  );
}

/** An image without content. */
function usualSample({ config, items }: Trainer): Sample {
  const { width, height, scale } = config.data;
  // What is enlarged beyond the input is cut off, and objects with it.
  const zoom = Math.max(1, (scale[0] + scale[1]) / 2);
  const objects = Math.ceil(meanObjects(items) / zoom ** 2);
  const [w, h] = maskSizeOf({ width, height }, config);
  const each = <T>(value: T): T[] => new Array<T>(objects).fill(value);
  const mask = new Uint8Array(w * h).fill(1);
  return {
    imageId: 0,
    item: 0,
    rgb: new Uint8Array(3 * width * height),
    width,
    height,
    valid: [width, height],
    ...labelsOf(config, each, mask),
    tags: [0],
    classes: each(0),
    source: each(0),
    points: [],
    boxes: each([0, 0, width, height]),
    affine: { scaleX: 1, offsetX: 0, scaleY: 1, offsetY: 0 },
    originalWidth: width,
    originalHeight: height,
  };
}

/** True masks, or SAM's three of boxes: images with points or tags take no other tensors. */
function labelsOf(
  { mode }: Config,
  each: <T>(value: T) => T[],
  mask: Uint8Array,
): Pick<Sample, "kind" | "masks" | "proxies"> {
  if (mode !== "wish") return { kind: "masks", masks: each(mask) };
  return { kind: "boxes", masks: [], proxies: each({ masks: [mask, mask, mask], iou: [1, 1, 1] }) };
}

/** Of an image, 1 at least; a tag stands for an object. */
function meanObjects(items: readonly Item[]): number {
  const all = items.reduce((sum, { kind, classes, tags }) => sum + (kind === "tags" ? tags : classes).length, 0);
  return Math.max(1, all / items.length);
}

export interface Photograph {
  fileName: string;
  width: number;
  height: number;
}

/**
 * Tries a model on the largest of the images. Throws BadInput. @param size what the errors call the network's size; @param whole all masks are
 * wanted together, as the network makes them
 */
export async function checkSeen(
  gpu: Device,
  sizes: WishConfig,
  images: readonly Photograph[],
  { short, long }: { short: number; long: number },
  size: string,
  whole = false,
): Promise<void> {
  if (images.length === 0) return;
  const largest = (area: (image: Photograph) => number): Photograph =>
    images.reduce((a, b) => (area(b) > area(a) ? b : a));
  const framed = (image: Photograph): number[] => shortestEdge(image, { short, long }).map((n) => n + padding(n));
  const seen = largest((image) => framed(image).reduce((a, b) => a * b));
  const full = largest(({ width, height }) => width * height);
  const [width, height] = shortestEdge(seen, { short, long });
  const dry = gpu.dry();
  const forward = async () => {
    const input = dry.empty([1, 3, height, width]);
    const model = nn.init.skip(() => new Wish(dry, sizes)).eval();
    const output = noGrad(() => model.forward(input));
    if (whole) noGrad(() => maskLogits(output.predictions.at(-1)!));
    return { input, output };
  };
  await scope(async () => {
    const { input, output } = await bindable(
      gpu,
      forward,
      (tensor) =>
        `${size}: ${seen.fileName}, seen at ${width} x ${height} pixels, takes ${tensor}; make them smaller, or use another --adapter`,
    );
    await bindable(
      gpu,
      () => instancesOf(output, input, { original: [full.height, full.width], topk: 1 }),
      (tensor) =>
        `${full.fileName}: a mask of its ${full.width} x ${full.height} pixels takes ${tensor}; make the image smaller, or use another --adapter`,
    );
  });
}
