// MobileNetV2 as torchvision, timm and transformers save it: with norms, which are folded into the convolutions before them.
import { type Device, F, type Tensor } from "../../engine/index.ts";
import { compareTensors, describeDifference } from "./compare.ts";
import {
  type MobileNetNaming,
  mobileNetParts,
  NUMBERED_MOBILENET,
  TIMM_MOBILENET,
  TORCHVISION_MOBILENET,
  TRANSFORMERS_MOBILENET,
} from "./mobilenet-shapes.ts";
import { onDevice, type Source } from "./renaming.ts";
import { CheckpointError } from "./tensors.ts";
import { backbonePrefixes, isUnused } from "./wrappers.ts";

interface Found {
  readonly naming: MobileNetNaming;
  readonly prefix: string;
}

/** How a file with MobileNetV2 of torchvision, timm or transformers names its layers; undefined where it has other names. */
export function mobileNetNaming(keys: ReadonlySet<string>): Found | undefined {
  for (const naming of [TORCHVISION_MOBILENET, TIMM_MOBILENET, TRANSFORMERS_MOBILENET])
    for (const prefix of backbonePrefixes(keys))
      if (keys.has(`${prefix}${naming.stem[0]}.weight`)) return { naming, prefix };
  return undefined;
}

/**
 * The numbered layers of a file with such names.
 * @param own the backbone's tensors, which the file's must fit; throws a line with the file's names where they do not
 */
export function foldedMobileNet(
  gpu: Device,
  { naming, prefix }: Found,
  state: ReadonlyMap<string, Source>,
  own: ReadonlyMap<string, Tensor>,
): Map<string, Tensor> {
  const theirs = mobileNetParts(naming);
  const layers = mobileNetParts(NUMBERED_MOBILENET).map(([layer], i) => {
    const [conv, norm] = theirs[i]!;
    return { layer, conv: prefix + conv, norm: prefix + norm };
  });
  if (naming === TRANSFORMERS_MOBILENET && own.get("00.conv.weight")!.shape[0] === own.get("02.conv.weight")!.shape[0])
    throw new CheckpointError(
      "transformers' MobileNetV2 has no shortcut in its first block, one so narrow has it here",
    );
  const expected = new Map<string, { shape: readonly number[] }>();
  for (const { layer, conv, norm } of layers) {
    const { shape } = own.get(`${layer}.weight`)!;
    expected.set(`${conv}.weight`, { shape });
    for (const part of ["weight", "bias", "running_mean", "running_var"])
      expected.set(`${norm}.${part}`, { shape: [shape[0]!] });
  }
  // The last convolution serves the classifier alone.
  const head = naming.head!.map((name) => `${prefix}${name}.`);
  const used = [...state].filter(([key]) => !isUnused(key) && !head.some((at) => key.startsWith(at)));
  const difference = describeDifference(compareTensors(expected, new Map(used)));
  if (difference) throw new CheckpointError(`the weights do not fit the backbone: ${difference}`);
  const numbers = (key: string): Tensor => onDevice(gpu, state.get(key)!, key);
  return new Map(layers.flatMap(({ layer, conv, norm }) => fold(layer, numbers, conv, norm, naming.epsilon)));
}

/** norm(conv(x)) = (w s) x + (bias - mean s) with s = gain / sqrt(variance + epsilon). */
function fold(
  layer: string,
  numbers: (key: string) => Tensor,
  conv: string,
  norm: string,
  epsilon: number,
): [string, Tensor][] {
  const deviation = F.sqrt(F.add(numbers(`${norm}.running_var`), epsilon));
  const scale = F.div(numbers(`${norm}.weight`), deviation); // (O)
  return [
    [`${layer}.weight`, F.mul(numbers(`${conv}.weight`), F.reshape(scale, [scale.size, 1, 1, 1]))],
    [`${layer}.bias`, F.sub(numbers(`${norm}.bias`), F.mul(numbers(`${norm}.running_mean`), scale))],
  ];
}
