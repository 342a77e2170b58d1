/**
 * report.html of a run: losses, AP over time, precision over recall, AP of each class, who is taken for whom, pictures and settings in one
 * file.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type Config, configText } from "./config.ts";
import type { Category } from "./data/coco.ts";
import { jpegOf } from "./data/image.ts";
import type { Curve } from "./eval/coco-ap.ts";
import type { Confusion } from "./eval/confusion.ts";
import { writeWhole } from "./files.ts";
import { type Row, readGallery } from "./gallery.ts";
import { escapeHtml } from "./html.ts";
import { type Entry, isEvaluation, type LoggedEvaluation, type LoggedStep, readDiary } from "./metrics.ts";
import { barChart, type Line, lineChart, matrixChart } from "./plot.ts";

const TERMS = ["class", "prompt", "bce", "dice", "projection", "pairwise", "cam", "self"];
/** A page of 30 MB helps nobody. */
const MOST_PICTURES = 12;
/** In pixels: what the page shows of a picture. */
const WIDEST = 1120;

export interface ReportParts {
  config: Config;
  categories: readonly Category[];
  /** Sentences at the top: where the run started from, on which adapter it ran. */
  notes?: readonly string[];
}

/** What the last evaluation found besides its figures: details.json. */
export interface Details {
  step: number;
  /** What overlaps: masks or boxes. */
  iou: "segm" | "bbox";
  curves: Curve[];
  confusion: Confusion;
}

export async function writeDetails(
  run: string,
  step: number,
  { iou, curves, confusion }: Omit<Details, "step">,
): Promise<void> {
  await writeWhole(
    join(run, "details.json"),
    `${JSON.stringify({ step, iou, curves, confusion } satisfies Details)}\n`,
  );
}

function readDetails(run: string): Details | undefined {
  const path = join(run, "details.json");
  return existsSync(path) ? (JSON.parse(readFileSync(path, "utf8")) as Details) : undefined;
}

export async function writeReport(run: string, { config, categories, notes = [] }: ReportParts): Promise<void> {
  const details = readDetails(run);
  const entries = readDiary(run);
  const steps = entries.filter((entry: Entry): entry is LoggedStep => !isEvaluation(entry));
  const evaluations = entries.filter(isEvaluation);
  const parts = await Promise.all([
    `<h1>${escapeHtml(run)}</h1>`,
    ...notes.map((note) => `<p>${escapeHtml(note)}</p>`),
    summary(config, categories, steps, evaluations),
    `<h2>Losses</h2><p>Weighted terms, which add up to the loss; means over ${config.log.every} steps.</p><div class="row">`,
    lineChart(series(steps, ["loss"]), { title: "loss", x: "step" }),
    lineChart(series(steps, TERMS), { title: "terms", x: "step" }),
    "</div>",
    evaluations.length > 0 ? accuracy(evaluations, details) : "",
    stages(run),
    pictures(run),
    `<h2>Speed and memory</h2><div class="row">`,
    lineChart(series(steps, ["imagesPerSecond"]), { title: "images a second", x: "step" }),
    lineChart(
      [
        { name: "between steps", points: mebibytes(steps, "liveBytes") },
        { name: "at most, so far", points: mebibytes(steps, "highWaterBytes") },
      ],
      { title: "GPU memory of tensors, MiB", x: "step" },
    ),
    "</div>",
    `<h2>Settings</h2><details><summary>config.yaml</summary><pre>${escapeHtml(configText(config))}</pre></details>`,
  ]);
  await writeWhole(join(run, "report.html"), page(run, parts.join("\n")));
}

function summary(
  config: Config,
  categories: readonly Category[],
  steps: readonly LoggedStep[],
  evaluations: readonly LoggedEvaluation[],
): string {
  const last = evaluations.at(-1);
  const best = evaluations.reduce((a, b) => (b.evaluation.AP > a ? b.evaluation.AP : a), -1);
  const rows: [string, string][] = [
    ["mode", config.mode === "wish" ? "WISH, from weak labels" : "Mask2Former, from masks"],
    ["classes", categories.map((c) => c.name).join(", ")],
    ["steps", `${steps.at(-1)?.step ?? 0} of ${config.steps}, ${config.batch * config.accumulate} images each`],
  ];
  if (last) {
    const names = ["AP", "AP50", "AP75", "AR100"] as const;
    rows.push([`step ${last.step}`, names.map((name) => `${name} ${last.evaluation[name].toFixed(3)}`).join(" · ")]);
    rows.push(["best AP", best.toFixed(3)]);
  }
  return `<table>${rows.map(([name, value]) => `<tr><th>${escapeHtml(name)}</th><td>${escapeHtml(value)}</td></tr>`).join("")}</table>`;
}

/** Runs of earlier versions do not tell all of it. */
function mebibytes(steps: readonly LoggedStep[], name: string): [number, number][] {
  return steps.flatMap((s): [number, number][] => (s[name] === undefined ? [] : [[s.step, s[name] / 2 ** 20]]));
}

function series(steps: readonly LoggedStep[], names: readonly string[]): Line[] {
  return names.map((name) => ({
    name,
    points: steps.flatMap((s): [number, number][] => (s[name] === undefined ? [] : [[s.step, s[name]]])),
  }));
}

async function accuracy(evaluations: readonly LoggedEvaluation[], details: Details | undefined): Promise<string> {
  const charts = [overTime(evaluations, details), ...curves(details), perClass(evaluations), confusionOf(details)];
  return `<h2>Accuracy</h2><div class="row">${(await Promise.all(charts)).join("")}</div>`;
}

function overTime(evaluations: readonly LoggedEvaluation[], details: Details | undefined): Promise<string> {
  const lines = (["AP", "AP50", "AP75"] as const).map(
    (name): Line => ({ name, points: evaluations.map((e) => [e.step, Math.max(0, e.evaluation[name])]) }),
  );
  return lineChart(lines, { title: `COCO AP of ${details?.iou === "bbox" ? "boxes" : "masks"}`, x: "step", y: [0, 1] });
}

/** More lines than this cannot be told apart. */
const MOST_CURVES = 12;

function curves(details: Details | undefined): Promise<string>[] {
  if (!details) return [];
  return [0.5, 0.75].map((iou) => {
    const of = details.curves.filter((curve) => curve.iou === iou);
    const lines = (of.length > MOST_CURVES ? of.slice(0, 1) : of).map(
      (curve, i): Line => ({
        name: curve.name,
        // The first is of all classes.
        heavy: i === 0,
        points: Array.from(curve.recall, (r, i): [number, number] => [r, curve.precision[i]!]).filter(
          ([, p]) => p >= 0,
        ),
      }),
    );
    return lineChart(lines, { title: `precision over recall, IoU ${iou}`, x: "recall", y: [0, 1] });
  });
}

function perClass(evaluations: readonly LoggedEvaluation[]): Promise<string> {
  const { perClass } = evaluations.at(-1)!.evaluation;
  return barChart(
    Object.entries(perClass).map(([name, value]) => ({ name, value })),
    "AP of each class",
  );
}

function confusionOf(details: Details | undefined): Promise<string> | string {
  if (!details) return "";
  const { classes, counts, iou, score } = details.confusion;
  return matrixChart([...classes, "background"], counts, {
    title: `who is taken for whom, IoU ${iou}, score ${score}`,
    rows: "predicted classes",
    columns: "true classes",
  });
}

const SECTIONS: Readonly<Record<Row["section"], readonly [title: string, text: string]>> = {
  best: [
    "Best images",
    "Of the evaluation: truth, a weak label as it would have been given, CAM and peaks, SAM's answer to the label, prediction. Quality is panoptic quality.",
  ],
  worst: ["Worst images", "The same of those that came out worst."],
  training: [
    "Training images",
    "Weak label, CAM and peaks, SAM's answer to the label (to the peaks, where it is tags), prediction.",
  ],
};

function stages(run: string): string {
  const rows = readGallery(run);
  return Object.entries(SECTIONS)
    .map(([section, [title, text]]) => {
      const figures = rows
        .filter((row) => row.section === section)
        .map(({ caption, path, panels }) => {
          const source = `data:image/jpeg;base64,${readFileSync(path).toString("base64")}`;
          return `<figure><img alt="${escapeHtml(caption)}" style="width:${20 * panels}%" src="${source}"><p>${escapeHtml(caption)}</p></figure>`;
        });
      return figures.length > 0
        ? `<h2>${title}</h2><p>${escapeHtml(text)}</p><div class="stages">${figures.join("")}</div>`
        : "";
    })
    .join("");
}

async function pictures(run: string): Promise<string> {
  const folder = join(run, "pictures");
  if (!existsSync(folder)) return "";
  const names = readdirSync(folder)
    .filter((name) => name.endsWith(".png") && name !== "sheet.png")
    .sort()
    .slice(0, MOST_PICTURES);
  const images = await Promise.all(
    names.map(async (name) => {
      const source = Buffer.from(await jpegOf(join(folder, name), WIDEST)).toString("base64");
      return `<img alt="${escapeHtml(name)}" src="data:image/jpeg;base64,${source}">`;
    }),
  );
  return images.length > 0
    ? `<h2>Pictures</h2><p>Truth on the left, prediction on the right.</p><div class="pictures">${images.join("")}</div>`
    : "";
}

function page(title: string, body: string): string {
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${escapeHtml(title)}</title><style>
:root{color-scheme:light dark;--line:#8884}body{font:15px/1.5 system-ui,sans-serif;max-width:1120px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse}th{text-align:left;padding:.15rem 1rem .15rem 0;font-weight:600}
.row{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;flex:1 1 480px;max-width:560px}svg{width:100%;height:auto}
.pictures{display:flex;flex-wrap:wrap;gap:.6rem}.pictures img{max-width:max(300px,calc(50% - .3rem));border:1px solid var(--line)}.stages{width:min(96vw,2000px);position:relative;left:50%;transform:translateX(-50%)}.stages figure{max-width:none;margin:0 0 .8rem}.stages img{border:1px solid var(--line)}.stages p{margin:.1rem 0;font-size:12px}pre{overflow:auto;font-size:12px}
</style></head><body>
${body}
</body></html>
`;
}
