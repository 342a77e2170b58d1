/**
 * Training parts as a library: data, weak labels, matching, losses, the loop, metrics. Runs in Node (files, images); importing it
 * hands Node's GPU and files to the engine, as "wgpu-wish" does.
 */
import "../index.ts";

export { camLoss, findPeaks, type Peak, type PeakOptions, selfLoss } from "./cam.ts";
export {
  bestCheckpoint,
  latestCheckpoint,
  loadCheckpoint,
  readWeights,
  saveCheckpoint,
  saveWeights,
} from "./checkpoint.ts";
export { type Config, configText, readConfig, resolveConfig, type SettingDoc, settings } from "./config.ts";
export { type SegmentationLosses, type SegmentationOptions, samplePoints, segmentationLosses } from "./criterion.ts";
export { type Instances, instanceRuns, readInstances } from "./data/coco.ts";
export { type Image, readImage, resizeImage, writeMaskPng, writePng } from "./data/image.ts";
export { instancesDocument, type Labelled } from "./data/labelled.ts";
export {
  areaOfRuns,
  boxOfRuns,
  encodeMask,
  iouOfRuns,
  maskOfRuns,
  type Rle,
  type Runs,
  rleOfRuns,
  runsOfMask,
  runsOfRle,
} from "./data/mask.ts";
export { ownWeakLabels } from "./data/own-labels.ts";
export { makeScene, type Scene, sceneCategories, writeScenes } from "./data/scenes.ts";
export { readSource, type SourceOptions } from "./data/sources.ts";
export { readWeak, type WeakenOptions, type WeakLabels, weaken, writeWeak } from "./data/weak.ts";
export { BadInput } from "./errors.ts";
export { type EvaluateOptions, evaluate, type Metrics } from "./eval/coco-ap.ts";
export { type Confusion, type Judgement, judge } from "./eval/confusion.ts";
export { type Result, readResults, resultsDocument } from "./eval/results.ts";
export { evaluateVoc, type VocMetrics } from "./eval/voc.ts";
export { type Evaluation, type EvaluationOptions, evaluateModel, type InferenceOptions, segment } from "./evaluate.ts";
export { assign } from "./hungarian.ts";
export { type MatchOptions, match, type Pair, stackLayers } from "./matching.ts";
export { loadRun, loadTrained, modelConfig, newModel, type Trained } from "./models.ts";
export { drawOverlay, type Overlay } from "./pictures.ts";
export type { TrainResult } from "./run.ts";
export { trainSam } from "./sam/train.ts";
export { lossTerms, NotFinite, type Trainer, trainStep } from "./step.ts";
export { type ImageTargets, type Prompt, type Target, uploadTargets } from "./targets.ts";
export { loadTeacher, Teacher, type TeacherOptions } from "./teacher.ts";
export { type TrainOptions, train } from "./train.ts";
