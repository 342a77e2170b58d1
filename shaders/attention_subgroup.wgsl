// Attention in one pass on adapters whose subgroups have LANES lanes, 4 or 8: y and stats as in attention_one_pass.wgsl, for M % 4 == 0 and
// Dv % 4 == 0. A subgroup owns 8 queries and goes over 4 LANES keys at a time, a lane 4 of them: scores as in matmul_subgroup.wgsl, which then
// stay in registers, where the lanes hand them round as factors of the values: that product loads nothing but the values, and loads are what
// takes the time on software adapters. kt: k turned, (batch, D, M), or tile by tile (batch, M / 4 LANES, D, 4 LANES), so that what a subgroup
// reads lies together. What stands between <lane> and </lane>: see engine/kernel.ts.
enable subgroups;

override GROUPS: u32 = 1;  // groups of 4 LANES columns of y, up to 4: a constant, so that their sums stay in registers

const LANES = 1u;

struct Params {
  batch: u32,
  n: u32,
  m: u32,
  d: u32,
  dv: u32,
  mask_kind: u32,     // 0 none, 1 bool, 2 float
  split: u32,         // batch entry b stands at (b / split, b % split) of the mask
  mask_outer: u32,
  mask_inner: u32,
  mask_row: u32,
  k_h: u32,           // 0: no relative position
  k_w: u32,
  k_tile: u32,        // strides of kt in vectors of four: between tiles of 4 LANES keys
  k_column: u32,      // and between columns of k
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> kt: array<vec4f>;
@group(0) @binding(3) var<storage, read> v: array<vec4f>;
@group(0) @binding(4) var<storage, read> mask: array<vec4u>;
@group(0) @binding(5) var<storage, read> rel_h: array<f32>;
@group(0) @binding(6) var<storage, read> rel_w: array<f32>;
@group(0) @binding(7) var<storage, read_write> y: array<vec4f>;
@group(0) @binding(8) var<storage, read_write> stats: array<vec2f>;

const MASKED = -3e38;
const LN2_HIGH = 0.693359375;
const LN2_LOW = -2.12194440e-4;

// Four numbers a lane for each of the 8 queries.
struct Rows {
  a: vec4f,
  b: vec4f,
  c: vec4f,
  d: vec4f,
  e: vec4f,
  f: vec4f,
  g: vec4f,
  h: vec4f,
}

// As in attention.wgsl.
fn exp_(x0: vec4f) -> vec4f {
  let x = clamp(x0, vec4f(-87.0), vec4f(88.0));
  let k = round(x * 1.44269504088896341);
  let r = x - k * LN2_HIGH - k * LN2_LOW;
  var q = vec4f(1.9875691500e-4);
  q = q * r + 1.3981999507e-3;
  q = q * r + 8.3334519073e-3;
  q = q * r + 4.1665795894e-2;
  q = q * r + 1.6666665459e-1;
  q = q * r + 5.0000001201e-1;
  let e = (q * r * r + r + 1.0) * bitcast<vec4f>((vec4i(k) + 127) << vec4u(23u));
  return select(e, vec4f(0.0), x0 < vec4f(-87.0));
}

// q k^T of the queries from `row` on and the keys at `base` of kt.
fn products(b: u32, row: u32, base: u32, lane: u32) -> Rows {
  let first = b * params.n;
  let at0 = (first + min(row + 0u, params.n - 1u)) * params.d;
  let at1 = (first + min(row + 1u, params.n - 1u)) * params.d;
  let at2 = (first + min(row + 2u, params.n - 1u)) * params.d;
  let at3 = (first + min(row + 3u, params.n - 1u)) * params.d;
  let at4 = (first + min(row + 4u, params.n - 1u)) * params.d;
  let at5 = (first + min(row + 5u, params.n - 1u)) * params.d;
  let at6 = (first + min(row + 6u, params.n - 1u)) * params.d;
  let at7 = (first + min(row + 7u, params.n - 1u)) * params.d;
  var s = Rows();
  for (var c = 0u; c < params.d; c += LANES) {
    let there = c + lane < params.d;
    let column = min(c + lane, params.d - 1u);
    let q0 = select(0.0, q[at0 + column], there);
    let q1 = select(0.0, q[at1 + column], there);
    let q2 = select(0.0, q[at2 + column], there);
    let q3 = select(0.0, q[at3 + column], there);
    let q4 = select(0.0, q[at4 + column], there);
    let q5 = select(0.0, q[at5 + column], there);
    let q6 = select(0.0, q[at6 + column], there);
    let q7 = select(0.0, q[at7 + column], there);
    var k = vec4f();
    // <lane>
    k = select(vec4f(), kt[base + min(c + 0u, params.d - 1u) * params.k_column], c + 0u < params.d);
    s.a = fma(vec4f(subgroupBroadcast(q0, 0u)), k, s.a);
    s.b = fma(vec4f(subgroupBroadcast(q1, 0u)), k, s.b);
    s.c = fma(vec4f(subgroupBroadcast(q2, 0u)), k, s.c);
    s.d = fma(vec4f(subgroupBroadcast(q3, 0u)), k, s.d);
    s.e = fma(vec4f(subgroupBroadcast(q4, 0u)), k, s.e);
    s.f = fma(vec4f(subgroupBroadcast(q5, 0u)), k, s.f);
    s.g = fma(vec4f(subgroupBroadcast(q6, 0u)), k, s.g);
    s.h = fma(vec4f(subgroupBroadcast(q7, 0u)), k, s.h);
    // </lane>
  }
  return s;
}

// Where a lane's four keys stand in their grid.
struct Place {
  row: vec4u,
  column: vec4u,
}

// A score with relative position and mask, MASKED for keys that are not there.
fn masked(s: vec4f, b: u32, query: u32, key4: u32, place: Place) -> vec4f {
  var x = s;
  let safe = min(key4, params.m / 4u - 1u);
  let n = min(query, params.n - 1u);
  if (params.k_h > 0u) {
    let h = (b * params.n + n) * params.k_h + place.row;
    let w = (b * params.n + n) * params.k_w + place.column;
    x += vec4f(rel_h[h.x] + rel_w[w.x], rel_h[h.y] + rel_w[w.y], rel_h[h.z] + rel_w[w.z], rel_h[h.w] + rel_w[w.w]);
  }
  if (params.mask_kind > 0u) {
    let base = (b / params.split) * params.mask_outer + (b % params.split) * params.mask_inner + n * params.mask_row;
    let given = mask[base / 4u + safe];
    if (params.mask_kind == 1u) {
      x = select(x, vec4f(MASKED), given == vec4u(0u));
    } else {
      x += bitcast<vec4f>(given);
    }
  }
  return select(x, vec4f(MASKED), key4 * 4u >= params.m);
}

// 1 where one of the four is NaN, by its bits: compilers may assume that there is none.
fn nan_of(s: vec4f) -> f32 {
  return select(0.0, 1.0, any((bitcast<vec4u>(s) & vec4u(0x7fffffffu)) > vec4u(0x7f800000u)));
}

fn nans(a: vec4f, b: vec4f, c: vec4f, d: vec4f) -> vec4f {
  return vec4f(nan_of(a), nan_of(b), nan_of(c), nan_of(d));
}

fn highest(a: vec4f, b: vec4f, c: vec4f, d: vec4f) -> vec4f {
  let pairs = transpose(mat4x4f(a, b, c, d));
  return max(max(max(pairs[0], pairs[1]), max(pairs[2], pairs[3])), vec4f(MASKED));
}

// The largest of all lanes: as broadcasts, which cost a copy each; a reduction is a loop on software adapters.
fn highest_of_all(mine: vec4f) -> vec4f {
  var high = mine;
  // <lane>
  high = max(high, subgroupBroadcast(mine, 0u));
  // </lane>
  return high;
}

// p times four columns of the values: v4 is their place in the row of the tile's first key, `keys` the keys from there on.
fn weighed(p0: Rows, v4: u32, keys: u32) -> Rows {
  var p = p0;
  var o = Rows();
  let dv4 = params.dv / 4u;
  for (var e = 0u; e < 4u; e++) {
    var x = vec4f();
    // <lane>
    x = select(vec4f(), v[v4 + min(e + 4u * 0u, keys - 1u) * dv4], e + 4u * 0u < keys);
    o.a = fma(vec4f(subgroupBroadcast(p.a.x, 0u)), x, o.a);
    o.b = fma(vec4f(subgroupBroadcast(p.b.x, 0u)), x, o.b);
    o.c = fma(vec4f(subgroupBroadcast(p.c.x, 0u)), x, o.c);
    o.d = fma(vec4f(subgroupBroadcast(p.d.x, 0u)), x, o.d);
    o.e = fma(vec4f(subgroupBroadcast(p.e.x, 0u)), x, o.e);
    o.f = fma(vec4f(subgroupBroadcast(p.f.x, 0u)), x, o.f);
    o.g = fma(vec4f(subgroupBroadcast(p.g.x, 0u)), x, o.g);
    o.h = fma(vec4f(subgroupBroadcast(p.h.x, 0u)), x, o.h);
    // </lane>
    p = Rows(p.a.yzwx, p.b.yzwx, p.c.yzwx, p.d.yzwx, p.e.yzwx, p.f.yzwx, p.g.yzwx, p.h.yzwx);
  }
  return o;
}

// x * factor + y, row by row.
fn scaled(x: Rows, f0: vec4f, f4: vec4f, y: Rows) -> Rows {
  return Rows(
    fma(x.a, vec4f(f0.x), y.a),
    fma(x.b, vec4f(f0.y), y.b),
    fma(x.c, vec4f(f0.z), y.c),
    fma(x.d, vec4f(f0.w), y.d),
    fma(x.e, vec4f(f4.x), y.e),
    fma(x.f, vec4f(f4.y), y.f),
    fma(x.g, vec4f(f4.z), y.g),
    fma(x.h, vec4f(f4.w), y.h),
  );
}

fn write(o: Rows, at: u32, count: u32) {
  let dv4 = params.dv / 4u;
  y[at] = o.a;
  if (count > 1u) {
    y[at + 1u * dv4] = o.b;
  }
  if (count > 2u) {
    y[at + 2u * dv4] = o.c;
  }
  if (count > 3u) {
    y[at + 3u * dv4] = o.d;
  }
  if (count > 4u) {
    y[at + 4u * dv4] = o.e;
  }
  if (count > 5u) {
    y[at + 5u * dv4] = o.f;
  }
  if (count > 6u) {
    y[at + 6u * dv4] = o.g;
  }
  if (count > 7u) {
    y[at + 7u * dv4] = o.h;
  }
}

fn scale_of(top: vec4f, sum: vec4f, nan: vec4f) -> vec4f {
  let scale = select(vec4f(0.0), 1.0 / sum, top > vec4f(-2.9e38));
  let broken = (nan > vec4f(0.0)) | (top > vec4f(0x1.fffffep+127));
  return bitcast<vec4f>(select(bitcast<vec4u>(scale), vec4u(0x7fc00000u), broken));
}

fn sum_of(a: vec4f, b: vec4f, c: vec4f, d: vec4f) -> vec4f {
  let t = transpose(mat4x4f(a, b, c, d));
  return (t[0] + t[1]) + (t[2] + t[3]);
}

@compute @workgroup_size(LANES)
fn forward(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(subgroup_invocation_id) lane: u32,
) {
  let tiles = (params.n + 7u) / 8u;
  let tile = group.x + group.y * groups.x;
  if (tile >= tiles * params.batch) {
    return;
  }
  let b = tile / tiles;
  let row = tile % tiles * 8u;
  let dv4 = params.dv / 4u;
  var o0 = Rows();
  var o1 = Rows();
  var o2 = Rows();
  var o3 = Rows();
  var sums = Rows();
  var top0 = vec4f(MASKED);
  var top4 = vec4f(MASKED);
  var nan0 = vec4f();
  var nan4 = vec4f();
  // Divisions are dear on software adapters: once, not for each tile.
  let width = max(params.k_w, 1u);
  let first = vec4u(4u * lane) + vec4u(0u, 1u, 2u, 3u);
  var place = Place(first / width, first % width);
  let step = vec2u(4u * LANES / width, 4u * LANES % width);
  for (var j = 0u; j < params.m; j += 4u * LANES) {
    let key4 = j / 4u + lane;
    let k_at = b * params.d * (params.m / 4u) + j / (4u * LANES) * params.k_tile + min(lane, (params.m - j) / 4u - 1u);
    var s = products(b, row, k_at, lane);
    s.a = masked(s.a, b, row + 0u, key4, place);
    s.b = masked(s.b, b, row + 1u, key4, place);
    s.c = masked(s.c, b, row + 2u, key4, place);
    s.d = masked(s.d, b, row + 3u, key4, place);
    s.e = masked(s.e, b, row + 4u, key4, place);
    s.f = masked(s.f, b, row + 5u, key4, place);
    s.g = masked(s.g, b, row + 6u, key4, place);
    s.h = masked(s.h, b, row + 7u, key4, place);
    let column = place.column + step.y;
    let wraps = column >= vec4u(width);
    place = Place(place.row + step.x + select(vec4u(0u), vec4u(1u), wraps), select(column, column - width, wraps));
    nan0 = max(nan0, nans(s.a, s.b, s.c, s.d));
    nan4 = max(nan4, nans(s.e, s.f, s.g, s.h));
    let high0 = max(top0, highest_of_all(highest(s.a, s.b, s.c, s.d)));
    let high4 = max(top4, highest_of_all(highest(s.e, s.f, s.g, s.h)));
    let f0 = exp_(top0 - high0);
    let f4 = exp_(top4 - high4);
    top0 = high0;
    top4 = high4;
    let p = Rows(
      exp_(max(s.a, vec4f(MASKED)) - high0.x),
      exp_(max(s.b, vec4f(MASKED)) - high0.y),
      exp_(max(s.c, vec4f(MASKED)) - high0.z),
      exp_(max(s.d, vec4f(MASKED)) - high0.w),
      exp_(max(s.e, vec4f(MASKED)) - high4.x),
      exp_(max(s.f, vec4f(MASKED)) - high4.y),
      exp_(max(s.g, vec4f(MASKED)) - high4.z),
      exp_(max(s.h, vec4f(MASKED)) - high4.w),
    );
    sums = scaled(sums, f0, f4, p);
    let v4 = (b * params.m + j) * dv4;
    let keys = params.m - j;
    o0 = scaled(o0, f0, f4, weighed(p, v4 + min(lane, dv4 - 1u), keys));
    if (GROUPS > 1u) {
      o1 = scaled(o1, f0, f4, weighed(p, v4 + min(LANES + lane, dv4 - 1u), keys));
    }
    if (GROUPS > 2u) {
      o2 = scaled(o2, f0, f4, weighed(p, v4 + min(2u * LANES + lane, dv4 - 1u), keys));
    }
    if (GROUPS > 3u) {
      o3 = scaled(o3, f0, f4, weighed(p, v4 + min(3u * LANES + lane, dv4 - 1u), keys));
    }
  }
  let scale0 = scale_of(top0, subgroupAdd(sum_of(sums.a, sums.b, sums.c, sums.d)), subgroupMax(nan0));
  let scale4 = scale_of(top4, subgroupAdd(sum_of(sums.e, sums.f, sums.g, sums.h)), subgroupMax(nan4));
  let count = params.n - row;
  if (lane < min(count, 8u)) {
    let tops = array<f32, 8>(top0.x, top0.y, top0.z, top0.w, top4.x, top4.y, top4.z, top4.w);
    let scales = array<f32, 8>(scale0.x, scale0.y, scale0.z, scale0.w, scale4.x, scale4.y, scale4.z, scale4.w);
    for (var r = lane; r < min(count, 8u); r += LANES) {
      stats[b * params.n + row + r] = vec2f(tops[r], scales[r]);
    }
  }
  let at = (b * params.n + row) * dv4 + lane;
  if (lane < dv4) {
    write(scaled(o0, scale0, scale4, Rows()), at, count);
  }
  if (GROUPS > 1u && LANES + lane < dv4) {
    write(scaled(o1, scale0, scale4, Rows()), at + LANES, count);
  }
  if (GROUPS > 2u && 2u * LANES + lane < dv4) {
    write(scaled(o2, scale0, scale4, Rows()), at + 2u * LANES, count);
  }
  if (GROUPS > 3u && 3u * LANES + lane < dv4) {
    write(scaled(o3, scale0, scale4, Rows()), at + 3u * LANES, count);
  }
}
