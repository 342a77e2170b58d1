// Resizing images x: (planes, in_h, in_w) to y: (planes, out_h, out_w). Positions are exact fractions: output o reads the input at
// max(0, o a + b) / den, so that rounding never moves a sample (f32 would, by 1e-5 of a pixel at 300).
//   forward:   y from the two (nearest: one) pixels around the position on each axis
//   grad_axis: the transpose along one axis, g: (outer, out, inner) -> gx: (outer, in, inner), gathered by each input from the outputs
//              that read it; run once for the rows and once for the columns
struct Params {
  planes: u32,
  planes_each: u32,   // planes an invocation fills: they share its positions
  y_axis: vec4u,      // in, out, a, den
  x_axis: vec4u,
  y_shift: i32,       // b
  x_shift: i32,
  inner: u32,         // grad_axis alone, along y_axis
  outer: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> g: array<f32>;
@group(0) @binding(4) var<storage, read_write> gx: array<f32>;
@group(0) @binding(5) var<storage, read> g4: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> gx4: array<vec4f>;

override NEAREST: bool = false;

struct Tap {
  first: u32,
  second: u32,
  f: f32,   // share of the second
}

fn tap(o: u32, axis: vec4u, shift: i32) -> Tap {
  let num = u32(max(i32(o * axis.z) + shift, 0));
  let first = min(num / axis.w, axis.x - 1u);
  if (NEAREST) {
    return Tap(first, first, 0.0);
  }
  return Tap(first, min(first + 1u, axis.x - 1u), f32(num % axis.w) / f32(axis.w));
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let area = params.y_axis.y * params.x_axis.y;
  let first = (i / area) * params.planes_each;
  if (first >= params.planes) {
    return;
  }
  let pixel = i % area;
  let r = tap(pixel / params.x_axis.y, params.y_axis, params.y_shift);
  let c = tap(pixel % params.x_axis.y, params.x_axis, params.x_shift);
  let w = params.x_axis.x;
  let step = params.y_axis.x * w;
  let corners = vec4u(r.first * w + c.first, r.first * w + c.second, r.second * w + c.first, r.second * w + c.second);
  for (var p = first; p < min(first + params.planes_each, params.planes); p++) {
    let at = corners + p * step;
    if (NEAREST) {
      y[p * area + pixel] = x[at.x];
    } else {
      y[p * area + pixel] = mix(mix(x[at.x], x[at.y], c.f), mix(x[at.z], x[at.w], c.f), r.f);
    }
  }
}

// Outputs whose position lies between k - 1 and k + 1, at the edges those beyond too: first and one past the last.
fn readers(k: u32) -> vec2u {
  let size = params.y_axis.x;
  let out = params.y_axis.y;
  let a = max(f32(params.y_axis.z), 1e-3);
  let den = f32(params.y_axis.w);
  let low = i32(floor(((f32(k) - 1.0) * den - f32(params.y_shift)) / a + 0.99));
  let high = i32(floor(((f32(k) + 1.0) * den - f32(params.y_shift)) / a + 0.01));
  return vec2u(
    select(u32(clamp(low, 0, i32(out))), 0u, k == 0u),
    select(u32(clamp(high + 1, 0, i32(out))), out, k + 1u == size),
  );
}

// How much of input k is in output o. No division: the distance is compared as it stands, in units of 1 / den.
fn share_of(o: u32, k: u32) -> f32 {
  let den = i32(params.y_axis.w);
  let num = clamp(i32(o * params.y_axis.z) + params.y_shift, 0, i32(params.y_axis.x - 1u) * den);
  let distance = num - i32(k) * den;
  if (NEAREST) {
    return select(0.0, 1.0, distance >= 0 && distance < den);
  }
  return f32(max(den - abs(distance), 0)) / f32(den);
}

@compute @workgroup_size(64)
fn grad_axis(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.outer * params.y_axis.x * params.inner) {
    return;
  }
  let k = (i / params.inner) % params.y_axis.x;
  let range = readers(k);
  let base = (i / (params.inner * params.y_axis.x)) * params.y_axis.y * params.inner + i % params.inner;
  var sum = 0.0;
  for (var o = range.x; o < range.y; o++) {
    sum += share_of(o, k) * g[base + o * params.inner];
  }
  gx[i] = sum;
}

// Four columns at a time: inner counts vectors.
@compute @workgroup_size(64)
fn grad_axis4(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.outer * params.y_axis.x * params.inner) {
    return;
  }
  let k = (i / params.inner) % params.y_axis.x;
  let range = readers(k);
  let base = (i / (params.inner * params.y_axis.x)) * params.y_axis.y * params.inner + i % params.inner;
  var sum = vec4f();
  for (var o = range.x; o < range.y; o++) {
    sum += share_of(o, k) * g4[base + o * params.inner];
  }
  gx4[i] = sum;
}
