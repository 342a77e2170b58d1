// torch.onnx.export gives weights that it changed a name of its own: transposed for MatMul (onnx::MatMul_123, val_17), spread for a product
// over images, stretched into tables. Where the graph tells whose they are, they get their module's names and form back.
import { unfolded } from "./onnx-folding.ts";
import {
  GENERATED,
  type Initialisers,
  moduleOf,
  type OnnxGraph,
  type OnnxNode,
  prefixOf,
  takersOf,
} from "./onnx-graph.ts";
import { type Budget, type HostTensor, ITEM_BYTES } from "./tensors.ts";

/** TinyViT's table, of which it keeps the matrix of all pairs while it is not training. */
const BIASES = /\.attn\.ab$/;
/** Of these what is whole or a single number is a shape, an index, a factor. */
const NO_MODULE = /^(onnx::\w+|val)_\d+$/;
/** What a node holds is no weight. */
const IN_NODE = /\/Constant(_\d+)?_output_0$/;
/** Numbers that stand in the code, such as pixels' mean; dynamo's exporter names them after what was done with them last. */
const CONSTANT =
  /^(_to_copy|arange|clone|div|expand|full|lifted_tensor|(max|min)_val_cast|mul|ones|reshape|scalar_tensor_default|sub|view|zeros)(_\d+)?$/;
const FLOATS: ReadonlySet<string> = new Set(["F64", "F32", "F16", "BF16"]);

/** The initialisers with their modules' names where these can be told; what is generated and no weight by its kind is left out. */
export function recoverNames(merged: Initialisers, all: readonly OnnxNode[], budget: Budget): Initialisers {
  const graph = apart(unfolded(withoutAliases({ tensors: merged, nodes: all }, budget), budget), budget);
  const { tensors } = graph;
  const found = recovered(graph, budget);
  const isWeight = weightsBy(all);
  const out: Initialisers = new Map();
  const isFree = ({ name, tensor }: Recovered) => {
    const other = tensors.get(name) ?? out.get(name);
    return other === undefined || areEqual(other, tensor);
  };
  for (const [name, tensor] of tensors) {
    const own = found.get(name);
    if (own?.every(isFree)) for (const { name: its, tensor: as } of own) out.set(its, as);
    else if (isWeight(name, tensor)) out.set(name, tensor);
  }
  return out;
}

/** What tells a graph's weights from the numbers that stand in its code, by the names that the exporter gave. */
export function weightsBy(nodes: readonly OnnxNode[]): (name: string, tensor: HostTensor) => boolean {
  const fromDynamo = nodes.some(({ scopes }) => scopes !== undefined);
  return (name, { dtype, shape }) =>
    !IN_NODE.test(name) &&
    (!NO_MODULE.test(name) || (FLOATS.has(dtype) && shape.some((d) => d !== 1))) &&
    !(fromDynamo && CONSTANT.test(name));
}

const areEqual = (a: HostTensor, b: HostTensor): boolean =>
  a.dtype === b.dtype &&
  a.shape.join() === b.shape.join() &&
  a.data.length === b.data.length &&
  a.data.every((byte, i) => byte === b.data[i]);

/** What a module calls its node's inputs. */
const LAYER = ["", "weight", "bias"] as const;
const PARTS: Readonly<Record<string, readonly string[]>> = {
  Conv: LAYER,
  ConvTranspose: LAYER,
  Gemm: LAYER,
  LayerNormalization: LAYER,
  BatchNormalization: [...LAYER, "running_mean", "running_var"],
};

/** Exporters keep one of several equal weights, such as the norms of a model that was not trained yet. The older writes the others as Identity of it. */
function withoutAliases({ tensors: merged, nodes: all }: OnnxGraph, budget: Budget): OnnxGraph {
  const tensors: Initialisers = new Map(merged);
  const taken = new Set(all.flatMap(({ inputs }) => inputs));
  const nodes = all.filter(({ op, inputs: [from = ""], outputs: [to = ""] }) => {
    const tensor = op === "Identity" ? tensors.get(from) : undefined;
    // Values of modules begin with a slash.
    if (!tensor || !taken.has(to) || to.startsWith("/") || tensors.has(to)) return true;
    budget.take(tensor.data.length, `initialiser ${to}`);
    tensors.set(to, tensor);
    return false;
  });
  return { tensors, nodes };
}

/** The exporter that dynamo feeds lets all nodes take the one of several equal weights; here each has its own again. */
function apart(graph: OnnxGraph, budget: Budget): OnnxGraph {
  const tensors: Initialisers = new Map(graph.tensors);
  const ownName = ownNames(graph);
  const nodes = graph.nodes.map((node): OnnxNode => {
    const inputs = node.inputs.map((input, i) => {
      const own = ownName(node, i);
      if (own === undefined || tensors.has(own)) return own ?? input;
      const tensor = tensors.get(input)!;
      budget.take(tensor.data.length, `initialiser ${own}`);
      tensors.set(own, tensor);
      return own;
    });
    return { ...node, inputs };
  });
  return { tensors, nodes };
}

/** What a node's module calls an input of it that other nodes take, too; undefined where it is no weight or that is not told. */
function ownNames(graph: OnnxGraph): (node: OnnxNode, input: number) => string | undefined {
  const { tensors, nodes } = graph;
  const prefix = prefixOf(graph);
  const takers = takersOf(nodes);
  const makers = new Map(nodes.map((node) => [node.outputs[0], node]));
  const isSum = ({ inputs }: OnnxNode, i: number, module: string) => {
    const product = makers.get(inputs[1 - i]); // A linear layer's.
    return product?.op === "MatMul" && moduleOf(product) === module;
  };
  const shared = new Set(
    [...tensors.keys()].filter((key) => !GENERATED.test(key) && (takers.get(key)?.length ?? 0) > 1),
  );
  return (node, i) => {
    const module = shared.has(node.inputs[i]!) ? moduleOf(node) : undefined;
    if (prefix === undefined || !module) return undefined;
    const part = node.op === "Add" ? isSum(node, i, module) && "bias" : PARTS[node.op]?.[i];
    return part ? `${prefix}${module}.${part}` : undefined;
  };
}

interface Recovered {
  readonly name: string;
  readonly tensor: HostTensor;
}

/** A generated initialiser and a node that takes it. */
interface Use {
  readonly initialiser: string;
  readonly tensor: HostTensor;
  readonly node: OnnxNode;
  readonly module: string | undefined;
}

/** What is told by the whole graph. */
interface Told {
  readonly tensors: Initialisers;
  /** By what they take. */
  readonly takers: ReadonlyMap<string, readonly OnnxNode[]>;
  /** What stands before modules' paths in weights' names. */
  readonly prefix: string | undefined;
  /** How many operations of this kind take a generated initialiser of as many dimensions in this module. */
  alike(use: Use): number;
}

/** By the initialiser, which several modules share where their weights are equal. */
function recovered({ tensors, nodes }: OnnxGraph, budget: Budget): Map<string, Recovered[]> {
  const takers = takersOf(nodes);
  const uses: Use[] = [];
  const counts = new Map<string, number>();
  const kind = ({ node, module, tensor }: Use) => `${node.op} ${tensor.shape.length} ${module}`;
  for (const [initialiser, tensor] of tensors) {
    if (!GENERATED.test(initialiser) && !BIASES.test(initialiser)) continue;
    for (const node of takers.get(initialiser) ?? []) {
      const use = { initialiser, tensor, node, module: moduleOf(node) };
      uses.push(use);
      counts.set(kind(use), (counts.get(kind(use)) ?? 0) + 1);
    }
  }
  const alike = (use: Use) => counts.get(kind(use)) ?? 0;
  const told: Told = { tensors, takers, prefix: prefixOf({ tensors, nodes }), alike };
  const found = new Map<string, Recovered[]>();
  const unknown = new Set<string>();
  for (const use of uses) {
    const { initialiser, tensor } = use;
    if (unknown.has(initialiser)) continue;
    const others = found.get(initialiser) ?? [];
    if (others.length > 0) budget.take(tensor.data.length, `initialiser ${initialiser}`);
    const own = use.node.op === "MatMul" ? linearOf(use, told) : ofModule(use, told);
    if (own) found.set(initialiser, [...others, own]);
    else unknown.add(initialiser);
  }
  for (const initialiser of unknown) found.delete(initialiser);
  return found;
}

/** A linear layer's weight, whose bias is added next under its own name; one without bias is known by its module. */
function linearOf(use: Use, graph: Told): Recovered | undefined {
  const { tensor, node, module } = use;
  const [I, O, ...more] = tensor.shape;
  if (I === undefined || O === undefined || more.length > 0) return undefined;
  const named = (layer: string) => ({ name: `${layer}.weight`, tensor: transposed(tensor, I, O) });
  const [next] = graph.takers.get(node.outputs[0] ?? "") ?? [];
  const inputs = next?.op === "Add" ? next.inputs : [];
  const layer = inputs.map((input) => graph.tensors.has(input) && /^(.*)\.bias$/.exec(input)?.[1]).find(Boolean);
  if (layer) return !module || layer === module || layer.endsWith(`.${module}`) ? named(layer) : undefined;
  // A second product of the module would be /a/b/MatMul_1.
  const isOnly = graph.alike(use) === 1 && (node.scopes !== undefined || node.name.endsWith("/MatMul"));
  return isOnly && module && graph.prefix !== undefined ? named(graph.prefix + module) : undefined;
}

/** What is no linear layer's: LayerNorm2d's weight and bias, and SAM's relative positions. */
function ofModule(use: Use, graph: Told): Recovered | undefined {
  const { tensor, node, module } = use;
  if (graph.prefix === undefined || !module || tensor.shape.length !== 3) return undefined;
  const named = (part: string, own: HostTensor | undefined) =>
    own && { name: `${graph.prefix}${module}.${part}`, tensor: own };
  const [A, B, C] = tensor.shape as [number, number, number];
  if ((node.op === "Mul" || node.op === "Add") && B === 1 && C === 1 && graph.alike(use) === 1)
    return named(node.op === "Mul" ? "weight" : "bias", { ...tensor, shape: [A] }); // (C, 1, 1)
  if (node.op === "Resize" && A === 1 && graph.alike(use) === 2)
    return named(node.name.endsWith("/Resize") ? "rel_pos_h" : "rel_pos_w", transposed(tensor, B, C)); // (1, D, L)
  if (node.op === "Add" && B === C && B > 1) return named("attention_biases", ofPairs(tensor)); // (M, N, N)
  const axis = /^bhwc,([hw])kc->bhwk$/.exec(node.equation ?? "")?.[1];
  return axis && A === B ? named(`rel_pos_${axis}`, ofTable(tensor)) : undefined;
}

/** (K, K, D), whose row of a query and a key depends on their distance alone -> (2K - 1, D); undefined where it does not. */
function ofTable(tensor: HostTensor): HostTensor | undefined {
  const [K, , D] = tensor.shape as [number, number, number];
  const row = D * ITEM_BYTES[tensor.dtype];
  const at = (q: number, k: number) => tensor.data.subarray((q * K + k) * row, (q * K + k + 1) * row);
  for (let q = 1; q < K; q++)
    for (let k = 1; k < K; k++) {
      const before = at(q - 1, k - 1);
      if (at(q, k).some((byte, i) => byte !== before[i])) return undefined;
    }
  const data = new Uint8Array((2 * K - 1) * row);
  for (let i = 0; i < 2 * K - 1; i++) data.set(at(Math.max(0, i - K + 1), Math.max(0, K - 1 - i)), i * row);
  return { dtype: tensor.dtype, shape: [2 * K - 1, D], data };
}

/**
 * (M, N, N), whose number of a query and a key depends on how far apart they lie in a square window, |dy| and |dx| -> (M, N), of the first
 * query; undefined where it does not.
 */
function ofPairs(tensor: HostTensor): HostTensor | undefined {
  const [M, N] = tensor.shape as [number, number, number];
  const side = Math.round(Math.sqrt(N));
  if (side * side !== N) return undefined;
  const width = ITEM_BYTES[tensor.dtype];
  const row = N * width;
  const data = new Uint8Array(M * row);
  for (let m = 0; m < M; m++) {
    const of = (q: number) => tensor.data.subarray((m * N + q) * row, (m * N + q + 1) * row);
    const first = of(0);
    for (let q = 0; q < N; q++) {
      const biases = of(q);
      for (let k = 0; k < N; k++) {
        const dy = Math.abs(Math.trunc(q / side) - Math.trunc(k / side));
        const at = dy * side + Math.abs((q % side) - (k % side));
        for (let i = 0; i < width; i++) if (biases[k * width + i] !== first[at * width + i]) return undefined;
      }
    }
    data.set(first, m * row);
  }
  return { dtype: tensor.dtype, shape: [M, N], data };
}

const WORDS = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array, 8: BigUint64Array } as const;
/** Rows and columns that are turned together: each line of the cache is then used whole. */
const BLOCK = 32;

/** (R, C) -> (C, R) */
function transposed({ dtype, data }: HostTensor, R: number, C: number): HostTensor {
  const Words = WORDS[ITEM_BYTES[dtype] as keyof typeof WORDS];
  const from = new Words(new Uint8Array(data).buffer); // A copy, and aligned.
  const to = new Words(R * C);
  for (let r0 = 0; r0 < R; r0 += BLOCK)
    for (let c0 = 0; c0 < C; c0 += BLOCK) {
      const [r1, c1] = [Math.min(R, r0 + BLOCK), Math.min(C, c0 + BLOCK)];
      for (let c = c0; c < c1; c++) for (let r = r0; r < r1; r++) to[c * R + r] = from[r * C + c]!;
    }
  return { dtype, shape: [C, R], data: new Uint8Array(to.buffer) };
}
