/** `wgpu-wish show`: PNG previews of labels. */
import { join } from "node:path";
import { augmentedPicture } from "../train/augmented.ts";
import { readConfig, resolveConfig } from "../train/config.ts";
import {
  type Category,
  classIndex,
  type ImageEntry,
  imagePath,
  instancesByImage,
  isFields,
  readInstances,
} from "../train/data/coco.ts";
import { readImage, writePng } from "../train/data/image.ts";
import { makeFolder, readJson } from "../train/data/json.ts";
import { type Item, maskItems, weakItems } from "../train/data/loader.ts";
import { readWeak, type WeakEntry } from "../train/data/weak.ts";
import { BadInput } from "../train/errors.ts";
import { shapesOf } from "../train/evaluate.ts";
import { FileNames, keepApart } from "../train/folders.ts";
import { classText } from "../train/lettering.ts";
import { contactSheet, drawOverlay, type Overlay } from "../train/pictures.ts";
import { SHOWN, showRun } from "../train/run-tools.ts";
import type { Call } from "./command.ts";

export interface ShowOptions {
  run?: string;
  ann?: string;
  images?: string;
  out: string;
  limit?: number;
}

/** Pictures on the sheet that shows many at once. */
const ON_SHEET = 16;

export async function run(call: Call<ShowOptions>): Promise<void> {
  const { args, options, terminal } = call;
  const [what] = args;
  if (what === "cam" || what === "proxies" || what === "predictions") return showOf(what, call);
  if (what === "augmented") return options.run === undefined ? showAugmented(call) : showOf(what, call);
  const { out, limit = SHOWN } = options;
  const { ann, images: folder } = sourceOf(what as "gt" | "weak", options);
  const { images, overlayOf } = what === "weak" ? weakOverlays(ann) : instanceOverlays(ann);
  keepApart(
    out,
    images.map((entry) => imagePath(folder, entry)),
  );
  await makeFolder(out);
  const wanted = images.slice(0, limit);
  const names = new FileNames(["sheet"]).ofImages(wanted.map(({ fileName }) => fileName));
  const bar = terminal.progress(wanted.length);
  const files: string[] = [];
  const shown = [];
  for (const [i, entry] of wanted.entries()) {
    const image = await readImage(imagePath(folder, entry));
    if (image.width !== entry.width || image.height !== entry.height) {
      throw new BadInput(
        `${imagePath(folder, entry)}: is ${image.width}x${image.height}, but ${ann} says ${entry.width}x${entry.height} (width x height)`,
      );
    }
    const picture = await drawOverlay(image, overlayOf(entry));
    const file = join(out, `${names[i]}.png`);
    await writePng(file, picture);
    files.push(file);
    if (shown.length < ON_SHEET) shown.push(picture);
    bar.update(files.length);
  }
  const sheet = join(out, "sheet.png");
  await writePng(sheet, contactSheet(shown));
  if (images.length > limit) terminal.log(`${limit} of ${images.length} images; --limit shows more`);
  terminal.result({ files, sheet }, `${files.length} pictures in ${out}, the first of them on ${sheet}`);
}

/** Labels and images: those named, or a run's: what it was trained on (weak), what it is judged by (gt). */
function sourceOf(what: "gt" | "weak", { run, ann, images }: ShowOptions): { ann: string; images: string } {
  if (ann !== undefined && images !== undefined && run === undefined) return { ann, images };
  if (run === undefined || ann !== undefined || images !== undefined)
    throw new BadInput(`show ${what}: give --ann and --images, or --run alone`);
  const { mode, data, val } = readConfig(join(run, "config.yaml"));
  if (what === "weak" && mode !== "wish") throw new BadInput(`show weak: ${run} was trained from masks: show gt --ann`);
  const source =
    what === "weak" ? { ann: data.labels, images: data.images } : { ann: val.annotations, images: val.images };
  if (source.ann === "") throw new BadInput(`show gt: ${run} names no evaluation data (val.annotations)`);
  return source;
}

async function showOf(
  what: "augmented" | "cam" | "proxies" | "predictions",
  { options, terminal, open }: Call<ShowOptions>,
): Promise<void> {
  const { run: folder, out, limit } = options;
  if (folder === undefined) throw new BadInput(`show ${what}: give --run, the folder of a run`);
  const gpu = await open();
  const files = await showRun(gpu, what, {
    run: folder,
    out,
    display: terminal,
    ...(limit === undefined ? {} : { limit }),
  });
  const sheet = files.at(-1);
  terminal.result(
    { files, sheet },
    `${Math.max(0, files.length - 1)} pictures in ${out}, the first of them on ${sheet}`,
  );
}

/** Without a run: the labels alone, under the settings' defaults. */
async function showAugmented({ options, terminal }: Call<ShowOptions>): Promise<void> {
  const { ann, images: folder, out, limit = SHOWN } = options;
  if (ann === undefined || folder === undefined)
    throw new BadInput("show augmented: give --run, or --ann and --images");
  const document = readJson(ann, "the labels file");
  const isWeak = isFields(document) && "weak" in document;
  const { categories, items } = isWeak ? weakSource(ann, folder) : maskSource(ann, folder);
  keepApart(
    out,
    items.map(({ path }) => path),
  );
  await makeFolder(out);
  const config = resolveConfig({});
  const wanted = items.slice(0, limit);
  const names = new FileNames().ofImages(wanted.map(({ path }) => path));
  const files: string[] = [];
  const bar = terminal.progress(wanted.length);
  for (const [i, item] of wanted.entries()) {
    files.push(join(out, `${names[i]}.png`));
    await writePng(files.at(-1)!, await augmentedPicture(item, i, { categories, config }));
    bar.update(files.length);
  }
  bar.end();
  terminal.result({ files }, `${files.length} pictures in ${out}: the image, then versions of it`);
}

interface Source {
  categories: readonly Category[];
  items: Item[];
}

function weakSource(ann: string, folder: string): Source {
  const weak = readWeak(ann);
  return { categories: weak.categories, items: weakItems(weak, folder) };
}

function maskSource(ann: string, folder: string): Source {
  const data = readInstances(ann);
  return { categories: data.categories, items: maskItems(data, folder) };
}

interface Overlays {
  images: ImageEntry[];
  overlayOf(image: ImageEntry): Overlay;
}

export function instanceOverlays(path: string): Overlays {
  const data = readInstances(path);
  const byImage = instancesByImage(data);
  const names = data.categories.map(classText);
  const index = classIndex(data.categories);
  return {
    images: data.images,
    overlayOf: (image) => {
      const instances = byImage.get(image.id)!;
      const labelled = instances.map((instance) => {
        const classIndex = index.get(instance.categoryId)!;
        return { instance, classIndex, label: `${names[classIndex]}${instance.crowd ? " (crowd)" : ""}` };
      });
      // The larger ones lie lower, so that small objects stay visible.
      labelled.sort((a, b) => b.instance.area - a.instance.area);
      return { ...shapesOf(labelled, image), caption: image.fileName };
    },
  };
}

export function weakOverlays(path: string): Overlays {
  const weak = readWeak(path);
  const entries = new Map(weak.entries.map((entry) => [entry.imageId, entry]));
  const index = classIndex(weak.categories);
  const labelOf = (categoryId: number) => {
    const classIndex = index.get(categoryId)!;
    return { classIndex, label: classText(weak.categories[classIndex]!) };
  };
  const draw = (entry: WeakEntry): Overlay => {
    if (entry.kind === "points")
      return { points: entry.points.map(({ x, y, categoryId }) => ({ x, y, ...labelOf(categoryId) })) };
    if (entry.kind === "boxes")
      return { boxes: entry.boxes.map(({ box, categoryId }) => ({ box, ...labelOf(categoryId) })) };
    return { caption: `tags: ${entry.categoryIds.map((id) => labelOf(id).label).join(", ") || "none"}` };
  };
  return {
    // Images without a label have nothing to show.
    images: weak.images.filter(({ id }) => entries.has(id)),
    overlayOf: (image) => {
      const entry = entries.get(image.id)!;
      return { caption: `${entry.kind}: ${image.fileName}`, ...draw(entry) };
    },
  };
}
