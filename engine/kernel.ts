/**
 * From a shader's name to a dispatch. Bindings are given by name and looked up in the WGSL text; uniforms are given by field name and laid
 * out after the text's `struct Params`. Nothing here knows what a kernel computes.
 */
import { log } from "./debug.ts";
import type { Device } from "./device.ts";
import { platform } from "./platform.ts";
import { type Storage, settleReaders } from "./pool.ts";
import type { Shape } from "./shape.ts";
import type { DType } from "./tensor.ts";

export type Params = Record<string, number | readonly number[]>;

/** What a kernel can read or write: a tensor, or a buffer that is none yet. */
export interface Bound {
  readonly storage: Storage;
  readonly shape: Shape;
  readonly size: number;
  readonly dtype: DType;
  readonly freed: boolean;
}

export interface Dispatch {
  bind: Record<string, Bound>;
  /** As a function they are asked for again at every replay of a recorded step. */
  params?: Params | (() => Params);
  /** `override` constants: every combination is a pipeline of its own, so structural switches only. */
  constants?: Record<string, number>;
  /** For shaders that spell out the lanes of a subgroup: see `forLanes`. */
  lanes?: Lanes | undefined;
  /** See `withConsts`. */
  consts?: Record<string, number> | undefined;
  /** For shaders whose workgroup memory may hold f16: see `forHalves`. */
  halves?: boolean;
  groups: readonly number[];
  /** Floating-point operations, for the figures of the profiler. */
  flops?: number;
}

/** How a shader uses a subgroup: as `tiles` parts of `lanes` each; parts are quads. */
export interface Lanes {
  lanes: number;
  tiles: number;
}

interface Field {
  name: string;
  offset: number;
  kind: "u32" | "i32" | "f32";
  count: number;
}

interface Shader {
  module: GPUShaderModule;
  bindings: Map<string, { binding: number; writes: boolean }>;
  fields: Field[];
  size: number;
}

interface Pipeline {
  pipeline: GPUComputePipeline;
  layout: GPUBindGroupLayout;
  shader: Shader;
  id: number;
}

const MAX_BIND_GROUPS = 16384;
const LANES: Record<string, number> = { vec2: 2, vec3: 3, vec4: 4 };
const KINDS = { u: "u32", i: "i32", f: "f32" } as const;

function parseParams(source: string, name: string): { fields: Field[]; size: number } {
  const body = source.match(/struct Params\s*\{([^}]*)\}/)?.[1];
  if (body === undefined) return { fields: [], size: 0 };
  const fields: Field[] = [];
  let offset = 0;
  for (const line of body.replace(/\/\/[^\n]*/g, "").split(/,(?![^<]*>)/)) {
    const text = line.trim();
    if (!text) continue;
    const match = text.match(/^(\w+)\s*:\s*(?:(u32|i32|f32)|(vec[234])([uif])|array<vec4([uif]),\s*(\d+)u?>)$/);
    if (!match)
      throw new Error(`shaders/${name}.wgsl: Params field "${text}" is of a type that uniforms do not take here`);
    const [, field, scalar, vector, vectorKind, arrayKind, arrayCount] = match;
    const lanes = scalar ? 1 : vector ? LANES[vector]! : 4;
    const align = lanes === 1 ? 4 : lanes === 2 ? 8 : 16;
    const count = arrayCount ? Number(arrayCount) * 4 : lanes;
    offset = Math.ceil(offset / align) * align;
    const kind = (scalar as Field["kind"] | undefined) ?? KINDS[(vectorKind ?? arrayKind) as keyof typeof KINDS];
    fields.push({ name: field!, offset, kind, count });
    offset += count * 4;
  }
  return { fields, size: Math.ceil(offset / 16) * 16 };
}

const parsed = new Map<string, { bindings: Shader["bindings"]; fields: Field[]; size: number }>();

/**
 * What WGSL cannot say: subgroupBroadcast takes a constant lane, and there is no repetition of text. `const LANES = 1u` becomes the number of
 * lanes, and what stands between `// <lane>` and `// </lane>`, written for lane `0u`, stands there once for each. `const TILES = 1u` becomes the
 * number of quads, where a subgroup is several: then each lane asks those of its own quad.
 */
function forLanes(source: string, { lanes, tiles }: Lanes): string {
  const text = withConsts(source, { LANES: lanes, TILES: tiles }).replace(
    / *\/\/ <lane>\n([\s\S]*?) *\/\/ <\/lane>\n/g,
    (_, text: string) => Array.from({ length: lanes }, (_, lane) => text.replaceAll(/\b0u\b/g, `${lane}u`)).join(""),
  );
  return tiles === 1 ? text : text.replaceAll("subgroupBroadcast(", "quadBroadcast(");
}

/** Sets `const NAME = 1u` in a shader's text: types, and what goes into them, take no `override`. */
export function withConsts(source: string, consts: Record<string, number>): string {
  let text = source;
  for (const [name, value] of Object.entries(consts))
    text = text.replace(new RegExp(`const ${name} = \\d+u;`), `const ${name} = ${value}u;`);
  return text;
}

/** An `override` is no type: `alias Four = vec4f` becomes a vector of f16. Needs the adapter's shader-f16. */
function forHalves(source: string): string {
  return `enable f16;\n${source.replace("alias Four = vec4f;", "alias Four = vec4<f16>;")}`;
}

function compile(device: Device, name: string, source: string): Shader {
  let facts = parsed.get(name);
  if (!facts) {
    const bindings: Shader["bindings"] = new Map();
    for (const match of source.matchAll(/@group\(0\)\s*@binding\((\d+)\)\s*var<storage(?:,\s*(\w+))?>\s*(\w+)\s*:/g))
      bindings.set(match[3]!, { binding: Number(match[1]), writes: match[2] === "read_write" });
    facts = { bindings, ...parseParams(source, name) };
    if (facts.size > device.uniformSlot)
      throw new Error(`shaders/${name}.wgsl: Params may have ${device.uniformSlot} bytes; it has ${facts.size}`);
    parsed.set(name, facts);
  }
  return { module: device.gpu.createShaderModule({ label: `shaders/${name}.wgsl`, code: source }), ...facts };
}

/** Shader text made elsewhere (the pointwise table) under a name of its own. */
const sources = new Map<string, string>();

export function defineSource(name: string, source: () => string): void {
  if (!sources.has(name)) sources.set(name, source());
}

function pipelineFor(device: Device, name: string, entry: string, call: Dispatch): Pipeline {
  const names = Object.keys(call.bind);
  const constants = call.constants ?? {};
  const { lanes, consts, halves } = call;
  const own = lanes
    ? ` of ${lanes.tiles} x ${lanes.lanes} lanes`
    : consts
      ? ` of ${Object.values(consts).join(" x ")}`
      : halves
        ? " in f16"
        : "";
  const shaderName = name + own;
  const key = `${shaderName}/${entry}|${names.join()}|${Object.entries(constants).join()}`;
  const known = device.cache.pipelines.get(key) as Pipeline | undefined;
  if (known) return known;

  const shaderKey = `module ${shaderName}`;
  let shader = device.cache.pipelines.get(shaderKey) as Shader | undefined;
  if (!shader) {
    const text = sources.get(name) ?? platform().shader(name);
    const special = lanes ? forLanes(text, lanes) : consts ? withConsts(text, consts) : halves ? forHalves(text) : text;
    shader = compile(device, name, special);
    device.cache.pipelines.set(shaderKey, shader);
  }
  const label = `${name}/${entry}`;
  const entries: GPUBindGroupLayoutEntry[] = names.map((n) => {
    const found = shader.bindings.get(n);
    if (!found)
      throw new Error(
        `${label}: the shader has no binding named "${n}"; it has ${[...shader.bindings.keys()].join(", ")}`,
      );
    return {
      binding: found.binding,
      visibility: GPUShaderStage.COMPUTE,
      buffer: { type: found.writes ? "storage" : "read-only-storage" },
    };
  });
  if (call.params)
    entries.push({
      binding: 0,
      visibility: GPUShaderStage.COMPUTE,
      buffer: { type: "uniform", hasDynamicOffset: true, minBindingSize: shader.size },
    });
  const layout = device.gpu.createBindGroupLayout({ label, entries });
  if (device.debug >= 1) log(`pipeline: ${key}`);
  const pipeline = device.gpu.createComputePipeline({
    label,
    layout: device.gpu.createPipelineLayout({ label, bindGroupLayouts: [layout] }),
    compute: { module: shader.module, entryPoint: entry, constants },
  });
  const made = { pipeline, layout, shader, id: device.cache.pipelines.size };
  device.cache.pipelines.set(key, made);
  return made;
}

function writeParams(view: DataView, base: number, label: string, fields: Field[], params: Params): void {
  for (const field of fields) {
    const value = params[field.name];
    if (value === undefined) throw new Error(`${label}: parameter "${field.name}" is missing`);
    const values = typeof value === "number" ? [value] : value;
    if (values.length > field.count)
      throw new Error(`${label}: parameter "${field.name}" takes ${field.count} numbers; got ${values.length}`);
    for (let i = 0; i < field.count; i++) {
      const v = values[i] ?? 0;
      const at = base + field.offset + i * 4;
      if (field.kind === "f32") view.setFloat32(at, v, true);
      else if (field.kind === "i32") view.setInt32(at, v, true);
      else view.setUint32(at, v, true);
    }
  }
}

/**
 * Dispatches `entry` of `shaders/<name>.wgsl`. `bind` names exactly the storage bindings that the entry uses, `params` the fields of
 * its `struct Params` (binding 0), `groups` the workgroups in x, y and z.
 */
export function run(device: Device, name: string, entry: string, call: Dispatch): void {
  if (call.groups.some((n) => n === 0)) return;
  const label = `${name}/${entry}`;
  if (call.groups.some((n) => n > 65535 || !Number.isInteger(n)))
    throw new Error(`${label}: at most 65535 workgroups a dimension; got ${call.groups.join(" x ")}`);
  const made = pipelineFor(device, name, entry, call);
  const { pipeline, shader, id } = made;
  let key = String(id);
  for (const n in call.bind) {
    const x = call.bind[n]!;
    if (x.freed)
      throw new Error(`${label}: ${n} was freed, by free or when its scope ended; return it from the scope to keep it`);
    // Asking for its buffer may run the kernels that have still to fill it.
    const { storage } = x;
    if (storage.gpu !== device.gpu) throw new Error(`${label}: ${n} lives on another device than the other operands`);
    if (storage.readers?.size && shader.bindings.get(n)!.writes) settleReaders(storage);
    key += `,${storage.id}`;
  }
  // The slot comes first: taking it may submit the batch, and the marks below belong to the batch that uses them.
  const slot = call.params ? device.uniformOffset() : undefined;
  const write = (view: DataView, at: number): void => {
    const { params } = call;
    writeParams(view, at, label, shader.fields, typeof params === "function" ? params() : params!);
  };
  if (slot) write(slot.view, slot.offset);
  let group = device.cache.bindGroups.get(key);
  if (!group) {
    for (const [n, x] of Object.entries(call.bind))
      if (shader.bindings.get(n)!.writes)
        for (const [other, z] of Object.entries(call.bind))
          if (other !== n && z.storage === x.storage)
            throw new Error(
              `${label}: ${n} is written and shares its memory with ${other}; give the kernel a buffer of its own to write to`,
            );
    group = bindGroup(device, label, made, call, device.uniforms);
    if (device.cache.bindGroups.size >= MAX_BIND_GROUPS) device.cache.bindGroups.clear();
    device.cache.bindGroups.set(key, group);
  }
  for (const n in call.bind) {
    const { storage } = call.bind[n]!;
    storage.lastBatch = device.batch;
    if (shader.bindings.get(n)!.writes) storage.version++;
  }
  device.recorder?.dispatch({
    label,
    call,
    pipeline,
    group: (uniforms) => bindGroup(device, label, made, call, uniforms),
    write: slot && write,
  });
  const pass = device.pass(label, call);
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, group, slot ? [slot.offset] : []);
  pass.dispatchWorkgroups(call.groups[0]!, call.groups[1] ?? 1, call.groups[2] ?? 1);
  device.dispatched(label, call.bind, () =>
    Object.entries(call.bind).flatMap(([n, x]) => (shader.bindings.get(n)!.writes ? [x] : [])),
  );
}

function bindGroup(
  device: Device,
  label: string,
  { layout, shader }: Pipeline,
  call: Pick<Dispatch, "bind" | "params">,
  uniforms: GPUBuffer,
): GPUBindGroup {
  const entries: GPUBindGroupEntry[] = [];
  for (const n in call.bind)
    entries.push({ binding: shader.bindings.get(n)!.binding, resource: { buffer: call.bind[n]!.storage.buffer } });
  if (call.params) entries.push({ binding: 0, resource: { buffer: uniforms, size: shader.size } });
  return device.gpu.createBindGroup({ label, layout, entries });
}

/** Workgroups for `n` pieces of work in a near-square grid; in WGSL the index is `group.x + group.y * num_groups.x`, which may pass n. */
export function linearGroups(n: number): [number, number] {
  if (n <= 65535) return [n, 1];
  const x = Math.ceil(Math.sqrt(n));
  return [x, Math.ceil(n / x)];
}
