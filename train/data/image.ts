/**
 * Images from and to files, as 8-bit RGB on the host. Decoding is sharp's (libvips), whose pixels equal Pillow's. An image is always turned
 * upright as its EXIF orientation says: so do the programs that people label with, detectron2 and Ultralytics; COCO's and VOC's have none.
 */
import { writeFile } from "node:fs/promises";
import { PNG } from "pngjs";
import sharp, { type Sharp } from "sharp";
import { resizeBilinear } from "../../model/sam/preprocess.ts";
import { BadInput } from "../errors.ts";
import { MAX_PIXELS } from "./mask.ts";
import { readBytes } from "./open.ts";

/** 8-bit RGB, row-major, channels last: data is (height, width, 3). */
export interface Image {
  readonly width: number;
  readonly height: number;
  readonly data: Uint8Array;
}

const FORMATS = new Set(["jpeg", "png", "webp"]);
export const IMAGE_FORMATS = "JPEG, PNG or WebP";

/** Whether a file is an image to go by its name. */
export function isImageName(name: string): boolean {
  return /\.(jpe?g|png|webp)$/i.test(name);
}

/** Reads a JPEG, PNG or WebP file. Throws BadInput naming the file when it is missing, no image, truncated or corrupt. */
export async function readImage(path: string): Promise<Image> {
  return decodeImage(await readBytes(path, "the image"), path);
}

/**
 * Decodes a file's bytes: turned upright as EXIF says, grey, palette and CMYK to RGB, 16 bits to 8; alpha is left out, as Pillow's
 * convert("RGB") does. Throws BadInput as readImage does.
 * @param name what errors call the image
 */
export async function decodeImage(bytes: Uint8Array, name: string): Promise<Image> {
  if (bytes.length === 0) throw new BadInput(`${name}: the image file is empty`);
  try {
    const source = sharp(bytes, { limitInputPixels: MAX_PIXELS, failOn: "warning" });
    const { format, hasAlpha, space } = await source.metadata();
    checkFormat(format, name);
    const upright = source.autoOrient();
    if (space === "cmyk") return rgbOfCmyk(await rawOf(upright.pipelineColourspace("cmyk").toColourspace("cmyk"), 4));
    return await rawOf((hasAlpha ? upright.removeAlpha() : upright).toColourspace("srgb"), 3);
  } catch (error) {
    if (error instanceof BadInput) throw error;
    throw new BadInput(`${name}: cannot be read as an image (${clauseOf(error)}); it may be truncated or corrupt`);
  }
}

function checkFormat(format: string | undefined, name: string): void {
  if (!FORMATS.has(format ?? ""))
    throw new BadInput(`${name}: holds ${format?.toUpperCase()}; expected ${IMAGE_FORMATS}: convert it`);
}

async function rawOf(pipeline: Sharp, channels: number): Promise<Image> {
  const { data, info } = await pipeline.raw({ depth: "uchar" }).toBuffer({ resolveWithObject: true });
  if (info.channels !== channels) throw new Error(`${info.channels} channels where ${channels} are expected`);
  return { width: info.width, height: info.height, data: new Uint8Array(data.buffer, data.byteOffset, data.length) };
}

/** Without colour profiles, as Pillow does it: what a network was trained on elsewhere is what it sees here. */
function rgbOfCmyk({ width, height, data: inks }: Image): Image {
  const data = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) {
    const light = 255 - inks[4 * i + 3]!;
    for (let c = 0; c < 3; c++) data[3 * i + c] = light - Math.round((inks[4 * i + c]! * light) / 255);
  }
  return { width, height, data };
}

/** What a library says, on one line and each thing once. */
export function clauseOf(error: unknown): string {
  const lines = (error instanceof Error ? error.message : String(error)).split("\n").map((line) => line.trim());
  return [...new Set(lines)].filter((line) => line !== "").join("; ");
}

/** Width and height of the upright image without decoding it. Throws BadInput as readImage does. */
export async function imageSize(path: string): Promise<{ width: number; height: number }> {
  try {
    const { width, height, orientation = 1, format } = await sharp(path, { limitInputPixels: MAX_PIXELS }).metadata();
    checkFormat(format, path);
    // EXIF orientations 5 to 8 are turned by a quarter.
    return orientation > 4 ? { width: height, height: width } : { width, height };
  } catch {
    // The full reader finds the words for what is wrong.
    const { width, height } = await readImage(path);
    return { width, height };
  }
}

/** Throws BadInput where an image is not as large as what was said about it. */
export function checkSize(
  path: string,
  image: { width: number; height: number },
  said: { width: number; height: number },
): void {
  if (image.width === said.width && image.height === said.height) return;
  const turned = image.width === said.height && image.height === said.width;
  throw new BadInput(
    `${path}: is ${image.width}x${image.height}, but the labels are for ${said.width}x${said.height} (width x height); ${
      turned
        ? "it may be turned by its EXIF orientation: save it upright and label that"
        : "give the image that was labelled, or mend its size in the labels file"
    }`,
  );
}

/** Pillow's bilinear resize with antialias, rounded to 8 bits. */
export function resizeImage(image: Image, width: number, height: number): Image {
  return { width, height, data: resizeBilinear(image.data, image.width, image.height, 3, width, height) };
}

export async function encodePng(image: Image): Promise<Uint8Array> {
  const raw = { width: image.width, height: image.height, channels: 3 as const };
  return sharp(image.data, { raw }).png({ compressionLevel: 3 }).toBuffer();
}

export async function writePng(path: string, image: Image): Promise<void> {
  await writeFile(path, await encodePng(image));
}

/** For pages that must stay small: a picture, or a file of one, as JPEG of at most this width. */
export async function jpegOf(source: Image | string, width: number): Promise<Uint8Array> {
  const picture =
    typeof source === "string"
      ? sharp(source)
      : sharp(source.data, { raw: { width: source.width, height: source.height, channels: 3 } });
  const resized = picture.resize({ width, withoutEnlargement: true });
  return resized.jpeg({ quality: 85, chromaSubsampling: "4:4:4" }).toBuffer();
}

/** A mask of 0 and 1 as a black and white PNG of one byte a pixel: pngjs writes the bytes as they are, no colour space in between. */
export async function writeMaskPng(path: string, mask: Uint8Array, width: number, height: number): Promise<void> {
  const png = new PNG({ width, height });
  png.data = Buffer.from(mask.map((value) => (value === 0 ? 0 : 255)));
  await writeFile(path, PNG.sync.write(png, { colorType: 0, inputColorType: 0, bitDepth: 8, inputHasAlpha: false }));
}
