// Reading and adding up by index along the middle axis: x (outer, J, inner), y (outer, I, inner). The index has y's shape, or, where
// SHARED, I elements that hold for every outer and inner. An index outside 0..J-1 reads 0 and adds nothing.
//   gather:       y[o, k, i] = x[o, index, i]
//   destinations: the destination of every source of a sum: the element of x, or where SHARED the place on its middle axis; `count`: nowhere
//   collect:      gx[o, j, i] = base + sum of g[o, k, i] over the sources k of its segment, in ascending order
// gather4 and collect4 do the same where SHARED and inner is a multiple of four: inner then counts vectors.
struct Params {
  outer: u32,
  j: u32,
  i: u32,
  inner: u32,
  count: u32,
  has_base: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read> index: array<i32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read> order: array<u32>;
@group(0) @binding(6) var<storage, read> start: array<u32>;
@group(0) @binding(7) var<storage, read> g: array<f32>;
@group(0) @binding(8) var<storage, read> base: array<f32>;
@group(0) @binding(9) var<storage, read_write> gx: array<f32>;
@group(0) @binding(10) var<storage, read> x4: array<vec4u>;
@group(0) @binding(11) var<storage, read_write> y4: array<vec4u>;
@group(0) @binding(12) var<storage, read> g4: array<vec4f>;
@group(0) @binding(13) var<storage, read_write> gx4: array<vec4f>;

override SHARED: bool = false;

@compute @workgroup_size(64)
fn gather(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let at = id.x + id.y * groups.x * 64u;
  if (at >= params.outer * params.i * params.inner) {
    return;
  }
  let k = (at / params.inner) % params.i;
  let j = index[select(at, k, SHARED)];
  if (j < 0 || j >= i32(params.j)) {
    y[at] = 0u;
    return;
  }
  y[at] = x[((at / (params.inner * params.i)) * params.j + u32(j)) * params.inner + at % params.inner];
}

@compute @workgroup_size(64)
fn destinations(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let at = id.x + id.y * groups.x * 64u;
  if (at >= select(params.outer * params.i * params.inner, params.i, SHARED)) {
    return;
  }
  let j = index[at];
  if (j < 0 || j >= i32(params.j)) {
    keys[at] = params.count;
    return;
  }
  if (SHARED) {
    keys[at] = u32(j);
    return;
  }
  keys[at] = ((at / (params.inner * params.i)) * params.j + u32(j)) * params.inner + at % params.inner;
}

@compute @workgroup_size(64)
fn collect(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let at = id.x + id.y * groups.x * 64u;
  if (at >= params.outer * params.j * params.inner) {
    return;
  }
  var segment = at;
  var origin = 0u;
  var step = 1u;
  if (SHARED) {
    segment = (at / params.inner) % params.j;
    origin = (at / (params.inner * params.j)) * params.i * params.inner + at % params.inner;
    step = params.inner;
  }
  var sum = 0.0;
  var part = 0.0;
  let first = start[segment];
  let last = start[segment + 1u];
  for (var k = first; k < last; k++) {
    part += g[origin + order[k] * step];
    // Sums of sums: one that gathers thousands loses no digits.
    if (((k - first) & 63u) == 63u) {
      sum += part;
      part = 0.0;
    }
  }
  sum += part;
  if (params.has_base == 1u) {
    sum += base[at];
  }
  gx[at] = sum;
}

@compute @workgroup_size(64)
fn gather4(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let at = id.x + id.y * groups.x * 64u;
  if (at >= params.outer * params.i * params.inner) {
    return;
  }
  let row = at / params.inner;
  let j = index[row % params.i];
  if (j < 0 || j >= i32(params.j)) {
    y4[at] = vec4u(0u);
    return;
  }
  y4[at] = x4[((row / params.i) * params.j + u32(j)) * params.inner + at - row * params.inner];
}

@compute @workgroup_size(64)
fn collect4(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let at = id.x + id.y * groups.x * 64u;
  if (at >= params.outer * params.j * params.inner) {
    return;
  }
  let row = at / params.inner;
  let segment = row % params.j;
  let origin = (row / params.j) * params.i * params.inner + at - row * params.inner;
  var sum = vec4f();
  var part = vec4f();
  let first = start[segment];
  let last = start[segment + 1u];
  for (var k = first; k < last; k++) {
    part += g4[origin + order[k] * params.inner];
    if (((k - first) & 63u) == 63u) {
      sum += part;
      part = vec4f();
    }
  }
  gx4[at] = sum + part;
}
