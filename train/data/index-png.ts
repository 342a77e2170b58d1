/**
 * PNGs whose pixels are numbers, not colours: VOC's SegmentationClass and SegmentationObject (a palette makes them visible), greys of the
 * same meaning, and masks. Decoders give the palette's colours; here its chunk is left out and the image declared grey, so that they give
 * the indices.
 */
import sharp from "sharp";
import { BadInput } from "../errors.ts";
import { clauseOf } from "./image.ts";
import { MAX_PIXELS } from "./mask.ts";

export interface Indices {
  readonly width: number;
  readonly height: number;
  /** Row by row, one number a pixel. */
  readonly data: Uint8Array;
}

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const GREY = 0;
const PALETTE = 3;

/** Throws BadInput. @param name what errors call the file */
export async function decodeIndices(bytes: Uint8Array, name: string): Promise<Indices> {
  try {
    const { grey, depth } = asGrey(bytes);
    const pipeline = sharp(grey, { limitInputPixels: MAX_PIXELS, failOn: "warning" }).extractChannel(0);
    const { data, info } = await pipeline.raw({ depth: "uchar" }).toBuffer({ resolveWithObject: true });
    // Samples of fewer bits come spread over 0 to 255.
    const spread = 255 / (2 ** depth - 1);
    const indices = new Uint8Array(data.buffer, data.byteOffset, data.length);
    return { width: info.width, height: info.height, data: spread === 1 ? indices : indices.map((v) => v / spread) };
  } catch (error) {
    throw new BadInput(`${name}: cannot be read as a PNG of numbers (${clauseOf(error)})`);
  }
}

/** The same file as greys: header, pixels and end are all that is kept, so that no colour, gamma or transparency changes a number. */
function asGrey(bytes: Uint8Array): { grey: Uint8Array; depth: number } {
  if (bytes.length === 0) throw new Error("the file is empty");
  if (!SIGNATURE.every((byte, i) => bytes[i] === byte)) throw new Error("the file is no PNG");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const kept: Uint8Array[] = [Uint8Array.from(SIGNATURE)];
  let depth = 0;
  for (let at = 8; at < bytes.length; ) {
    if (at + 12 > bytes.length) throw new Error("the file is truncated");
    const length = view.getUint32(at);
    const end = at + 12 + length;
    if (end > bytes.length) throw new Error("the file is truncated");
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (kind === "IHDR") {
      const header = Uint8Array.from(bytes.subarray(at, end));
      depth = header[16]!;
      const colour = header[17]!;
      if ((colour !== GREY && colour !== PALETTE) || depth > 8)
        throw new Error("it holds colours; expected a palette or greys of at most 8 bits");
      header[17] = GREY;
      new DataView(header.buffer).setUint32(header.length - 4, crc32(header.subarray(4, -4)));
      kept.push(header);
    } else if (kind === "IDAT" || kind === "IEND") kept.push(bytes.subarray(at, end));
    at = end;
  }
  if (depth === 0) throw new Error("the header is missing");
  return { grey: Buffer.concat(kept), depth };
}

/** PNG's checksum, of the few bytes of a header: node:zlib has one from Node 20.15 on. */
function crc32(bytes: Uint8Array): number {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
