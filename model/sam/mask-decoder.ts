// SAM's mask decoder (segment-anything: modeling/mask_decoder.py).
import { type Device, F, nn, type Tensor } from "../../engine/index.ts";
import { MLP } from "../layers.ts";
import type { SamConfig } from "./config.ts";
import { TwoWayTransformer } from "./transformer.ts";

export interface DecodedMasks {
  /** (P, M, 4g, 4g) logits. */
  readonly masks: Tensor;
  /** (P, M) predicted IoU, not squashed. */
  readonly iou: Tensor;
}

export class MaskDecoder extends nn.Module {
  transformer: TwoWayTransformer;
  iou_token: nn.Embedding;
  mask_tokens: nn.Embedding;
  output_upscaling: { 0: nn.ConvTranspose2d; 1: nn.LayerNorm2d; 3: nn.ConvTranspose2d };
  output_hypernetworks_mlps: MLP[];
  iou_prediction_head: MLP;

  constructor(gpu: Device, dim: number, sizes: SamConfig["decoder"]) {
    super();
    const tokens = sizes.candidates + 1;
    this.transformer = new TwoWayTransformer(gpu, { dim, ...sizes });
    this.iou_token = new nn.Embedding(gpu, 1, dim);
    this.mask_tokens = new nn.Embedding(gpu, tokens, dim);
    this.output_upscaling = {
      0: new nn.ConvTranspose2d(gpu, dim, dim / 4, 2, { stride: 2 }),
      1: new nn.LayerNorm2d(gpu, dim / 4, { eps: 1e-6 }),
      3: new nn.ConvTranspose2d(gpu, dim / 4, dim / 8, 2, { stride: 2 }),
    };
    this.output_hypernetworks_mlps = Array.from({ length: tokens }, () => new MLP(gpu, dim, dim, dim / 8, 3));
    this.iou_prediction_head = new MLP(gpu, dim, sizes.iouHidden, tokens, sizes.iouDepth);
  }

  /**
   * The three candidates of each prompt, or with `multimask` false the single mask.
   * @param imageEmbeddings (B, C, g, g)
   * @param imagePe (1, C, g, g)
   * @param sparse (P, T, C), P a multiple of B, an image's prompts side by side
   * @param dense (P, C, g, g) or (1, C, g, g)
   */
  forward(imageEmbeddings: Tensor, imagePe: Tensor, sparse: Tensor, dense: Tensor, multimask: boolean): DecodedMasks {
    const tokens = this.mask_tokens.weight.shape[0]!;
    return this.#predict(imageEmbeddings, imagePe, sparse, dense, multimask ? 1 : 0, multimask ? tokens : 1);
  }

  /** All masks, the single one first: (P, 4, 4g, 4g) and (P, 4), as training needs them. */
  predictMasks(imageEmbeddings: Tensor, imagePe: Tensor, sparse: Tensor, dense: Tensor): DecodedMasks {
    return this.#predict(imageEmbeddings, imagePe, sparse, dense, 0, this.mask_tokens.weight.shape[0]!);
  }

  /** Masks `start` to `end` (exclusive) of the mask tokens. */
  #predict(
    imageEmbeddings: Tensor,
    imagePe: Tensor,
    sparse: Tensor,
    dense: Tensor,
    start: number,
    end: number,
  ): DecodedMasks {
    const [B, C, h, w] = imageEmbeddings.shape as [number, number, number, number];
    const [P, T] = sparse.shape as [number, number];
    if (P % B !== 0) throw new Error(`MaskDecoder: ${P} prompts cannot be shared out to ${B} images`);
    if (sparse.shape.length !== 3 || sparse.shape[2] !== C) {
      throw new Error(
        `MaskDecoder: sparse must be (P, T, ${C}) as the image embedding's width; got (${sparse.shape.join(", ")})`,
      );
    }
    const N = h * w;
    const outputTokens = F.cat([this.iou_token.weight, this.mask_tokens.weight], 0); // (5, C)
    const own = outputTokens.shape[0]!;
    const tokens =
      T === 0
        ? F.expand(F.reshape(outputTokens, [1, own, C]), [P, own, C])
        : F.cat([F.expand(F.reshape(outputTokens, [1, own, C]), [P, own, C]), sparse], 1); // (P, 5 + T, C)

    const perPrompt = F.expand(F.reshape(imageEmbeddings, [B, 1, C, h, w]), [B, P / B, C, h, w]);
    const src = F.add(F.reshape(perPrompt, [P, C, h, w]), dense);
    const flat = F.permute(F.reshape(src, [P, C, N]), [0, 2, 1]); // (P, N, C)
    const pe = F.permute(F.reshape(imagePe, [1, C, N]), [0, 2, 1]); // (1, N, C)
    const { queries, keys } = this.transformer.forward(flat, pe, tokens);

    const grid = F.reshape(F.permute(keys, [0, 2, 1]), [P, C, h, w]);
    const upscaled = this.#upscale(grid); // (P, C/8, 4h, 4w)
    const hyper = F.stack(
      this.output_hypernetworks_mlps.slice(start, end).map((mlp, i) => {
        const token = F.slice(queries, 1, 1 + start + i, 2 + start + i);
        return mlp.forward(F.reshape(token, [P, C]));
      }),
      1,
    ); // (P, M, C/8)
    const M = end - start;
    const masks = F.matmul(hyper, F.reshape(upscaled, [P, C / 8, 16 * N]));
    const iouToken = F.reshape(F.slice(queries, 1, 0, 1), [P, C]);
    const iou = F.slice(this.iou_prediction_head.forward(iouToken), 1, start, end);
    return { masks: F.reshape(masks, [P, M, 4 * h, 4 * w]), iou };
  }

  /** (P, C, g, g) -> (P, C/8, 4g, 4g) */
  #upscale(x: Tensor): Tensor {
    const layers = this.output_upscaling;
    const y = F.gelu(layers[1].forward(layers[0].forward(x)));
    return F.gelu(layers[3].forward(y));
  }
}
