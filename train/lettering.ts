/**
 * Texts in pictures, in a font that is installed with the package: the same on machines with other fonts or none. libvips
 * could set text itself, but not from a font's file on every system, and not without the machine's font settings.
 */
import { fileURLToPath } from "node:url";
import { type Font, openSync } from "fontkit";
import sharp from "sharp";

/** Some letters reach beyond their place. */
const PAD = 1;
/** Labels recur from picture to picture; this many are kept. */
const KEPT = 1000;

export interface Lettering {
  width: number;
  height: number;
  /** (height, width): how much of each pixel the letters cover, 0..255. */
  coverage: Uint8Array;
}

let opened: Font | undefined;
const kept = new Map<string, Promise<Lettering>>();

/** One file with Latin, Greek, Cyrillic and more, whatever its name says. Opened with the first text: most commands draw none. */
function font(): Font {
  opened ??= openSync(
    fileURLToPath(import.meta.resolve("@fontsource/dejavu-sans/files/dejavu-sans-latin-400-normal.woff2")),
  ) as Font;
  return opened;
}

/** A text as the characters that the font has; "?" for the others. */
function spelled(text: string): string {
  const has = (character: string): boolean => font().hasGlyphForCodePoint(character.codePointAt(0)!);
  const known = (character: string): string =>
    has(character) ? character : Array.from(character.normalize("NFKC"), (c) => (has(c) ? c : "?")).join("");
  return Array.from(text.normalize("NFC").replaceAll(/\s+/gu, " "), known).join("");
}

/** What pictures call a class: its name, or its number where not one letter of the name can be drawn. */
export function classText({ id, name }: { id: number; name: string }): string {
  return /^[?\s\p{M}\p{C}]*$/u.test(spelled(name)) ? `class ${id}` : name;
}

/**
 * Sets a line of text.
 * @param size of the font, in pixels: capitals are about 3/4 as high
 * @param most width in pixels; longer texts end in "…"
 */
export function letter(text: string, size: number, most = Number.POSITIVE_INFINITY): Promise<Lettering> {
  const line = fitted(spelled(text), size, most);
  const key = `${size} ${line}`;
  let lettering = kept.get(key);
  if (!lettering) {
    if (kept.size >= KEPT) kept.clear();
    lettering = rasterise(line, size);
    kept.set(key, lettering);
  }
  return lettering;
}

/** The text, or as much of its beginning as has room beside an ellipsis. */
function fitted(text: string, size: number, most: number): string {
  if (widthOf(text, size) <= most) return text;
  const characters = Array.from(text);
  const beginning = (count: number): string => `${characters.slice(0, count).join("").trimEnd()}…`;
  let [fits, tooLong] = [0, characters.length];
  while (tooLong - fits > 1) {
    const middle = (fits + tooLong) >> 1;
    if (widthOf(beginning(middle), size) <= most) fits = middle;
    else tooLong = middle;
  }
  return beginning(fits);
}

function widthOf(text: string, size: number): number {
  return Math.ceil(font().layout(text).advanceWidth * (size / font().unitsPerEm)) + 2 * PAD;
}

/** The baseline lies between two rows of pixels, so that letters stand sharp on it. */
async function rasterise(line: string, size: number): Promise<Lettering> {
  const { ascent, descent, unitsPerEm } = font();
  const scale = size / unitsPerEm;
  const baseline = Math.ceil(ascent * scale);
  const [width, height] = [widthOf(line, size), baseline + Math.ceil(-descent * scale)];
  const { glyphs, positions } = font().layout(line);
  let at = 0;
  const paths = glyphs.map(({ path }, i) => {
    const { xOffset, yOffset, xAdvance } = positions[i]!;
    const placed = `<path transform="translate(${at + xOffset} ${yOffset})" d="${path.toSVG()}"/>`;
    at += xAdvance;
    return placed;
  });
  const svg =
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}">` +
    `<g transform="translate(${PAD} ${baseline}) scale(${scale} ${-scale})">${paths.join("")}</g></svg>`;
  const coverage = await sharp(Buffer.from(svg)).extractChannel("alpha").raw().toBuffer();
  return { width, height, coverage: new Uint8Array(coverage) };
}
