// The tensors that a SAM model of given sizes has, without making it: what a checkpoint is compared with before memory is spent.
import { type EncoderConfig, gridSize, type SamConfig, type TinyVitSizes, type VitSizes } from "./config.ts";

type Put = (key: string, ...shape: number[]) => void;

type Shapes = Map<string, { readonly shape: readonly number[] }>;

/** Every key of `new Sam(gpu, config).stateDict()` with its shape. */
export function samShapes(config: SamConfig): Shapes {
  const shapes = samEncoderShapes(config);
  const put: Put = (key, ...shape) => shapes.set(key, { shape });
  promptEncoder(put, config.promptDim, config.maskChannels);
  maskDecoder(put, config.promptDim, config.decoder);
  return shapes;
}

/** Those of its image encoder. */
export function samEncoderShapes(config: EncoderConfig): Shapes {
  const shapes: Shapes = new Map();
  const put: Put = (key, ...shape) => shapes.set(key, { shape });
  const { encoder, promptDim: C } = config;
  if (encoder.kind === "vit") vit(put, encoder, gridSize(config));
  else tinyVit(put, encoder);
  const last = encoder.kind === "vit" ? encoder.dim : encoder.dims.at(-1)!;
  put("image_encoder.neck.0.weight", C, last, 1, 1);
  affine(put, "image_encoder.neck.1", C);
  put("image_encoder.neck.2.weight", C, C, 3, 3);
  affine(put, "image_encoder.neck.3", C);
  return shapes;
}

function affine(put: Put, key: string, channels: number): void {
  put(`${key}.weight`, channels);
  put(`${key}.bias`, channels);
}

function linear(put: Put, key: string, inDim: number, outDim: number): void {
  put(`${key}.weight`, outDim, inDim);
  put(`${key}.bias`, outDim);
}

function vit(put: Put, { dim, depth, heads, patch, mlp, window, globalBlocks }: VitSizes, grid: number): void {
  put("image_encoder.pos_embed", 1, grid, grid, dim);
  put("image_encoder.patch_embed.proj.weight", dim, 3, patch, patch);
  put("image_encoder.patch_embed.proj.bias", dim);
  for (let i = 0; i < depth; i++) {
    const block = `image_encoder.blocks.${i}`;
    const side = window === 0 || globalBlocks.includes(i) ? grid : window;
    affine(put, `${block}.norm1`, dim);
    put(`${block}.attn.rel_pos_h`, 2 * side - 1, dim / heads);
    put(`${block}.attn.rel_pos_w`, 2 * side - 1, dim / heads);
    linear(put, `${block}.attn.qkv`, dim, 3 * dim);
    linear(put, `${block}.attn.proj`, dim, dim);
    affine(put, `${block}.norm2`, dim);
    linear(put, `${block}.mlp.lin1`, dim, mlp);
    linear(put, `${block}.mlp.lin2`, mlp, dim);
  }
}

function tinyVit(put: Put, { dims, depths, heads, windows }: TinyVitSizes): void {
  const conv = (key: string, out: number, perGroup: number, kernel: number) => {
    put(`${key}.c.weight`, out, perGroup, kernel, kernel);
    affine(put, `${key}.bn`, out);
    put(`${key}.bn.running_mean`, out);
    put(`${key}.bn.running_var`, out);
  };
  conv("image_encoder.patch_embed.seq.0", dims[0]! / 2, 3, 3);
  conv("image_encoder.patch_embed.seq.2", dims[0]!, dims[0]! / 2, 3);
  dims.forEach((dim, i) => {
    const layer = `image_encoder.layers.${i}`;
    for (let j = 0; j < depths[i]!; j++) {
      const block = `${layer}.blocks.${j}`;
      if (i === 0) {
        conv(`${block}.conv1`, 4 * dim, dim, 1);
        conv(`${block}.conv2`, 4 * dim, 1, 3);
        conv(`${block}.conv3`, dim, 4 * dim, 1);
        continue;
      }
      put(`${block}.attn.attention_biases`, heads[i]!, windows[i]! ** 2);
      affine(put, `${block}.attn.norm`, dim);
      linear(put, `${block}.attn.qkv`, dim, 3 * dim);
      linear(put, `${block}.attn.proj`, dim, dim);
      affine(put, `${block}.mlp.norm`, dim);
      linear(put, `${block}.mlp.fc1`, dim, 4 * dim);
      linear(put, `${block}.mlp.fc2`, 4 * dim, dim);
      conv(`${block}.local_conv`, dim, 1, 3);
    }
    const next = dims[i + 1];
    if (next === undefined) return;
    conv(`${layer}.downsample.conv1`, next, dim, 1);
    conv(`${layer}.downsample.conv2`, next, 1, 3);
    conv(`${layer}.downsample.conv3`, next, next, 1);
  });
}

function promptEncoder(put: Put, C: number, channels: number): void {
  const at = "prompt_encoder";
  put(`${at}.pe_layer.positional_encoding_gaussian_matrix`, 2, C / 2);
  for (let i = 0; i < 4; i++) put(`${at}.point_embeddings.${i}.weight`, 1, C);
  put(`${at}.not_a_point_embed.weight`, 1, C);
  put(`${at}.no_mask_embed.weight`, 1, C);
  put(`${at}.mask_downscaling.0.weight`, channels / 4, 1, 2, 2);
  put(`${at}.mask_downscaling.0.bias`, channels / 4);
  affine(put, `${at}.mask_downscaling.1`, channels / 4);
  put(`${at}.mask_downscaling.3.weight`, channels, channels / 4, 2, 2);
  put(`${at}.mask_downscaling.3.bias`, channels);
  affine(put, `${at}.mask_downscaling.4`, channels);
  put(`${at}.mask_downscaling.6.weight`, C, channels, 1, 1);
  put(`${at}.mask_downscaling.6.bias`, C);
}

function maskDecoder(put: Put, C: number, { depth, mlp, iouHidden, iouDepth, candidates }: SamConfig["decoder"]): void {
  const at = "mask_decoder";
  const attention = (key: string, inner: number) => {
    for (const name of ["q_proj", "k_proj", "v_proj"]) linear(put, `${key}.${name}`, C, inner);
    linear(put, `${key}.out_proj`, inner, C);
  };
  const stack = (key: string, hidden: number, out: number, layers: number) => {
    for (let i = 0; i < layers; i++)
      linear(put, `${key}.layers.${i}`, i === 0 ? C : hidden, i === layers - 1 ? out : hidden);
  };
  put(`${at}.iou_token.weight`, 1, C);
  put(`${at}.mask_tokens.weight`, candidates + 1, C);
  for (let i = 0; i < depth; i++) {
    const layer = `${at}.transformer.layers.${i}`;
    attention(`${layer}.self_attn`, C);
    attention(`${layer}.cross_attn_token_to_image`, C / 2);
    attention(`${layer}.cross_attn_image_to_token`, C / 2);
    for (let n = 1; n <= 4; n++) affine(put, `${layer}.norm${n}`, C);
    linear(put, `${layer}.mlp.lin1`, C, mlp);
    linear(put, `${layer}.mlp.lin2`, mlp, C);
  }
  attention(`${at}.transformer.final_attn_token_to_image`, C / 2);
  affine(put, `${at}.transformer.norm_final_attn`, C);
  put(`${at}.output_upscaling.0.weight`, C, C / 4, 2, 2);
  put(`${at}.output_upscaling.0.bias`, C / 4);
  affine(put, `${at}.output_upscaling.1`, C / 4);
  put(`${at}.output_upscaling.3.weight`, C / 4, C / 8, 2, 2);
  put(`${at}.output_upscaling.3.bias`, C / 8);
  for (let i = 0; i <= candidates; i++) stack(`${at}.output_hypernetworks_mlps.${i}`, C, C / 8, 3);
  stack(`${at}.iou_prediction_head`, iouHidden, candidates + 1, iouDepth);
}
