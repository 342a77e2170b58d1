/** configs/README.md: the settings of every command that takes a config, from their schemas. */
import { settings } from "./config.ts";
import { type SettingDoc, settingsOf } from "./options.ts";
import { samTrainSchema } from "./sam/config.ts";
import { studySchema } from "./study.ts";

const INTRODUCTION = `# Settings of \`wgpu-wish train\`, \`study\` and \`sam-train\`

A YAML file holds those that differ from the defaults; \`key=value\` on the command line changes single ones, in YAML's notation
(\`optim.lr=1e-4 "data.scale=[0.5, 2]"\`). \`extends: OTHER.yaml\` takes another file's settings, for all that a file does not set itself. An unknown key is an error that names the nearest one. The resolved settings are saved as
\`config.yaml\` in the run's folder. Paths are relative to the working folder; \`assets/…\` is also looked up in the package.

Origin of a default: **paper** as far as it is known, **reference** Mask2Former, SAM or detectron2, **ours** where the paper leaves the
choice open. This page is written by \`node --import tsx scripts/settings.ts\`.
`;

export function settingsPage(): string {
  return [
    INTRODUCTION,
    "## `wgpu-wish train`\n",
    ...tableOf(settings()),
    "\n## `wgpu-wish study`\n",
    ...tableOf(settingsOf(studySchema)),
    "\n## `wgpu-wish sam-train`\n",
    ...tableOf(settingsOf(samTrainSchema)),
    "",
  ].join("\n");
}

function tableOf(rows: readonly SettingDoc[]): string[] {
  const cell = (text: string): string => text.replaceAll("|", "\\|");
  const shown = (row: SettingDoc): string =>
    row.default === undefined ? row.absent : `\`${JSON.stringify(row.default)}\``;
  return [
    "| setting | default | origin | meaning |",
    "| --- | --- | --- | --- |",
    ...rows.map((row) => `| \`${row.key}\` | ${cell(shown(row))} | ${row.origin} | ${cell(row.help)} |`),
  ];
}
