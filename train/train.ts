/** Training as a whole: what a run needs is read and made, and the run goes to its end. */
import type { Device } from "../engine/index.ts";
import { bindable } from "./binding.ts";
import { type Checkpoint, latestCheckpoint, newestCheckpoint } from "./checkpoint.ts";
import { type Claim, claimRun, makeWritable } from "./claim.ts";
import type { Config } from "./config.ts";
import type { Display } from "./display.ts";
import { BadInput } from "./errors.ts";
import { removeEmpty } from "./folders.ts";
import { checkImages, checkResumed, readData, type TrainData } from "./inputs.ts";
import { prepare } from "./prepare.ts";
import { Run, type RunOptions, type TrainResult } from "./run.ts";

export interface TrainOptions extends RunOptions {
  /** Go on from the run's last checkpoint. */
  resume?: boolean;
  /** The configuration's file, for the errors. */
  file?: string;
  /** The run's folder, where the caller holds it already. */
  claim?: Claim;
}

/** Trains a configuration to its end, an interruption, or until `enough`. The model has been evaluated where the config names data for it. */
export async function train(gpu: Device, config: Config, options: TrainOptions): Promise<TrainResult> {
  const data = readData(config, options.file);
  await lookAt(data, config, options.display);
  const claim = options.claim ?? claimRun(config.run);
  let made: string[] = [];
  try {
    if (config.sam.cache) made = makeWritable(config.sam.cache, "sam.cache=DIR");
    return await trainClaimed(gpu, config, data, options);
  } finally {
    removeEmpty(made);
    if (!options.claim) claim.release();
  }
}

/** Looking at fewer images takes no time worth a bar. */
const MANY = 2000;

async function lookAt(data: TrainData, config: Config, display: Display): Promise<void> {
  let bar: ReturnType<Display["progress"]> | undefined;
  await checkImages(data, config, (done, total) => {
    if (total >= MANY) (bar ??= display.progress(total, "img")).update(done, { read: "headers" });
  });
  bar?.end();
}

async function trainClaimed(gpu: Device, config: Config, data: TrainData, options: TrainOptions): Promise<TrainResult> {
  gpu.resetHighWater();
  const previous = await previousState(config, options);
  const prepared = await prepare(gpu, config, data, options);
  try {
    const run = await Run.open({ ...prepared, data, options }, previous);
    return await bindable(
      gpu,
      () => run.finish(),
      (tensor) =>
        `${config.run}: the images at hand take ${tensor}; make data.width and data.height, or val.short, smaller and go on with --resume, or start another run with a smaller batch`,
    );
  } finally {
    prepared.loader.close();
  }
}

/** The checkpoint to go on from, where the user asks for that; else the folder must hold none. Throws BadInput. */
async function previousState(config: Config, { display, resume, file }: TrainOptions): Promise<Checkpoint | undefined> {
  const { run } = config;
  if (!resume) {
    if (latestCheckpoint(run))
      throw new BadInput(`${run}: already holds a run; give --resume to go on, or another folder with run=DIR`);
    return undefined;
  }
  const previous = await newestCheckpoint(run, (line) => display.warn(line));
  if (previous) {
    const told = checkResumed(previous.config, Number(previous.state.step), config, file ?? "config");
    if (told) display.log(told);
  } else display.log(`${run}: no checkpoint yet, starting from the beginning`);
  return previous;
}
