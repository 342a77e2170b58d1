/** A table of tags: the columns file_name and tags, a row an image, the tags separated by semicolons, commas or bars. Rows of one image add up. */
import { join } from "node:path";
import { CsvError, parse } from "csv-parse/sync";
import { BadInput } from "../errors.ts";
import { show } from "./coco.ts";
import { type Labelled, type LabelledImage, readEach, sizeOf } from "./labelled.ts";
import { readText } from "./open.ts";

export interface TagsOptions {
  /** Folder of the images. */
  images: string;
  onImage?: ((done: number, total: number) => void) | undefined;
}

/** Throws BadInput. */
export async function readTags(file: string, { images: imagesDir, onImage }: TagsOptions): Promise<Labelled> {
  const rows = readRows(file);
  const [head = []] = rows;
  const column = (name: string): number => {
    const at = head.findIndex((cell) => cell.trim().toLowerCase() === name);
    if (at < 0)
      throw new BadInput(
        `${file}: the first line must name the columns file_name and tags, got ${show(head.join(","))}`,
      );
    return at;
  };
  const [fileColumn, tagsColumn] = [column("file_name"), column("tags")];
  const found = new Map<string, { line: number; tags: Set<string> }>();
  rows.forEach((cells, i) => {
    if (i === 0) return;
    const fileName = cells[fileColumn]!.trim();
    if (fileName === "") throw new BadInput(`${file}: row ${i + 1} names no file`);
    const entry = found.get(fileName) ?? { line: i + 1, tags: new Set<string>() };
    for (const tag of cells[tagsColumn]!.split(/[;,|]/)) if (tag.trim() !== "") entry.tags.add(tag.trim());
    found.set(fileName, entry);
  });
  if (found.size === 0) throw new BadInput(`${file}: has no row below its first line`);
  const images = await readEach(
    [...found],
    async ([fileName, { line, tags }]): Promise<LabelledImage> => {
      const size = await sizeOf(join(imagesDir, fileName));
      return { fileName, ...size, at: `${file}: row ${line}`, objects: [], tags: [...tags] };
    },
    onImage,
  );
  return { images, imagesDir };
}

function readRows(file: string): string[][] {
  const text = readText(file, "the table of tags");
  try {
    return parse(text, { bom: true, skip_empty_lines: true });
  } catch (error) {
    if (error instanceof CsvError)
      throw new BadInput(`${file}: not CSV (${error.message}); put quotes around tags with commas`);
    throw error;
  }
}
