// A chain of elementwise functions with NumPy broadcasting; four results an invocation. engine/fusion.ts repeats the operand below for
// each buffer that the chain reads, as x0, x1, … at bindings 2, 3, …, and puts the chain in the place of `apply`'s row; as it stands here the
// file is valid and copies x0. Operands and results are 32 bits each: the chain says what they are taken for, f32 or whole numbers.
// reduce_rows and reduce_columns fold the chain's values as reduce.wgsl does, without storing them, four at a time: x (outer, R, inner) with
// whole fours in R where inner is 1, else in inner. `after` is the chain that follows the reduction; then the reduced values themselves are
// stored as well, for whoever asks for them later.
// exp, log, sin, cos, tanh and erf are written out: adapters' builtins may be off by more than 1e-6.
struct Params {
  n: u32,        // elements of y
  rank: u32,     // dimensions of the strided walk
  vectors: u32,  // 1: four neighbours of y are four neighbours, or one element, of every strided operand
  numbers: array<vec4u, 3>,  // bits of the chain's numbers
  shape: array<vec4u, 2>,
  strides: array<vec4u, 8>,  // of up to four strided operands along each dimension of the walk
  outer: u32,    // of a reduction, as the next ones
  r: u32,
  inner: u32,
  pieces: u32,
  piece: u32,
  scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<vec4u>;
@group(0) @binding(1) var<storage, read_write> y_single: array<u32>;
@group(0) @binding(9) var<storage, read_write> reduced: array<vec4f>;
@group(0) @binding(9) var<storage, read_write> reduced_single: array<f32>;

// 0: sum, times `scale` · 1: largest · 2: smallest; NaN where there is one
override KIND: u32 = 0u;

// <functions>
const LN2_HIGH = 0.693359375;
const LN2_LOW = -2.12194440e-4;

// By the bits: compilers may assume that there is no NaN and drop `x != x`; max, min and clamp return whichever operand is a number.
fn is_nan(x: vec4f) -> vec4<bool> {
  return (bitcast<vec4u>(x) & vec4u(0x7fffffffu)) > vec4u(0x7f800000u);
}

// Not 0; NaN counts as true.
fn truth(x: vec4f) -> vec4<bool> {
  return !(x == vec4f(0.0));
}

// The larger, the smaller value; NaN where either is.
fn max_(x: vec4f, z: vec4f) -> vec4f {
  return select(max(x, z), x + z, is_nan(x) | is_nan(z));
}

fn min_(x: vec4f, z: vec4f) -> vec4f {
  return select(min(x, z), x + z, is_nan(x) | is_nan(z));
}

// 0 for the bits of -0 to -infinity: NaN stays.
fn relu_(x: vec4f) -> vec4f {
  return select(x, vec4f(0.0), bitcast<vec4u>(x) - 0x80000000u <= vec4u(0x7f800000u));
}

fn scale2(x: vec4f, k: vec4i) -> vec4f {
  // In two steps, so that results below 2^-126 and above 2^127 come out right.
  let half = k / 2;
  return x * bitcast<vec4f>((half + 127) << vec4u(23u)) * bitcast<vec4f>((k - half + 127) << vec4u(23u));
}

// (2^k, its exponential's remainder): exp(x) = scale * (1 + remainder), for x from -87 to 88, where 2^k is still a number.
struct Split {
  scale: vec4f,
  remainder: vec4f,
}

fn split_exp(x: vec4f) -> Split {
  let k = round(x * 1.44269504088896341);
  let r = x - k * LN2_HIGH - k * LN2_LOW;
  var p = vec4f(1.9875691500e-4);
  p = p * r + 1.3981999507e-3;
  p = p * r + 8.3334519073e-3;
  p = p * r + 4.1665795894e-2;
  p = p * r + 1.6666665459e-1;
  p = p * r + 5.0000001201e-1;
  return Split(bitcast<vec4f>((vec4i(k) + 127) << vec4u(23u)), p * r * r + r);
}

fn exp_(x0: vec4f) -> vec4f {
  let x = clamp(x0, vec4f(-104.0), vec4f(89.0));
  let k = round(x * 1.44269504088896341);
  let r = x - k * LN2_HIGH - k * LN2_LOW;
  var p = vec4f(1.9875691500e-4);
  p = p * r + 1.3981999507e-3;
  p = p * r + 8.3334519073e-3;
  p = p * r + 4.1665795894e-2;
  p = p * r + 1.6666665459e-1;
  p = p * r + 5.0000001201e-1;
  let e = scale2(p * r * r + r + 1.0, vec4i(k));
  return select(e, x0, is_nan(x0));
}

fn log_(x: vec4f) -> vec4f {
  // Numbers below 2^-126 are brought up first: the exponent is read off the bits.
  let tiny = x < vec4f(1.17549435e-38);
  let bits = bitcast<vec4u>(select(x, x * 8388608.0, tiny));
  var e = vec4f(vec4i((bits >> vec4u(23u)) & vec4u(255u)) - 126) - select(vec4f(0.0), vec4f(23.0), tiny);
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
  var r = p * m * z + e * LN2_LOW - 0.5 * z;
  r = m + r + e * LN2_HIGH;
  // WGSL refuses infinities and NaN that it can work out beforehand, so their bits hang on x.
  let infinity = bitcast<vec4f>((bits & vec4u(0u)) | vec4u(0x7f800000u));
  r = select(r, -infinity, x == vec4f(0.0));
  r = select(r, infinity, x == infinity);
  return select(r, bitcast<vec4f>((bits & vec4u(0u)) | vec4u(0x7fc00000u)), (x < vec4f(0.0)) | is_nan(x));
}

// sin (quadrant 0) and cos (quadrant 1) on |x| up to some 1e4.
fn sin_quadrant(x: vec4f, quadrant: i32) -> vec4f {
  let k = round(x * 0.636619772367581343);
  let r = ((x - k * 1.5703125) - k * 4.837512969970703125e-4) - k * 7.54978995489188216e-8;
  let z = r * r;
  let s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * r + r;
  let t = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0;
  let q = (vec4i(k) + quadrant) & vec4i(3);
  let v = select(s, t, (q & vec4i(1)) == vec4i(1));
  return select(v, -v, q >= vec4i(2));
}

fn sin_(x: vec4f) -> vec4f {
  return sin_quadrant(x, 0);
}

fn cos_(x: vec4f) -> vec4f {
  return sin_quadrant(x, 1);
}

// Of u = exp(2 |x|) - 1, which is exact near 0: u / (u + 2). Beyond 10 it is 1 to the last bit.
fn tanh_(x: vec4f) -> vec4f {
  let e = split_exp(2.0 * min(abs(x), vec4f(10.0)));
  let u = e.scale * e.remainder + (e.scale - 1.0);
  let y = bitcast<vec4u>(u / (u + 2.0)) | (bitcast<vec4u>(x) & vec4u(0x80000000u));
  return select(bitcast<vec4f>(y), x, is_nan(x));
}

fn sigmoid_(x: vec4f) -> vec4f {
  let e = split_exp(clamp(-x, vec4f(-87.0), vec4f(88.0)));
  let y = select(1.0 / (1.0 + (e.scale * e.remainder + e.scale)), vec4f(0.0), x < vec4f(-88.0));
  return select(y, x, is_nan(x));
}

// 1 - erfc(|x|) with a Chebyshev fit of relative error 1.2e-7 (Press et al., Numerical Recipes, 6.2).
fn erf_(x: vec4f) -> vec4f {
  let z = abs(x);
  let t = 1.0 / (1.0 + 0.5 * z);
  var p = vec4f(0.17087277);
  p = p * t - 0.82215223;
  p = p * t + 1.48851587;
  p = p * t - 1.13520398;
  p = p * t + 0.27886807;
  p = p * t - 0.18628806;
  p = p * t + 0.09678418;
  p = p * t + 0.37409196;
  p = p * t + 1.00002368;
  p = p * t - 1.26551223;
  let far = 1.0 - t * exp_(p - z * z);
  // Near 0 the difference would cancel: the series of erf does not.
  let w = x * x;
  var s = vec4f(-7.57575757e-4);
  s = s * w + 4.62962963e-3;
  s = s * w - 2.38095238e-2;
  s = s * w + 0.1;
  s = s * w - 0.333333333;
  let near = 1.12837916709551257 * (s * w * x + x);
  return select(sign(x) * far, near, z < vec4f(0.5));
}

// x to the power p: whole powers up to 15 by multiplying, the others through exp and log. By IEEE's rules for 0, 1 and infinity.
fn pow_(x: vec4f, p: vec4f) -> vec4f {
  let n = vec4u(min(abs(p), vec4f(15.0)));
  let x2 = x * x;
  let x4 = x2 * x2;
  var r = select(vec4f(1.0), x, (n & vec4u(1u)) == vec4u(1u));
  r *= select(vec4f(1.0), x2, (n & vec4u(2u)) == vec4u(2u));
  r *= select(vec4f(1.0), x4, (n & vec4u(4u)) == vec4u(4u));
  r *= select(vec4f(1.0), x4 * x4, n >= vec4u(8u));
  r = select(r, 1.0 / r, p < vec4f(0.0));
  let whole = p == round(p);
  let small = whole & (abs(p) <= vec4f(15.0));
  if (all(small)) {
    return r;
  }
  let odd = whole & (abs(p) < vec4f(16777216.0)) & ((vec4i(p) & vec4i(1)) == vec4i(1));
  // A finite negative x has no power that is not whole: its logarithm is NaN.
  let none = !whole & (x >= vec4f(-0x1.fffffep+127));
  var size = exp_(p * log_(select(abs(x), x, none)));
  size = select(size, vec4f(1.0), (abs(x) == vec4f(1.0)) & !(none & (x < vec4f(0.0))));
  size = select(size, sqrt(x), p == vec4f(0.5));
  size = select(size, -size, odd & ((bitcast<vec4u>(x) >> vec4u(31u)) == vec4u(1u)));
  return select(size, r, small);
}
// </functions>

// Where element i of y finds its strided operands.
fn places(i: u32) -> vec4u {
  var rest = i;
  var at = vec4u();
  for (var d = i32(params.rank) - 1; d >= 0; d--) {
    let n = params.shape[d / 4][d % 4];
    at += (rest % n) * params.strides[d];
    rest /= n;
  }
  return at;
}

// <operand>
@group(0) @binding(2) var<storage, read> x0: array<vec4u>;

fn flat_x0(i: u32) -> vec4u {
  return x0[i];
}

// Its four values lie in a row, or repeat one element, or are fetched one by one.
fn strided_x0(i: u32, walk: u32) -> vec4u {
  if (params.vectors == 1u) {
    let at = places(i * 4u)[walk];
    let v = x0[at / 4u];
    return select(v, vec4u(v[at % 4u]), params.strides[params.rank - 1u][walk] == 0u);
  }
  var v = vec4u();
  for (var j = 0u; j < 4u; j++) {
    let at = places(min(i * 4u + j, params.n - 1u))[walk];
    v = select(v, vec4u(x0[at / 4u][at % 4u]), vec4u(0u, 1u, 2u, 3u) == vec4u(j));
  }
  return v;
}
// </operand>

fn apply(i: u32) -> vec4u {
  // <row>
  return flat_x0(i);
  // </row>
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i * 4u < params.n) {
    y[i] = apply(i);
  }
}

// Folds `count` fours, `step` apart. Sums of 64 are added to the total one by one: rounding grows with their number / 64.
fn fold(first: u32, step: u32, count: u32) -> vec4f {
  var at = first;
  if (KIND == 0u) {
    var total = vec4f();
    for (var from_k = 0u; from_k < count; from_k += 64u) {
      var part = vec4f();
      for (var k = from_k; k < min(from_k + 64u, count); k++) {
        part += bitcast<vec4f>(apply(at));
        at += step;
      }
      total += part;
    }
    return total;
  }
  var best = bitcast<vec4f>(apply(at));
  for (var k = 1u; k < count; k++) {
    at += step;
    best = fold_two(best, bitcast<vec4f>(apply(at)));
  }
  return best;
}

fn fold_two(a: vec4f, b: vec4f) -> vec4f {
  if (KIND == 0u) {
    return a + b;
  }
  if (KIND == 1u) {
    return max_(a, b);
  }
  return min_(a, b);
}

// i counts fours of the result.
fn after(i: u32, r: vec4f) -> vec4u {
  // <after>
  return bitcast<vec4u>(r);
  // </after>
}

@compute @workgroup_size(64)
fn reduce_rows(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.outer * params.pieces) {
    return;
  }
  let first = (i % params.pieces) * params.piece;
  let last = min(first + params.piece, params.r);
  let fours = fold(((i / params.pieces) * params.r + first) / 4u, 1u, (last - first) / 4u);
  let halves = fold_two(fours, fours.zwxy);
  let r = fold_two(halves, halves.yxwz) * params.scale;
  y_single[i] = after(i / 4u, r)[i % 4u];
  // <kept>
  reduced_single[i] = r.x;
  // </kept>
}

@compute @workgroup_size(64)
fn reduce_columns(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let across = params.inner / 4u;
  if (i >= params.outer * params.pieces * across) {
    return;
  }
  let row = i / across;
  let first = (row % params.pieces) * params.piece;
  let last = min(first + params.piece, params.r);
  let at = ((row / params.pieces) * params.r + first) * across + i - row * across;
  let r = fold(at, across, last - first) * params.scale;
  y[i] = after(i, r);
  // <kept>
  reduced[i] = r;
  // </kept>
}
