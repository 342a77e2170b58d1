// What the convolution kernels read and write besides the images. A group's weights are packed as rows k = (input channel, tap y, tap x) of
// its output channels, in vectors of four filled up with zeros, so that lanes run along output channels. `table` gives for each k where its
// number stands: (offset from the pixel that the window starts at, shift in y and x as two 16-bit numbers). Rows past the last k lie outside.
//   weights:     packed, table from weight, for the taps ky0 + ky_step * i, kx0 + kx_step * j, shifted by ty0 + ty_step * i, tx0 + tx_step * j
//   pixels:      (B, G, co, P) -> (B, P, G, co4) vectors: the gradient that the weights' gradient multiplies with
//   sum_weights: the weights' gradient from its parts (splits, G, k, co4)
struct Params {
  groups: u32,
  ci: u32,        // of a group
  co: u32,
  co4: u32,
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
  in_h: i32,
  in_w: i32,
  batch: u32,
  pixels: u32,
  splits: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> packed: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> table: array<vec2i>;
@group(0) @binding(4) var<storage, read> gy: array<f32>;
@group(0) @binding(5) var<storage, read> parts: array<f32>;
@group(0) @binding(6) var<storage, read_write> gw: array<f32>;

const OUTSIDE = -30000;

@compute @workgroup_size(64)
fn weights(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.groups * params.rows * params.co4) {
    return;
  }
  let c = (i % params.co4) * 4u;
  let k = (i / params.co4) % params.rows;
  let g = i / (params.co4 * params.rows);
  let taps = params.taps_y * params.taps_x;
  let ci = k / max(taps, 1u);
  let live = taps > 0u && ci < params.ci;
  let tap = k - ci * taps;
  let i_y = tap / max(params.taps_x, 1u);
  let i_x = tap - i_y * params.taps_x;
  let ky = params.ky0 + params.ky_step * i_y;
  let kx = params.kx0 + params.kx_step * i_x;
  if (i < params.rows * params.co4 && c == 0u) {
    let ty = params.ty0 + params.ty_step * i32(i_y);
    let tx = params.tx0 + params.tx_step * i32(i_x);
    let offset = (i32(ci) * params.in_h + ty) * params.in_w + tx;
    table[k] = select(vec2i(0, OUTSIDE << 16u), vec2i(offset, (ty << 16u) | (tx & 0xffff)), live);
  }
  var w = vec4f();
  for (var j = 0u; j < 4u; j++) {
    if (live && c + j < params.co) {
      w[j] = weight[g * params.w_group + (c + j) * params.w_out + ci * params.w_in + ky * params.kw + kx];
    }
  }
  packed[i] = w;
}

@compute @workgroup_size(64)
fn pixels(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.batch * params.pixels * params.groups * params.co4) {
    return;
  }
  let p = i % params.pixels;
  let c = ((i / params.pixels) % params.co4) * 4u;
  let plane = i / (params.pixels * params.co4);  // (image, group)
  let image = plane / params.groups;
  let g = plane - image * params.groups;
  var v = vec4f();
  for (var j = 0u; j < 4u; j++) {
    if (c + j < params.co) {
      v[j] = gy[(plane * params.co + c + j) * params.pixels + p];
    }
  }
  packed[((image * params.pixels + p) * params.groups + g) * params.co4 + c / 4u] = v;
}

@compute @workgroup_size(64)
fn sum_weights(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let taps = params.taps_y * params.taps_x;
  if (i >= params.groups * params.ci * taps * params.co) {
    return;
  }
  let c = i % params.co;
  let k = (i / params.co) % (params.ci * taps);
  let g = i / (params.co * params.ci * taps);
  var at = (g * params.rows + k) * params.co4 * 4u + c;
  var sum = 0.0;
  for (var s = 0u; s < params.splits; s++) {
    sum += parts[at];
    at += params.groups * params.rows * params.co4 * 4u;
  }
  let ci = k / taps;
  gw[g * params.w_group + c * params.w_out + ci * params.w_in + (k - ci * taps)] = sum;
}
