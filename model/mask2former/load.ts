// A trained Mask2Former (detectron2's or transformers' checkpoint, ResNet backbone) -> a model of the sizes that its tensors tell.
import type { Device, Tensor } from "../../engine/index.ts";
import type { WishConfig } from "../config.ts";
import type { ResNetDepth } from "../resnet.ts";
import { Wish } from "../wish.ts";
import { mask2FormerNames } from "./names.ts";

const PIXEL = "sem_seg_head.pixel_decoder";
const QUERY = "sem_seg_head.predictor";

/** Tensors that belong to training or are made anew, not to the model. */
const UNUSED = /^criterion\.|\.num_batches_tracked$|^pixel_(mean|std)$/;

/**
 * The model of a checkpoint, with its weights, without prompt head and CAM. `heads` is what shapes do not tell: 8 in every published
 * model. Throws where a tensor is missing, left over or of another shape, and for backbones other than ResNet-18, -34, -50, -101.
 */
export function loadMask2Former(
  gpu: Device,
  state: ReadonlyMap<string, Tensor>,
  { heads = 8 }: { heads?: number } = {},
): Wish {
  const named = new Map([...mask2FormerNames(state)].filter(([name]) => !UNUSED.test(name)));
  const model = new Wish(gpu, mask2FormerConfig(named, heads));
  model.loadStateDict(named);
  return model.eval();
}

/** The sizes behind a state with detectron2's names. */
export function mask2FormerConfig(state: ReadonlyMap<string, Pick<Tensor, "shape">>, heads = 8): WishConfig {
  const shape = (name: string): readonly number[] => {
    const found = state.get(name);
    if (!found)
      throw new Error(
        `mask2FormerConfig: the checkpoint has no ${name}; is it a Mask2Former with an MSDeformAttn pixel decoder?`,
      );
    return found.shape;
  };
  const count = (name: (i: number) => string): number => {
    let n = 0;
    while (state.has(name(n))) n++;
    return n;
  };
  const [queries, hiddenDim] = shape(`${QUERY}.query_feat.weight`) as [number, number];
  const levels = shape(`${QUERY}.level_embed.weight`)[0]!;
  const encoderLayer = `${PIXEL}.transformer.encoder.layers`;
  const offsets = shape(`${encoderLayer}.0.self_attn.sampling_offsets.weight`)[0]!; // heads, levels, points, (x, y)
  const points = offsets / (heads * levels * 2);
  if (!Number.isInteger(points))
    throw new Error(
      `mask2FormerConfig: ${offsets} sampling offsets do not divide into ${heads} heads and ${levels} levels; pass the model's heads`,
    );
  return {
    classes: shape(`${QUERY}.class_embed.weight`)[0]! - 1,
    backbone: backboneOf(state, shape, count),
    hiddenDim,
    levels,
    groups: 32,
    encoder: {
      layers: count((i) => `${encoderLayer}.${i}.linear1.weight`),
      heads,
      points,
      ffn: shape(`${encoderLayer}.0.linear1.weight`)[0]!,
    },
    decoder: {
      layers: count((i) => `${QUERY}.transformer_ffn_layers.${i}.linear1.weight`),
      heads,
      ffn: shape(`${QUERY}.transformer_ffn_layers.0.linear1.weight`)[0]!,
    },
    queries,
    prompt: { mode: "none", dim: 256 },
    cam: { feature: "none" },
  };
}

const BLOCKS: Record<string, ResNetDepth> = {
  "basic 2,2,2,2": 18,
  "basic 3,4,6,3": 34,
  "bottleneck 3,4,6,3": 50,
  "bottleneck 3,4,23,3": 101,
};

function backboneOf(
  state: ReadonlyMap<string, unknown>,
  shape: (name: string) => readonly number[],
  count: (name: (i: number) => string) => number,
): WishConfig["backbone"] {
  if (!state.has("backbone.stem.conv1.weight"))
    throw new Error(
      "mask2FormerConfig: the checkpoint's backbone is no ResNet (no backbone.stem.conv1.weight); Swin is not supported",
    );
  const blocks = [2, 3, 4, 5].map((stage) => count((b) => `backbone.res${stage}.${b}.conv1.weight`));
  const kind = state.has("backbone.res2.0.conv3.weight") ? "bottleneck" : "basic";
  const depth = BLOCKS[`${kind} ${blocks}`];
  if (!depth)
    throw new Error(`mask2FormerConfig: ${kind} blocks ${blocks.join(", ")} are no ResNet-18, -34, -50 or -101`);
  return { kind: "resnet", depth, norm: "frozenBN", outputStride: 32, width: shape("backbone.stem.conv1.weight")[0]! };
}
