// Gradients of attention_one_pass.wgsl, whose tiles of scores they make again.
//   delta:   rows: (top, 1 / sum, sum(gy * y), 0), all that has to be known of a query
//   grad_q:  gx = ds [k, one-hot of the key's row, one-hot of its column]: gradients of q, rel_h and rel_w side by side
//   grad_kv: gx = [ds^T q, p^T gy]: gradients of k and v side by side
// with p = exp(score - top) / sum and ds = p * (gy v^T - delta). top and 1 / sum come apart, not as one log-sum-exp: p is what forward
// weighed with, for large scores too. A workgroup owns 32 queries or 32 keys and goes over all of the other, so that nothing is added by two.
override GROUPS: u32 = 1;    // groups of 32 columns, of gx from first_column on; in grad_kv of k
override GROUPS_V: u32 = 0;  // in grad_kv of v

struct Params {
  batch: u32,
  n: u32,
  m: u32,
  d: u32,
  dv: u32,
  columns: u32,       // of a row of gx
  first_column: u32,
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
@group(0) @binding(6) var<storage, read> gy: array<f32>;
@group(0) @binding(7) var<storage, read> rows: array<vec4f>;
@group(0) @binding(8) var<storage, read_write> gx: array<f32>;
@group(0) @binding(9) var<storage, read> y_in: array<f32>;
@group(0) @binding(10) var<storage, read> stats_in: array<vec2f>;
@group(0) @binding(11) var<storage, read_write> rows_out: array<vec4f>;

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

fn gy_at(b: u32, i: u32, c: u32) -> f32 {
  let there = i < params.n && c < params.dv;
  return select(0.0, gy[select(0u, (b * params.n + i) * params.dv + c, there)], there);
}

// k, and beside it where the key stands: a 1 for its row, a 1 for its column.
fn k_wide_at(b: u32, i: u32, c: u32) -> f32 {
  if (c < params.d || params.k_h == 0u) {
    return k_at(b, i, c);
  }
  let row = c - params.d;
  let stands = select(i % params.k_w == row - params.k_h, i / params.k_w == row, row < params.k_h);
  return select(0.0, 1.0, stands && i < params.m);
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

// Factors of a product whose rows stand one below the other: b is (queries, keys), summed over queries.
fn keep_by_row(b: Block, lane: u32) {
  let at = lane / 8u * 4u * STRIDE + lane % 8u;
  left[at] = b[0];
  left[at + STRIDE] = b[1];
  left[at + 2u * STRIDE] = b[2];
  left[at + 3u * STRIDE] = b[3];
}

// The same summed over keys.
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

// gy v^T of the queries from i and the keys from j.
fn upstream(b: u32, i: u32, j: u32, lane: u32) -> Block {
  var s = Block();
  for (var c = 0u; c < params.dv; c += TILE) {
    for (var e = lane; e < VECTORS; e += LANES) {
      let column = c + e % TILE;
      let at = e % TILE * STRIDE + e / TILE;
      let r = e / TILE * 4u;
      left[at] = vec4f(
        gy_at(b, i + r, column), gy_at(b, i + r + 1u, column), gy_at(b, i + r + 2u, column), gy_at(b, i + r + 3u, column));
      right[at] = vec4f(
        v_at(b, j + r, column), v_at(b, j + r + 1u, column), v_at(b, j + r + 2u, column), v_at(b, j + r + 3u, column));
    }
    workgroupBarrier();
    s += product(min(TILE, params.dv - c), lane);
  }
  return s;
}

@compute @workgroup_size(LANES)
fn delta(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let row = id.x + id.y * groups.x * LANES;
  if (row >= params.batch * params.n) {
    return;
  }
  var sum = 0.0;
  for (var c = row * params.dv; c < (row + 1u) * params.dv; c++) {
    sum += gy[c] * y_in[c];
  }
  rows_out[row] = vec4f(stats_in[row], sum, 0.0);
}

// (top, 1 / sum, delta, 0) of an invocation's four queries; p is 0 for queries outside.
fn rows_at(b: u32, i: u32) -> Block {
  var all = Block();
  for (var r = 0u; r < 4u; r++) {
    all[r] = select(vec4f(0.0), rows[b * params.n + min(i + r, params.n - 1u)], i + r < params.n);
  }
  return all;
}

fn weights(b: u32, i: u32, j: u32, lane: u32, row: Block) -> Block {
  var p = scores(b, i, j, lane);
  for (var r = 0u; r < 4u; r++) {
    p[r] = exp_(max(p[r], vec4f(MASKED)) - row[r].x) * row[r].y;
  }
  return p;
}

fn score_gradients(p: Block, dp: Block, row: Block) -> Block {
  return Block(
    p[0] * (dp[0] - row[0].z), p[1] * (dp[1] - row[1].z), p[2] * (dp[2] - row[2].z), p[3] * (dp[3] - row[3].z));
}

fn weighed_k(b: u32, j: u32, c: u32, lane: u32) -> Block {
  for (var e = lane; e < VECTORS; e += LANES) {
    let i = j + e / 8u;
    let column = c + e % 8u * 4u;
    right[e / 8u * STRIDE + e % 8u] = vec4f(
      k_wide_at(b, i, column), k_wide_at(b, i, column + 1u), k_wide_at(b, i, column + 2u), k_wide_at(b, i, column + 3u));
  }
  workgroupBarrier();
  return product(min(TILE, params.m - j), lane);
}

fn weighed_q(b: u32, i0: u32, c: u32, lane: u32) -> Block {
  for (var e = lane; e < VECTORS; e += LANES) {
    let i = i0 + e / 8u;
    let column = c + e % 8u * 4u;
    right[e / 8u * STRIDE + e % 8u] =
      vec4f(q_at(b, i, column), q_at(b, i, column + 1u), q_at(b, i, column + 2u), q_at(b, i, column + 3u));
  }
  workgroupBarrier();
  return product(min(TILE, params.n - i0), lane);
}

fn weighed_gy(b: u32, i0: u32, c: u32, lane: u32) -> Block {
  for (var e = lane; e < VECTORS; e += LANES) {
    let i = i0 + e / 8u;
    let column = c + e % 8u * 4u;
    right[e / 8u * STRIDE + e % 8u] =
      vec4f(gy_at(b, i, column), gy_at(b, i, column + 1u), gy_at(b, i, column + 2u), gy_at(b, i, column + 3u));
  }
  workgroupBarrier();
  return product(min(TILE, params.n - i0), lane);
}

// Writes a block at column c of the rows of gx, of which there are `count` and which end before `end`; base: the batch entry's first row.
fn write_gx(x: Block, base: u32, i: u32, count: u32, c: u32, end: u32) {
  for (var r = 0u; r < 4u; r++) {
    for (var e = 0u; e < 4u; e++) {
      if (i + r < count && c + e < end) {
        gx[(base + i + r) * params.columns + c + e] = x[r][e];
      }
    }
  }
}

@compute @workgroup_size(LANES)
fn grad_q(
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
  let row = rows_at(b, i + lane / 8u * 4u);
  let c = params.first_column;
  var g0 = Block();
  var g1 = Block();
  var g2 = Block();
  var g3 = Block();
  for (var j = 0u; j < params.m; j += TILE) {
    let p = weights(b, i, j, lane, row);
    let ds = score_gradients(p, upstream(b, i, j, lane), row);
    keep_by_column(ds, lane);
    g0 += weighed_k(b, j, c, lane);
    if (GROUPS > 1u) {
      g1 += weighed_k(b, j, c + TILE, lane);
    }
    if (GROUPS > 2u) {
      g2 += weighed_k(b, j, c + 2u * TILE, lane);
    }
    if (GROUPS > 3u) {
      g3 += weighed_k(b, j, c + 3u * TILE, lane);
    }
  }
  let at = i + lane / 8u * 4u;
  let column = c + lane % 8u * 4u;
  let base = b * params.n;
  write_gx(g0, base, at, params.n, column, params.columns);
  if (GROUPS > 1u) {
    write_gx(g1, base, at, params.n, column + TILE, params.columns);
  }
  if (GROUPS > 2u) {
    write_gx(g2, base, at, params.n, column + 2u * TILE, params.columns);
  }
  if (GROUPS > 3u) {
    write_gx(g3, base, at, params.n, column + 3u * TILE, params.columns);
  }
}

@compute @workgroup_size(LANES)
fn grad_kv(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let tiles = (params.m + TILE - 1u) / TILE;
  let tile = group.x + group.y * groups.x;
  if (tile >= tiles * params.batch) {
    return;
  }
  let b = tile / tiles;
  let j = tile % tiles * TILE;
  var k0 = Block();
  var k1 = Block();
  var k2 = Block();
  var k3 = Block();
  var v0 = Block();
  var v1 = Block();
  var v2 = Block();
  var v3 = Block();
  for (var i = 0u; i < params.n; i += TILE) {
    let row = rows_at(b, i + lane / 8u * 4u);
    let p = weights(b, i, j, lane, row);
    if (GROUPS_V > 0u) {
      keep_by_row(p, lane);
      v0 += weighed_gy(b, i, 0u, lane);
      if (GROUPS_V > 1u) {
        v1 += weighed_gy(b, i, TILE, lane);
      }
      if (GROUPS_V > 2u) {
        v2 += weighed_gy(b, i, 2u * TILE, lane);
      }
      if (GROUPS_V > 3u) {
        v3 += weighed_gy(b, i, 3u * TILE, lane);
      }
    }
    if (GROUPS > 0u) {
      let ds = score_gradients(p, upstream(b, i, j, lane), row);
      keep_by_row(ds, lane);
      k0 += weighed_q(b, i, 0u, lane);
      if (GROUPS > 1u) {
        k1 += weighed_q(b, i, TILE, lane);
      }
      if (GROUPS > 2u) {
        k2 += weighed_q(b, i, 2u * TILE, lane);
      }
      if (GROUPS > 3u) {
        k3 += weighed_q(b, i, 3u * TILE, lane);
      }
    }
  }
  let at = j + lane / 8u * 4u;
  let column = lane % 8u * 4u;
  let base = b * params.m;
  if (GROUPS > 0u) {
    write_gx(k0, base, at, params.m, column, params.d);
  }
  if (GROUPS > 1u) {
    write_gx(k1, base, at, params.m, column + TILE, params.d);
  }
  if (GROUPS > 2u) {
    write_gx(k2, base, at, params.m, column + 2u * TILE, params.d);
  }
  if (GROUPS > 3u) {
    write_gx(k3, base, at, params.m, column + 3u * TILE, params.d);
  }
  let first = params.first_column + column;
  if (GROUPS_V > 0u) {
    write_gx(v0, base, at, params.m, first, params.columns);
  }
  if (GROUPS_V > 1u) {
    write_gx(v1, base, at, params.m, first + TILE, params.columns);
  }
  if (GROUPS_V > 2u) {
    write_gx(v2, base, at, params.m, first + 2u * TILE, params.columns);
  }
  if (GROUPS_V > 3u) {
    write_gx(v3, base, at, params.m, first + 3u * TILE, params.columns);
  }
}
