/** `wgpu-wish dataset`: labels of any format as COCO instances JSON, or as the weak labels that a person drew. */
import { resolve } from "node:path";
import { writeJson } from "../train/data/json.ts";
import { categoriesOfLabels, instancesDocument, merge, readClasses } from "../train/data/labelled.ts";
import { ownWeakLabels } from "../train/data/own-labels.ts";
import { readSource } from "../train/data/sources.ts";
import { describeCounts } from "../train/data/weak.ts";
import { BadInput } from "../train/errors.ts";
import type { Call } from "./command.ts";

/** Images that take a while. */
const LONG = 500;

interface Options {
  out: string;
  weak?: boolean;
  set?: string;
  sbd?: string;
  images?: string;
  classes?: string;
}

export async function run({ args, options, terminal }: Call<Options>): Promise<void> {
  const { out, weak, set, sbd, images, classes: classesFile } = options;
  const given = [...args, ...(classesFile === undefined ? [] : [classesFile])];
  if (given.some((path) => resolve(path) === resolve(out)))
    throw new BadInput(`--out: ${out} is read here; name another file`);
  if (args.length > 1 && images === undefined)
    throw new BadInput("--images: name the folder that holds the images of all sources");
  const classes = classesFile === undefined ? undefined : { file: classesFile, categories: readClasses(classesFile) };
  const sources = [];
  for (const path of args) {
    let bar: ReturnType<typeof terminal.progress> | undefined;
    const onImage = (done: number, total: number) => {
      if (total >= LONG) (bar ??= terminal.progress(total, "img")).update(done);
    };
    sources.push(await readSource(path, { set, sbd, images, classes: classes?.categories, onImage }));
    bar?.end();
  }
  const labelled = merge(sources);
  const categories = categoriesOfLabels(labelled, classes);
  const { imagesDir } = labelled;
  const where = imagesDir === undefined ? "" : `; the images' folder is ${imagesDir}`;
  const about = { out, images: labelled.images.length, classes: categories.map(({ name }) => name), folder: imagesDir };
  if (weak) {
    const document = ownWeakLabels(labelled, categories);
    writeJson(out, document);
    const { counts } = document.info;
    terminal.result({ ...about, counts }, `${out}: ${describeCounts(counts)}, ${categories.length} classes${where}`);
    return;
  }
  const document = instancesDocument(labelled, categories);
  writeJson(out, document);
  const instances = document.annotations.length;
  const empty = labelled.images.reduce((n, { objects }) => n + objects.length, 0) - instances;
  if (empty > 0) terminal.warn(`${empty} objects without a pixel are left out`);
  terminal.result(
    { ...about, instances },
    `${out}: ${about.images} images, ${instances} instances of ${categories.length} classes${where}`,
  );
}
