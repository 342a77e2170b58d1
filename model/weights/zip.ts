// The zip archives that torch.save writes: a directory at the end, entries stored (or deflated, by other tools).
import { inflateSync } from "fflate";
import { Budget, CheckpointError } from "./tensors.ts";

interface Entry {
  readonly method: number;
  readonly packed: number;
  readonly size: number;
  readonly header: number;
}

/** What an entry may grow to when inflated, times its packed size: weights hardly shrink, bombs grow a thousandfold. */
const MAX_GROWTH = 64;
/** Small entries (zeros, indices) may well shrink further. */
const GROWTH_FREE_BYTES = 16 * 2 ** 20;

export class ZipArchive {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #file: string;
  readonly #entries = new Map<string, Entry>();
  readonly #budget: Budget;

  constructor(bytes: Uint8Array, file: string) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#file = file;
    this.#budget = new Budget(bytes.length, file);
    this.#readDirectory();
    this.#checkApart();
  }

  get names(): string[] {
    return [...this.#entries.keys()];
  }

  /** The packed and the full size of an entry. */
  sizeOf(name: string): number | undefined {
    return this.#entries.get(name)?.size;
  }

  /** An entry's bytes; a stored one is not copied. */
  read(name: string): Uint8Array {
    const entry = this.#entries.get(name);
    if (!entry) return this.#fail(`the archive has no entry ${name}`);
    const { header, packed, size, method } = entry;
    if (header + 30 > this.#bytes.length || this.#view.getUint32(header, true) !== 0x04034b50) {
      return this.#fail(`entry ${name} is not where the archive's directory says; the file is truncated or corrupt`);
    }
    const start = header + 30 + this.#view.getUint16(header + 26, true) + this.#view.getUint16(header + 28, true);
    if (start + packed > this.#bytes.length)
      return this.#fail(`entry ${name} reaches beyond the end of the file; it is truncated`);
    const data = this.#bytes.subarray(start, start + packed);
    if (method === 0) return data;
    if (method !== 8)
      return this.#fail(`entry ${name} is packed by method ${method}; stored and deflated entries are read`);
    if (size > GROWTH_FREE_BYTES && size > packed * MAX_GROWTH) {
      return this.#fail(`entry ${name} would grow from ${packed} to ${size} bytes, which weights do not; refused`);
    }
    return this.#inflate(name, data, size);
  }

  /** Into a buffer of the declared size, so that a lying entry cannot take more. */
  #inflate(name: string, data: Uint8Array, size: number): Uint8Array {
    this.#budget.take(size, `entry ${name}`);
    let out: Uint8Array;
    try {
      out = inflateSync(data, { out: new Uint8Array(size) });
    } catch (error) {
      return this.#fail(`entry ${name} cannot be inflated: ${error instanceof Error ? error.message : error}`);
    }
    return out.length === size ? out : this.#fail(`entry ${name} inflates to ${out.length} bytes instead of ${size}`);
  }

  #readDirectory(): void {
    const bytes = this.#bytes;
    const view = this.#view;
    let end = bytes.length - 22;
    const lowest = Math.max(0, bytes.length - 22 - 65535);
    while (end >= lowest && view.getUint32(end, true) !== 0x06054b50) end--;
    if (end < lowest) this.#fail("the archive's directory is missing; the file is truncated or is no .pt/.pth file");
    let count = view.getUint16(end + 10, true);
    let at = view.getUint32(end + 16, true);
    // Zip64: the figures stand in a record of their own, and a locator in front of the end says where.
    if (end >= 20 && view.getUint32(end - 20, true) === 0x07064b50) {
      const record = Number(view.getBigUint64(end - 12, true));
      if (record + 56 > bytes.length || view.getUint32(record, true) !== 0x06064b50)
        this.#fail("the archive's zip64 directory is corrupt");
      count = Number(view.getBigUint64(record + 32, true));
      at = Number(view.getBigUint64(record + 48, true));
    }
    for (let i = 0; i < count; i++) {
      if (at + 46 > bytes.length || view.getUint32(at, true) !== 0x02014b50)
        this.#fail(`the archive's directory is corrupt at entry ${i}`);
      const nameLength = view.getUint16(at + 28, true);
      const extraLength = view.getUint16(at + 30, true);
      if (at + 46 + nameLength + extraLength > bytes.length)
        this.#fail(`the archive's directory is truncated at entry ${i}`);
      const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + nameLength));
      if (view.getUint16(at + 8, true) & 1) this.#fail(`entry ${name} is encrypted`);
      if (this.#entries.has(name)) this.#fail(`the archive has two entries ${name}`);
      this.#entries.set(name, this.#entryAt(at, nameLength, extraLength));
      at += 46 + nameLength + extraLength + view.getUint16(at + 32, true);
    }
  }

  /** One that lies inside another would be read twice. */
  #checkApart(): void {
    const sorted = [...this.#entries].sort(([, a], [, b]) => a.header - b.header);
    for (const [i, [name, { header, packed }]] of sorted.entries()) {
      const next = sorted[i + 1];
      if (next && header + 30 + packed > next[1].header)
        this.#fail(`entries ${name} and ${next[0]} overlap at byte ${next[1].header}`);
    }
  }

  #entryAt(at: number, nameLength: number, extraLength: number): Entry {
    const view = this.#view;
    let size = view.getUint32(at + 24, true);
    let packed = view.getUint32(at + 20, true);
    let header = view.getUint32(at + 42, true);
    let extra = at + 46 + nameLength;
    const extraEnd = extra + extraLength;
    while (extra + 4 <= extraEnd) {
      const length = view.getUint16(extra + 2, true);
      if (view.getUint16(extra, true) === 1) {
        let field = extra + 4;
        const wide = (value: number) => {
          if (value !== 0xffffffff || field + 8 > extraEnd) return value;
          field += 8;
          return Number(view.getBigUint64(field - 8, true));
        };
        size = wide(size);
        packed = wide(packed);
        header = wide(header);
      }
      extra += 4 + length;
    }
    return { method: view.getUint16(at + 10, true), packed, size, header };
  }

  #fail(text: string): never {
    throw new CheckpointError(`${this.#file}: ${text}`);
  }
}
