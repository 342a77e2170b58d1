// Losses. Elementwise ones over n vectors of four of x and t (target):
//   KIND 0  binary cross-entropy with logits   max(x, 0) - x t + log(1 + exp(-|x|))
//   KIND 1  Kullback-Leibler divergence        t (log t - x), 0 where t is 0; x a logarithm
//   KIND 2  the same with t a logarithm        exp(t) (t - x)
//   KIND 3  square                             (x - t)^2
//   KIND 4  smooth L1                          (x - t)^2 / (2 beta) below beta, |x - t| - beta / 2 above
// forward gives the values, grad the derivative times g: by x, or by t where BY_TARGET.
// cross_entropy: a row (of `inner` side by side) an invocation; x (outer, C, inner), classes (outer, inner).
// dice_sums, dice: 1 - (2 sum p t + 1) / (sum p + sum t + 1) with p = sigmoid(x) for every row of C elements; sums: (3, rows) of p t, p, t.
struct Params {
  n: u32,
  rows: u32,
  c: u32,
  inner: u32,
  piece: u32,
  pieces: u32,
  ignore: i32,
  has_weight: u32,
  beta: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x4: array<vec4f>;
@group(0) @binding(2) var<storage, read> t4: array<vec4f>;
@group(0) @binding(3) var<storage, read> g4: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> y4: array<vec4f>;
@group(0) @binding(5) var<storage, read> x: array<f32>;
@group(0) @binding(6) var<storage, read> t: array<f32>;
@group(0) @binding(7) var<storage, read> g: array<f32>;
@group(0) @binding(8) var<storage, read_write> y: array<f32>;
@group(0) @binding(9) var<storage, read> classes: array<i32>;
@group(0) @binding(10) var<storage, read> weight: array<f32>;
@group(0) @binding(11) var<storage, read_write> weights_out: array<f32>;
@group(0) @binding(12) var<storage, read_write> log_sums_out: array<f32>;
@group(0) @binding(13) var<storage, read> weights: array<f32>;
@group(0) @binding(14) var<storage, read> log_sums: array<f32>;
@group(0) @binding(15) var<storage, read> sums: array<f32>;

override KIND: u32 = 0u;
override BY_TARGET: bool = false;

const LN2_HIGH = 0.693359375;
const LN2_LOW = -2.12194440e-4;

// By the bits: compilers may assume that there is no NaN.
fn is_nan(v: vec4f) -> vec4<bool> {
  return (bitcast<vec4u>(v) & vec4u(0x7fffffffu)) > vec4u(0x7f800000u);
}

// exp and log are written out: adapters' builtins may be off by more than 1e-6. NaN stays NaN.
fn exp_(x0: vec4f) -> vec4f {
  let v = clamp(x0, vec4f(-87.0), vec4f(88.0));
  let k = round(v * 1.44269504088896341);
  let r = v - k * LN2_HIGH - k * LN2_LOW;
  var p = vec4f(1.9875691500e-4);
  p = p * r + 1.3981999507e-3;
  p = p * r + 8.3334519073e-3;
  p = p * r + 4.1665795894e-2;
  p = p * r + 1.6666665459e-1;
  p = p * r + 5.0000001201e-1;
  let e = (p * r * r + r + 1.0) * bitcast<vec4f>((vec4i(k) + 127) << vec4u(23u));
  return select(select(e, vec4f(0.0), x0 < vec4f(-87.0)), x0, is_nan(x0));
}

// For normal numbers above 0, and NaN.
fn log_(v: vec4f) -> vec4f {
  let bits = bitcast<vec4u>(v);
  var e = vec4f(vec4i(bits >> vec4u(23u)) - 126);
  var m = bitcast<vec4f>((bits & vec4u(0x7fffffu)) | vec4u(0x3f000000u));
  let low = m < vec4f(0.707106781186547524);
  e -= select(vec4f(0.0), vec4f(1.0), low);
  m = select(m, m + m, low) - 1.0;
  let z = m * m;
  var p = vec4f(7.0376836292e-2);
  p = p * m - 1.1514610310e-1;
  p = p * m + 1.1676998740e-1;
  p = p * m - 1.2420140846e-1;
  p = p * m + 1.4249322787e-1;
  p = p * m - 1.6668057665e-1;
  p = p * m + 2.0000714765e-1;
  p = p * m - 2.4999993993e-1;
  p = p * m + 3.3333331174e-1;
  return select(m + (p * m * z + e * LN2_LOW - 0.5 * z) + e * LN2_HIGH, v, is_nan(v));
}

fn sigmoid1(v: f32) -> f32 {
  return 1.0 / (1.0 + exp_(vec4f(-v)).x);
}

fn value(a: vec4f, b: vec4f) -> vec4f {
  switch (KIND) {
    case 0u: {
      let e = exp_(-abs(a));
      return max(a, vec4f(0.0)) - a * b + select(log_(1.0 + e), e - 0.5 * e * e, e < vec4f(1e-3));
    }
    case 1u: {
      return select(b * (log_(max(b, vec4f(1.2e-38))) - a), vec4f(0.0), b <= vec4f(0.0));
    }
    case 2u: {
      return exp_(b) * (b - a);
    }
    case 3u: {
      return (a - b) * (a - b);
    }
    default: {
      let d = abs(a - b);
      return select(d - 0.5 * params.beta, 0.5 * d * d / params.beta, d < vec4f(params.beta));
    }
  }
}

fn slope(a: vec4f, b: vec4f) -> vec4f {
  switch (KIND) {
    case 0u: {
      return select(1.0 / (1.0 + exp_(-a)) - b, -a, vec4<bool>(BY_TARGET));
    }
    case 1u: {
      let by_target = select(log_(max(b, vec4f(1.2e-38))) - a + 1.0, vec4f(0.0), b <= vec4f(0.0));
      return select(-b, by_target, vec4<bool>(BY_TARGET));
    }
    case 2u: {
      let e = exp_(b);
      return select(-e, e * (b - a + 1.0), vec4<bool>(BY_TARGET));
    }
    case 3u: {
      return (a - b) * select(2.0, -2.0, BY_TARGET);
    }
    default: {
      let d = a - b;
      let s = select(sign(d), d / params.beta, abs(d) < vec4f(params.beta));
      return select(s, -s, vec4<bool>(BY_TARGET));
    }
  }
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i < params.n) {
    y4[i] = value(x4[i], t4[i]);
  }
}

@compute @workgroup_size(64)
fn grad(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i < params.n) {
    y4[i] = g4[i] * slope(x4[i], t4[i]);
  }
}

@compute @workgroup_size(64)
fn cross_entropy(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let row = id.x + id.y * groups.x * 64u;
  if (row >= params.rows) {
    return;
  }
  let base = (row / params.inner) * params.c * params.inner + row % params.inner;
  var top = -0x1.fffffep+127;
  var sum = 0.0;
  for (var k = 0u; k < params.c; k++) {
    let v = x[base + k * params.inner];
    if (v > top) {
      sum *= exp_(vec4f(top - v)).x;
      top = v;
    }
    sum += exp_(vec4f(v - top)).x;
  }
  // Nothing above -infinity: not a number, as torch has it.
  let log_sum = bitcast<f32>(select(bitcast<u32>(top + log_(vec4f(sum)).x), 0x7fc00000u, sum == 0.0));
  log_sums_out[row] = log_sum;
  let k = classes[row];
  if (k == params.ignore) {
    weights_out[row] = 0.0;
    y[row] = 0.0;
    return;
  }
  if (k < 0 || k >= i32(params.c)) {
    // No such class: not a number, so that it is noticed. Its bits hang on k, since WGSL refuses a constant NaN.
    weights_out[row] = 1.0;
    y[row] = bitcast<f32>((u32(k) & 0u) | 0x7fc00000u);
    return;
  }
  var w = 1.0;
  if (params.has_weight == 1u) {
    w = weight[k];
  }
  weights_out[row] = w;
  y[row] = w * (log_sum - x[base + u32(k) * params.inner]);
}

@compute @workgroup_size(64)
fn cross_entropy_grad(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.rows * params.c) {
    return;
  }
  let row = (i / (params.c * params.inner)) * params.inner + i % params.inner;
  let k = (i / params.inner) % params.c;
  let p = exp_(vec4f(x[i] - log_sums[row])).x;
  y[i] = g[row] * weights[row] * (p - select(0.0, 1.0, i32(k) == classes[row]));
}

@compute @workgroup_size(64)
fn dice_sums(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.rows * params.pieces) {
    return;
  }
  let first = (i % params.pieces) * params.piece;
  let base = (i / params.pieces) * params.c;
  var part = vec3f();
  for (var k = base + first; k < base + min(first + params.piece, params.c); k++) {
    let p = sigmoid1(x[k]);
    part += vec3f(p * t[k], p, t[k]);
  }
  let step = params.rows * params.pieces;
  y[i] = part.x;
  y[i + step] = part.y;
  y[i + 2u * step] = part.z;
}

@compute @workgroup_size(64)
fn dice(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let row = id.x + id.y * groups.x * 64u;
  if (row < params.rows) {
    y[row] = 1.0 - (2.0 * sums[row] + 1.0) / (sums[row + params.rows] + sums[row + 2u * params.rows] + 1.0);
  }
}

@compute @workgroup_size(64)
fn dice_grad(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.rows * params.c) {
    return;
  }
  let row = i / params.c;
  let top = 2.0 * sums[row] + 1.0;
  let below = 1.0 / (sums[row + params.rows] + sums[row + 2u * params.rows] + 1.0);
  let p = sigmoid1(x[i]);
  // d loss / d p = (top below - 2 t) below, and the same with p and t changed over.
  let by_x = (top * below - 2.0 * t[i]) * below * p * (1.0 - p);
  let by_t = (top * below - 2.0 * p) * below;
  y[i] = g[row] * select(by_x, by_t, BY_TARGET);
}
