// Exporters fold a batch norm into the convolution before it. The convolution keeps what came of that, and the norm comes back as one that
// only adds what has become the convolution's bias: its own mean, variance and gain are gone.
import { TRANSFORMERS_MOBILENET } from "./mobilenet-shapes.ts";
import { GENERATED, type Initialisers, moduleOf, type OnnxGraph, type OnnxNode, prefixesOf } from "./onnx-graph.ts";
import type { Budget, HostTensor } from "./tensors.ts";

/** PyTorch's. */
const EPSILON = 1e-5;

/** What the norm behind a convolution is called in the models known here, # being the convolution's number among its module's; and its epsilon. */
const NORMS: readonly (readonly [conv: RegExp, norm: string, epsilon: number])[] = [
  [/\b(stem\.conv1|res[2-5]\.\d+\.(conv[123]|shortcut))$/, "$&.norm", EPSILON], // detectron2
  [/\bconv([123])$/, "bn$1", EPSILON], // torchvision, timm
  [/\bconv_(stem|head|dw|pw|pwl)$/, "bn#", EPSILON], // timm's MobileNetV2
  [
    /\b((first_conv|expand_1x1|conv_3x3|reduce_1x1|conv_1x1)\.)convolution$/,
    "$1normalization",
    TRANSFORMERS_MOBILENET.epsilon,
  ],
  [/\bconvolution$/, "normalization", EPSILON], // transformers
  [/\bc$/, "bn", EPSILON], // TinyViT
];

/** The graph with its folded convolutions and their norms under their modules' names; those whose norm's name is not known stay as they are. */
export function unfolded(graph: OnnxGraph, budget: Budget): OnnxGraph {
  const tensors: Initialisers = new Map(graph.tensors);
  const convolutionOf = folding(graph);
  const counts = new Map<string, number>();
  const replaced = new Set<string>();
  const nodes = graph.nodes.map((node) => {
    const conv = convolutionOf(node);
    if (conv === undefined) return node;
    const parent = conv.slice(0, conv.lastIndexOf(".") + 1);
    const number = (counts.get(parent) ?? 0) + 1;
    counts.set(parent, number);
    const norm = normOf(conv, number);
    const [x, weight, bias] = node.inputs as [string, string, string?];
    if (!norm || tensors.has(`${norm.name}.weight`) || !isItsNorm(node, norm.name)) return node;
    const folded = {
      weight: graph.tensors.get(weight)!,
      bias: bias === undefined ? undefined : graph.tensors.get(bias),
    };
    for (const [name, tensor] of parts(conv, norm, folded)) {
      budget.take(tensor.data.length, `initialiser ${name}`);
      tensors.set(name, tensor);
    }
    replaced.add(weight);
    if (bias !== undefined) replaced.add(bias);
    return { ...node, inputs: [x, `${conv}.weight`, `${norm.name}.bias`] };
  });
  const taken = new Set(nodes.flatMap(({ inputs }) => inputs));
  for (const input of replaced) if (!taken.has(input)) tensors.delete(input);
  return { tensors, nodes };
}

/**
 * What tells the convolution that a node was before a norm was folded into it. The older exporter gives what it folded names of its own; the
 * one that dynamo feeds keeps the weight's, calls the bias NAME.weight_bias or, where it is 0, leaves it out, and names the norm's scope.
 */
function folding({ tensors, nodes }: OnnxGraph): (node: OnnxNode) => string | undefined {
  const [prefix = "", ...more] = prefixesOf({ tensors, nodes });
  return (node) => {
    const [, weight = "", bias] = node.inputs;
    if (node.op !== "Conv" || !tensors.has(weight) || (bias !== undefined && tensors.get(bias)?.shape.length !== 1))
      return undefined;
    const conv = /^(.*)\.weight$/.exec(weight)?.[1];
    if (node.scopes !== undefined) return bias === undefined || bias.endsWith(".weight_bias") ? conv : undefined;
    const module = moduleOf(node);
    const isFolded = GENERATED.test(weight) && bias !== undefined && GENERATED.test(bias);
    return isFolded && module && more.length === 0 ? prefix + module : undefined;
  };
}

/** By the scope, where there is one. */
function isItsNorm(node: OnnxNode, norm: string): boolean {
  if (node.scopes === undefined) return true;
  const module = moduleOf(node);
  return module !== undefined && (norm === module || norm.endsWith(`.${module}`));
}

interface Norm {
  readonly name: string;
  readonly epsilon: number;
}

function normOf(conv: string, number: number): Norm | undefined {
  for (const [pattern, norm, epsilon] of NORMS)
    if (pattern.test(conv)) return { name: conv.replace(pattern, norm.replace("#", String(number))), epsilon };
  // The next one of a Sequential.
  const place = /\b\d+$/.exec(conv)?.[0];
  if (place === undefined) return undefined;
  return { name: conv.slice(0, -place.length) + (Number(place) + 1), epsilon: EPSILON };
}

function parts(
  conv: string,
  norm: Norm,
  { weight, bias }: { weight: HostTensor; bias: HostTensor | undefined },
): [string, HostTensor][] {
  const channels = weight.shape[0] ?? 0;
  const filled = (value: number): HostTensor => ({
    dtype: "F32",
    shape: [channels],
    data: new Uint8Array(new Float32Array(channels).fill(value).buffer),
  });
  return [
    [`${conv}.weight`, weight],
    [`${norm.name}.weight`, filled(1)],
    [`${norm.name}.bias`, bias ?? filled(0)],
    [`${norm.name}.running_mean`, filled(0)],
    [`${norm.name}.running_var`, filled(1 - norm.epsilon)],
  ];
}
