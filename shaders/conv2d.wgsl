// Convolution as a matrix product whose left side is gathered from the image: no copy of the windows is made.
//   forward: y[b, g, c, pixel] = bias[g, c] + sum over k of x[b, g, window of the pixel at k] * packed[g, k, c]
// packed and table: see conv_pack.wgsl. The pixels are a grid of rows x columns; pixel (r, q) reads from (r * step_y, q * step_x) of x on
// and is written to (r * out_step_y + out_y, q * out_step_x + out_x) of y: the gradient of a strided convolution is one such grid a phase.
//   weight:  parts[split, g, k, c] = sum over a split's pixels of x[window at k] * packed[pixel, g, c]
// For every adapter; conv2d_subgroup4 and conv2d_subgroup8 are faster where subgroups have that many lanes.
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

/// What x holds at the table's entry seen from the pixel at (y, x), 0 outside the image.
fn window(base: i32, iy: i32, ix: i32, entry: vec2i) -> f32 {
  let inside = u32(iy + (entry.y >> 16u)) < u32(params.in_h) && u32(ix + ((entry.y << 16u) >> 16u)) < u32(params.in_w);
  var value = 0.0;
  if (inside) {
    value = x[base + entry.x];
  }
  return value;
}

// An invocation owns four pixels, a quarter of all apart so that neighbours read neighbours, and four output channels.
@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let grid = params.grid_h * params.grid_w;
  let pixels = params.batch * grid;
  let quarter = (pixels + 3u) / 4u;
  if (i >= quarter * params.co4 * params.groups) {
    return;
  }
  let c4 = (i / quarter) % params.co4;
  let g = i / (quarter * params.co4);
  var image: vec4u;
  var r: vec4u;
  var q: vec4u;
  var base: vec4i;
  for (var j = 0u; j < 4u; j++) {
    let p = min(i % quarter + j * quarter, pixels - 1u);
    image[j] = p / grid;
    r[j] = (p % grid) / params.grid_w;
    q[j] = p % params.grid_w;
    base[j] = i32((image[j] * params.groups + g) * params.ci * u32(params.in_h * params.in_w) + r[j] * params.step_y * u32(params.in_w) + q[j] * params.step_x);
  }
  let iy = vec4i(r * params.step_y);
  let ix = vec4i(q * params.step_x);
  var c0 = vec4f();
  var c1 = vec4f();
  var c2 = vec4f();
  var c3 = vec4f();
  var at = g * params.rows * params.co4 + c4;
  for (var k = 0u; k < params.rows; k++) {
    let entry = table[k];
    let w = packed[at];
    at += params.co4;
    c0 = fma(vec4f(window(base.x, iy.x, ix.x, entry)), w, c0);
    c1 = fma(vec4f(window(base.y, iy.y, ix.y, entry)), w, c1);
    c2 = fma(vec4f(window(base.z, iy.z, ix.z, entry)), w, c2);
    c3 = fma(vec4f(window(base.w, iy.w, ix.w, entry)), w, c3);
  }
  let plane = params.out_h * params.out_w;
  for (var c = 0u; c < min(4u, params.co - c4 * 4u); c++) {
    let channel = g * params.co + c4 * 4u + c;
    var add = 0.0;
    if (params.has_bias == 1u) {
      add = bias[channel];
    }
    let sums = vec4f(c0[c], c1[c], c2[c], c3[c]) + add;
    for (var j = 0u; j < 4u; j++) {
      if (i % quarter + j * quarter < pixels) {
        let to = (r[j] * params.out_step_y + params.out_y) * params.out_w + q[j] * params.out_step_x + params.out_x;
        y[(image[j] * params.groups * params.co + channel) * plane + to] = sums[j];
      }
    }
  }
}

// An invocation owns four k and four output channels of one split.
@compute @workgroup_size(64)
fn weight(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let tiles = params.rows / 4u;
  if (i >= params.co4 * tiles * params.groups * params.splits) {
    return;
  }
  let c4 = i % params.co4;
  let k = ((i / params.co4) % tiles) * 4u;
  let g = (i / (params.co4 * tiles)) % params.groups;
  let split = i / (params.co4 * tiles * params.groups);
  let e0 = table[k];
  let e1 = table[k + 1u];
  let e2 = table[k + 2u];
  let e3 = table[k + 3u];
  let grid = params.grid_h * params.grid_w;
  let first = split * params.split;
  let last = min(first + params.split, params.batch * grid);
  var image = first / grid;
  var r = (first % grid) / params.grid_w;
  var q = first % params.grid_w;
  var c0 = vec4f();
  var c1 = vec4f();
  var c2 = vec4f();
  var c3 = vec4f();
  for (var p = first; p < last; p++) {
    let iy = i32(r * params.step_y);
    let ix = i32(q * params.step_x);
    let base = i32((image * params.groups + g) * params.ci) * params.in_h * params.in_w + iy * params.in_w + ix;
    let v = packed[(p * params.groups + g) * params.co4 + c4];
    c0 = fma(vec4f(window(base, iy, ix, e0)), v, c0);
    c1 = fma(vec4f(window(base, iy, ix, e1)), v, c1);
    c2 = fma(vec4f(window(base, iy, ix, e2)), v, c2);
    c3 = fma(vec4f(window(base, iy, ix, e3)), v, c3);
    q++;
    if (q == params.grid_w) {
      q = 0u;
      r++;
      if (r == params.grid_h) {
        r = 0u;
        image++;
      }
    }
  }
  let to = ((split * params.groups + g) * params.rows + k) * params.co4 + c4;
  parts[to] = c0;
  parts[to + params.co4] = c1;
  parts[to + 2u * params.co4] = c2;
  parts[to + 3u * params.co4] = c3;
}
