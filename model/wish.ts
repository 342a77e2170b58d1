// WISH as one picture: a backbone, Mask2Former's two decoders with class and mask heads, a third head that predicts the latents SAM's
// prompt encoder would give the object's point or box, and a class activation map on the backbone for images that only carry tags.
// Without prompt head and CAM it is Mask2Former. Losses, matching and SAM stand elsewhere: this file maps images to predictions.
import { type Device, F, nn, type Tensor } from "../engine/index.ts";
import { type Backbone, type Features, type PixelOptions, padding } from "./backbone.ts";
import { type BackboneConfig, PROMPT_TOKENS, type PromptMode, type WishConfig } from "./config.ts";
import { MaskedTransformerDecoder, type Prediction } from "./mask2former/decoder.ts";
import { MSDeformAttnPixelDecoder } from "./mask2former/pixel-decoder.ts";
import { MobileNetV2 } from "./mobilenet.ts";
import { miniNet, ResNet, resNet } from "./resnet.ts";
import { SwinTransformer } from "./swin.ts";

export interface WishOutput {
  /** decoder.layers + 1 predictions: index 0 from the learnable queries, the last is the output, the others are for deep supervision. */
  predictions: Prediction[];
  /** (B, K, h, w) raw activations: their mean over the valid region are the tag logits. */
  cam: Tensor | undefined;
  /** H', W': the padded frame that masks and normalised coordinates refer to. */
  inputSize: readonly [number, number];
}

/** What a weak label says where the object is. */
export type PromptKind = "point" | "box";

export class Wish extends nn.Module {
  backbone: Backbone;
  sem_seg_head: { pixel_decoder: MSDeformAttnPixelDecoder; predictor: MaskedTransformerDecoder };
  cam_head: nn.Conv2d | undefined;
  readonly config: Readonly<WishConfig>;

  /** `backbone`: one made elsewhere takes the place of config.backbone. */
  constructor(gpu: Device, config: WishConfig, backbone: Backbone = makeBackbone(gpu, config.backbone)) {
    super();
    this.config = config;
    const { classes, hiddenDim: dim, levels, groups, queries, prompt, cam } = config;
    this.backbone = backbone;
    const { channels } = backbone;
    const tokens = PROMPT_TOKENS[prompt.mode];
    if (tokens === undefined)
      throw new Error(`Wish: prompt.mode must be ${Object.keys(PROMPT_TOKENS).join(", ")}; got ${prompt.mode}`);
    const heads = tokens > 0 ? { prompt: { tokens, dim: prompt.dim, place: prompt.place ?? "query" } } : {};
    this.sem_seg_head = {
      pixel_decoder: new MSDeformAttnPixelDecoder(gpu, {
        inChannels: channels,
        dim,
        levels,
        groups,
        ...config.encoder,
      }),
      predictor: new MaskedTransformerDecoder(gpu, { classes, dim, levels, queries, ...config.decoder, ...heads }),
    };
    if (cam.feature !== "none") this.cam_head = new nn.Conv2d(gpu, channels[cam.feature], classes, 1, { bias: false });
  }

  /** RGB images (B, 3, H, W), 0..255. Normalisation and padding to a multiple of 32 are the backbone's. */
  forward(images: Tensor, options: PixelOptions = {}): WishOutput {
    const features = this.backbone.forward(images, options);
    const pixels = this.sem_seg_head.pixel_decoder.forward(features);
    const predictions = this.sem_seg_head.predictor.forward(pixels);
    return { predictions, cam: this.#cam(features), inputSize: paddedSize(images) };
  }

  /** Backbone and CAM only: all that the warm-up on tags needs. */
  forwardCam(images: Tensor, options: PixelOptions = {}): { cam: Tensor; inputSize: readonly [number, number] } {
    const cam = this.#cam(this.backbone.forward(images, options));
    if (!cam)
      throw new Error(
        'Wish: the model has no CAM branch (cam.feature is "none"); set it to res5, res4 or res3 to train on tags',
      );
    return { cam, inputSize: paddedSize(images) };
  }

  /** Tokens of the prompt latents that a label of this kind supervises. */
  promptSlots(kind: PromptKind): number[] {
    return promptSlots(this.config.prompt.mode, kind);
  }

  #cam(features: Features): Tensor | undefined {
    const { feature } = this.config.cam;
    return feature === "none" ? undefined : this.cam_head?.forward(features[feature]);
  }
}

/** Tokens that a point or a box supervises. A point's second SAM token is a constant pad and teaches nothing. */
export function promptSlots(mode: PromptMode, kind: PromptKind): number[] {
  const slots: Record<PromptMode, Record<PromptKind, number[]>> = {
    none: { point: [], box: [] },
    mean: { point: [0], box: [0] },
    sparse: { point: [0], box: [0, 1] },
    typed: { point: [0], box: [1, 2] },
  };
  return slots[mode][kind];
}

/**
 * SAM's sparse embeddings of k labels of one kind -> the targets of exactly the tokens `promptSlots` names: (k, 2, D) -> (k, S, D).
 * A point's embedding is (its token, padding), a box's (top left, bottom right).
 */
export function promptTarget(sparse: Tensor, kind: PromptKind, mode: PromptMode): Tensor {
  if (sparse.shape.length !== 3 || sparse.shape[1] !== 2)
    throw new Error(`promptTarget: sparse must be SAM's embedding (k, 2, D) of points or boxes; got (${sparse.shape})`);
  if (kind === "point") return F.slice(sparse, 1, 0, 1);
  return mode === "mean" ? F.mean(sparse, [1], { keepdim: true }) : sparse;
}

function makeBackbone(gpu: Device, config: BackboneConfig): Backbone {
  switch (config.kind) {
    case "resnet":
      return resNet(gpu, config.depth, config);
    case "residual":
      return new ResNet(gpu, config);
    case "mobilenetV2":
      return new MobileNetV2(gpu, config);
    case "swin":
      return new SwinTransformer(gpu, config);
    case "mini":
      return miniNet(gpu, config);
    default:
      throw new Error(
        `Wish: backbone.kind must be resnet, residual, swin, mobilenetV2 or mini; got ${(config as { kind: unknown }).kind}`,
      );
  }
}

function paddedSize(images: Tensor): [number, number] {
  const [H, W] = images.shape.slice(2) as [number, number];
  return [H + padding(H), W + padding(W)];
}
