// Protobuf written by hand, for ONNX models that no exporter would write.

const varint = (v: number): number[] => (v < 128 ? [v] : [(v % 128) | 128, ...varint(Math.floor(v / 128))]);
const bytesOf = (content: Uint8Array | string) => (typeof content === "string" ? Buffer.from(content) : content);

/** Of a varint. */
export const number = (field: number, value: number): Buffer => Buffer.from([...varint(field * 8), ...varint(value)]);

/** Of bytes, of a text, or of messages one after the other. */
export function message(field: number, ...content: (Uint8Array | string)[]): Buffer {
  const body = Buffer.concat(content.map(bytesOf));
  return Buffer.concat([Buffer.from([...varint(field * 8 + 2), ...varint(body.length)]), body]);
}

/** The message with the bytes of each such field changed: another message's fields in the place of this one. */
function changed(whole: Uint8Array, field: number, change: (content: Uint8Array) => Uint8Array): Buffer {
  const out: Uint8Array[] = [];
  let at = 0;
  const next = (): number => {
    let read = 0;
    for (let unit = 1; ; unit *= 128) {
      const byte = whole[at++]!;
      read += (byte & 127) * unit;
      if (byte < 128) return read;
    }
  };
  while (at < whole.length) {
    const start = at;
    const tag = next();
    const value = tag % 8 === 1 ? 8 : tag % 8 === 5 ? 4 : next();
    if (tag % 8 !== 0) at += value;
    const wholeField = whole.subarray(start, at);
    out.push(tag === field * 8 + 2 ? change(wholeField.subarray(contentAt(wholeField))) : wholeField);
  }
  return Buffer.concat(out);
}

/** Behind the tag and the length. */
function contentAt(field: Uint8Array): number {
  const tagEnd = field.findIndex((byte) => byte < 128) + 1;
  return tagEnd + field.subarray(tagEnd).findIndex((byte) => byte < 128) + 1;
}

/** Where TensorProto says that its numbers lie: location, offset, length. */
export type Place = Record<string, string>;

/** TensorProto.external_data and data_location. */
export const external = (place: Place): Buffer =>
  Buffer.concat([
    ...Object.entries(place).map(([key, value]) => message(13, message(1, key), message(2, value))),
    number(14, 1),
  ]);

/** An ONNX model whose initialisers' raw data is replaced, by other bytes or by the place where it lies. */
export function withRawData(model: Uint8Array, put: (raw: Uint8Array) => Uint8Array | Place): Buffer {
  const tensor = (proto: Uint8Array) =>
    changed(proto, 9, (raw) => {
      const data = put(raw);
      return data instanceof Uint8Array ? message(9, data) : external(data);
    });
  return changed(model, 7, (graph) =>
    message(
      7,
      changed(graph, 5, (proto) => message(5, tensor(proto))),
    ),
  );
}
