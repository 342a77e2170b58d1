// Reductions of x: (outer, R, inner) to y: (outer, pieces, inner): an invocation owns one piece of at most `piece` rows of one column.
// Called again on its own result until one piece is left, so that sums are blocked and no order is left to chance.
//   KIND 0: sum, times `scale` · 1: largest · 2: smallest
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

override KIND: u32 = 0u;

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
  for (var k = first; k < last; k++) {
    best = select(min(best, x[at]), max(best, x[at]), KIND == 1u);
    at += params.inner;
  }
  y[i] = best;
}

// Index of the first largest element along the middle dimension.
@compute @workgroup_size(64)
fn argmax(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.outer * params.inner) {
    return;
  }
  var at = (i / params.inner) * params.r * params.inner + i % params.inner;
  var best = x[at];
  var found = 0u;
  for (var k = 1u; k < params.r; k++) {
    at += params.inner;
    if (x[at] > best) {
      best = x[at];
      found = k;
    }
  }
  index[i] = i32(found);
}
