/** A study's results as Markdown and as a page: mean and spread over the seeds, beside what the paper tells. */
import type { Figure } from "./eval/coco-ap.ts";
import { escapeHtml } from "./html.ts";
import type { Arm } from "./study-arms.ts";

export interface Row extends Pick<Arm, "name" | "title" | "group"> {
  /** COCO's figures of each seed, 0 to 1. */
  runs: Record<Figure, number>[];
}

/** AP on VOC 2012 val, where it is known. */
const PAPER: Record<string, string> = {
  tags: "46.0",
  points: "52.4",
  boxes: "54.6",
  masks: "54.8",
  "budget-tags": "46.0",
  "budget-boxes": "45.1",
  "budget-tags-boxes": "48.3",
  "boxes-b": "more than 3 below",
  "mixed-b": "more than 3 below",
};

const GROUPS: Record<Arm["group"], string> = {
  kinds: "One kind of label for all images",
  budget: "Equal labelling budget",
  ablations: "A third of the images with each kind, and what WISH is made of",
  others: "Other ways, the same network",
};

const SHOWN: readonly Figure[] = ["AP", "AP50", "AP75"];

/** Mean and, of several, the sample standard deviation, in points of 100. */
export function meanAndSpread(values: readonly number[]): string {
  if (values.length === 0) return "-";
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  if (values.length === 1) return (100 * mean).toFixed(1);
  const spread = Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / (values.length - 1));
  return `${(100 * mean).toFixed(1)} ± ${(100 * spread).toFixed(1)}`;
}

const HEAD = ["training", ...SHOWN, "seeds", "AP in the paper (VOC 2012)"];

function cells({ name, title, runs }: Row): string[] {
  const figures = SHOWN.map((figure) => meanAndSpread(runs.map((run) => run[figure])));
  return [title, ...figures, String(runs.length), PAPER[name] ?? ""];
}

function grouped(rows: readonly Row[]): [string, Row[]][] {
  return Object.entries(GROUPS).flatMap(([group, title]): [string, Row[]][] => {
    const own = rows.filter((row) => row.group === group);
    return own.length > 0 ? [[title, own]] : [];
  });
}

/** @param about what all runs share */
export function studyMarkdown(rows: readonly Row[], about: string): string {
  const line = (parts: readonly string[]): string =>
    `| ${parts.map((part) => part.replaceAll("|", "\\|")).join(" | ")} |`;
  const tables = grouped(rows).flatMap(([title, own]) => [
    "",
    `## ${title}`,
    "",
    line(HEAD),
    line(HEAD.map(() => "---")),
    ...own.map((row) => line(cells(row))),
  ]);
  return ["# Study", "", `${about}. Mean and standard deviation over the seeds.`, ...tables, ""].join("\n");
}

export function studyPage(rows: readonly Row[], about: string): string {
  const row = (tag: string, parts: readonly string[]): string =>
    `<tr>${parts.map((part) => `<${tag}>${escapeHtml(part)}</${tag}>`).join("")}</tr>`;
  const tables = grouped(rows).map(
    ([title, own]) =>
      `<h2>${escapeHtml(title)}</h2><table>${row("th", HEAD)}${own.map((each) => row("td", cells(each))).join("")}</table>`,
  );
  const style =
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse}td,th{padding:.25rem .75rem;border-bottom:1px solid #ddd;text-align:left}";
  return `<!doctype html><html lang="en"><meta charset="utf-8"><title>Study</title><style>${style}</style><h1>Study</h1><p>${escapeHtml(about)}. Mean and standard deviation over the seeds.</p>${tables.join("")}</html>\n`;
}
