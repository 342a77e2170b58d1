// The tensors that a Swin Transformer has whose blocks, widths, heads and window a checkpoint tells: what it is compared with.
import { backboneTables, SWIN_NAMES } from "./backbone-names.ts";
import type { Shapes } from "./compare.ts";
import { countBlocks, mostSaid } from "./counting.ts";
import { nameKeys, shapesOf, theirShapes } from "./renaming.ts";

const STAGES = [0, 1, 2, 3] as const;
const PATCH = 4;
const MLP_RATIO = 4;
const KNOWN = [
  /^(patch_embed\.(proj|norm)|layers\.[0-3]\.blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.(weight|bias)$/,
  /^layers\.[0-3]\.blocks\.\d+\.attn\.relative_position_bias_table$/,
  /^layers\.[0-2]\.downsample\.(norm\.(weight|bias)|reduction\.weight)$/,
  /^norm[0-3]\.(weight|bias)$/,
];

interface Sizes {
  /** Channels of the first stage. */
  readonly width: number;
  /** Of each stage. */
  readonly depths: readonly number[];
  readonly heads: readonly number[];
  /** Of the tables of relative positions, (2w - 1)^2. */
  readonly rows: number;
  /** Stages whose output has a norm: classifiers have none. */
  readonly norms: readonly number[];
}

/** Under the checkpoint's names, which may be Microsoft's and detectron2's, timm's, torchvision's or transformers'. */
export function swinShapes(tensors: Shapes): Shapes {
  const keys = [...tensors.keys()];
  const named = nameKeys(keys, backboneTables(keys, SWIN_NAMES), (name) => KNOWN.some((known) => known.test(name)));
  return theirShapes(named, ownShapes(sizesOf(shapesOf(named, tensors))));
}

function sizesOf(shapes: Shapes): Sizes {
  const shape = (name: string) => shapes.get(name)?.shape ?? [];
  const depths = countBlocks(
    shapes,
    STAGES.map((stage) => `layers.${stage}.blocks.`),
  );
  const widths = [shape("patch_embed.proj.weight")[0], shape("patch_embed.norm.weight")[0]];
  const tables: (readonly number[])[][] = STAGES.map(() => []);
  for (const stage of STAGES)
    for (let block = 0; block < depths[stage]!; block++) {
      const at = `layers.${stage}.blocks.${block}.`;
      for (const norm of ["norm1", "norm2"]) widths.push((shape(`${at}${norm}.weight`)[0] ?? Number.NaN) / 2 ** stage);
      tables[stage]!.push(shape(`${at}attn.relative_position_bias_table`));
    }
  const rows = mostSaid(
    tables.flat().map(([offsets]) => offsets),
    169,
  );
  const heads = tables.map((of) => of.map(([offsets, M]) => (offsets === rows ? M : undefined)));
  // Most Swins double their heads from stage to stage, which settles what two tables say.
  const doubled = mostSaid(
    heads.flatMap((votes, stage) => votes.map((M) => M && M / 2 ** stage)),
    1,
  );
  return {
    width: mostSaid(widths.filter(Number.isInteger), 96),
    depths,
    heads: heads.map((votes, stage) => mostSaid([...votes, doubled * 2 ** stage], 1)),
    rows,
    norms: STAGES.filter((stage) => shapes.has(`norm${stage}.weight`) || shapes.has(`norm${stage}.bias`)),
  };
}

/** Under our names: see model/swin.ts. */
function ownShapes({ width, depths, heads, rows, norms }: Sizes): Shapes {
  const shapes = new Map<string, { shape: readonly number[] }>();
  const put = (name: string, ...shape: number[]) => shapes.set(name, { shape });
  const norm = (at: string, C: number) => {
    put(`${at}.weight`, C);
    put(`${at}.bias`, C);
  };
  const linear = (at: string, O: number, I: number) => {
    put(`${at}.weight`, O, I);
    put(`${at}.bias`, O);
  };
  put("patch_embed.proj.weight", width, 3, PATCH, PATCH);
  put("patch_embed.proj.bias", width);
  norm("patch_embed.norm", width);
  for (const stage of STAGES) {
    const C = width * 2 ** stage;
    for (let block = 0; block < depths[stage]!; block++) {
      const at = `layers.${stage}.blocks.${block}.`;
      norm(`${at}norm1`, C);
      put(`${at}attn.relative_position_bias_table`, rows, heads[stage]!);
      linear(`${at}attn.qkv`, 3 * C, C);
      linear(`${at}attn.proj`, C, C);
      norm(`${at}norm2`, C);
      linear(`${at}mlp.fc1`, MLP_RATIO * C, C);
      linear(`${at}mlp.fc2`, C, MLP_RATIO * C);
    }
    if (stage < 3) {
      norm(`layers.${stage}.downsample.norm`, 4 * C);
      put(`layers.${stage}.downsample.reduction.weight`, 2 * C, 4 * C);
    }
  }
  for (const stage of norms) norm(`norm${stage}`, width * 2 ** stage);
  return shapes;
}
