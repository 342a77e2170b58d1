/** The plain files of a tar archive: 512-byte headers (name at 0, octal size at 124), contents padded to 512. */
export function* readTar(tar: Uint8Array): Generator<{ name: string; bytes: Uint8Array }> {
  const text = new TextDecoder("latin1");
  const field = (at: number, length: number) => text.decode(tar.subarray(at, at + length)).replace(/\0.*$/s, "");
  for (let at = 0; at + 512 <= tar.length && tar[at] !== 0; ) {
    const size = Number.parseInt(field(at + 124, 12), 8) || 0;
    yield { name: field(at, 100), bytes: tar.subarray(at + 512, at + 512 + size) };
    at += 512 + Math.ceil(size / 512) * 512;
  }
}
