/** How a schema's settings say what they are for, where their defaults come from, and how a table of them is made from that. */
import { z } from "zod";
import { objectIn } from "./settings.ts";

/** Of a default: "paper" (as far as it is known), "reference" (Mask2Former, SAM, detectron2) or "ours" (the paper leaves the choice open). */
export type Origin = "paper" | "reference" | "ours";

/** @param absent what holds where a setting that has no default is not given */
export function option<T extends z.ZodType>(schema: T, origin: Origin, help: string, absent = "the preset's"): T {
  return schema.meta({ origin, help, absent });
}

export const section = <T extends z.ZodRawShape>(shape: T) => z.strictObject(shape).prefault({} as never);

export interface SettingDoc {
  key: string;
  /** Undefined where there is none. */
  default: unknown;
  /** What holds without the setting, where there is no default. */
  absent: string;
  origin: Origin;
  help: string;
}

type Meta = Pick<SettingDoc, "origin" | "help" | "absent">;

/** Every setting with its default, in the schema's order; those of one kind of a thing name the kind. Throws where one says nothing. */
export function settingsOf(schema: z.ZodObject, prefix = ""): SettingDoc[] {
  return Object.entries(schema.shape).flatMap(([name, entry]) => {
    const [field, key] = [entry as z.ZodType, prefix + name];
    const meta = field.meta() as Partial<Meta> | undefined;
    const inner = objectIn(field);
    if (meta?.help === undefined && inner !== undefined) return settingsOf(inner, `${key}.`);
    if (meta?.help === undefined) throw new Error(`the setting ${key} has no line of help; give it one with option()`);
    const { origin, help, absent } = meta as Meta;
    const { success: optional, data } = field.safeParse(undefined);
    return [
      { key, default: data, absent: optional ? absent : "none, must be given", origin, help },
      ...ofKinds(field, key),
    ];
  });
}

/** The settings of each kind where a setting is one of several kinds. */
function ofKinds(field: z.ZodType, key: string): SettingDoc[] {
  const union = field instanceof z.ZodOptional ? field.unwrap() : field;
  if (!(union instanceof z.ZodDiscriminatedUnion)) return [];
  return union.options.flatMap((kind) => {
    const { kind: name, ...shape } = (kind as z.ZodObject).shape as { kind: z.ZodLiteral } & z.ZodRawShape;
    const rows = settingsOf(z.strictObject(shape), `${key}.`);
    return rows.map((row) => ({ ...row, help: `kind ${name.value}: ${row.help}` }));
  });
}
