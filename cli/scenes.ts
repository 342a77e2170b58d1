/** `wgpu-wish scenes`: a COCO-layout data set of procedural scenes. */
import { writeScenes } from "../train/data/scenes.ts";
import { BadInput } from "../train/errors.ts";
import type { Call } from "./command.ts";

interface Options {
  out: string;
  images: number;
  size: number;
  seed: number;
}

/** Smaller objects than those of 32 pixels would have no pixels left to tell them apart by. */
const SMALLEST = 32;
const LARGEST = 4096;

export async function run({ options, terminal }: Call<Options>): Promise<void> {
  const { out, images, size, seed } = options;
  if (size < SMALLEST || size > LARGEST)
    throw new BadInput(`--size: expected ${SMALLEST} to ${LARGEST} pixels, got ${size}`);
  const bar = terminal.progress(images);
  const { annotations, imagesDir, instances } = await writeScenes(out, { images, size, seed }, (done) =>
    bar.update(done),
  );
  terminal.result(
    { annotations, images: imagesDir, count: images, instances, size, seed },
    `${images} images of ${size}x${size} with ${instances} objects: ${imagesDir}, ${annotations}`,
  );
}
