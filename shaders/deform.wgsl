// Multi-scale deformable attention (Zhu et al. 2021): every query reads each level's map at P positions of its own and adds what it finds
// by weight. Maps of all levels lie behind one another in S; D is counted in vectors of four here.
//   value (B, S, M, D)   locations (B, Q, M, L, P, 2) as (x, y) in 0..1   weights (B, Q, M, L, P)   y, g (B, Q, M, D)
//   forward:      y[b, q, m] = sum over l, p of weight * bilinear(value of level l and head m, location)
//   grad_sample:  gradients of weights and locations, an invocation a sample
//   cells, records_of, grad_value: gradient of value. Samples are sorted by head, level and the cell between four pixels that they fall in
//                 (cells run from -1 to H - 1 and W - 1); each pixel collects from the four cells around it, in one fixed order.
struct Params {
  b: u32,
  s: u32,
  q: u32,
  m: u32,
  d: u32,
  l: u32,
  p: u32,
  cells: u32,                 // of one head, all levels
  levels: array<vec4u, 8>,    // H, W, first pixel, first cell
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> value: array<vec4f>;
@group(0) @binding(2) var<storage, read> locations: array<vec2f>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4f>;
@group(0) @binding(5) var<storage, read> g: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> g_locations: array<vec2f>;
@group(0) @binding(7) var<storage, read_write> g_weights: array<f32>;
@group(0) @binding(8) var<storage, read_write> keys: array<u32>;
@group(0) @binding(9) var<storage, read> order: array<u32>;
@group(0) @binding(10) var<storage, read_write> records_out: array<vec4f>;
@group(0) @binding(11) var<storage, read> records: array<vec4f>;
@group(0) @binding(12) var<storage, read> start: array<u32>;
@group(0) @binding(13) var<storage, read_write> g_value: array<vec4f>;

struct Place {
  at: vec2i,   // (x, y) of the upper left pixel
  f: vec2f,    // shares of the right and the lower ones
}

// The location is cut into 12 bits and a rest, whose products with the size are exact: the position keeps its last bits.
fn place(any_location: vec2f, level: vec4u) -> Place {
  let location = clamp(any_location, vec2f(-1e4), vec2f(1e4));
  let size = vec2f(f32(level.y), f32(level.x));
  let high = bitcast<vec2f>(bitcast<vec2u>(location) & vec2u(0xfffff000u));
  let low = location - high;
  var at = floor(clamp(location * size - 0.5, vec2f(-2.0), size));
  let f = (high * size - (0.5 + at)) + low * size;
  let more = clamp(floor(f), vec2f(-1.0), vec2f(1.0));
  at += more;
  return Place(vec2i(at), clamp(f - more, vec2f(0.0), vec2f(1.0)));
}

// 1 for the corners (upper left, upper right, lower left, lower right) that lie in the map, else 0.
fn inside(at: vec2i, level: vec4u) -> vec4f {
  let columns = vec4i(at.x, at.x + 1, at.x, at.x + 1);
  let rows = vec4i(at.y, at.y, at.y + 1, at.y + 1);
  let yes = (columns >= vec4i(0)) & (columns < vec4i(i32(level.y))) & (rows >= vec4i(0)) & (rows < vec4i(i32(level.x)));
  return select(vec4f(0.0), vec4f(1.0), yes);
}

// Where the corners' vectors of head m begin in `value`; those outside point at some pixel inside.
fn corners(at: vec2i, level: vec4u, b: u32, m: u32) -> vec4u {
  let last = vec2i(i32(level.y), i32(level.x)) - 1;
  let low = vec2u(clamp(at, vec2i(0), last));
  let high = vec2u(clamp(at + 1, vec2i(0), last));
  let pixels = vec4u(low.y * level.y + low.x, low.y * level.y + high.x, high.y * level.y + low.x, high.y * level.y + high.x);
  return ((pixels + level.z + b * params.s) * params.m + m) * params.d;
}

fn shares(f: vec2f) -> vec4f {
  let low = 1.0 - f;
  return vec4f(low.x * low.y, f.x * low.y, low.x * f.y, f.x * f.y);
}

// Two vectors of the result an invocation, which share the work of finding places; d is then even.
override PAIR: bool = false;

fn blend(share: vec4f, k: vec4u) -> vec4f {
  return share.x * value[k.x] + share.y * value[k.y] + share.z * value[k.z] + share.w * value[k.w];
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = (id.x + id.y * groups.x * 64u) * select(1u, 2u, PAIR);
  if (i >= params.b * params.q * params.m * params.d) {
    return;
  }
  let d = i % params.d;
  let head = i / params.d;   // (b, q, m)
  let m = head % params.m;
  let b = head / (params.m * params.q);
  var sample = head * params.l * params.p;
  var sum0 = vec4f();
  var sum1 = vec4f();
  for (var l = 0u; l < params.l; l++) {
    let level = params.levels[l];
    for (var p = 0u; p < params.p; p++) {
      let spot = place(locations[sample], level);
      let share = shares(spot.f) * inside(spot.at, level) * weights[sample];
      let k = corners(spot.at, level, b, m) + d;
      sum0 += blend(share, k);
      if (PAIR) {
        sum1 += blend(share, k + 1u);
      }
      sample++;
    }
  }
  y[i] = sum0;
  if (PAIR) {
    y[i + 1u] = sum1;
  }
}

@compute @workgroup_size(64)
fn grad_sample(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let each = params.l * params.p;
  if (i >= params.b * params.q * params.m * each) {
    return;
  }
  let level = params.levels[(i % each) / params.p];
  let head = i / each;
  let spot = place(locations[i], level);
  let k = corners(spot.at, level, head / (params.m * params.q), head % params.m);
  var dots = vec4f();
  for (var d = 0u; d < params.d; d++) {
    let v = g[head * params.d + d];
    dots += vec4f(dot(v, value[k.x + d]), dot(v, value[k.y + d]), dot(v, value[k.z + d]), dot(v, value[k.w + d]));
  }
  dots *= inside(spot.at, level);
  g_weights[i] = dot(dots, shares(spot.f));
  let low = 1.0 - spot.f;
  let slope = vec2f((dots.y - dots.x) * low.y + (dots.w - dots.z) * spot.f.y, (dots.z - dots.x) * low.x + (dots.w - dots.y) * spot.f.x);
  g_locations[i] = slope * vec2f(f32(level.y), f32(level.x)) * weights[i];
}

@compute @workgroup_size(64)
fn cells(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let each = params.l * params.p;
  if (i >= params.b * params.q * params.m * each) {
    return;
  }
  let level = params.levels[(i % each) / params.p];
  let head = i / each;
  let cell = place(locations[i], level).at + 1;
  let outside = any(cell < vec2i(0)) || cell.x > i32(level.y) || cell.y > i32(level.x);
  let b = head / (params.m * params.q);
  let key = (b * params.m + head % params.m) * params.cells + level.w + u32(cell.y) * (level.y + 1u) + u32(cell.x);
  keys[i] = select(key, params.b * params.m * params.cells, outside);
}

// What grad_value needs of each sample, in sorted order: shares, weight, and where the gradient of its head begins.
@compute @workgroup_size(64)
fn records_of(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let each = params.l * params.p;
  if (i >= params.b * params.q * params.m * each) {
    return;
  }
  let sample = order[i];
  let level = params.levels[(sample % each) / params.p];
  records_out[i] = vec4f(place(locations[sample], level).f, weights[sample], bitcast<f32>((sample / each) * params.d));
}

@compute @workgroup_size(64)
fn grad_value(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = (id.x + id.y * groups.x * 64u) * select(1u, 2u, PAIR);
  if (i >= params.b * params.s * params.m * params.d) {
    return;
  }
  let d = i % params.d;
  let m = (i / params.d) % params.m;
  let s = (i / (params.d * params.m)) % params.s;
  let b = i / (params.d * params.m * params.s);
  var l = 0u;
  while (l + 1u < params.l && s >= params.levels[l + 1u].z) {
    l++;
  }
  let level = params.levels[l];
  let row = (s - level.z) / level.y;
  let column = (s - level.z) % level.y;
  let first = (b * params.m + m) * params.cells + level.w;
  var sum0 = vec4f();
  var sum1 = vec4f();
  for (var below = 0u; below < 2u; below++) {
    // The cells to the left and to the right of the pixel are neighbours in the sorted order.
    let cell = first + (row + 1u - below) * (level.y + 1u) + column;
    let middle = start[cell + 1u];
    let last = start[cell + 2u];
    for (var k = start[cell]; k < last; k++) {
      let r = records[k];
      let share = select(1.0 - r.x, r.x, k < middle) * select(1.0 - r.y, r.y, below == 1u) * r.z;
      let at = bitcast<u32>(r.w) + d;
      sum0 += share * g[at];
      if (PAIR) {
        sum1 += share * g[at + 1u];
      }
    }
  }
  g_value[i] = sum0;
  if (PAIR) {
    g_value[i + 1u] = sum1;
  }
}
