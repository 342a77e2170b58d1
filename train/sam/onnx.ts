/**
 * SAM by ONNX Runtime, as a second opinion beside the engine of this package: a decoder as segment-anything or optimum exports it (prompt
 * encoder and mask decoder in one graph), and an image encoder of normalised pixels.
 */
import type { InferenceSession, Tensor as OrtTensor } from "onnxruntime-web";
import { halfBits, halfValue } from "../../engine/index.ts";
import { type ImagePrompts, longestSide, maskOfLogits, prepareImage, type RgbImage } from "../../model/sam/index.ts";
import { BadInput } from "../errors.ts";
import { readOnnxFile, releaseOnnxFile } from "../weights.ts";
import { DECODER_FORMS, type DecoderForm, type Embedding, type Frame, type Inputs, type Values } from "./onnx-forms.ts";

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

  /** Takes f32 and gives the outputs that are wanted in f32, where the export has halves, too. Throws BadInput where it cannot be run. */
  async run(feeds: Readonly<Record<string, OrtTensor>>, wanted: readonly string[]): Promise<Values[]> {
    const given = Object.entries(feeds).map(([name, x]) => [name, this.#typed(name, x)] as const);
    let outputs: InferenceSession.ReturnType;
    try {
      outputs = await this.session.run(Object.fromEntries(given), wanted);
    } catch (cause) {
      throw new BadInput(`${this.file}: ONNX Runtime cannot run it (${firstLine(cause)})`);
    }
    return wanted.map((name) => this.#valuesOf(name, outputs[name]!));
  }

  /** As the input has it. */
  #typed(input: string, x: OrtTensor): OrtTensor {
    const { inputNames, inputMetadata } = this.session;
    const known = inputMetadata[inputNames.indexOf(input)];
    const type = known?.isTensor ? known.type : x.type;
    if (type === x.type) return x;
    if (type === "float16" && x.type === "float32")
      return new this.#ort.Tensor(type, Uint16Array.from(x.data as Float32Array, halfBits), x.dims);
    const wanted = x.type === "float32" ? "float32 or float16" : x.type;
    throw new BadInput(`${this.file}: its input ${input} is of type ${type}; expected ${wanted}: export it so`);
  }

  #valuesOf(output: string, { type, data, dims }: OrtTensor): Values {
    if (type === "float32") return { values: data as Float32Array, shape: dims };
    if (type !== "float16")
      throw new BadInput(
        `${this.file}: its output ${output} is of type ${type}; expected float32 or float16: export it so`,
      );
    // Where JavaScript has a Float16Array, the numbers are those of one.
    const values =
      data instanceof Uint16Array ? Float32Array.from(data, halfValue) : Float32Array.from(data as Float32Array);
    return { values, shape: dims };
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
    const outputs = await model.run(form.feeds(model, embedding, prompt), [form.iou, form.masks]);
    const [iou, all] = outputs.map(({ values }) => values) as [Float32Array, Float32Array];
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
    const pixels = model.float(prepareImage(image, side).data, [1, 3, side, side]);
    const name = outputNames.includes(EMBEDDINGS) ? EMBEDDINGS : outputNames[0]!;
    const wanted = [name, ...outputNames.filter((other) => other === POSITIONS)];
    const [embedding, positions] = await model.run({ [inputNames[0]!]: pixels }, wanted);
    return { ...embedding!, positions, frame: frameOf(image, side) };
  }

  close(): Promise<void> {
    return this.#model.close();
  }
}

export function frameOf({ width, height }: RgbImage, side: number): Frame {
  const [h, w] = longestSide(height, width, side);
  return { side, inputSize: [h, w], originalSize: [height, width], scale: [w / width, h / height] };
}
