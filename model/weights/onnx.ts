// The initialisers of an ONNX model: ModelProto.graph (7) holds GraphProto.initializer (5), TensorProtos with dims (1), data_type (2),
// typed data (4, 5, 7, 10, 11), name (8), raw_data (9) and external_data (13) with data_location (14). Of the nodes, GraphProto.node (1), only
// what tells whose weights they take: input (1), output (2), name (3), op_type (4), attribute (5), metadata_props (9), and in attributes
// more tensors, t (5) and tensors (10), and graphs, g (6) and graphs (11). ModelProto.functions (25) hold nodes, too: FunctionProto.node (7).
import type { FileType } from "../../engine/safetensors.ts";
import { checkFinite } from "./not-finite.ts";
import type { OnnxNode } from "./onnx-graph.ts";
import { recoverNames, weightsBy } from "./onnx-names.ts";
import { checkInside, type Parts } from "./parts.ts";
import { type Field, fieldsOf, packedNumbers } from "./protobuf.ts";
import { Budget, CheckpointError, type HostTensor, ITEM_BYTES } from "./tensors.ts";

/** TensorProto.DataType: type, and the field of typed data that holds its numbers where they are not raw. */
const TYPES: Record<number, readonly [FileType, number]> = {
  1: ["F32", 4],
  2: ["U8", 5],
  3: ["I8", 5],
  4: ["U16", 5],
  5: ["I16", 5],
  6: ["I32", 5],
  7: ["I64", 7],
  9: ["BOOL", 5],
  10: ["F16", 5],
  11: ["F64", 10],
  12: ["U32", 11],
  13: ["U64", 11],
  16: ["BF16", 5],
};
const MOST_DIMS = 64;

const fields = (message: Uint8Array, file: string): Generator<Field> => fieldsOf(message, `${file}: the ONNX model`);

/** A TensorProto. */
interface Initialiser {
  readonly name: string;
  readonly type: number;
  readonly shape: readonly number[];
  readonly raw: Uint8Array | undefined;
  /** Its bytes, for the typed data. */
  readonly bytes: Uint8Array;
  /** location, offset, length, checksum */
  readonly external: ReadonlyMap<string, string> | undefined;
  /** Stands in a node: a constant, no weight. */
  readonly inNode?: boolean;
}

function* initialisers(bytes: Uint8Array, file: string): Generator<Initialiser> {
  for (const model of fields(bytes, file)) {
    if (model.number !== 7) continue;
    for (const graph of fields(model.bytes, file)) {
      if (graph.number === 5) yield initialiser(graph.bytes, file);
      if (graph.number === 15)
        throw new CheckpointError(`${file}: the ONNX model holds sparse initialisers, which are not read here`);
    }
  }
}

/** Of three dimensions, which is where the older exporter puts what a module computed of a weight before it ran; named by what they give. */
function* constants(bytes: Uint8Array, file: string): Generator<Initialiser> {
  for (const [{ op, outputs }, proto] of protosOfNodes(bytes, file)) {
    if (op !== "Constant") continue;
    for (const { number, bytes: value } of attributes(proto, file)) {
      if (number !== 5) continue;
      const found = { ...initialiser(value, file), name: outputs[0] ?? "" };
      if (found.shape.length === 3 && TYPES[found.type]) yield found;
    }
  }
}

/** Those, and all other tensors: what nodes hold, of functions too, and the initialisers of graphs within nodes. */
function* allTensors(bytes: Uint8Array, file: string): Generator<Initialiser> {
  yield* initialisers(bytes, file);
  const nodes: Uint8Array[] = [];
  const collect = (proto: Uint8Array, field: number) => {
    for (const { number, bytes: part } of fields(proto, file)) if (number === field) nodes.push(part);
  };
  for (const { number, bytes: part } of fields(bytes, file)) {
    if (number === 7) collect(part, 1);
    if (number === 25) collect(part, 7);
  }
  // Not by recursion: a small file can hold graphs within graphs to any depth.
  for (let next = nodes.pop(); next; next = nodes.pop())
    for (const { number, bytes: part } of attributes(next, file)) {
      if (number === 5 || number === 10) yield { ...initialiser(part, file), inNode: true };
      if (number !== 6 && number !== 11) continue;
      for (const graph of fields(part, file)) if (graph.number === 5) yield initialiser(graph.bytes, file);
      collect(part, 1);
    }
}

/** The fields of a node's attributes. */
function* attributes(node: Uint8Array, file: string): Generator<Field> {
  for (const { number, bytes } of fields(node, file)) if (number === 5) yield* fields(bytes, file);
}

function* protosOfNodes(bytes: Uint8Array, file: string): Generator<[OnnxNode, Uint8Array]> {
  for (const model of fields(bytes, file)) {
    if (model.number !== 7) continue;
    for (const graph of fields(model.bytes, file)) if (graph.number === 1) yield [node(graph.bytes, file), graph.bytes];
  }
}

const nodesOf = (bytes: Uint8Array, file: string): OnnxNode[] =>
  Array.from(protosOfNodes(bytes, file), ([node]) => node);

function node(bytes: Uint8Array, file: string): OnnxNode {
  const [inputs, outputs] = [[] as string[], [] as string[]];
  let [name, op] = ["", ""];
  let equation: string | undefined;
  let scopes: string | undefined;
  for (const field of fields(bytes, file)) {
    if (field.number === 1) inputs.push(text(field.bytes));
    if (field.number === 2) outputs.push(text(field.bytes));
    if (field.number === 3) name = text(field.bytes);
    if (field.number === 4) op = text(field.bytes);
    if (field.number === 5 && op === "Einsum") equation = textAttribute(field.bytes, file);
    if (field.number === 9) {
      const [key, value] = entryOf(field.bytes, file);
      if (key === "pkg.torch.onnx.name_scopes") scopes = value;
    }
  }
  return { op, name, inputs, outputs, scopes, equation };
}

/** AttributeProto.s (4). */
function textAttribute(bytes: Uint8Array, file: string): string | undefined {
  for (const { number, bytes: value } of fields(bytes, file)) if (number === 4) return text(value);
  return undefined;
}

const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

function initialiser(bytes: Uint8Array, file: string): Initialiser {
  const shape: number[] = [];
  const external = new Map<string, string>();
  let [name, type, outside] = ["", 0, false];
  let raw: Uint8Array | undefined;
  for (const field of fields(bytes, file)) {
    if (field.number === 1)
      for (const d of wholeNumbers(field, file)) if (shape.push(Number(BigInt.asIntN(64, d))) > MOST_DIMS) break;
    if (field.number === 2) type = Number(field.value);
    if (field.number === 3)
      throw new CheckpointError(`${file}: an initialiser lies in segments, which are not read here`);
    if (field.number === 8) name = text(field.bytes);
    if (field.number === 9) raw = field.bytes;
    if (field.number === 13) {
      const [key, value] = entryOf(field.bytes, file);
      external.set(key, value);
    }
    if (field.number === 14) outside = field.value === 1n;
  }
  if (shape.length > MOST_DIMS || shape.some((d) => d < 0 || !Number.isSafeInteger(d)))
    throw new CheckpointError(`${file}: initialiser ${name}: its dimensions are not those of a tensor`);
  return { name, type, shape, raw, bytes, external: outside || external.size > 0 ? external : undefined };
}

/** StringStringEntryProto: key (1), value (2). */
function entryOf(bytes: Uint8Array, file: string): [string, string] {
  let [key, value] = ["", ""];
  for (const field of fields(bytes, file)) {
    if (field.number === 1) key = text(field.bytes);
    if (field.number === 2) value = text(field.bytes);
  }
  return [key, value];
}

/** Of a repeated field: packed, or one number. */
function* wholeNumbers(field: Field, file: string): Generator<bigint> {
  if (field.wire === 0) yield field.value;
  else yield* packedNumbers(field.bytes, `${file}: the ONNX model`);
}

/** The other files that hold data of the model, by their paths in its folder. */
export function onnxParts(bytes: Uint8Array, file: string): string[] {
  const locations = new Set<string>();
  for (const { name, external } of allTensors(bytes, file))
    if (external) locations.add(locationOf(external, `${file}: initialiser ${name}`));
  return [...locations];
}

function locationOf(external: ReadonlyMap<string, string>, where: string): string {
  const location = external.get("location") ?? "";
  checkInside(location, where);
  return location;
}

/**
 * The weights; those that the exporter renamed have their modules' names again where the graph tells them.
 * @param parts the files that onnxParts names
 */
export function readOnnx(bytes: Uint8Array, file: string, parts: Parts): Map<string, HostTensor> {
  const tensors = new Map<string, HostTensor>();
  const budget = budgetOf(bytes, file, parts);
  const ranges: Range[] = [];
  const take = (found: Initialiser) => {
    const { name } = found;
    if (tensors.has(name)) throw new CheckpointError(`${file}: two initialisers are named ${name}`);
    const tensor = hostTensor(found, file, parts, ranges);
    budget.take(tensor.data.length, `initialiser ${name}`);
    tensors.set(name, tensor);
  };
  for (const found of initialisers(bytes, file)) take(found);
  if (tensors.size === 0) throw new CheckpointError(`${file}: the ONNX model holds no initialisers`);
  for (const found of constants(bytes, file)) take(found);
  checkApart(ranges, file);
  return recoverNames(tensors, nodesOf(bytes, file), budget);
}

/**
 * Throws where no runtime should be given the model as it is: data that is not where the model says, or weights that are not finite. One
 * tensor at a time, so that it takes no memory beside the files.
 * @param parts the files that onnxParts names
 */
export function checkOnnx(bytes: Uint8Array, file: string, parts: Parts): void {
  const budget = budgetOf(bytes, file, parts);
  const ranges: Range[] = [];
  const isWeight = weightsBy(nodesOf(bytes, file));
  for (const found of allTensors(bytes, file)) {
    const { name, type, external, inNode } = found;
    if (TYPES[type]) {
      const tensor = hostTensor(found, file, parts, ranges);
      budget.take(tensor.data.length, `initialiser ${name}`);
      if (!inNode && isWeight(name, tensor)) checkFinite(new Map([[name, tensor]]), file);
      // Texts and numbers of four bits a runtime may well know.
    } else if (external) ranges.push({ ...rangeOf(external, 0, `${file}: initialiser ${name}`, parts), name });
  }
  checkApart(ranges, file);
}

function budgetOf(bytes: Uint8Array, file: string, parts: Parts): Budget {
  return new Budget(
    [...parts.values()].reduce((sum, part) => sum + part.length, bytes.length),
    file,
  );
}

/** Its bytes are the file's own, or those of the part where it lies, wherever they can be. */
function hostTensor(
  { name, type, shape, raw, bytes: proto, external }: Initialiser,
  file: string,
  parts: Parts,
  ranges: Range[],
): HostTensor {
  const where = `${file}: initialiser ${name}`;
  const fail = (what: string): never => {
    throw new CheckpointError(`${where}: ${what}`);
  };
  const [dtype, typed] = TYPES[type] ?? fail(`is of ONNX type ${type}, which is not read here`);
  const size = shape.reduce((product, d) => product * d, 1);
  const expected = size * ITEM_BYTES[dtype];
  let data = raw;
  if (external) {
    const range = rangeOf(external, expected, where, parts);
    ranges.push({ ...range, name });
    data = range.data;
  } else if (!raw) {
    // A number takes a byte at least, so that a shape cannot ask for memory that the file does not pay for.
    if (size > proto.length) fail(`of shape (${shape.join(", ")}) has fewer than ${size} numbers; the file is damaged`);
    data = typedData(proto, typed, size, dtype, where);
  }
  if (data?.length !== expected)
    return fail(`of shape (${shape.join(", ")}) has ${data?.length} bytes; ${expected} were expected`);
  return { dtype, shape, data };
}

interface Range {
  readonly name: string;
  readonly location: string;
  readonly from: number;
  readonly to: number;
}

function rangeOf(
  external: ReadonlyMap<string, string>,
  expected: number,
  where: string,
  parts: Parts,
): Omit<Range, "name"> & { data: Uint8Array } {
  const location = locationOf(external, where);
  const part = parts.get(location);
  if (!part) throw new CheckpointError(`${where}: lies in ${location}, which was not read`);
  const number = (key: string, otherwise: number): number => {
    const given = external.get(key);
    if (given === undefined) return otherwise;
    if (!/^\d{1,15}$/.test(given))
      throw new CheckpointError(`${where}: its ${key} in ${location} is "${given}", no number`);
    return Number(given);
  };
  const from = number("offset", 0);
  const to = from + number("length", Math.max(0, expected));
  if (to > part.length)
    throw new CheckpointError(
      `${where}: lies at ${from}..${to} of ${location}, beyond its end at ${part.length}; the file is truncated or damaged`,
    );
  return { location, from, to, data: part.subarray(from, to) };
}

/** Two names may share their numbers, but no two tensors overlap in part. */
function checkApart(ranges: readonly Range[], file: string): void {
  const sorted = ranges
    .filter(({ from, to }) => to > from)
    .sort((a, b) => a.location.localeCompare(b.location) || a.from - b.from || a.to - b.to);
  for (const [i, b] of sorted.entries()) {
    const a = sorted[i - 1];
    if (!a || a.location !== b.location || b.from >= a.to || (a.from === b.from && a.to === b.to)) continue;
    throw new CheckpointError(
      `${file}: initialisers ${a.name} and ${b.name} overlap at byte ${b.from} of ${b.location}`,
    );
  }
}

/** Numbers of a typed field, packed into their type; int32_data also carries the narrower types, among them the bits of halves. */
function typedData(proto: Uint8Array, typed: number, size: number, dtype: FileType, where: string): Uint8Array {
  const width = ITEM_BYTES[dtype];
  const out = new Uint8Array(size * width);
  const view = new DataView(out.buffer);
  let at = 0;
  const room = (bytes: number) => {
    if (at + bytes > out.length) throw new CheckpointError(`${where}: has more than ${size} numbers`);
    at += bytes;
    return at - bytes;
  };
  for (const field of fieldsOf(proto, where)) {
    if (field.number !== typed) continue;
    if (typed === 4 || typed === 10) out.set(field.bytes, room(field.bytes.length));
    else for (const value of wholeNumbers(field, where)) put(view, room(width), width, value);
  }
  return at === out.length ? out : out.subarray(0, at);
}

function put(view: DataView, at: number, width: number, value: bigint): void {
  if (width === 8) view.setBigUint64(at, value, true);
  else if (width === 4) view.setUint32(at, Number(BigInt.asUintN(32, value)), true);
  else if (width === 2) view.setUint16(at, Number(BigInt.asUintN(16, value)), true);
  else view.setUint8(at, Number(BigInt.asUintN(8, value)));
}
