/**
 * SAM by ONNX Runtime, as a second opinion beside the engine of this package: a decoder as segment-anything or optimum exports it (prompt
 * encoder and mask decoder in one graph), and an image encoder of normalised pixels.
 */
import type { InferenceSession, Tensor as OrtTensor } from "onnxruntime-web";
import { type ImagePrompts, longestSide, maskOfLogits, prepareImage, type RgbImage } from "../../model/sam/index.ts";
import { BadInput } from "../errors.ts";
import { readOnnxFile, releaseOnnxFile } from "../weights.ts";
import { DECODER_FORMS, type DecoderForm, type Embedding, type Frame, type Inputs } from "./onnx-forms.ts";

type Runtime = typeof import("onnxruntime-web");

/** The native one, and the same in WebAssembly where that is what is installed. */
const NATIVE = "onnxruntime-node";
const RUNTIMES = [NATIVE, "onnxruntime-web"];
const EMBEDDINGS = "image_embeddings";
const POSITIONS = "image_positional_embeddings";

export interface DecodedPrompt {
  /** masks[candidate]: height * width zeros and ones. */
  readonly masks: Uint8Array[];
  readonly iou: number[];
  /** (M, 4g, 4g) logits */
  readonly lowRes: Float32Array;
}

/** The package is the user's to install: most never need it, and it is larger than all else together. */
async function runtime(): Promise<{ ort: Runtime; isNative: boolean }> {
  for (const name of RUNTIMES) {
    try {
      const loaded = (await import(name)) as Runtime & { default?: Runtime };
      return { ort: loaded.InferenceSession ? loaded : loaded.default!, isNative: name === NATIVE };
    } catch (cause) {
      const { code, message } = cause as NodeJS.ErrnoException;
      // Another code than this is an installation that is broken, which the user should hear of.
      if (code !== "ERR_MODULE_NOT_FOUND" || !message.includes(`'${name}'`))
        throw new BadInput(`--engine onnx: ${name} cannot be loaded: ${firstLine(cause)}`);
    }
  }
  throw new BadInput(`--engine onnx: ONNX Runtime is not installed; run: npm install ${NATIVE}`);
}

function firstLine(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split("\n", 1)[0]!;
}

/** A loaded file. */
class Model implements Inputs {
  readonly file: string;
  readonly session: InferenceSession;
  readonly #ort: Runtime;

  private constructor(file: string, ort: Runtime, session: InferenceSession) {
    this.file = file;
    this.session = session;
    this.#ort = ort;
  }

  static async open(file: string, what: string): Promise<Model> {
    const { ort, isNative } = await runtime();
    const options = { logSeverityLevel: 3 } as const;
    const model = await readOnnxFile(file, what);
    try {
      return new Model(file, ort, await (isNative ? byPath() : byBytes()));
    } catch (cause) {
      throw new BadInput(`${file}: ONNX Runtime cannot load it (${firstLine(cause)}); expected ${what}`);
    } finally {
      releaseOnnxFile(model);
    }

    /** Finds the data beside it by itself, and needs none of what was read to be checked. */
    function byPath(): Promise<InferenceSession> {
      releaseOnnxFile(model);
      return ort.InferenceSession.create(file, options);
    }

    /** Sees no files: the data goes along under the paths that the model has for it. */
    function byBytes(): Promise<InferenceSession> {
      const externalData = Array.from(model.parts, ([path, data]) => ({ path, data }));
      return ort.InferenceSession.create(model.bytes, { ...options, externalData });
    }
  }

  float(values: Float32Array, shape: readonly number[]): OrtTensor {
    return new this.#ort.Tensor("float32", values, [...shape]);
  }

  long(values: ArrayLike<number>, shape: readonly number[]): OrtTensor {
    return new this.#ort.Tensor("int64", BigInt64Array.from(Array.from(values, BigInt)), [...shape]);
  }

  /** Of an input; sizes that the export leaves open have names. */
  shapeOf(input: string): readonly (number | string)[] {
    const { inputNames, inputMetadata } = this.session;
    const known = inputMetadata[inputNames.indexOf(input)];
    return known && "shape" in known ? known.shape : [];
  }

  close(): Promise<void> {
    return this.session.release();
  }
}

/** The prompt encoder and mask decoder of one export. */
export class OnnxDecoder {
  readonly #model: Model;
  readonly #form: DecoderForm;

  private constructor(model: Model, form: DecoderForm) {
    this.#model = model;
    this.#form = form;
  }

  static async open(file: string): Promise<OnnxDecoder> {
    const model = await Model.open(file, "SAM's decoder as segment-anything's export_onnx_model.py writes it");
    const { inputNames, outputNames } = model.session;
    const form = DECODER_FORMS.find(
      ({ inputs, iou, masks }) =>
        inputs.every((name) => inputNames.includes(name)) && [iou, masks].every((name) => outputNames.includes(name)),
    );
    if (!form)
      throw new BadInput(
        `${file}: is no SAM decoder of segment-anything's export_onnx_model.py or optimum: it takes ${inputNames.join(", ")} and gives ${outputNames.join(", ")}; ` +
          `expected ${DECODER_FORMS.map(({ inputs }) => inputs.join(", ")).join(", or ")}`,
      );
    return new OnnxDecoder(model, form);
  }

  /** Refuses the embedding of another model's encoder. */
  checkFits(shape: readonly number[]): void {
    const wanted = this.#model.shapeOf(EMBEDDINGS);
    if (wanted.length === shape.length && wanted.every((d, i) => typeof d !== "number" || d === shape[i])) return;
    throw new BadInput(
      `${this.#model.file}: takes image embeddings (${wanted.join(", ")}); the encoder gives (${shape.join(", ")}): name the encoder of the same model`,
    );
  }

  /** One prompt in the image's pixels: three candidates, or with `multimask` false the single mask. */
  async predict(
    embedding: Embedding,
    prompt: ImagePrompts,
    { multimask = true }: { multimask?: boolean } = {},
  ): Promise<DecodedPrompt> {
    const [model, form] = [this.#model, this.#form];
    const outputs = await model.session.run(form.feeds(model, embedding, prompt));
    const [iou, all] = [form.iou, form.masks].map((name) => outputs[name]!.data) as [Float32Array, Float32Array];
    const [start, end] = form.range(iou.length, multimask);
    const { frame, shape } = embedding;
    const side = 4 * shape.at(-1)!;
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
    const { inputNames } = model.session;
    const shape = model.shapeOf(inputNames[0]!);
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
    const valuesOf = ({ data, dims }: OrtTensor) => ({ values: data as Float32Array, shape: dims });
    const positions = outputs[POSITIONS];
    return {
      ...valuesOf(outputs[outputNames.includes(EMBEDDINGS) ? EMBEDDINGS : outputNames[0]!]!),
      positions: positions && valuesOf(positions),
      frame: frameOf(image, side),
    };
  }

  close(): Promise<void> {
    return this.#model.close();
  }
}

export function frameOf({ width, height }: RgbImage, side: number): Frame {
  const [h, w] = longestSide(height, width, side);
  return { side, inputSize: [h, w], originalSize: [height, width], scale: [w / width, h / height] };
}
