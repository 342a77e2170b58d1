// What the convolution kernels read and write besides the images. A group's channels stand in panels of `lanes` vectors of four, filled up
// with zeros, and a panel's numbers one after the other as its kernel reads them.
//   weights:     (G, panels, k, lanes) from weight, k = (input channel, tap y, tap x), for the taps ky0 + ky_step * i, kx0 + kx_step * j
//   offsets:     `table`: for each k how far from its window's start in the frame x is read (taps shifted by ty0 + ty_step * i, …)
//   pixels:      (B, G, co, P) -> (G, panels, B * P, lanes): the gradient that the weights' gradient multiplies with
//   sum_weights: the weights' gradient from its parts (splits, G, panels, k, lanes)
struct Params {
  groups: u32,
  ci: u32,        // of a group
  co: u32,
  panels: u32,
  lanes: u32,
  rows: u32,      // k, filled up
  taps_y: u32,
  taps_x: u32,
  ky0: u32,
  ky_step: u32,
  kx0: u32,
  kx_step: u32,
  kw: u32,
  w_group: u32,   // strides of weight
  w_in: u32,
  w_out: u32,
  ty0: i32,
  ty_step: i32,
  tx0: i32,
  tx_step: i32,
  frame_h: u32,
  frame_w: u32,
  batch: u32,
  pixels: u32,
  filled: u32,    // batch * pixels, filled up
  splits: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<u32>;  // bits of f32, or pairs of f16
@group(0) @binding(2) var<storage, read_write> packed: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> table: array<i32>;
@group(0) @binding(4) var<storage, read> gy: array<f32>;
@group(0) @binding(5) var<storage, read> parts: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> gw: array<f32>;
@group(0) @binding(7) var<storage, read> gy4: array<vec4f>;

// The weight is stored in half precision, two numbers in a u32.
override HALF: bool = false;

fn weight_at(i: u32) -> f32 {
  if (HALF) {
    return unpack2x16float(weight[i / 2u] >> (i % 2u * 16u)).x;
  }
  return bitcast<f32>(weight[i]);
}

/// (input channel, tap y, tap x) of k. Rows that only fill up have a channel that is not there.
fn taps_of(k: u32) -> vec3u {
  let taps = params.taps_y * params.taps_x;
  if (taps == 0u) {
    return vec3u(params.ci, 0u, 0u);
  }
  let tap = k % taps;
  return vec3u(k / taps, tap / params.taps_x, tap % params.taps_x);
}

@compute @workgroup_size(64)
fn offsets(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let k = id.x + id.y * groups.x * 64u;
  if (k >= params.rows) {
    return;
  }
  let at = taps_of(k);
  let ty = params.ty0 + params.ty_step * i32(at.y);
  let tx = params.tx0 + params.tx_step * i32(at.z);
  table[k] = select(0, (i32(at.x * params.frame_h) + ty) * i32(params.frame_w) + tx, at.x < params.ci);
}

@compute @workgroup_size(64)
fn weights(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.groups * params.panels * params.rows * params.lanes) {
    return;
  }
  let panel = i / (params.lanes * params.rows);
  let g = panel / params.panels;
  let c = ((panel - g * params.panels) * params.lanes + i % params.lanes) * 4u;
  let at = taps_of((i / params.lanes) % params.rows);
  let tap = (params.ky0 + params.ky_step * at.y) * params.kw + params.kx0 + params.kx_step * at.z;
  var w = vec4f();
  if (at.x < params.ci) {
    for (var j = 0u; j < min(4u, params.co - min(c, params.co)); j++) {
      w[j] = weight_at(g * params.w_group + (c + j) * params.w_out + at.x * params.w_in + tap);
    }
  }
  packed[i] = w;
}

@compute @workgroup_size(64)
fn pixels(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let per_group = params.panels * params.lanes;
  if (i >= params.filled * params.groups * per_group) {
    return;
  }
  let p = i % params.filled;
  let image = p / params.pixels;
  let g = i / (params.filled * per_group);
  let c4 = (i / params.filled) % per_group;
  var v = vec4f();
  for (var j = 0u; j < 4u; j++) {
    if (c4 * 4u + j < params.co && image < params.batch) {
      v[j] = gy[((image * params.groups + g) * params.co + c4 * 4u + j) * params.pixels + p - image * params.pixels];
    }
  }
  packed[((i / (params.filled * params.lanes)) * params.filled + p) * params.lanes + c4 % params.lanes] = v;
}

// The same where the pixels of a plane are whole fours.
@compute @workgroup_size(64)
fn pixels_fours(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let per_group = params.panels * params.lanes;
  let fours = params.filled / 4u;
  if (i >= fours * params.groups * per_group) {
    return;
  }
  let p = i % fours;
  let image = p / (params.pixels / 4u);
  let g = i / (fours * per_group);
  let c4 = (i / fours) % per_group;
  var v = mat4x4f();
  if (image < params.batch) {
    let first = (image * params.groups + g) * params.co + c4 * 4u;
    let at = p - image * (params.pixels / 4u);
    for (var j = 0u; j < min(4u, params.co - min(c4 * 4u, params.co)); j++) {
      v[j] = gy4[(first + j) * (params.pixels / 4u) + at];
    }
  }
  let to = ((i / (fours * params.lanes)) * params.filled + p * 4u) * params.lanes + c4 % params.lanes;
  let turned = transpose(v);
  packed[to] = turned[0];
  packed[to + params.lanes] = turned[1];
  packed[to + 2u * params.lanes] = turned[2];
  packed[to + 3u * params.lanes] = turned[3];
}

// An invocation owns four neighbouring output channels of one k.
@compute @workgroup_size(64)
fn sum_weights(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let taps = params.taps_y * params.taps_x;
  let fours = (params.co + 3u) / 4u;
  if (i >= params.groups * params.ci * taps * fours) {
    return;
  }
  let c4 = i % fours;
  let k = (i / fours) % (params.ci * taps);
  let g = i / (fours * params.ci * taps);
  let step = params.groups * params.panels * params.rows * params.lanes;
  var at = ((g * params.panels + c4 / params.lanes) * params.rows + k) * params.lanes + c4 % params.lanes;
  var sum = vec4f();
  for (var s = 0u; s < params.splits; s++) {
    sum += parts[at];
    at += step;
  }
  let ci = k / taps;
  let to = g * params.w_group + c4 * 4u * params.w_out + ci * params.w_in + (k - ci * taps);
  for (var j = 0u; j < min(4u, params.co - c4 * 4u); j++) {
    gw[to + j * params.w_out] = sum[j];
  }
}
