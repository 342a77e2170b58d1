// A checkpoint's tensors beside those of a model.
import { CheckpointError, type HostTensor } from "./tensors.ts";

export type Shapes = ReadonlyMap<string, { readonly shape: readonly number[] }>;

const FLOATS: ReadonlySet<string> = new Set(["F64", "F32", "F16", "BF16"]);

/** Throws where a tensor, of a file or on the device, holds whole numbers. `where` stands before the file's key of it. */
export function checkWeightType(key: string, dtype: string, where = ""): void {
  if (!FLOATS.has(dtype.toUpperCase()))
    throw new CheckpointError(`${where}tensor ${key} is of type ${dtype}, which no weights are`);
}

/** The first few of a file's keys. */
export function listKeys(keys: readonly string[]): string {
  return keys.length > 4 ? `${keys.slice(0, 4).join(", ")} and ${keys.length - 4} more` : keys.join(", ");
}

/** Throws where tensors are missing, unexpected, of another shape, or of whole numbers. `keyOf` gives the file's keys for the message. */
export function checkTensors(
  expected: Shapes,
  tensors: ReadonlyMap<string, HostTensor>,
  file: string,
  keyOf: (name: string) => string = (name) => name,
): void {
  for (const [name, { dtype }] of tensors) checkWeightType(keyOf(name), dtype, `${file}: `);
  const { missing, unexpected, misshaped } = compareTensors(expected, tensors);
  const difference = describeDifference({
    missing: missing.map(keyOf),
    unexpected: unexpected.map(keyOf),
    misshaped: misshaped.map((one) => ({ ...one, key: keyOf(one.key) })),
  });
  if (difference) throw new CheckpointError(`${file}: the weights do not fit the model: ${difference}`);
}

export interface Comparison {
  readonly missing: string[];
  readonly unexpected: string[];
  readonly misshaped: { readonly key: string; readonly expected: readonly number[]; readonly got: readonly number[] }[];
}

/** What a checkpoint lacks of a model, has beyond it, and has in another shape. */
export function compareTensors(expected: Shapes, got: Shapes): Comparison {
  const missing = [...expected.keys()].filter((key) => !got.has(key));
  const unexpected = [...got.keys()].filter((key) => !expected.has(key));
  const misshaped = [...expected].flatMap(([key, { shape }]) => {
    const other = got.get(key)?.shape;
    return other && (other.length !== shape.length || other.some((d, i) => d !== shape[i]))
      ? [{ key, expected: shape, got: other }]
      : [];
  });
  return { missing, unexpected, misshaped };
}

/** One line: how many keys are wrong in each way, the first few by name. Undefined when all agree. */
export function describeDifference({ missing, unexpected, misshaped }: Comparison): string | undefined {
  const parts = [
    missing.length > 0 && `${missing.length} missing (${listKeys(missing)})`,
    unexpected.length > 0 && `${unexpected.length} unexpected (${listKeys(unexpected)})`,
    misshaped.length > 0 &&
      `${misshaped.length} misshaped (${listKeys(misshaped.map((m) => `${m.key} is (${m.got.join(", ")}), not (${m.expected.join(", ")})`))})`,
  ].filter((part) => part !== false);
  return parts.length === 0 ? undefined : parts.join("; ");
}
