// Convolution as a matrix product whose left side is gathered from the image: no copy of the windows is made. packed and table: see
// conv_pack.wgsl; x: the image in its frame.
//   forward: y[b, g, c, pixel] = bias[g, c] + sum over k of x[b, g, window of the pixel at k] * packed[g, k, c]
// The pixels are a grid: pixel (r, q) reads from (r * step_y, q * step_x) of x on and is written to (r * out_step_y + out_y, q * out_step_x +
// out_x) of y: the gradient of a strided convolution is one such grid a phase.
//   weight:  parts[split, g, k, c] = sum over a split's pixels of x[window at k] * packed[g, pixel, c]
// For every adapter; conv2d_subgroup is faster where subgroups have 4 or 8 lanes, conv2d_tiled on GPUs. Here a panel is one vector wide.
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
@group(0) @binding(6) var<storage, read_write> parts: array<vec4f>;
@group(0) @binding(8) var<storage, read> rest: array<f32>;

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

// An invocation owns four pixels, a quarter of all apart so that neighbours read neighbours, and four output channels.
@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let pixels = params.batch * params.grid_h * params.grid_w;
  let quarter = (pixels + 3u) / 4u;
  if (i >= quarter * params.panels * params.groups) {
    return;
  }
  let panel = i / quarter;
  let g = panel / params.panels;
  let c = (panel - g * params.panels) * 4u;
  let p = i - panel * quarter;
  let place0 = locate(p, g);
  let place1 = locate(min(p + quarter, pixels - 1u), g);
  let place2 = locate(min(p + 2u * quarter, pixels - 1u), g);
  let place3 = locate(min(p + 3u * quarter, pixels - 1u), g);
  var sum0 = vec4f();
  var sum1 = vec4f();
  var sum2 = vec4f();
  var sum3 = vec4f();
  // Sums of 64 products are added to the total one by one: rounding grows with their number / 64.
  for (var from_row = 0u; from_row < params.rows; from_row += 64u) {
    var c0 = vec4f();
    var c1 = vec4f();
    var c2 = vec4f();
    var c3 = vec4f();
    for (var k = from_row; k < min(from_row + 64u, params.rows); k++) {
      let shift = u32(table[k]);
      let w = packed[panel * params.rows + k];
      c0 = fma(vec4f(x[place0.x + shift]), w, c0);
      c1 = fma(vec4f(x[place1.x + shift]), w, c1);
      c2 = fma(vec4f(x[place2.x + shift]), w, c2);
      c3 = fma(vec4f(x[place3.x + shift]), w, c3);
    }
    sum0 += c0;
    sum1 += c1;
    sum2 += c2;
    sum3 += c3;
  }
  let add = bias_of(g, c);
  // Where a quarter reaches past the last pixel, the same number is written twice.
  store(place0.y, c, sum0 + add);
  store(place1.y, c, sum1 + add);
  store(place2.y, c, sum2 + add);
  store(place3.y, c, sum3 + add);
}

// An invocation owns four k and four output channels of one split.
@compute @workgroup_size(64)
fn weight(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let tiles = params.rows / 4u;
  let all_panels = params.panels * params.groups;
  if (i >= tiles * all_panels * params.splits) {
    return;
  }
  let k = (i % tiles) * 4u;
  let panel = (i / tiles) % all_panels;
  let split = i / (tiles * all_panels);
  let shift0 = u32(table[k]);
  let shift1 = u32(table[k + 1u]);
  let shift2 = u32(table[k + 2u]);
  let shift3 = u32(table[k + 3u]);
  let pixels = params.batch * params.grid_h * params.grid_w;
  let first = split * params.split;
  let last = min(first + params.split, pixels);
  let g = panel / params.panels;
  var c0 = vec4f();
  var c1 = vec4f();
  var c2 = vec4f();
  var c3 = vec4f();
  var place = locate(first, g).x;
  var q = first % params.grid_w;
  for (var p = first; p < last; p++) {
    let at = place;
    let v = packed[panel * params.filled + p];
    // Only a new row is worth the divisions.
    q++;
    place += params.step_x;
    if (q == params.grid_w) {
      q = 0u;
      place = locate(p + 1u, g).x;
    }
    c0 = fma(vec4f(x[at + shift0]), v, c0);
    c1 = fma(vec4f(x[at + shift1]), v, c1);
    c2 = fma(vec4f(x[at + shift2]), v, c2);
    c3 = fma(vec4f(x[at + shift3]), v, c3);
  }
  let to = (split * all_panels + panel) * params.rows + k;
  parts[to] = c0;
  parts[to + 1u] = c1;
  parts[to + 2u] = c2;
  parts[to + 3u] = c3;
}
