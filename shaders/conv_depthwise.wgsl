// Convolution in which each input channel is a group of its own with `multiplier` output channels: nothing is summed over channels, so that
// a matrix product has no use. x, gx: (B, C, in_h, in_w)   y, gy: (B, C * multiplier, out_h, out_w)   weight: (C * multiplier, kh, kw)
//   forward, grad_x: an invocation owns one number      weight: an invocation owns one tap of one channel over a block of rows
struct Params {
  batch: u32,
  c: u32,
  multiplier: u32,
  in_h: u32,
  in_w: u32,
  out_h: u32,
  out_w: u32,
  kh: u32,
  kw: u32,
  step_y: u32,
  step_x: u32,
  reach_y: u32,   // dilation
  reach_x: u32,
  top: i32,
  left: i32,
  has_bias: u32,
  block: u32,     // rows (image, y) of a block
  blocks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read> gy: array<f32>;
@group(0) @binding(6) var<storage, read_write> gx: array<f32>;
@group(0) @binding(7) var<storage, read_write> parts: array<f32>;

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let plane = i / (params.out_h * params.out_w);
  let channels = params.c * params.multiplier;
  if (plane >= params.batch * channels) {
    return;
  }
  let c = plane % channels;
  let oy = (i / params.out_w) % params.out_h;
  let ox = i % params.out_w;
  let base = (plane / channels * params.c + c / params.multiplier) * params.in_h * params.in_w;
  var sum = 0.0;
  if (params.has_bias == 1u) {
    sum = bias[c];
  }
  for (var ky = 0u; ky < params.kh; ky++) {
    let iy = u32(i32(oy * params.step_y + ky * params.reach_y) - params.top);
    for (var kx = 0u; kx < params.kw; kx++) {
      let ix = u32(i32(ox * params.step_x + kx * params.reach_x) - params.left);
      if (iy < params.in_h && ix < params.in_w) {
        sum = fma(x[base + iy * params.in_w + ix], weight[(c * params.kh + ky) * params.kw + kx], sum);
      }
    }
  }
  y[i] = sum;
}

/// The output position that reads input position `at` by a tap at distance `shift`; beyond every size where there is none.
fn source(at: u32, shift: i32, step: u32) -> u32 {
  let moved = i32(at) + shift;
  if (step == 1u || moved < 0) {
    return u32(moved);
  }
  let s = u32(moved) / step;
  return select(0xffffffffu, s, s * step == u32(moved));
}

@compute @workgroup_size(64)
fn grad_x(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let plane = i / (params.in_h * params.in_w);
  if (plane >= params.batch * params.c) {
    return;
  }
  let iy = (i / params.in_w) % params.in_h;
  let ix = i % params.in_w;
  var sum = 0.0;
  for (var m = 0u; m < params.multiplier; m++) {
    let c = (plane % params.c) * params.multiplier + m;
    let base = (plane * params.multiplier + m) * params.out_h * params.out_w;
    for (var ky = 0u; ky < params.kh; ky++) {
      let oy = source(iy, params.top - i32(ky * params.reach_y), params.step_y);
      for (var kx = 0u; kx < params.kw; kx++) {
        let ox = source(ix, params.left - i32(kx * params.reach_x), params.step_x);
        if (oy < params.out_h && ox < params.out_w) {
          sum = fma(gy[base + oy * params.out_w + ox], weight[(c * params.kh + ky) * params.kw + kx], sum);
        }
      }
    }
  }
  gx[i] = sum;
}

@compute @workgroup_size(64)
fn grad_weight(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let channels = params.c * params.multiplier;
  let weights = channels * params.kh * params.kw;
  if (i >= weights * params.blocks) {
    return;
  }
  let kx = i % params.kw;
  let ky = (i / params.kw) % params.kh;
  let c = (i % weights) / (params.kw * params.kh);
  let first = (i / weights) * params.block;
  var sum = 0.0;
  for (var row = first; row < min(first + params.block, params.batch * params.out_h); row++) {
    let image = row / params.out_h;
    let oy = row - image * params.out_h;
    let iy = u32(i32(oy * params.step_y + ky * params.reach_y) - params.top);
    if (iy >= params.in_h) {
      continue;
    }
    let source_at = ((image * params.c + c / params.multiplier) * params.in_h + iy) * params.in_w;
    let at = ((image * channels + c) * params.out_h + oy) * params.out_w;
    var part = 0.0;
    var ix = u32(i32(kx * params.reach_x) - params.left);
    for (var ox = 0u; ox < params.out_w; ox++) {
      if (ix < params.in_w) {
        part = fma(x[source_at + ix], gy[at + ox], part);
      }
      ix += params.step_x;
    }
    sum += part;
  }
  parts[i] = sum;
}
