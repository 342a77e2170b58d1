// Convolution in which each input channel is a group of its own with `multiplier` output channels: nothing is summed over channels, so that
// a matrix product has no use. x, gx: (B, C, in_h, in_w)   y, gy: (B, C * multiplier, out_h, out_w)   weight: (C * multiplier, kh, kw)
//   forward: an invocation owns four neighbours of a row; where neighbouring windows overlap by all but one, it slides over x.
//            With `flipped` taps this is the gradient of x of a convolution of stride 1 and multiplier 1, too.
//   grad_x:  an invocation owns one number, for every stride: it visits each `tap_step`-th tap, between which it moves by `out_step`
//   grad_weight: an invocation owns four neighbouring taps of one channel over a block of rows
struct Params {
  planes: u32,    // (image, channel) of what is written
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
  flipped: u32,
  tap_step_y: u32,
  tap_step_x: u32,
  out_step_y: u32,
  out_step_x: u32,
  batch: u32,
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
@group(0) @binding(8) var<storage, read> rest: array<f32>;

/// n / d for n up to 4 million: software adapters divide whole numbers lane by lane.
fn quotient(n: u32, d: u32) -> u32 {
  return u32((f32(n) + 0.5) / f32(d));
}

/// x[base + i] inside the row, 0 outside.
fn in_row(base: u32, i: u32) -> f32 {
  let inside = i < params.in_w;
  return select(0.0, x[base + select(0u, i, inside)], inside);
}

// `rest`, in the order of y, is added before the activation.
override REST: bool = false;

/// The activation: engine/epilogue.ts puts it in the place of what stands here.
fn finish(v: vec4f) -> vec4f {
  // <finish>
  return v;
  // </finish>
}

// Workgroups: x over quads of a plane, y and z over planes.
@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let plane = id.y + id.z * groups.y;
  let quads = (params.out_w + 3u) / 4u;
  let oy = quotient(id.x, quads);
  if (plane >= params.planes || oy >= params.out_h) {
    return;
  }
  let ox = (id.x - oy * quads) * 4u;
  let c = plane % (params.c * params.multiplier);
  let base = plane / params.multiplier * params.in_h * params.in_w;
  let slides = params.step_x == 1u && params.reach_x == 1u;
  let taps = params.kh * params.kw;
  let start = u32(i32(ox * params.step_x) - params.left);
  var sums = vec4f();
  if (params.has_bias == 1u) {
    sums = vec4f(bias[c]);
  }
  let first_tap = c * taps + params.flipped * (taps - 1u);
  let tap_sign = 1u - 2u * params.flipped;
  for (var ky = 0u; ky < params.kh; ky++) {
    let iy = u32(i32(oy * params.step_y + ky * params.reach_y) - params.top);
    if (iy >= params.in_h) {
      continue;
    }
    let row = base + iy * params.in_w;
    var tap = first_tap + tap_sign * ky * params.kw;
    var v = vec4f();
    var next = start;
    for (var kx = 0u; kx < params.kw; kx++) {
      if (slides && kx > 0u) {
        v = vec4f(v.yzw, in_row(row, next + 3u));
      } else {
        let s = params.step_x;
        v = vec4f(in_row(row, next), in_row(row, next + s), in_row(row, next + 2u * s), in_row(row, next + 3u * s));
      }
      next += params.reach_x;
      sums = fma(v, vec4f(weight[tap]), sums);
      tap += tap_sign;
    }
  }
  let row_start = (plane * params.out_h + oy) * params.out_w;
  let to = row_start + min(ox + vec4u(0u, 1u, 2u, 3u), vec4u(params.out_w - 1u));
  if (REST) {
    sums += vec4f(rest[to.x], rest[to.y], rest[to.z], rest[to.w]);
  }
  sums = finish(sums);
  y[to.x] = sums.x;
  if (ox + 1u < params.out_w) {
    y[to.y] = sums.y;
  }
  if (ox + 2u < params.out_w) {
    y[to.z] = sums.z;
  }
  if (ox + 3u < params.out_w) {
    y[to.w] = sums.w;
  }
}

/// The first tap that reaches position `at` (counted from the padded start), tap_step or more where none does.
fn first_tap(at: u32, step: u32, reach: u32, tap_step: u32) -> u32 {
  if (reach == 1u) {
    return at - quotient(at, step) * step;
  }
  var k = 0u;
  while (k < tap_step) {
    let moved = i32(at) - i32(k * reach);
    let whole = i32(floor((f32(moved) + 0.5) / f32(step)));
    if (whole * i32(step) == moved) {
      break;
    }
    k++;
  }
  return k;
}

// Workgroups: x over the pixels of a plane, y and z over planes.
@compute @workgroup_size(64)
fn grad_x(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let plane = id.y + id.z * groups.y;
  let iy = quotient(id.x, params.in_w);
  if (plane >= params.planes || iy >= params.in_h) {
    return;
  }
  let ix = id.x - iy * params.in_w;
  let at_y = u32(i32(iy) + params.top);
  let at_x = u32(i32(ix) + params.left);
  let ky0 = first_tap(at_y, params.step_y, params.reach_y, params.tap_step_y);
  let kx0 = first_tap(at_x, params.step_x, params.reach_x, params.tap_step_x);
  // Whole numbers, possibly negative: as u32 they then lie beyond every size.
  let oy0 = u32(i32(floor((f32(i32(at_y) - i32(ky0 * params.reach_y)) + 0.5) / f32(params.step_y))));
  let ox0 = u32(i32(floor((f32(i32(at_x) - i32(kx0 * params.reach_x)) + 0.5) / f32(params.step_x))));
  var sum = 0.0;
  if (ky0 < params.tap_step_y && kx0 < params.tap_step_x) {
    for (var m = 0u; m < params.multiplier; m++) {
      let c = (plane % params.c) * params.multiplier + m;
      let base = (plane * params.multiplier + m) * params.out_h * params.out_w;
      var oy = oy0;
      for (var ky = ky0; ky < params.kh; ky += params.tap_step_y) {
        var ox = ox0;
        for (var kx = kx0; kx < params.kw; kx += params.tap_step_x) {
          if (oy < params.out_h && ox < params.out_w) {
            sum = fma(gy[base + oy * params.out_w + ox], weight[(c * params.kh + ky) * params.kw + kx], sum);
          }
          ox -= params.out_step_x;
        }
        oy -= params.out_step_y;
      }
    }
  }
  gx[(plane * params.in_h + iy) * params.in_w + ix] = sum;
}

@compute @workgroup_size(64)
fn grad_weight(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let channels = params.c * params.multiplier;
  let quads = (params.kw + 3u) / 4u;
  let pieces = channels * params.kh * quads;
  if (i >= pieces * params.blocks) {
    return;
  }
  let kx = (i % quads) * 4u;
  let ky = (i / quads) % params.kh;
  let c = (i % pieces) / (quads * params.kh);
  let first = (i / pieces) * params.block;
  let slides = params.step_x < 4u && params.reach_x == 1u;
  let start = u32(i32(kx * params.reach_x) - params.left);
  var sums = vec4f();
  for (var row = first; row < min(first + params.block, params.batch * params.out_h); row++) {
    let image = row / params.out_h;
    let oy = row - image * params.out_h;
    let iy = u32(i32(oy * params.step_y + ky * params.reach_y) - params.top);
    if (iy >= params.in_h) {
      continue;
    }
    let base = ((image * params.c + c / params.multiplier) * params.in_h + iy) * params.in_w;
    let at = ((image * channels + c) * params.out_h + oy) * params.out_w;
    var part = vec4f();
    var v = vec4f();
    var next = start;
    for (var ox = 0u; ox < params.out_w; ox++) {
      // Taps next to each other: only as many numbers are new as the window has moved.
      var fresh = 4u;
      if (slides && ox > 0u) {
        fresh = params.step_x;
      } else {
        next = start + ox * params.step_x;
      }
      for (var j = 0u; j < fresh; j++) {
        v = vec4f(v.yzw, in_row(base, next));
        next += params.reach_x;
      }
      part = fma(v, vec4f(gy[at + ox]), part);
    }
    sums += part;
  }
  let to = (i / pieces * channels * params.kh + c * params.kh + ky) * params.kw + kx;
  for (var j = 0u; j < min(4u, params.kw - kx); j++) {
    parts[to + j] = sums[j];
  }
}
