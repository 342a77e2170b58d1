// Attention that never holds the scores: a workgroup makes a tile of 32 queries x 32 keys of them at a time, in registers.
//   forward: y = softmax(q k^T + mask + rel) v by a running maximum and sum over the tiles of keys; stats: (top, 1 / sum) of each query, all
//            that the gradients in attention_one_pass_grad.wgsl need beside y
// q: (batch, N, D), k: (batch, M, D), v: (batch, M, Dv), D and Dv up to 128; rel: (batch, N, kH + kW) for keys at (k / kW, k % kW). Masks, and
// what is not finite, count as in attention.wgsl. An invocation has 4 queries x 4 keys, and 4 queries x 4 columns of each 32 columns of y.
override GROUPS: u32 = 1;  // such groups of columns: a constant, so that their sums stay in registers

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
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> mask: array<u32>;
@group(0) @binding(5) var<storage, read> rel: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
@group(0) @binding(7) var<storage, read_write> stats: array<vec2f>;

const TILE = 32u;
const LANES = 64u;
const VECTORS = 256u;  // of a tile
const STRIDE = 9u;     // vectors of a row of 32: one more than 8, against conflicts of banks
const MASKED = -3e38;
const LN2_HIGH = 0.693359375;
const LN2_LOW = -2.12194440e-4;

// Four rows of four columns each: row r of the tile is m[r].
alias Block = mat4x4f;

// The two factors of a product, by the index that is summed over: fours of rows and fours of columns.
var<workgroup> left: array<vec4f, TILE * STRIDE>;
var<workgroup> right: array<vec4f, TILE * STRIDE>;
var<workgroup> parts: array<vec4f, LANES>;

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

// Values outside of a matrix are 0.
fn q_at(b: u32, i: u32, c: u32) -> f32 {
  let there = i < params.n && c < params.d;
  return select(0.0, q[select(0u, (b * params.n + i) * params.d + c, there)], there);
}

fn k_at(b: u32, i: u32, c: u32) -> f32 {
  let there = i < params.m && c < params.d;
  return select(0.0, k[select(0u, (b * params.m + i) * params.d + c, there)], there);
}

fn v_at(b: u32, i: u32, c: u32) -> f32 {
  let there = i < params.m && c < params.dv;
  return select(0.0, v[select(0u, (b * params.m + i) * params.dv + c, there)], there);
}

fn product(count: u32, lane: u32) -> Block {
  var sum = Block();
  for (var i = 0u; i < count; i++) {
    let l = left[i * STRIDE + lane / 8u];
    let r = right[i * STRIDE + lane % 8u];
    sum[0] = fma(vec4f(l.x), r, sum[0]);
    sum[1] = fma(vec4f(l.y), r, sum[1]);
    sum[2] = fma(vec4f(l.z), r, sum[2]);
    sum[3] = fma(vec4f(l.w), r, sum[3]);
  }
  workgroupBarrier();
  return sum;
}

// Makes b: (queries, keys) the left factor, summed over keys.
fn keep_by_column(b: Block, lane: u32) {
  let t = transpose(b);
  let at = lane % 8u * 4u * STRIDE + lane / 8u;
  left[at] = t[0];
  left[at + STRIDE] = t[1];
  left[at + 2u * STRIDE] = t[2];
  left[at + 3u * STRIDE] = t[3];
}

fn mask_base(b: u32) -> u32 {
  return (b / params.split) * params.mask_outer + (b % params.split) * params.mask_inner;
}

// Scores of the queries from i and the keys from j with masks and relative position.
fn scores(b: u32, i: u32, j: u32, lane: u32) -> Block {
  var s = Block();
  for (var c = 0u; c < params.d; c += TILE) {
    for (var e = lane; e < VECTORS; e += LANES) {
      let column = c + e % TILE;
      let at = e % TILE * STRIDE + e / TILE;
      let r = e / TILE * 4u;
      left[at] = vec4f(
        q_at(b, i + r, column), q_at(b, i + r + 1u, column), q_at(b, i + r + 2u, column), q_at(b, i + r + 3u, column));
      right[at] = vec4f(
        k_at(b, j + r, column), k_at(b, j + r + 1u, column), k_at(b, j + r + 2u, column), k_at(b, j + r + 3u, column));
    }
    workgroupBarrier();
    s += product(min(TILE, params.d - c), lane);
  }
  let key = vec4u(j + lane % 8u * 4u) + vec4u(0u, 1u, 2u, 3u);
  let last = vec4u(params.m - 1u);
  let safe = min(key, last);
  for (var r = 0u; r < 4u; r++) {
    let query = min(i + lane / 8u * 4u + r, params.n - 1u);
    var x = s[r];
    if (params.k_h > 0u) {
      let at = (b * params.n + query) * (params.k_h + params.k_w);
      let row = at + safe / params.k_w;
      let column = at + params.k_h + safe % params.k_w;
      x += vec4f(rel[row.x], rel[row.y], rel[row.z], rel[row.w]);
      x += vec4f(rel[column.x], rel[column.y], rel[column.z], rel[column.w]);
    }
    if (params.mask_kind > 0u) {
      let at = mask_base(b) + query * params.mask_row + safe;
      let given = vec4u(mask[at.x], mask[at.y], mask[at.z], mask[at.w]);
      x = select(x + bitcast<vec4f>(given), select(x, vec4f(MASKED), given == vec4u(0u)), params.mask_kind == 1u);
    }
    s[r] = select(x, vec4f(MASKED), key > last);
  }
  return s;
}

// What `left` weighs of 32 columns of the values from key j.
fn weighed_v(b: u32, j: u32, c: u32, lane: u32) -> Block {
  for (var e = lane; e < VECTORS; e += LANES) {
    let i = j + e / 8u;
    let column = c + e % 8u * 4u;
    right[e / 8u * STRIDE + e % 8u] =
      vec4f(v_at(b, i, column), v_at(b, i, column + 1u), v_at(b, i, column + 2u), v_at(b, i, column + 3u));
  }
  workgroupBarrier();
  return product(min(TILE, params.m - j), lane);
}

fn by_row(x: Block, f: vec4f) -> Block {
  return Block(x[0] * f.x, x[1] * f.y, x[2] * f.z, x[3] * f.w);
}

// The sum of a block's four columns.
fn across(x: Block) -> vec4f {
  let t = transpose(x);
  return (t[0] + t[1]) + (t[2] + t[3]);
}

fn write_y(x: Block, b: u32, i: u32, c: u32) {
  for (var r = 0u; r < 4u; r++) {
    for (var e = 0u; e < 4u; e++) {
      if (i + r < params.n && c + e < params.dv) {
        y[(b * params.n + i + r) * params.dv + c + e] = x[r][e];
      }
    }
  }
}

@compute @workgroup_size(LANES)
fn forward(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let tiles = (params.n + TILE - 1u) / TILE;
  let tile = group.x + group.y * groups.x;
  if (tile >= tiles * params.batch) {
    return;
  }
  let b = tile / tiles;
  let i = tile % tiles * TILE;
  var o0 = Block();
  var o1 = Block();
  var o2 = Block();
  var o3 = Block();
  var top = vec4f(MASKED);
  var sum = vec4f();  // this invocation's share
  var nan = vec4f();
  for (var j = 0u; j < params.m; j += TILE) {
    var s = scores(b, i, j, lane);
    for (var r = 0u; r < 4u; r++) {
      // By the bits: compilers may assume that there is no NaN.
      let isNan = (bitcast<vec4u>(s[r]) & vec4u(0x7fffffffu)) > vec4u(0x7f800000u);
      nan[r] = select(nan[r], 1.0, any(isNan));
      s[r] = max(s[r], vec4f(MASKED));
    }
    let t = transpose(s);
    parts[lane] = max(max(t[0], t[1]), max(t[2], t[3]));
    workgroupBarrier();
    var higher = top;
    for (var e = 0u; e < 8u; e++) {
      higher = max(higher, parts[lane / 8u * 8u + e]);
    }
    let factor = exp_(top - higher);
    top = higher;
    let p = Block(exp_(s[0] - top.x), exp_(s[1] - top.y), exp_(s[2] - top.z), exp_(s[3] - top.w));
    sum = sum * factor + across(p);
    keep_by_column(p, lane);
    o0 = by_row(o0, factor) + weighed_v(b, j, 0u, lane);
    if (GROUPS > 1u) {
      o1 = by_row(o1, factor) + weighed_v(b, j, TILE, lane);
    }
    if (GROUPS > 2u) {
      o2 = by_row(o2, factor) + weighed_v(b, j, 2u * TILE, lane);
    }
    if (GROUPS > 3u) {
      o3 = by_row(o3, factor) + weighed_v(b, j, 3u * TILE, lane);
    }
  }
  parts[lane] = sum;
  left[lane] = nan;
  workgroupBarrier();
  var total = vec4f();
  nan = vec4f();
  for (var e = 0u; e < 8u; e++) {
    total += parts[lane / 8u * 8u + e];
    nan = max(nan, left[lane / 8u * 8u + e]);
  }
  // 0 where all is masked out, NaN where a score is NaN or +infinity.
  let isNan = (nan > vec4f(0.0)) | (top > vec4f(0x1.fffffep+127));
  let known = select(vec4f(0.0), 1.0 / total, top > vec4f(-2.9e38));
  let scale = bitcast<vec4f>(select(bitcast<vec4u>(known), vec4u(0x7fc00000u), isNan));
  let row = i + lane / 8u * 4u;
  let column = lane % 8u * 4u;
  if (column == 0u) {
    for (var r = 0u; r < 4u; r++) {
      if (row + r < params.n) {
        stats[b * params.n + row + r] = vec2f(top[r], scale[r]);
      }
    }
  }
  write_y(by_row(o0, scale), b, row, column);
  if (GROUPS > 1u) {
    write_y(by_row(o1, scale), b, row, column + TILE);
  }
  if (GROUPS > 2u) {
    write_y(by_row(o2, scale), b, row, column + 2u * TILE);
  }
  if (GROUPS > 3u) {
    write_y(by_row(o3, scale), b, row, column + 3u * TILE);
  }
}
