/**
 * How good a run's pseudo points are: of the peaks of its class activation maps (after tau and radius, before SAM removes those that mean the
 * same object) the share that lies on an object of their class, and of the objects the share that has such a peak.
 *
 *     node --import tsx scripts/peaks.ts RUN INSTANCES.json IMAGES [COUNT]
 */
import { Device } from "../index.ts";
import { classIndex, imagePath, instanceRuns, instancesByImage, readInstances } from "../train/data/coco.ts";
import { readImage } from "../train/data/image.ts";
import { maskOfRuns } from "../train/data/mask.ts";
import { loadRun } from "../train/models.ts";
import { camOf } from "../train/stages.ts";

const [run, annotations, images, count] = process.argv.slice(2);
if (run === undefined || annotations === undefined || images === undefined) {
  console.error("usage: node --import tsx scripts/peaks.ts RUN INSTANCES.json IMAGES [COUNT]");
  process.exit(2);
}
const gpu = await Device.open();
const { model, config } = await loadRun(gpu, run, "last");
if (!config) throw new Error(`${run}: holds no config.yaml`);
const truth = readInstances(annotations);
const byImage = instancesByImage(truth);
const index = classIndex(truth.categories);
const sum = { objects: 0, found: 0, peaks: 0, onObject: 0 };
for (const entry of truth.images.slice(0, count === undefined ? undefined : Number(count))) {
  const objects = byImage.get(entry.id)!.map((instance) => ({
    classIndex: index.get(instance.categoryId)!,
    mask: maskOfRuns(instanceRuns(instance, entry)),
  }));
  const tags = [...new Set(objects.map((object) => object.classIndex))];
  const { peaks } = await camOf(gpu, model, await readImage(imagePath(images, entry)), tags, config);
  const hit = peaks.map(({ classIndex: label, x, y }) =>
    objects.findIndex(
      (object) => object.classIndex === label && object.mask[Math.round(y) * entry.width + Math.round(x)],
    ),
  );
  sum.objects += objects.length;
  sum.peaks += peaks.length;
  sum.onObject += hit.filter((i) => i >= 0).length;
  sum.found += new Set(hit.filter((i) => i >= 0)).size;
}
const share = (part: number, whole: number): string => (part / whole).toFixed(3);
console.log(
  `${sum.peaks} peaks, ${share(sum.onObject, sum.peaks)} on an object of their class; ${sum.objects} objects, ${share(sum.found, sum.objects)} have one`,
);
gpu.close();
process.exit(0);
