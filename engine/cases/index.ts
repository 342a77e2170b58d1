import { attentionCases } from "./attention.ts";
import type { Cases } from "./case.ts";
import { convCases } from "./conv.ts";
import { gatherCases } from "./gather.ts";
import { lossCases } from "./loss.ts";
import { movementCases } from "./movement.ts";
import { normCases } from "./norm.ts";
import { pointwiseCases } from "./pointwise.ts";
import { matmulCases, reduceCases } from "./reduce.ts";
import { sampleCases } from "./sample.ts";
import { selectCases } from "./select.ts";
import { softmaxCases } from "./softmax.ts";

/** Every differentiable function of F, by name. */
export const cases: Cases = {
  ...pointwiseCases,
  ...reduceCases,
  ...matmulCases,
  ...movementCases,
  ...softmaxCases,
  ...sampleCases,
  ...attentionCases,
  ...gatherCases,
  ...lossCases,
  ...selectCases,
  ...normCases,
  ...convCases,
};
