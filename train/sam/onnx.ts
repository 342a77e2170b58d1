/**
 * SAM by ONNX Runtime, as a second opinion beside the engine of this package: the decoder as segment-anything's export_onnx_model.py writes
 * it (prompt encoder and mask decoder in one graph), and an image encoder of normalised pixels.
 */
import type { InferenceSession, Tensor as OrtTensor } from "onnxruntime-web";
import {
  type ImagePrompts,
  longestSide,
  maskOfLogits,
  type PreparedImage,
  prepareImage,
  type RgbImage,
} from "../../model/sam/index.ts";
import { BadInput } from "../errors.ts";
import { readNamed } from "../files.ts";

type Runtime = typeof import("onnxruntime-web");

/** The native one, or the same in WebAssembly where that is what is installed. */
const RUNTIMES = ["onnxruntime-node", "onnxruntime-web"];
/** What segment-anything's export takes. */
const DECODER_INPUTS = [
  "image_embeddings",
  "point_coords",
  "point_labels",
  "mask_input",
  "has_mask_input",
  "orig_im_size",
];
/** Not its full-size `masks`: segment-anything 1.0 exports them cut to the proportions of the image that the export was traced with. */
const DECODER_OUTPUTS = ["iou_predictions", "low_res_masks"];
const EMBEDDINGS = "image_embeddings";
const PADDING = -1;
/** Labels of a box's corners. */
const CORNERS = [2, 3];

export interface Embedding {
  readonly values: Float32Array;
  /** (1, C, g, g) */
  readonly shape: readonly number[];
  readonly frame: Frame;
}

/** How an image lies in the encoder's square. */
export interface Frame extends Omit<PreparedImage, "data"> {
  readonly side: number;
}

export interface DecodedPrompt {
  /** masks[candidate]: height * width zeros and ones. */
  readonly masks: Uint8Array[];
  readonly iou: number[];
  /** (M, 4g, 4g) logits */
  readonly lowRes: Float32Array;
}

/** The package is the user's to install: most never need it, and it is larger than all else together. */
async function runtime(): Promise<Runtime> {
  for (const name of RUNTIMES) {
    try {
      const loaded = (await import(name)) as Runtime & { default?: Runtime };
      return loaded.InferenceSession ? loaded : loaded.default!;
    } catch (cause) {
      const { code, message } = cause as NodeJS.ErrnoException;
      // Another code than this is an installation that is broken, which the user should hear of.
      if (code !== "ERR_MODULE_NOT_FOUND" || !message.includes(`'${name}'`))
        throw new BadInput(`--engine onnx: ${name} cannot be loaded: ${message.split("\n", 1)[0]}`);
    }
  }
  throw new BadInput("--engine onnx: ONNX Runtime is not installed; run: npm install onnxruntime-node");
}

/** An ONNX model whose inputs and outputs are known. */
class Model {
  readonly file: string;
  readonly runtime: Runtime;
  readonly session: InferenceSession;

  private constructor(file: string, runtime: Runtime, session: InferenceSession) {
    this.file = file;
    this.runtime = runtime;
    this.session = session;
  }

  static async open(file: string, what: string): Promise<Model> {
    const ort = await runtime();
    const bytes = await readNamed(file, what);
    try {
      return new Model(file, ort, await ort.InferenceSession.create(bytes, { logSeverityLevel: 3 }));
    } catch (cause) {
      const [reason] = (cause instanceof Error ? cause.message : String(cause)).split("\n", 1);
      throw new BadInput(`${file}: ONNX Runtime cannot load it (${reason}); expected ${what} in one .onnx file`);
    }
  }

  float(values: Float32Array, shape: readonly number[]): OrtTensor {
    return new this.runtime.Tensor("float32", values, [...shape]);
  }

  close(): Promise<void> {
    return this.session.release();
  }
}

/** The prompt encoder and mask decoder of one export. */
export class OnnxDecoder {
  readonly #model: Model;

  private constructor(model: Model) {
    this.#model = model;
  }

  static async open(file: string): Promise<OnnxDecoder> {
    const model = await Model.open(file, "SAM's decoder as segment-anything's export_onnx_model.py writes it");
    const { inputNames, outputNames } = model.session;
    const lacking = [
      ...DECODER_INPUTS.filter((name) => !inputNames.includes(name)),
      ...DECODER_OUTPUTS.filter((name) => !outputNames.includes(name)),
    ];
    if (lacking.length > 0)
      throw new BadInput(
        `${file}: is no SAM decoder of segment-anything's export_onnx_model.py: it takes ${inputNames.join(", ")} and gives ${outputNames.join(", ")}, without ${lacking.join(", ")}`,
      );
    return new OnnxDecoder(model);
  }

  /** Refuses the embedding of another model's encoder. */
  checkFits(shape: readonly number[]): void {
    const { file, session } = this.#model;
    const input = session.inputMetadata[session.inputNames.indexOf(EMBEDDINGS)];
    const wanted = input && "shape" in input ? input.shape : [];
    // A size that the export leaves open has a name.
    if (wanted.length === shape.length && wanted.every((d, i) => typeof d !== "number" || d === shape[i])) return;
    throw new BadInput(
      `${file}: takes image embeddings (${wanted.join(", ")}); the encoder gives (${shape.join(", ")}): name the encoder of the same model`,
    );
  }

  /**
   * One prompt in the image's pixels; the export takes one at a time. Three candidates, or with `multimask` false the single mask; an export
   * of a single mask (--return-single-mask) gives that one either way.
   */
  async predict(
    { values, shape, frame }: Embedding,
    prompt: ImagePrompts,
    { multimask = true }: { multimask?: boolean } = {},
  ): Promise<DecodedPrompt> {
    const model = this.#model;
    const { coords, labels } = tokensOf(prompt, frame.scale);
    const side = 4 * shape.at(-1)!;
    const outputs = await model.session.run({
      image_embeddings: model.float(values, shape),
      point_coords: model.float(coords, [1, labels.length, 2]),
      point_labels: model.float(labels, [1, labels.length]),
      mask_input: model.float(new Float32Array(side * side), [1, 1, side, side]),
      has_mask_input: model.float(Float32Array.of(0), [1]),
      orig_im_size: model.float(Float32Array.from(frame.originalSize), [2]),
    });
    const [iou, all] = DECODER_OUTPUTS.map((name) => outputs[name]!.data as Float32Array) as [
      Float32Array,
      Float32Array,
    ];
    // The mask of the single-mask token comes first.
    const [start, end] = iou.length === 1 ? [0, 1] : multimask ? [1, iou.length] : [0, 1];
    const cells = side * side;
    const lowRes = all.slice(start * cells, end * cells);
    return {
      masks: Array.from({ length: end - start }, (_, m) => {
        const logits = lowRes.subarray(m * cells, (m + 1) * cells);
        return maskOfLogits(logits, side, frame.side, frame.inputSize, frame.originalSize);
      }),
      iou: Array.from(iou.subarray(start, end)),
      lowRes,
    };
  }

  close(): Promise<void> {
    return this.#model.close();
  }
}

/** An image encoder's export: (1, 3, S, S) normalised and padded -> (1, C, g, g). */
export class OnnxEncoder {
  readonly #model: Model;
  /** Side of the square input. */
  readonly #side: number;

  private constructor(model: Model, side: number) {
    this.#model = model;
    this.#side = side;
  }

  static async open(file: string): Promise<OnnxEncoder> {
    const model = await Model.open(file, "SAM's image encoder");
    const { inputNames, inputMetadata } = model.session;
    const [input] = inputMetadata;
    const shape = input && "shape" in input ? input.shape : [];
    const [, channels, height, side] = shape;
    if (inputNames.length !== 1 || channels !== 3 || typeof side !== "number" || height !== side)
      throw new BadInput(
        `${file}: is no image encoder of normalised pixels: expected one input (1, 3, S, S), got ${inputNames.join(", ")} (${shape.join(", ")})`,
      );
    return new OnnxEncoder(model, side);
  }

  async encode(image: RgbImage): Promise<Embedding> {
    const model = this.#model;
    const { inputNames, outputNames } = model.session;
    const side = this.#side;
    const outputs = await model.session.run({
      [inputNames[0]!]: model.float(prepareImage(image, side).data, [1, 3, side, side]),
    });
    const { data, dims } = outputs[outputNames.includes(EMBEDDINGS) ? EMBEDDINGS : outputNames[0]!]!;
    return { values: data as Float32Array, shape: dims, frame: frameOf(image, side) };
  }

  close(): Promise<void> {
    return this.#model.close();
  }
}

export function frameOf({ width, height }: RgbImage, side: number): Frame {
  const [h, w] = longestSide(height, width, side);
  return { side, inputSize: [h, w], originalSize: [height, width], scale: [w / width, h / height] };
}

/** Points and a padding point, or a box's corners, in the encoder's frame. */
function tokensOf(
  { points, boxes }: ImagePrompts,
  scale: readonly [number, number],
): { coords: Float32Array; labels: Float32Array } {
  const coords = boxes ? Array.from(boxes) : [...Array.from(points!.coords), 0, 0];
  const labels = boxes ? CORNERS : [...Array.from(points!.labels), PADDING];
  return { coords: Float32Array.from(coords, (v, i) => v * scale[i % 2]!), labels: Float32Array.from(labels) };
}
