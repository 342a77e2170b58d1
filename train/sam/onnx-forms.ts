/** The two forms in which SAM's decoder is exported to ONNX: what each is asked with, and how its answer is laid out. */
import type { Tensor as OrtTensor } from "onnxruntime-web";
import type { ImagePrompts, PreparedImage } from "../../model/sam/index.ts";
import { BadInput } from "../errors.ts";

/** Numbers and their shape. */
export interface Values {
  readonly values: Float32Array;
  readonly shape: readonly number[];
}

/** An encoded image: (1, C, g, g). */
export interface Embedding extends Values {
  /** Positions of the grid's cells, (1, C, g, g): the hub's decoder takes them from the encoder. */
  readonly positions?: Values | undefined;
  readonly frame: Frame;
}

/** How an image lies in the encoder's square. */
export interface Frame extends Omit<PreparedImage, "data"> {
  readonly side: number;
}

/** Makes an input. */
export interface Inputs {
  float(values: Float32Array, shape: readonly number[]): OrtTensor;
  long(values: ArrayLike<number>, shape: readonly number[]): OrtTensor;
}

export interface DecoderForm {
  readonly inputs: readonly string[];
  /** Names of the predicted IoU, (…, M), and of the low-resolution logits, (…, M, 4g, 4g). */
  readonly iou: string;
  readonly masks: string;
  /** Which of M masks answer: first and one past the last. */
  range(M: number, multimask: boolean): readonly [number, number];
  /** Of one prompt. Throws BadInput for one that it cannot take. */
  feeds(make: Inputs, embedding: Embedding, prompt: ImagePrompts): Record<string, OrtTensor>;
}

const PADDING = -1;
/** Labels of a box's corners. */
const CORNERS = [2, 3];

const scaled = (values: ArrayLike<number>, [x, y]: Frame["scale"]): Float32Array =>
  Float32Array.from(values, (v, i) => v * (i % 2 === 0 ? x : y));

/**
 * segment-anything's scripts/export_onnx_model.py. Its full-size `masks` are left alone: version 1.0 exports them cut to the proportions of
 * the image that the export was traced with.
 */
const original: DecoderForm = {
  inputs: ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"],
  iou: "iou_predictions",
  masks: "low_res_masks",
  // The mask of the single-mask token comes first; an export with --return-single-mask has one mask only.
  range: (M, multimask) => (multimask && M > 1 ? [1, M] : [0, 1]),
  feeds(make, { values, shape, frame }, { points, boxes }) {
    const coords = boxes ? Array.from(boxes) : [...Array.from(points!.coords), 0, 0];
    const labels = Float32Array.from(boxes ? CORNERS : [...Array.from(points!.labels), PADDING]);
    const side = 4 * shape.at(-1)!;
    return {
      image_embeddings: make.float(values, shape),
      point_coords: make.float(scaled(coords, frame.scale), [1, labels.length, 2]),
      point_labels: make.float(labels, [1, labels.length]),
      mask_input: make.float(new Float32Array(side * side), [1, 1, side, side]),
      has_mask_input: make.float(Float32Array.of(0), [1]),
      orig_im_size: make.float(Float32Array.from(frame.originalSize), [2]),
    };
  },
};

/** optimum's prompt_encoder_mask_decoder.onnx of transformers' SamModel: points alone, which it pads itself, and always three candidates. */
const hub: DecoderForm = {
  inputs: ["input_points", "input_labels", "image_embeddings", "image_positional_embeddings"],
  iou: "iou_scores",
  masks: "pred_masks",
  range(M, multimask) {
    if (!multimask) throw new BadInput("sam --single: this export gives three candidates and no single mask");
    return [0, M];
  },
  feeds(make, { values, shape, positions, frame }, { points }) {
    if (!points) throw new BadInput("sam --box: this export takes points alone; give --point");
    if (!positions)
      throw new BadInput("sam --encoder: gives no image_positional_embeddings, which this export takes; name its own");
    const n = points.labels.length;
    return {
      input_points: make.float(scaled(points.coords, frame.scale), [1, 1, n, 2]),
      input_labels: make.long(points.labels, [1, 1, n]),
      image_embeddings: make.float(values, shape),
      image_positional_embeddings: make.float(positions.values, positions.shape),
    };
  },
};

export const DECODER_FORMS: readonly DecoderForm[] = [original, hub];
