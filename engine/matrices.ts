/** The adapter's matrix units (subgroup matrices), where Dawn and the driver offer them; the syntax is a draft, so it is tried before it is used. */
import { log } from "./debug.ts";
import { withConsts } from "./kernel.ts";
import { platform } from "./platform.ts";

/** What a subgroup multiplies at a time: (rows, steps) x (steps, columns) of f16, summed in f32. */
export interface MatrixUnits {
  rows: number;
  columns: number;
  steps: number;
}

/** As GPUAdapterInfo.subgroupMatrixConfigs tells them. */
interface Config {
  componentType: string;
  resultType: string;
  M: number;
  N: number;
  K: number;
}

export const MATRIX_FEATURE = "chromium-experimental-subgroup-matrix";

/** A subgroup's part of shaders/matmul_matrices.wgsl, and the steps of k in its workgroup memory: what the sizes have to divide. */
const PART = 32;

/** The largest matrices of f16 summed in f32 that the kernel can use; undefined where there are none, or where it does not compile. */
export async function matrixUnits(
  info: GPUAdapterInfo,
  gpu: GPUDevice,
  lanes: number,
): Promise<MatrixUnits | undefined> {
  if (lanes === 0 || !gpu.features.has("shader-f16") || !gpu.features.has(MATRIX_FEATURE)) return undefined;
  const { subgroupMatrixConfigs = [] } = info as { subgroupMatrixConfigs?: Iterable<Config> };
  const units = [...subgroupMatrixConfigs]
    .filter(({ componentType, resultType }) => componentType === "f16" && resultType === "f32")
    .map(({ M, N, K }) => ({ rows: M, columns: N, steps: K }))
    .filter((sizes) => Object.values(sizes).every((size) => size % 4 === 0 && PART % size === 0))
    .toSorted((a, b) => b.rows * b.columns * b.steps - a.rows * a.columns * a.steps)[0];
  return units && (await compiles(gpu, units, lanes)) ? units : undefined;
}

/** The consts of shaders/matmul_matrices.wgsl. */
export function matrixConsts({ rows, columns, steps }: MatrixUnits, lanes: number): Record<string, number> {
  return { LANES: lanes, ROWS: rows, COLUMNS: columns, STEPS: steps };
}

async function compiles(gpu: GPUDevice, units: MatrixUnits, lanes: number): Promise<boolean> {
  const code = withConsts(platform().shader("matmul_matrices"), matrixConsts(units, lanes));
  gpu.pushErrorScope("validation");
  let problem: string | undefined;
  try {
    const module = gpu.createShaderModule({ label: "shaders/matmul_matrices.wgsl", code });
    await gpu.createComputePipelineAsync({ layout: "auto", compute: { module, entryPoint: "forward" } });
  } catch (error) {
    problem = String(error);
  }
  // What is wrong with the text says more than that no pipeline could be made of it.
  problem = (await gpu.popErrorScope())?.message ?? problem;
  if (problem !== undefined) log(`matrix units are left unused: ${problem}`);
  return problem === undefined;
}
