// Weights of pre-trained backbones, in the files of those who train classifiers.
import { scope } from "../engine/index.ts";
import type { Backbone } from "./backbone.ts";
import { MobileNetV2 } from "./mobilenet.ts";
import { SwinTransformer } from "./swin.ts";
import { backboneTables, RESNET_NAMES, SWIN_NAMES } from "./weights/backbone-names.ts";
import { listKeys } from "./weights/compare.ts";
import { foldedMobileNet, mobileNetNaming } from "./weights/mobilenet-folding.ts";
import { loadNamed, nameKeys, type Rule, type Source, shapesOf } from "./weights/renaming.ts";
import { refuseOtherBottlenecks } from "./weights/resnet-shapes.ts";
import { CheckpointError } from "./weights/tensors.ts";
import { bareKey, isUnused } from "./weights/wrappers.ts";

const NUMBERED = /^00\.conv\./;

/** A classifier has no norm for each of a Swin's outputs: they stay as they are. */
const OPTIONAL = /^norm[0-3]\./;

/** Of the backbone's tensors; other networks share a name or two, such as bn1. */
const LEAST_KNOWN = 0.1;

function nameOf(backbone: Backbone): string {
  if (backbone instanceof SwinTransformer) return "Swin";
  return backbone instanceof MobileNetV2 ? "MobileNetV2" : "ResNet";
}

/**
 * Loads pre-trained weights into a backbone: detectron2's, torchvision's, timm's or transformers' names for ResNet and Swin, Microsoft's for
 * Swin, torchvision's, timm's, transformers' or numbered layers for MobileNetV2; a prefix such as `backbone.` and classifiers are left out.
 * Throws a line that names what is missing, unexpected or misshaped, by the file's own keys.
 */
export function loadBackbone(backbone: Backbone, state: ReadonlyMap<string, Source>): void {
  if (backbone instanceof MobileNetV2) loadMobileNet(backbone, state);
  else loadAs(backbone, state, backbone instanceof SwinTransformer ? SWIN_NAMES : RESNET_NAMES);
}

function loadAs(backbone: Backbone, state: ReadonlyMap<string, Source>, libraries: readonly (readonly Rule[])[]): void {
  const keys = [...state.keys()].filter((key) => !isUnused(key));
  const own = backbone.stateDict();
  const named = nameKeys(keys, backboneTables(keys, libraries), (name) => own.has(name));
  const known = [...own.keys()].filter((name) => named.parts.has(name)).length;
  if (known < own.size * LEAST_KNOWN)
    throw new CheckpointError(`holds no ${nameOf(backbone)}, which the model has: its keys are ${listKeys(keys)}`);
  if (libraries === RESNET_NAMES) refuseOtherBottlenecks(shapesOf(named, state));
  loadNamed(backbone, named, state, { what: "backbone", optional: OPTIONAL });
}

/** torchvision's and timm's networks pad and normalise as PyTorch's do, transformers' and those with numbered layers as TensorFlow's. */
function loadMobileNet(backbone: MobileNetV2, state: ReadonlyMap<string, Source>): void {
  const found = mobileNetNaming(new Set(state.keys()));
  const numbered = [...state.keys()].some((key) => NUMBERED.test(bareKey(key)));
  const origin = found ? found.naming.origin : numbered ? "tensorflow" : backbone.origin;
  if (found && backbone.norm !== "folded")
    throw new CheckpointError(
      `the backbone's norm is ${backbone.norm}, which pre-trained MobileNetV2s do not fit; give model.backbone={kind: mobilenetV2, norm: folded, origin: ${origin}}`,
    );
  if (origin !== backbone.origin)
    throw new CheckpointError(
      `the backbone's origin is ${backbone.origin}, the weights are ${origin}'s, which pad and normalise otherwise; give model.backbone={kind: mobilenetV2, origin: ${origin}}`,
    );
  scope(() => {
    const own = backbone.stateDict();
    const gpu = own.values().next().value!.device;
    loadAs(backbone, found ? foldedMobileNet(gpu, found, state, own) : state, []);
  });
}
