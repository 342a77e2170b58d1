// The graph of an ONNX model as torch.onnx.export writes it, and what it tells of modules.
import type { HostTensor } from "./tensors.ts";

/** NodeProto. */
export interface OnnxNode {
  readonly op: string;
  readonly name: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  /** `pkg.torch.onnx.name_scopes`, a list as Python writes it, by the exporter that dynamo feeds. */
  readonly scopes: string | undefined;
  /** Of Einsum. */
  readonly equation: string | undefined;
}

export type Initialisers = Map<string, HostTensor>;

/** Initialisers and the nodes that take them. */
export interface OnnxGraph {
  readonly tensors: Initialisers;
  readonly nodes: readonly OnnxNode[];
}

/** Named by the exporter, not by a module. */
export const GENERATED = /^(onnx::\w+_\d+|val_\d+|(index|unsqueeze)(_\d+)?|(\/.*)?\/Constant(_\d+)?_output_0)$/;

/** By the initialiser or value that they take. */
export function takersOf(nodes: OnnxGraph["nodes"]): Map<string, OnnxNode[]> {
  const takers = new Map<string, OnnxNode[]>();
  for (const node of nodes)
    for (const input of node.inputs) {
      const list = takers.get(input);
      if (list) list.push(node);
      else takers.set(input, [node]);
    }
  return takers;
}

/** The module that a node computes for: /encoder/layers.0/attn/qkv/MatMul, or ['', 'encoder', 'encoder.layers.0', …, 'linear']. */
export function moduleOf({ name, scopes }: OnnxNode): string | undefined {
  if (scopes !== undefined) return [...scopes.matchAll(/'([^']*)'/g)].map(([, scope]) => scope!).at(-2);
  if (!name.startsWith("/")) return undefined;
  const path: string[] = [];
  for (const step of name.split("/").slice(1, -1)) {
    // A list's members repeat its name: /neck/neck.0.
    if (path.length > 0 && step.startsWith(`${path.at(-1)}.`)) path.pop();
    path.push(step);
  }
  return path.join(".");
}

/** What stands before modules' paths in the names of those weights that kept theirs: one, unless none did or they do not agree. */
export function prefixesOf({ tensors, nodes }: OnnxGraph): string[] {
  const prefixes = new Set<string>();
  for (const node of nodes) {
    const module = moduleOf(node);
    if (!module) continue;
    for (const input of node.inputs) {
      const stem = /^(.*)\.(weight|bias)$/.exec(input)?.[1];
      if (stem === undefined || !tensors.has(input)) continue;
      if (stem === module) prefixes.add("");
      else if (stem.endsWith(`.${module}`)) prefixes.add(stem.slice(0, -module.length));
    }
  }
  return [...prefixes];
}

/** The one, if it is one. */
export function prefixOf(graph: OnnxGraph): string | undefined {
  const [prefix, ...more] = prefixesOf(graph);
  return more.length === 0 ? prefix : undefined;
}
