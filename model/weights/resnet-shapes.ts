// The tensors that a ResNet has whose blocks and widths a checkpoint tells: what it is compared with.
import { backboneTables, RESNET_NAMES } from "./backbone-names.ts";
import type { Shapes } from "./compare.ts";
import { countBlocks, mostSaid } from "./counting.ts";
import { nameKeys, shapesOf, theirShapes } from "./renaming.ts";
import { CheckpointError } from "./tensors.ts";

const STAGES = [2, 3, 4, 5] as const;
const NORM = ["weight", "bias", "running_mean", "running_var"];
const KNOWN =
  /^(stem\.conv1|res[2-5]\.\d+\.(conv[123]|shortcut))\.(weight|norm\.(weight|bias|running_mean|running_var))$/;

interface Sizes {
  /** Channels of the stem. */
  readonly stem: number;
  /** Of res2 … res5. */
  readonly blocks: readonly number[];
  readonly widths: readonly number[];
  readonly bottleneck: boolean;
}

export interface ResNetTensors {
  /** Layers with weights, after which a ResNet is called: the first, those of the blocks, the classifier. */
  readonly layers: number;
  /** Under the checkpoint's names. */
  readonly shapes: Shapes;
}

/** Of a checkpoint with detectron2's, torchvision's, timm's or transformers' names. */
export function resNetTensors(tensors: Shapes): ResNetTensors {
  const keys = [...tensors.keys()];
  const named = nameKeys(keys, backboneTables(keys, RESNET_NAMES), (name) => KNOWN.test(name));
  const own = shapesOf(named, tensors);
  refuseOtherBottlenecks(own);
  const sizes = sizesOf(own);
  const convolutions = (sizes.bottleneck ? 3 : 2) * sizes.blocks.reduce((sum, n) => sum + n, 0);
  return { layers: 2 + convolutions, shapes: theirShapes(named, ownShapes(sizes)) };
}

/** Throws where most bottlenecks are wider than a quarter of their output, or convolve in groups. */
export function refuseOtherBottlenecks(shapes: Shapes): void {
  let [blocks, wide, grouped] = [0, 0, 0];
  for (const [name, { shape: inner }] of shapes) {
    const block = /^(res[2-5]\.\d+\.)conv2\.weight$/.exec(name)?.[1];
    const out = shapes.get(`${block}conv3.weight`)?.shape[0];
    if (out === undefined) continue;
    blocks++;
    if (inner[0]! * 4 > out) wide++;
    if (inner[1]! < inner[0]!) grouped++;
  }
  const kind = grouped > blocks / 2 ? "grouped ResNet (ResNeXt)" : wide > blocks / 2 ? "wide ResNet" : undefined;
  if (kind) throw new CheckpointError(`is a ${kind}, which is not supported: take a ResNet of the plain widths`);
}

function sizesOf(shapes: Shapes): Sizes {
  const first = (name: string) => shapes.get(name)?.shape[0];
  const channels = (conv: string) =>
    ["weight", ...NORM.map((part) => `norm.${part}`)].map((x) => first(`${conv}.${x}`));
  const stem = mostSaid(channels("stem.conv1"), 64);
  const blocks = countBlocks(
    shapes,
    STAGES.map((stage) => `res${stage}.`),
  );
  const bottleneck = [...shapes.keys()].some((name) => /^res\d\.\d+\.conv3\.weight$/.test(name));
  const last = bottleneck ? "conv3" : "conv2";
  const widths = STAGES.map((stage, i) => {
    const ends = Array.from({ length: blocks[i]! }, (_, b) => channels(`res${stage}.${b}.${last}`)).flat();
    return mostSaid(ends, (bottleneck ? 4 : 1) * stem * 2 ** i);
  });
  return { stem, blocks, widths, bottleneck };
}

/** Under our names: see model/resnet.ts. */
function ownShapes({ stem, blocks, widths, bottleneck }: Sizes): Shapes {
  const shapes = new Map<string, { shape: readonly number[] }>();
  const put = (conv: string, O: number, I: number, kernel: number) => {
    shapes.set(`${conv}.weight`, { shape: [O, I, kernel, kernel] });
    for (const part of NORM) shapes.set(`${conv}.norm.${part}`, { shape: [O] });
  };
  put("stem.conv1", stem, 3, 7);
  let channels = stem;
  for (const [i, stage] of STAGES.entries()) {
    const out = widths[i]!;
    for (let b = 0; b < blocks[i]!; b++) {
      const at = `res${stage}.${b}.`;
      if (bottleneck) {
        put(`${at}conv1`, out / 4, channels, 1);
        put(`${at}conv2`, out / 4, out / 4, 3);
        put(`${at}conv3`, out, out / 4, 1);
      } else {
        put(`${at}conv1`, out, channels, 3);
        put(`${at}conv2`, out, out, 3);
      }
      const strided = i > 0 && b === 0;
      if (channels !== out || strided) put(`${at}shortcut`, out, channels, 1);
      channels = out;
    }
  }
  return shapes;
}
