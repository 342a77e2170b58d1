// conv2d.wgsl for adapters whose subgroups have LANES lanes, 4 or 8; the mathematics, the packing and the grid stand there. A subgroup owns 8
// pixels in forward, 8 k in weight, and one panel of 4 LANES output channels, a lane 4 of these. Each lane loads one value a pixel (or k) for
// the whole subgroup, so that LANES steps of the sum cost 8 scalar loads of x and LANES vector loads of packed: on software adapters loads,
// not arithmetic, take the time. subgroupBroadcast takes a constant lane: engine/kernel.ts repeats what stands between <lane> and </lane>,
// written for lane 0u, for every lane there is.
// For few channels a subgroup of 8 lanes can be TILES = 2 quads, each with LANES = 4 and with pixels (or k) of its own, for all of which
// everything else is the same; engine/kernel.ts then makes every subgroupBroadcast a quadBroadcast.
enable subgroups;

const LANES = 1u;
const TILES = 1u;

struct Params {
  batch: u32,
  groups: u32,
  ci: u32,
  co: u32,
  panels: u32,
  rows: u32,
  in_h: u32,
  in_w: u32,
  grid_h: u32,
  grid_w: u32,
  step_y: u32,
  step_x: u32,
  out_h: u32,
  out_w: u32,
  out_step_y: u32,
  out_step_x: u32,
  out_y: u32,
  out_x: u32,
  has_bias: u32,
  split: u32,    // pixels of a split
  splits: u32,
  filled: u32,   // all pixels, filled up
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> packed: array<vec4f>;
@group(0) @binding(3) var<storage, read> table: array<i32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
@group(0) @binding(7) var<storage, read_write> y4: array<vec4f>;  // y by fours, written instead of y where QUADS
@group(0) @binding(6) var<storage, read_write> parts: array<vec4f>;
@group(0) @binding(8) var<storage, read> rest: array<f32>;
@group(0) @binding(9) var<storage, read> rest4: array<vec4f>;

/// Where pixel p of group g stands: (its window's start in x, its place in the first channel of y).
fn locate(p: u32, g: u32) -> vec2u {
  let grid = params.grid_h * params.grid_w;
  let image = p / grid;
  let r = (p - image * grid) / params.grid_w;
  let q = p - image * grid - r * params.grid_w;
  let plane = image * params.groups + g;
  let at = (plane * params.ci * params.in_h + r * params.step_y) * params.in_w + q * params.step_x;
  let row = plane * params.co * params.out_h + r * params.out_step_y + params.out_y;
  return vec2u(at, row * params.out_w + q * params.out_step_x + params.out_x);
}

// `rest`, in the order of y, is added before the activation.
override REST: bool = false;
// Four pixels in a row stand together in y, too: y4 is written. Chosen for the pipeline: it is half of what a compiler has to do.
override QUADS: bool = false;

/// The activation: engine/epilogue.ts puts it in the place of what stands here.
fn finish(v: vec4f) -> vec4f {
  // <finish>
  return v;
  // </finish>
}

/// Four output channels of one pixel, as many as there are.
fn store(to: u32, c: u32, sum: vec4f) {
  let plane = params.out_h * params.out_w;
  let places = to + min(c + vec4u(0u, 1u, 2u, 3u), vec4u(params.co - 1u)) * plane;
  var v = sum;
  if (REST) {
    v += vec4f(rest[places.x], rest[places.y], rest[places.z], rest[places.w]);
  }
  v = finish(v);
  y[places.x] = v.x;
  if (c + 1u < params.co) {
    y[places.y] = v.y;
  }
  if (c + 2u < params.co) {
    y[places.z] = v.z;
  }
  if (c + 3u < params.co) {
    y[places.w] = v.w;
  }
}

fn bias_of(g: u32, c: u32) -> vec4f {
  var add = vec4f();
  if (params.has_bias == 1u) {
    for (var j = 0u; j < min(4u, params.co - c); j++) {
      add[j] = bias[g * params.co + c + j];
    }
  }
  return add;
}

/// Four output channels of four pixels that stand together.
fn store_quad(to: u32, c: u32, v0: vec4f, v1: vec4f, v2: vec4f, v3: vec4f) {
  let plane = params.out_h * params.out_w / 4u;
  let at = to / 4u + c * plane;
  store_four(at, vec4f(v0.x, v1.x, v2.x, v3.x));
  if (c + 1u < params.co) {
    store_four(at + plane, vec4f(v0.y, v1.y, v2.y, v3.y));
  }
  if (c + 2u < params.co) {
    store_four(at + 2u * plane, vec4f(v0.z, v1.z, v2.z, v3.z));
  }
  if (c + 3u < params.co) {
    store_four(at + 3u * plane, vec4f(v0.w, v1.w, v2.w, v3.w));
  }
}

fn store_four(at: u32, sum: vec4f) {
  var v = sum;
  if (REST) {
    v += rest4[at];
  }
  y4[at] = finish(v);
}

@compute @workgroup_size(LANES * TILES)
fn forward(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(subgroup_invocation_id) invocation: u32,
) {
  let index = group.x + group.y * groups.x;
  let pixels = params.batch * params.grid_h * params.grid_w;
  let tiles = (pixels + 7u) / 8u;
  let bundles = (tiles + TILES - 1u) / TILES;
  if (index >= bundles * params.panels * params.groups) {
    return;
  }
  let panel = index / bundles;
  let g = panel / params.panels;
  let lane = invocation % LANES;
  let first = ((index - panel * bundles) * TILES + invocation / LANES) * 8u;
  var at = panel * params.rows * LANES + lane;
  let place0 = locate(min(first + lane, pixels - 1u), g);
  let place1 = locate(min(first + 4u + lane, pixels - 1u), g);
  let at0 = subgroupBroadcast(place0.x, 0u);
  let at1 = subgroupBroadcast(place0.x, 1u);
  let at2 = subgroupBroadcast(place0.x, 2u);
  let at3 = subgroupBroadcast(place0.x, 3u);
  let at4 = subgroupBroadcast(place1.x, 0u);
  let at5 = subgroupBroadcast(place1.x, 1u);
  let at6 = subgroupBroadcast(place1.x, 2u);
  let at7 = subgroupBroadcast(place1.x, 3u);
  var sum0 = vec4f();
  var sum1 = vec4f();
  var sum2 = vec4f();
  var sum3 = vec4f();
  var sum4 = vec4f();
  var sum5 = vec4f();
  var sum6 = vec4f();
  var sum7 = vec4f();
  // Sums of 64 products are added to the total one by one: rounding grows with their number / 64.
  for (var from_row = 0u; from_row < params.rows; from_row += 64u) {
    var c0 = vec4f();
    var c1 = vec4f();
    var c2 = vec4f();
    var c3 = vec4f();
    var c4 = vec4f();
    var c5 = vec4f();
    var c6 = vec4f();
    var c7 = vec4f();
    for (var k = from_row; k < min(from_row + 64u, params.rows); k += LANES) {
      let shift = u32(table[k + lane]);
      let a0 = x[at0 + shift];
      let a1 = x[at1 + shift];
      let a2 = x[at2 + shift];
      let a3 = x[at3 + shift];
      let a4 = x[at4 + shift];
      let a5 = x[at5 + shift];
      let a6 = x[at6 + shift];
      let a7 = x[at7 + shift];
      var w = vec4f();
      // <lane>
      w = packed[at];
      at += LANES;
      c0 = fma(vec4f(subgroupBroadcast(a0, 0u)), w, c0);
      c1 = fma(vec4f(subgroupBroadcast(a1, 0u)), w, c1);
      c2 = fma(vec4f(subgroupBroadcast(a2, 0u)), w, c2);
      c3 = fma(vec4f(subgroupBroadcast(a3, 0u)), w, c3);
      c4 = fma(vec4f(subgroupBroadcast(a4, 0u)), w, c4);
      c5 = fma(vec4f(subgroupBroadcast(a5, 0u)), w, c5);
      c6 = fma(vec4f(subgroupBroadcast(a6, 0u)), w, c6);
      c7 = fma(vec4f(subgroupBroadcast(a7, 0u)), w, c7);
      // </lane>
    }
    sum0 += c0;
    sum1 += c1;
    sum2 += c2;
    sum3 += c3;
    sum4 += c4;
    sum5 += c5;
    sum6 += c6;
    sum7 += c7;
  }
  let c = ((panel - g * params.panels) * LANES + lane) * 4u;
  let to0 = subgroupBroadcast(place0.y, 0u);
  let to1 = subgroupBroadcast(place0.y, 1u);
  let to2 = subgroupBroadcast(place0.y, 2u);
  let to3 = subgroupBroadcast(place0.y, 3u);
  let to4 = subgroupBroadcast(place1.y, 0u);
  let to5 = subgroupBroadcast(place1.y, 1u);
  let to6 = subgroupBroadcast(place1.y, 2u);
  let to7 = subgroupBroadcast(place1.y, 3u);
  if (c >= params.co || first >= pixels) {
    return;
  }
  let add = bias_of(g, c);
  if (QUADS) {
    store_quad(to0, c, sum0 + add, sum1 + add, sum2 + add, sum3 + add);
    if (first + 4u < pixels) {
      store_quad(to4, c, sum4 + add, sum5 + add, sum6 + add, sum7 + add);
    }
    return;
  }
  // Past the last pixel, its number is written again.
  store(to0, c, sum0 + add);
  store(to1, c, sum1 + add);
  store(to2, c, sum2 + add);
  store(to3, c, sum3 + add);
  store(to4, c, sum4 + add);
  store(to5, c, sum5 + add);
  store(to6, c, sum6 + add);
  store(to7, c, sum7 + add);
}

@compute @workgroup_size(LANES * TILES)
fn weight(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(subgroup_invocation_id) invocation: u32,
) {
  let index = group.x + group.y * groups.x;
  let tiles = params.rows / 8u;
  let bundles = (tiles + TILES - 1u) / TILES;
  let all_panels = params.panels * params.groups;
  if (index >= bundles * all_panels * params.splits) {
    return;
  }
  let lane = invocation % LANES;
  let tile = (index % bundles) * TILES + invocation / LANES;
  let k = min(tile, tiles - 1u) * 8u;
  let panel = (index / bundles) % all_panels;
  let split = index / (bundles * all_panels);
  let g = panel / params.panels;
  let pixels = params.batch * params.grid_h * params.grid_w;
  let first = split * params.split;
  let last = min(first + params.split, pixels);
  let shift0 = u32(table[k + 0u]);
  let shift1 = u32(table[k + 1u]);
  let shift2 = u32(table[k + 2u]);
  let shift3 = u32(table[k + 3u]);
  let shift4 = u32(table[k + 4u]);
  let shift5 = u32(table[k + 5u]);
  let shift6 = u32(table[k + 6u]);
  let shift7 = u32(table[k + 7u]);
  var from_packed = (panel * params.filled + first) * LANES + lane;
  // The lane's own pixel, LANES further on every turn; packed holds zeros for those past the last.
  let grid = params.grid_h * params.grid_w;
  var image = (first + lane) / grid;
  var r = (first + lane - image * grid) / params.grid_w;
  var q = first + lane - image * grid - r * params.grid_w;
  var c0 = vec4f();
  var c1 = vec4f();
  var c2 = vec4f();
  var c3 = vec4f();
  var c4 = vec4f();
  var c5 = vec4f();
  var c6 = vec4f();
  var c7 = vec4f();
  for (var p = first; p < last; p += LANES) {
    let row = (image * params.groups + g) * params.ci * params.in_h + r * params.step_y;
    let at = select(0u, row * params.in_w + q * params.step_x, p + lane < pixels);
    let a0 = x[at + shift0];
    let a1 = x[at + shift1];
    let a2 = x[at + shift2];
    let a3 = x[at + shift3];
    let a4 = x[at + shift4];
    let a5 = x[at + shift5];
    let a6 = x[at + shift6];
    let a7 = x[at + shift7];
    var v = vec4f();
    // <lane>
    v = packed[from_packed];
    from_packed += LANES;
    c0 = fma(vec4f(subgroupBroadcast(a0, 0u)), v, c0);
    c1 = fma(vec4f(subgroupBroadcast(a1, 0u)), v, c1);
    c2 = fma(vec4f(subgroupBroadcast(a2, 0u)), v, c2);
    c3 = fma(vec4f(subgroupBroadcast(a3, 0u)), v, c3);
    c4 = fma(vec4f(subgroupBroadcast(a4, 0u)), v, c4);
    c5 = fma(vec4f(subgroupBroadcast(a5, 0u)), v, c5);
    c6 = fma(vec4f(subgroupBroadcast(a6, 0u)), v, c6);
    c7 = fma(vec4f(subgroupBroadcast(a7, 0u)), v, c7);
    // </lane>
    q += LANES;
    while (q >= params.grid_w) {
      q -= params.grid_w;
      r++;
    }
    while (r >= params.grid_h) {
      r -= params.grid_h;
      image++;
    }
  }
  if (tile >= tiles) {
    return;
  }
  let to = ((split * all_panels + panel) * params.rows + k) * LANES + lane;
  parts[to + 0u * LANES] = c0;
  parts[to + 1u * LANES] = c1;
  parts[to + 2u * LANES] = c2;
  parts[to + 3u * LANES] = c3;
  parts[to + 4u * LANES] = c4;
  parts[to + 5u * LANES] = c5;
  parts[to + 6u * LANES] = c6;
  parts[to + 7u * LANES] = c7;
}
