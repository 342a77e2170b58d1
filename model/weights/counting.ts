// A model's sizes from the shapes of a checkpoint that may lack some.
import type { Shapes } from "./compare.ts";

/** What most of them say, the first of equals, so that one tensor of another shape is that tensor's fault; `otherwise` where none says. */
export function mostSaid(votes: readonly (number | undefined)[], otherwise: number): number {
  const counts = new Map<number, number>();
  for (const vote of votes) if (vote !== undefined) counts.set(vote, (counts.get(vote) ?? 0) + 1);
  const [first] = [...counts].sort(([, a], [, b]) => b - a);
  return first?.[0] ?? otherwise;
}

/** How many are numbered behind each of the prefixes, one at least. A single gap is a block whose tensors are missing. */
export function countBlocks(shapes: Shapes, prefixes: readonly string[]): number[] {
  const numbers = new Set<string>();
  for (const key of shapes.keys())
    for (const prefix of prefixes)
      if (key.startsWith(prefix)) numbers.add(prefix + key.slice(prefix.length).split(".", 1)[0]);
  return prefixes.map((prefix) => {
    let n = 0;
    while (numbers.has(`${prefix}${n}`) || numbers.has(`${prefix}${n + 1}`)) n++;
    return Math.max(1, n);
  });
}
