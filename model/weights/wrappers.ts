// What stands in front of a model's own names in a checkpoint, and which of its tensors a backbone does without.

/** What wrappers (DataParallel, torch.compile, Lightning, transformers' heads) put in front of every key, one inside the other. */
const WRAPPERS = ["module.", "_orig_mod.", "model.", "sam."] as const;
/** What models put in front of their backbone's names. */
const BACKBONES = ["backbone.", "resnet.", "swin.", "mobilenet_v2."] as const;
const MOST_WRAPPED = 8;
/** A buffer of the model that normalises, which may stand before what is wrapped. */
export function isPixelStatistic(key: string): boolean {
  return /^pixel_(mean|std)$/.test(key);
}

/** In front of every key. */
export function commonPrefix(keys: readonly string[]): string {
  const wrapped = keys.filter((key) => !isPixelStatistic(key));
  let prefix = "";
  for (let depth = 0; depth < MOST_WRAPPED && wrapped.length > 0; depth++) {
    const inner = WRAPPERS.find((wrapper) => wrapped.every((key) => key.startsWith(wrapper, prefix.length)));
    if (inner === undefined) break;
    prefix += inner;
  }
  return prefix;
}

const IN_FRONT = new RegExp(
  `^(?:${[...WRAPPERS, ...BACKBONES].map((name) => name.replace(".", "\\.")).join("|")}){0,${MOST_WRAPPED}}`,
);

/** A key as the backbone itself has it. */
export function bareKey(key: string): string {
  return key.replace(IN_FRONT, "");
}

/** What stands in front of bare keys, the most frequent first; nothing is always among them. */
export function backbonePrefixes(keys: Iterable<string>): string[] {
  const counts = new Map([["", 0]]);
  for (const key of keys) {
    const [prefix] = IN_FRONT.exec(key)!;
    counts.set(prefix, (counts.get(prefix) ?? 0) + 1);
  }
  return [...counts].sort(([, a], [, b]) => b - a).map(([prefix]) => prefix);
}

/**
 * Bare keys that a backbone does without: classifiers, the norm before them, numbered MobileNetV2's layers 51 (1,280 channels) and 52
 * (classes), counters, and indices that are made anew.
 */
const UNUSED =
  /^(?:fc|stem\.fc|linear|head(?:\.fc)?|classifier(?:\.\d+)?|norm|layernorm)\.(?:weight|bias)$|^5[12]\.|\.(?:num_batches_tracked|relative_position_index|attn_mask)$/;

/** Does a backbone do without it? */
export function isUnused(key: string): boolean {
  return UNUSED.test(bareKey(key));
}
