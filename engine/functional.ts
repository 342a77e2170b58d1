/** Every operation, under PyTorch's name in camelCase. */

export { type AttentionOptions, scaledDotProductAttention } from "./ops/attention.ts";
export { conv2d, convTranspose2d } from "./ops/conv.ts";
export { msDeformAttn } from "./ops/deform.ts";
export { type DropoutOptions, dropout } from "./ops/dropout.ts";
export type { FinishOptions } from "./ops/finish.ts";
export { embedding, gather, indexSelect, scatterAdd } from "./ops/gather.ts";
export { type InterpolateOptions, interpolate } from "./ops/interpolate.ts";
export {
  type BinaryCrossEntropyOptions,
  binaryCrossEntropyWithLogits,
  type CrossEntropyOptions,
  crossEntropy,
  dice,
  type KlDivOptions,
  klDiv,
  mseLoss,
  type Reduction,
  smoothL1,
} from "./ops/loss.ts";
export { linear, matmul } from "./ops/matmul.ts";
export { cat, expand, pad, permute, reshape, slice, stack, transpose } from "./ops/movement.ts";
export { batchNorm, groupNorm, layerNorm, layerNorm2d } from "./ops/norm.ts";
export type { ActivationName } from "./ops/pointwise.ts";
export {
  abs,
  add,
  cast,
  clamp,
  cos,
  div,
  eq,
  erf,
  exp,
  ge,
  gelu,
  gt,
  le,
  log,
  logicalAnd,
  logicalNot,
  logicalOr,
  lt,
  maximum,
  minimum,
  mul,
  neg,
  pow,
  relu,
  relu6,
  sigmoid,
  silu,
  sin,
  sqrt,
  sub,
  tanh,
  where,
} from "./ops/pointwise.ts";
export { avgPool2d, maxPool2d } from "./ops/pool.ts";
export { argmax, max, mean, min, sum } from "./ops/reduce.ts";
export { type GridSampleOptions, gridSample } from "./ops/sample.ts";
export { logSoftmax, logSumExp, softmax } from "./ops/softmax.ts";
export { topk } from "./ops/topk.ts";
export { detach } from "./tape.ts";
