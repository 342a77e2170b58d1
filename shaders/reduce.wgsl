// Reductions of x: (outer, R, inner) to y: (outer, pieces, inner): an invocation owns one piece of at most `piece` rows of one column.
// Called again on its own result until one piece is left, so that sums are blocked and no order is left to chance.
//   KIND 0: sum, times `scale` · 1: largest · 2: smallest; NaN where there is one
// forward_whole: the same of i32 and, where UNSIGNED, u32; exact but for sums that overflow, which wrap around.
struct Params {
  outer: u32,
  r: u32,
  inner: u32,
  pieces: u32,
  piece: u32,
  scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> index: array<i32>;
@group(0) @binding(4) var<storage, read> whole: array<i32>;
@group(0) @binding(5) var<storage, read_write> whole_out: array<i32>;

override KIND: u32 = 0u;
override UNSIGNED: bool = false;

// The bits without the sign: above 0x7f800000 for NaN. Compilers may drop what asks for NaN by comparing floats.
fn size_bits(v: f32) -> u32 {
  return bitcast<u32>(v) & 0x7fffffffu;
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.outer * params.pieces * params.inner) {
    return;
  }
  let column = i % params.inner;
  let p = (i / params.inner) % params.pieces;
  let first = p * params.piece;
  let last = min(first + params.piece, params.r);
  let base = (i / (params.inner * params.pieces)) * params.r * params.inner + column;
  var at = base + first * params.inner;
  if (KIND == 0u) {
    // Four sums side by side: less rounding and no chain of dependent additions.
    var sums = vec4f();
    var k = first;
    for (; k + 4u <= last; k += 4u) {
      sums += vec4f(x[at], x[at + params.inner], x[at + 2u * params.inner], x[at + 3u * params.inner]);
      at += 4u * params.inner;
    }
    for (; k < last; k++) {
      sums.x += x[at];
      at += params.inner;
    }
    y[i] = ((sums.x + sums.y) + (sums.z + sums.w)) * params.scale;
    return;
  }
  var best = x[at];
  var size = 0u;
  for (var k = first; k < last; k++) {
    let v = x[at];
    best = select(min(best, v), max(best, v), KIND == 1u);
    size = max(size, size_bits(v));
    at += params.inner;
  }
  y[i] = select(best, bitcast<f32>(size), size > 0x7f800000u);
}

@compute @workgroup_size(64)
fn forward_whole(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.outer * params.pieces * params.inner) {
    return;
  }
  let first = ((i / params.inner) % params.pieces) * params.piece;
  let last = min(first + params.piece, params.r);
  // With the first bit changed over, unsigned numbers are ordered as signed ones are.
  let turn = select(0, i32(-0x7fffffff - 1), UNSIGNED && KIND != 0u);
  var at = (i / (params.inner * params.pieces)) * params.r * params.inner + i % params.inner + first * params.inner;
  var r = select(0, whole[at] ^ turn, KIND != 0u);
  for (var k = first; k < last; k++) {
    let v = whole[at] ^ turn;
    if (KIND == 0u) {
      r += v;
    } else {
      r = select(min(r, v), max(r, v), KIND == 1u);
    }
    at += params.inner;
  }
  whole_out[i] = r ^ turn;
}

// Index of the first largest element along the middle dimension, NaN being larger than all numbers.
@compute @workgroup_size(64)
fn argmax(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.outer * params.inner) {
    return;
  }
  var at = (i / params.inner) * params.r * params.inner + i % params.inner;
  var best = x[at];
  var found = 0u;
  var size = size_bits(best);
  for (var k = 1u; k < params.r; k++) {
    at += params.inner;
    let v = x[at];
    size = max(size, size_bits(v));
    if (v > best) {
      best = v;
      found = k;
    }
  }
  if (size > 0x7f800000u) {
    at -= (params.r - 1u) * params.inner;
    found = 0u;
    while (size_bits(x[at + found * params.inner]) <= 0x7f800000u) {
      found++;
    }
  }
  index[i] = i32(found);
}
