// A size that several tensors show: what most of them say, so that the one that disagrees is named when shapes are compared.
import type { Shapes } from "./compare.ts";

/** A tensor's dimension. */
export type Place = readonly [key: string, dim: number];

/** Undefined where it is not there, or nothing is in it. */
export function sizeAt(tensors: Shapes, [key, dim]: Place): number | undefined {
  return tensors.get(key)?.shape[dim] || undefined;
}

/** The first of those that come most often. */
export function mostCommon(values: readonly (number | undefined)[]): number | undefined {
  const counts = new Map<number, number>();
  for (const value of values) if (value !== undefined) counts.set(value, (counts.get(value) ?? 0) + 1);
  const most = Math.max(...counts.values());
  return [...counts].find(([, count]) => count === most)?.[0];
}

/** What most of the places say. `refuse` is told why nothing can be said, with the keys that `keyOf` gives. */
export function sizeOf(
  tensors: Shapes,
  places: readonly Place[],
  keyOf: (key: string) => string,
  refuse: (what: string) => never,
): number {
  const values = places.map((place) => sizeAt(tensors, place));
  const value = mostCommon(values);
  const is = (key: string): string => `${keyOf(key)} is (${tensors.get(key)!.shape.join(", ")})`;
  const [key, dim] = places[0]!;
  if (value === undefined)
    return refuse(
      tensors.has(key)
        ? `${is(key)}, of which no dimension ${dim + 1} can be taken for a size`
        : `${keyOf(key)} is missing`,
    );
  const rival = mostCommon(values.filter((other) => other !== value));
  const count = (of: number | undefined): number => values.filter((other) => other === of).length;
  if (rival === undefined || count(rival) < count(value)) return value;
  const [one, other] = [value, rival].map((of) => places[values.indexOf(of)]!);
  return refuse(`${is(one![0])}, but ${is(other![0])}: ${value} and ${rival} must be equal`);
}
