// Multi-scale deformable attention (Zhu et al. 2021; modeling/pixel_decoder/ops/modules/ms_deform_attn.py): a query looks at a few
// points of each level, chosen by the query itself around its reference point.
import { type Device, F, nn, type Tensor } from "../../engine/index.ts";
import { constant } from "../layers.ts";

export class MSDeformAttn extends nn.Module {
  sampling_offsets: nn.Linear; // C -> heads, levels, points, (x, y)
  attention_weights: nn.Linear; // C -> heads, levels, points
  value_proj: nn.Linear;
  output_proj: nn.Linear;
  readonly heads: number;
  readonly levels: number;
  readonly points: number;

  constructor(
    gpu: Device,
    { dim, levels, heads, points }: { dim: number; levels: number; heads: number; points: number },
  ) {
    super();
    if (dim % heads !== 0)
      throw new Error(`MSDeformAttn: ${dim} channels do not divide into ${heads} heads; change one of them`);
    [this.heads, this.levels, this.points] = [heads, levels, points];
    this.sampling_offsets = new nn.Linear(gpu, dim, heads * levels * points * 2);
    this.attention_weights = new nn.Linear(gpu, dim, heads * levels * points);
    this.value_proj = new nn.Linear(gpu, dim, dim);
    this.output_proj = new nn.Linear(gpu, dim, dim);
    for (const { weight } of [this.sampling_offsets, this.attention_weights]) nn.init.zeros_(weight);
    for (const { weight } of [this.value_proj, this.output_proj]) nn.init.xavierUniform_(weight);
    for (const { bias } of [this.attention_weights, this.value_proj, this.output_proj]) nn.init.zeros_(bias!);
    this.sampling_offsets.bias = nn.parameter(
      gpu.tensor(compass(heads, levels, points), [heads * levels * points * 2]),
    );
  }

  /**
   * query (B, Q, C); references (1, Q, 1, 2), (x, y) in 0..1, the same for every level; input (B, S, C), the levels' grids one after
   * the other, with their [height, width] in `shapes` -> (B, Q, C).
   */
  forward(query: Tensor, references: Tensor, input: Tensor, shapes: [number, number][]): Tensor {
    const [B, Q, C] = query.shape as [number, number, number];
    const [, S] = input.shape as [number, number];
    const { heads: M, levels: L, points: P } = this;
    const value = F.reshape(this.value_proj.forward(input), [B, S, M, C / M]);
    const offsets = F.reshape(this.sampling_offsets.forward(query), [B, Q, M * L * P, 2]); // in cells of their level
    const cell = constant(query.device, `cells ${M} ${P} ${shapes.join(" ")}`, [1, 1, M * L * P, 2], () =>
      cellSizes(shapes, M, P),
    );
    const locations = F.reshape(F.add(F.mul(offsets, cell), references), [B, Q, M, L, P, 2]);
    const weights = F.softmax(F.reshape(this.attention_weights.forward(query), [B, Q, M, L * P]), -1);
    const y = F.msDeformAttn(value, shapes, locations, F.reshape(weights, [B, Q, M, L, P]));
    return this.output_proj.forward(y);
  }
}

/** Initial offsets: head h looks in direction 2 pi h / heads (on the unit square), its point p at distance p + 1. Order heads, levels, points, (x, y). */
function compass(heads: number, levels: number, points: number): Float32Array {
  const offsets: number[] = [];
  for (let h = 0; h < heads; h++) {
    const theta = (2 * Math.PI * h) / heads;
    const [x, y] = [Math.cos(theta), Math.sin(theta)];
    const reach = Math.max(Math.abs(x), Math.abs(y));
    for (let l = 0; l < levels; l++) for (let p = 1; p <= points; p++) offsets.push((x / reach) * p, (y / reach) * p);
  }
  return Float32Array.from(offsets);
}

/** (1 / width, 1 / height) of each level, spread over heads, levels and points. */
function cellSizes(shapes: [number, number][], heads: number, points: number): Float32Array {
  const oneHead = shapes.flatMap(([h, w]) => Array.from({ length: points }, () => [1 / w, 1 / h]).flat());
  return Float32Array.from({ length: heads * oneHead.length }, (_, i) => oneHead[i % oneHead.length]!);
}
