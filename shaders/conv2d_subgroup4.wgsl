// conv2d.wgsl for adapters whose subgroups have 4 lanes; the mathematics, the packing and the grid stand there. A subgroup owns 8 rows (pixels
// in forward, k in weight) and 16 output channels, a lane 4 of these. Each lane loads one value a row for the whole subgroup, so that 4 steps
// of the sum cost 8 scalar loads of x and 4 vector loads of packed: on software adapters loads, not arithmetic, take the time.
// One text for each number of lanes, since subgroupBroadcast takes a constant lane.
enable subgroups;

struct Params {
  batch: u32,
  groups: u32,
  ci: u32,
  co: u32,
  co4: u32,
  rows: u32,
  in_h: i32,
  in_w: i32,
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
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> packed: array<vec4f>;
@group(0) @binding(3) var<storage, read> table: array<vec2i>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
@group(0) @binding(6) var<storage, read_write> parts: array<vec4f>;

/// What x holds at a shift (in 16-bit halves) from pixel (iy, ix), 0 outside the image.
fn window(at: i32, iy: i32, ix: i32, shift: i32) -> f32 {
  let inside = u32(iy + (shift >> 16u)) < u32(params.in_h) && u32(ix + ((shift << 16u) >> 16u)) < u32(params.in_w);
  return select(0.0, x[select(0, at, inside)], inside);
}

/// Where pixel p stands: (offset of its window's start in x, y and x there, offset in y).
fn locate(p: u32, g: u32) -> vec4i {
  let grid = params.grid_h * params.grid_w;
  let image = p / grid;
  let r = (p - image * grid) / params.grid_w;
  let q = p - image * grid - r * params.grid_w;
  let plane = (image * params.groups + g) * params.ci * u32(params.in_h * params.in_w);
  let iy = r * params.step_y;
  let ix = q * params.step_x;
  let to = (r * params.out_step_y + params.out_y) * params.out_w + q * params.out_step_x + params.out_x;
  let channel = (image * params.groups + g) * params.co;
  return vec4i(vec4u(plane + iy * u32(params.in_w) + ix, iy, ix, channel * params.out_h * params.out_w + to));
}

/// Four output channels of one pixel.
fn store(to: u32, plane: u32, live: u32, v: vec4f) {
  y[to] = v.x;
  if (live > 1u) {
    y[to + plane] = v.y;
  }
  if (live > 2u) {
    y[to + 2u * plane] = v.z;
  }
  if (live > 3u) {
    y[to + 3u * plane] = v.w;
  }
}

@compute @workgroup_size(4)
fn forward(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(subgroup_invocation_id) lane: u32,
) {
  let tile = group.x + group.y * groups.x;
  let pixels = params.batch * params.grid_h * params.grid_w;
  let tiles_p = (pixels + 7u) / 8u;
  let tiles_c = (params.co4 + 3u) / 4u;
  if (tile >= tiles_p * tiles_c * params.groups) {
    return;
  }
  let first = (tile % tiles_p) * 8u;
  let column = ((tile / tiles_p) % tiles_c) * 4u + lane;
  let g = tile / (tiles_p * tiles_c);
  var at = g * params.rows * params.co4 + min(column, params.co4 - 1u);
  let place = locate(min(first + lane, pixels - 1u), g);
  let place4 = locate(min(first + lane + 4u, pixels - 1u), g);
  let at0 = subgroupBroadcast(place.x, 0u);
  let y0 = subgroupBroadcast(place.y, 0u);
  let x0 = subgroupBroadcast(place.z, 0u);
  let at1 = subgroupBroadcast(place.x, 1u);
  let y1 = subgroupBroadcast(place.y, 1u);
  let x1 = subgroupBroadcast(place.z, 1u);
  let at2 = subgroupBroadcast(place.x, 2u);
  let y2 = subgroupBroadcast(place.y, 2u);
  let x2 = subgroupBroadcast(place.z, 2u);
  let at3 = subgroupBroadcast(place.x, 3u);
  let y3 = subgroupBroadcast(place.y, 3u);
  let x3 = subgroupBroadcast(place.z, 3u);
  let at4 = subgroupBroadcast(place4.x, 0u);
  let y4 = subgroupBroadcast(place4.y, 0u);
  let x4 = subgroupBroadcast(place4.z, 0u);
  let at5 = subgroupBroadcast(place4.x, 1u);
  let y5 = subgroupBroadcast(place4.y, 1u);
  let x5 = subgroupBroadcast(place4.z, 1u);
  let at6 = subgroupBroadcast(place4.x, 2u);
  let y6 = subgroupBroadcast(place4.y, 2u);
  let x6 = subgroupBroadcast(place4.z, 2u);
  let at7 = subgroupBroadcast(place4.x, 3u);
  let y7 = subgroupBroadcast(place4.y, 3u);
  let x7 = subgroupBroadcast(place4.z, 3u);
  var c0 = vec4f();
  var c1 = vec4f();
  var c2 = vec4f();
  var c3 = vec4f();
  var c4 = vec4f();
  var c5 = vec4f();
  var c6 = vec4f();
  var c7 = vec4f();
  for (var k = 0u; k < params.rows; k += 4u) {
    let entry = table[k + lane];
    let a0 = window(at0 + entry.x, y0, x0, entry.y);
    let a1 = window(at1 + entry.x, y1, x1, entry.y);
    let a2 = window(at2 + entry.x, y2, x2, entry.y);
    let a3 = window(at3 + entry.x, y3, x3, entry.y);
    let a4 = window(at4 + entry.x, y4, x4, entry.y);
    let a5 = window(at5 + entry.x, y5, x5, entry.y);
    let a6 = window(at6 + entry.x, y6, x6, entry.y);
    let a7 = window(at7 + entry.x, y7, x7, entry.y);
    var w = vec4f();
    w = packed[at];
    at += params.co4;
    c0 = fma(vec4f(subgroupBroadcast(a0, 0u)), w, c0);
    c1 = fma(vec4f(subgroupBroadcast(a1, 0u)), w, c1);
    c2 = fma(vec4f(subgroupBroadcast(a2, 0u)), w, c2);
    c3 = fma(vec4f(subgroupBroadcast(a3, 0u)), w, c3);
    c4 = fma(vec4f(subgroupBroadcast(a4, 0u)), w, c4);
    c5 = fma(vec4f(subgroupBroadcast(a5, 0u)), w, c5);
    c6 = fma(vec4f(subgroupBroadcast(a6, 0u)), w, c6);
    c7 = fma(vec4f(subgroupBroadcast(a7, 0u)), w, c7);
    w = packed[at];
    at += params.co4;
    c0 = fma(vec4f(subgroupBroadcast(a0, 1u)), w, c0);
    c1 = fma(vec4f(subgroupBroadcast(a1, 1u)), w, c1);
    c2 = fma(vec4f(subgroupBroadcast(a2, 1u)), w, c2);
    c3 = fma(vec4f(subgroupBroadcast(a3, 1u)), w, c3);
    c4 = fma(vec4f(subgroupBroadcast(a4, 1u)), w, c4);
    c5 = fma(vec4f(subgroupBroadcast(a5, 1u)), w, c5);
    c6 = fma(vec4f(subgroupBroadcast(a6, 1u)), w, c6);
    c7 = fma(vec4f(subgroupBroadcast(a7, 1u)), w, c7);
    w = packed[at];
    at += params.co4;
    c0 = fma(vec4f(subgroupBroadcast(a0, 2u)), w, c0);
    c1 = fma(vec4f(subgroupBroadcast(a1, 2u)), w, c1);
    c2 = fma(vec4f(subgroupBroadcast(a2, 2u)), w, c2);
    c3 = fma(vec4f(subgroupBroadcast(a3, 2u)), w, c3);
    c4 = fma(vec4f(subgroupBroadcast(a4, 2u)), w, c4);
    c5 = fma(vec4f(subgroupBroadcast(a5, 2u)), w, c5);
    c6 = fma(vec4f(subgroupBroadcast(a6, 2u)), w, c6);
    c7 = fma(vec4f(subgroupBroadcast(a7, 2u)), w, c7);
    w = packed[at];
    at += params.co4;
    c0 = fma(vec4f(subgroupBroadcast(a0, 3u)), w, c0);
    c1 = fma(vec4f(subgroupBroadcast(a1, 3u)), w, c1);
    c2 = fma(vec4f(subgroupBroadcast(a2, 3u)), w, c2);
    c3 = fma(vec4f(subgroupBroadcast(a3, 3u)), w, c3);
    c4 = fma(vec4f(subgroupBroadcast(a4, 3u)), w, c4);
    c5 = fma(vec4f(subgroupBroadcast(a5, 3u)), w, c5);
    c6 = fma(vec4f(subgroupBroadcast(a6, 3u)), w, c6);
    c7 = fma(vec4f(subgroupBroadcast(a7, 3u)), w, c7);
  }
  let to0 = subgroupBroadcast(place.w, 0u);
  let to1 = subgroupBroadcast(place.w, 1u);
  let to2 = subgroupBroadcast(place.w, 2u);
  let to3 = subgroupBroadcast(place.w, 3u);
  let to4 = subgroupBroadcast(place4.w, 0u);
  let to5 = subgroupBroadcast(place4.w, 1u);
  let to6 = subgroupBroadcast(place4.w, 2u);
  let to7 = subgroupBroadcast(place4.w, 3u);
  if (column >= params.co4) {
    return;
  }
  let plane = params.out_h * params.out_w;
  let live = min(4u, params.co - column * 4u);
  var add = vec4f();
  if (params.has_bias == 1u) {
    for (var c = 0u; c < live; c++) {
      add[c] = bias[g * params.co + column * 4u + c];
    }
  }
  if (first + 0u < pixels) {
    store(u32(to0) + column * 4u * plane, plane, live, c0 + add);
  }
  if (first + 1u < pixels) {
    store(u32(to1) + column * 4u * plane, plane, live, c1 + add);
  }
  if (first + 2u < pixels) {
    store(u32(to2) + column * 4u * plane, plane, live, c2 + add);
  }
  if (first + 3u < pixels) {
    store(u32(to3) + column * 4u * plane, plane, live, c3 + add);
  }
  if (first + 4u < pixels) {
    store(u32(to4) + column * 4u * plane, plane, live, c4 + add);
  }
  if (first + 5u < pixels) {
    store(u32(to5) + column * 4u * plane, plane, live, c5 + add);
  }
  if (first + 6u < pixels) {
    store(u32(to6) + column * 4u * plane, plane, live, c6 + add);
  }
  if (first + 7u < pixels) {
    store(u32(to7) + column * 4u * plane, plane, live, c7 + add);
  }
}

@compute @workgroup_size(4)
fn weight(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(subgroup_invocation_id) lane: u32,
) {
  let tile = group.x + group.y * groups.x;
  let tiles_k = params.rows / 8u;
  let tiles_c = (params.co4 + 3u) / 4u;
  if (tile >= tiles_k * tiles_c * params.groups * params.splits) {
    return;
  }
  let k = (tile % tiles_k) * 8u;
  let column = ((tile / tiles_k) % tiles_c) * 4u + lane;
  let g = (tile / (tiles_k * tiles_c)) % params.groups;
  let split = tile / (tiles_k * tiles_c * params.groups);
  let safe_column = g * params.co4 + min(column, params.co4 - 1u);
  let e0 = table[k + 0u];
  let e1 = table[k + 1u];
  let e2 = table[k + 2u];
  let e3 = table[k + 3u];
  let e4 = table[k + 4u];
  let e5 = table[k + 5u];
  let e6 = table[k + 6u];
  let e7 = table[k + 7u];
  let grid = params.grid_h * params.grid_w;
  let first = split * params.split;
  let last = min(first + params.split, params.batch * grid);
  let pitch = params.groups * params.co4;
  // The lane's own pixel, 4 further on every turn.
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
  for (var p = first; p < last; p += 4u) {
    let iy = i32(r * params.step_y);
    // A lane past the last pixel looks outside the image and finds zeros.
    let ix = select(-0x100000, i32(q * params.step_x), p + lane < last);
    let at = (i32((image * params.groups + g) * params.ci) * params.in_h + iy) * params.in_w + ix;
    let a0 = window(at + e0.x, iy, ix, e0.y);
    let a1 = window(at + e1.x, iy, ix, e1.y);
    let a2 = window(at + e2.x, iy, ix, e2.y);
    let a3 = window(at + e3.x, iy, ix, e3.y);
    let a4 = window(at + e4.x, iy, ix, e4.y);
    let a5 = window(at + e5.x, iy, ix, e5.y);
    let a6 = window(at + e6.x, iy, ix, e6.y);
    let a7 = window(at + e7.x, iy, ix, e7.y);
    var v = vec4f();
    v = packed[min(p + 0u, last - 1u) * pitch + safe_column];
    c0 = fma(vec4f(subgroupBroadcast(a0, 0u)), v, c0);
    c1 = fma(vec4f(subgroupBroadcast(a1, 0u)), v, c1);
    c2 = fma(vec4f(subgroupBroadcast(a2, 0u)), v, c2);
    c3 = fma(vec4f(subgroupBroadcast(a3, 0u)), v, c3);
    c4 = fma(vec4f(subgroupBroadcast(a4, 0u)), v, c4);
    c5 = fma(vec4f(subgroupBroadcast(a5, 0u)), v, c5);
    c6 = fma(vec4f(subgroupBroadcast(a6, 0u)), v, c6);
    c7 = fma(vec4f(subgroupBroadcast(a7, 0u)), v, c7);
    v = packed[min(p + 1u, last - 1u) * pitch + safe_column];
    c0 = fma(vec4f(subgroupBroadcast(a0, 1u)), v, c0);
    c1 = fma(vec4f(subgroupBroadcast(a1, 1u)), v, c1);
    c2 = fma(vec4f(subgroupBroadcast(a2, 1u)), v, c2);
    c3 = fma(vec4f(subgroupBroadcast(a3, 1u)), v, c3);
    c4 = fma(vec4f(subgroupBroadcast(a4, 1u)), v, c4);
    c5 = fma(vec4f(subgroupBroadcast(a5, 1u)), v, c5);
    c6 = fma(vec4f(subgroupBroadcast(a6, 1u)), v, c6);
    c7 = fma(vec4f(subgroupBroadcast(a7, 1u)), v, c7);
    v = packed[min(p + 2u, last - 1u) * pitch + safe_column];
    c0 = fma(vec4f(subgroupBroadcast(a0, 2u)), v, c0);
    c1 = fma(vec4f(subgroupBroadcast(a1, 2u)), v, c1);
    c2 = fma(vec4f(subgroupBroadcast(a2, 2u)), v, c2);
    c3 = fma(vec4f(subgroupBroadcast(a3, 2u)), v, c3);
    c4 = fma(vec4f(subgroupBroadcast(a4, 2u)), v, c4);
    c5 = fma(vec4f(subgroupBroadcast(a5, 2u)), v, c5);
    c6 = fma(vec4f(subgroupBroadcast(a6, 2u)), v, c6);
    c7 = fma(vec4f(subgroupBroadcast(a7, 2u)), v, c7);
    v = packed[min(p + 3u, last - 1u) * pitch + safe_column];
    c0 = fma(vec4f(subgroupBroadcast(a0, 3u)), v, c0);
    c1 = fma(vec4f(subgroupBroadcast(a1, 3u)), v, c1);
    c2 = fma(vec4f(subgroupBroadcast(a2, 3u)), v, c2);
    c3 = fma(vec4f(subgroupBroadcast(a3, 3u)), v, c3);
    c4 = fma(vec4f(subgroupBroadcast(a4, 3u)), v, c4);
    c5 = fma(vec4f(subgroupBroadcast(a5, 3u)), v, c5);
    c6 = fma(vec4f(subgroupBroadcast(a6, 3u)), v, c6);
    c7 = fma(vec4f(subgroupBroadcast(a7, 3u)), v, c7);
    q += 4u;
    while (q >= params.grid_w) {
      q -= params.grid_w;
      r++;
    }
    while (r >= params.grid_h) {
      r -= params.grid_h;
      image++;
    }
  }
  if (column >= params.co4) {
    return;
  }
  let to = ((split * params.groups + g) * params.rows + k) * params.co4 + column;
  parts[to + 0u * params.co4] = c0;
  parts[to + 1u * params.co4] = c1;
  parts[to + 2u * params.co4] = c2;
  parts[to + 3u * params.co4] = c3;
  parts[to + 4u * params.co4] = c4;
  parts[to + 5u * params.co4] = c5;
  parts[to + 6u * params.co4] = c6;
  parts[to + 7u * params.co4] = c7;
}
