// softmax, its logarithm and log-sum-exp over the middle axis of (outer, R, inner); an invocation owns one row of R values.
//   forward:       KIND 0: y = exp(x - m) / s    KIND 1: y = x - m - log(s)      m = max x, s = sum exp(x - m)
//   grad:          KIND 0: gx = y (g - sum(g y)) KIND 1: gx = g - exp(y) sum(g)
//   log_sum:       y = m + log(s), (outer, inner)
//   grad_log_sum:  gx = g exp(x - y)
// m and s are found in one pass: s is brought to the new maximum whenever one turns up. The entries ending in 4 take rows whose values lie
// side by side, four at a time; those beginning with row_ give a row of such values a workgroup of its own: right on GPUs, and for few
// long rows everywhere. A NaN in x makes its row NaN, and so does an infinite m, as torch has it; log_sum then gives m. exp and log are written out: adapters' builtins may be off by more than 1e-6.
struct Params {
  rows: u32,   // outer * inner
  r: u32,
  inner: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> y_in: array<f32>;
@group(0) @binding(4) var<storage, read> g: array<f32>;
@group(0) @binding(5) var<storage, read_write> gx: array<f32>;
@group(0) @binding(6) var<storage, read> x4: array<vec4f>;
@group(0) @binding(7) var<storage, read_write> y4: array<vec4f>;
@group(0) @binding(8) var<storage, read> y_in4: array<vec4f>;
@group(0) @binding(9) var<storage, read> g4: array<vec4f>;
@group(0) @binding(10) var<storage, read_write> gx4: array<vec4f>;

override KIND: u32 = 0u;

const LOWEST = -0x1.fffffep+127;

const LN2_HIGH = 0.693359375;
const LN2_LOW = -2.12194440e-4;

// For arguments up to 0 and a little above; below -87 the result is 0.
fn exp_(x0: vec4f) -> vec4f {
  let x = clamp(x0, vec4f(-87.0), vec4f(88.0));
  let k = round(x * 1.44269504088896341);
  let r = x - k * LN2_HIGH - k * LN2_LOW;
  var p = vec4f(1.9875691500e-4);
  p = p * r + 1.3981999507e-3;
  p = p * r + 8.3334519073e-3;
  p = p * r + 4.1665795894e-2;
  p = p * r + 1.6666665459e-1;
  p = p * r + 5.0000001201e-1;
  let e = (p * r * r + r + 1.0) * bitcast<vec4f>((vec4i(k) + 127) << vec4u(23u));
  return select(e, vec4f(0.0), x0 < vec4f(-87.0));
}

fn exp1(v: f32) -> f32 {
  return exp_(vec4f(v)).x;
}

// For normal numbers above 0.
fn log1(v: f32) -> f32 {
  let bits = bitcast<u32>(v);
  var e = f32(i32(bits >> 23u) - 126);
  var m = bitcast<f32>((bits & 0x7fffffu) | 0x3f000000u);
  let low = m < 0.707106781186547524;
  e -= select(0.0, 1.0, low);
  m = select(m, m + m, low) - 1.0;
  let z = m * m;
  var p = 7.0376836292e-2;
  p = p * m - 1.1514610310e-1;
  p = p * m + 1.1676998740e-1;
  p = p * m - 1.2420140846e-1;
  p = p * m + 1.4249322787e-1;
  p = p * m - 1.6668057665e-1;
  p = p * m + 2.0000714765e-1;
  p = p * m - 2.4999993993e-1;
  p = p * m + 3.3333331174e-1;
  return m + (p * m * z + e * LN2_LOW - 0.5 * z) + e * LN2_HIGH;
}

// NaN is found by the bits, since compilers may assume that there is none: without the sign they are above those of infinity.
fn is_nan(v: f32) -> bool {
  return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u;
}

fn nan_if(bad: bool, v: f32) -> f32 {
  return bitcast<f32>(select(bitcast<u32>(v), 0x7fc00000u, bad));
}

// (m, s) of what was found of a row, whose largest bits without a sign are `size`: m is NaN where a value is, and -infinity where all are.
fn settle(m: f32, s: f32, size: u32) -> vec2f {
  let bits = select(bitcast<u32>(m), 0xff800000u, s == 0.0);
  return vec2f(nan_if(size > 0x7f800000u, bitcast<f32>(bits)), s);
}

// v, or NaN where m is not finite.
fn if_finite(v: f32, m: f32) -> f32 {
  return nan_if((bitcast<u32>(m) & 0x7f800000u) == 0x7f800000u, v);
}

fn base_of(row: u32) -> u32 {
  return (row / params.inner) * params.r * params.inner + row % params.inner;
}

// (m, s) of a row; sums of 64 are added up on their own, so that long rows lose no digits.
fn stats(base: u32) -> vec2f {
  var m = LOWEST;
  var s = 0.0;
  var part = 0.0;
  var size = 0u;
  var at = base;
  for (var k = 0u; k < params.r; k++) {
    let v = x[at];
    size = max(size, bitcast<u32>(v) & 0x7fffffffu);
    at += params.inner;
    if (v > m) {
      let f = exp1(m - v);
      s *= f;
      part *= f;
      m = v;
    }
    part += exp1(v - m);
    if ((k & 63u) == 63u) {
      s += part;
      part = 0.0;
    }
  }
  return settle(m, s + part, size);
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let row = id.x + id.y * groups.x * 64u;
  if (row >= params.rows) {
    return;
  }
  let base = base_of(row);
  let ms = stats(base);
  let last = base + params.r * params.inner;
  if (KIND == 0u) {
    let scale = if_finite(1.0 / ms.y, ms.x);
    for (var at = base; at < last; at += params.inner) {
      y[at] = exp1(x[at] - ms.x) * scale;
    }
    return;
  }
  let shift = if_finite(log1(ms.y), ms.x);
  for (var at = base; at < last; at += params.inner) {
    y[at] = x[at] - ms.x - shift;
  }
}

@compute @workgroup_size(64)
fn log_sum(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let row = id.x + id.y * groups.x * 64u;
  if (row < params.rows) {
    let ms = stats(base_of(row));
    y[row] = select(ms.x + log1(ms.y), ms.x, is_nan(if_finite(0.0, ms.x)));
  }
}

@compute @workgroup_size(64)
fn grad_log_sum(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.rows * params.r) {
    return;
  }
  let row = (i / (params.r * params.inner)) * params.inner + i % params.inner;
  let v = x[i] - y_in[row];
  gx[i] = g[row] * nan_if(is_nan(v), exp1(v));
}

@compute @workgroup_size(64)
fn grad(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let row = id.x + id.y * groups.x * 64u;
  if (row >= params.rows) {
    return;
  }
  let base = base_of(row);
  var s = 0.0;
  var part = 0.0;
  var at = base;
  for (var k = 0u; k < params.r; k++) {
    part += g[at] * select(1.0, y_in[at], KIND == 0u);
    at += params.inner;
    if ((k & 63u) == 63u) {
      s += part;
      part = 0.0;
    }
  }
  // A row is NaN altogether.
  s = nan_if(is_nan(y_in[base]), s + part);
  let last = base + params.r * params.inner;
  for (var i = base; i < last; i += params.inner) {
    if (KIND == 0u) {
      gx[i] = y_in[i] * (g[i] - s);
    } else {
      gx[i] = g[i] - exp1(y_in[i]) * s;
    }
  }
}

@compute @workgroup_size(64)
fn forward4(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let row = id.x + id.y * groups.x * 64u;
  if (row >= params.rows) {
    return;
  }
  let n = params.r / 4u;
  let base = row * n;
  var m = LOWEST;
  var s = vec4f();
  var sizes = vec4u();
  for (var k = 0u; k < n; k++) {
    let v = x4[base + k];
    sizes = max(sizes, bitcast<vec4u>(v) & vec4u(0x7fffffffu));
    let top = max(max(v.x, v.y), max(v.z, v.w));
    if (top > m) {
      s *= exp1(m - top);
      m = top;
    }
    s += exp_(v - m);
  }
  let size = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
  let ms = settle(m, (s.x + s.y) + (s.z + s.w), size);
  if (KIND == 0u) {
    let scale = if_finite(1.0 / ms.y, ms.x);
    for (var k = 0u; k < n; k++) {
      y4[base + k] = exp_(x4[base + k] - m) * scale;
    }
    return;
  }
  let shift = if_finite(log1(ms.y), ms.x);
  for (var k = 0u; k < n; k++) {
    y4[base + k] = x4[base + k] - m - shift;
  }
}

@compute @workgroup_size(64)
fn grad4(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let row = id.x + id.y * groups.x * 64u;
  if (row >= params.rows) {
    return;
  }
  let n = params.r / 4u;
  let base = row * n;
  var sums = vec4f();
  for (var k = 0u; k < n; k++) {
    sums += g4[base + k] * select(vec4f(1.0), y_in4[base + k], KIND == 0u);
  }
  let s = nan_if(is_nan(y_in4[base].x), (sums.x + sums.y) + (sums.z + sums.w));
  for (var k = 0u; k < n; k++) {
    let at = base + k;
    if (KIND == 0u) {
      gx4[at] = y_in4[at] * (g4[at] - s);
    } else {
      gx4[at] = g4[at] - exp_(y_in4[at]) * s;
    }
  }
}

const LANES = 64u;
var<workgroup> tops: array<f32, 64>;
var<workgroup> sums: array<f32, 64>;

// (m, s) of a workgroup's lanes put together; a lane's s is NaN where its values are.
fn together(lane: u32, m: f32, s: f32) -> vec2f {
  tops[lane] = m;
  sums[lane] = s;
  workgroupBarrier();
  for (var half = LANES / 2u; half > 0u; half /= 2u) {
    if (lane < half) {
      let a = tops[lane];
      let b = tops[lane + half];
      let top = max(a, b);
      tops[lane] = top;
      sums[lane] = sums[lane] * exp1(a - top) + sums[lane + half] * exp1(b - top);
    }
    workgroupBarrier();
  }
  return vec2f(tops[0], sums[0]);
}

@compute @workgroup_size(LANES)
fn row_forward(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let row = group.x + group.y * groups.x;
  if (row >= params.rows) {
    return;
  }
  let base = row * params.r;
  var m = LOWEST;
  var s = 0.0;
  var size = 0u;
  for (var k = lane; k < params.r; k += LANES) {
    let v = x[base + k];
    size = max(size, bitcast<u32>(v) & 0x7fffffffu);
    if (v > m) {
      s *= exp1(m - v);
      m = v;
    }
    s += exp1(v - m);
  }
  let all = together(lane, m, nan_if(size > 0x7f800000u, s));
  let ms = settle(all.x, all.y, bitcast<u32>(all.y) & 0x7fffffffu);
  let scale = if_finite(1.0 / ms.y, ms.x);
  let shift = if_finite(log1(ms.y), ms.x);
  for (var k = base + lane; k < base + params.r; k += LANES) {
    if (KIND == 0u) {
      y[k] = exp1(x[k] - ms.x) * scale;
    } else {
      y[k] = x[k] - ms.x - shift;
    }
  }
}

@compute @workgroup_size(LANES)
fn row_grad(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let row = group.x + group.y * groups.x;
  if (row >= params.rows) {
    return;
  }
  let base = row * params.r;
  var part = 0.0;
  for (var k = base + lane; k < base + params.r; k += LANES) {
    part += g[k] * select(1.0, y_in[k], KIND == 0u);
  }
  // Equal maxima: what is put together is the plain sum.
  let s = nan_if(is_nan(y_in[base]), together(lane, 0.0, part).y);
  for (var k = base + lane; k < base + params.r; k += LANES) {
    if (KIND == 0u) {
      gx[k] = y_in[k] * (g[k] - s);
    } else {
      gx[k] = g[k] - exp1(y_in[k]) * s;
    }
  }
}
