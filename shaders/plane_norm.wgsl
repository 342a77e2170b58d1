// Group and batch normalisation of x: B * C planes of hw numbers. A "row" is a set of `count` planes that share mean and variance: the planes
// row * row_step + j * plane_step. Group norm: the neighbouring planes of one group; batch norm: one channel's planes of all images.
// With n = (x - mean) / sqrt(variance + eps), h = gy * weight and N the numbers of a row:
//   forward: y  = n * weight + bias
//   grad_x:  gx = rstd * (h - sum(h) / N - n * sum(h * n) / N), the sums over the row; without them where the statistics are fixed
// Planes whose size allows are read four numbers at a time (…4). Rows are few and long, so that planes are cut into pieces which another pass puts together, always in the same order.
struct Params {
  planes: u32,
  hw: u32,
  c: u32,
  rows: u32,
  row_step: u32,
  plane_step: u32,
  count: u32,
  per: u32,         // the row of a plane is (plane / per) % rows
  piece: u32,
  pieces: u32,      // pieces of a plane
  eps: f32,
  momentum: f32,
  has_weight: u32,
  has_bias: u32,
  batch_stats: u32, // 1: the statistics depend on x
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read_write> parts_out: array<vec2f>;
@group(0) @binding(6) var<storage, read> parts: array<vec2f>;
@group(0) @binding(7) var<storage, read_write> stats_out: array<vec2f>;
@group(0) @binding(8) var<storage, read> stats: array<vec2f>;   // (mean, biased variance)
@group(0) @binding(9) var<storage, read_write> running_mean: array<f32>;
@group(0) @binding(10) var<storage, read_write> running_variance: array<f32>;
@group(0) @binding(11) var<storage, read> mean: array<f32>;
@group(0) @binding(12) var<storage, read> variance: array<f32>;
@group(0) @binding(13) var<storage, read> gy: array<f32>;
@group(0) @binding(14) var<storage, read_write> gx: array<f32>;
@group(0) @binding(15) var<storage, read_write> gw: array<f32>;
@group(0) @binding(16) var<storage, read_write> gb: array<f32>;
@group(0) @binding(17) var<storage, read_write> row_sums_out: array<vec2f>;
@group(0) @binding(18) var<storage, read> row_sums: array<vec2f>;

@group(0) @binding(19) var<storage, read> x4: array<vec4f>;
@group(0) @binding(20) var<storage, read_write> y4: array<vec4f>;
@group(0) @binding(21) var<storage, read> gy4: array<vec4f>;
@group(0) @binding(22) var<storage, read_write> gx4: array<vec4f>;

const LANES = 64u;
const ROW = 32u;     // lanes that write
const SHARE = 512u;  // numbers that a workgroup writes of a plane

/// n / d for n up to 4 million: software adapters divide whole numbers lane by lane.
fn quotient(n: u32, d: u32) -> u32 {
  return u32((f32(n) + 0.5) / f32(d));
}

fn plane_row(plane: u32) -> u32 {
  let row = quotient(plane, params.per);
  return row - quotient(row, params.rows) * params.rows;
}

fn channel_of(plane: u32) -> u32 {
  return plane - quotient(plane, params.c) * params.c;
}

fn rstd_of(s: vec2f) -> f32 {
  return 1.0 / sqrt(s.y + params.eps);
}

// (mean, sum of squared deviations) of a piece.
@compute @workgroup_size(LANES)
fn piece_stats(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * LANES;
  if (i >= params.planes * params.pieces) {
    return;
  }
  let plane = quotient(i, params.pieces);
  let first = (i - plane * params.pieces) * params.piece;
  let n = min(params.piece, params.hw - first);
  let base = plane * params.hw + first;
  var sum = 0.0;
  for (var k = 0u; k < n; k++) {
    sum += x[base + k];
  }
  let m = sum / f32(n);
  var squares = 0.0;
  for (var k = 0u; k < n; k++) {
    let d = x[base + k] - m;
    squares += d * d;
  }
  parts_out[i] = vec2f(m, squares);
}

@compute @workgroup_size(LANES)
fn piece_stats4(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * LANES;
  if (i >= params.planes * params.pieces) {
    return;
  }
  let plane = quotient(i, params.pieces);
  let first = (i - plane * params.pieces) * params.piece;
  let n = min(params.piece, params.hw - first) / 4u;
  let base = (plane * params.hw + first) / 4u;
  var sum = vec4f();
  for (var k = 0u; k < n; k++) {
    sum += x4[base + k];
  }
  let m = dot(sum, vec4f(1.0)) / f32(n * 4u);
  var squares = vec4f();
  for (var k = 0u; k < n; k++) {
    let d = x4[base + k] - m;
    squares += d * d;
  }
  parts_out[i] = vec2f(m, dot(squares, vec4f(1.0)));
}

// Puts the pieces of a row together (Chan et al. 1979): no cancellation however large the mean.
@compute @workgroup_size(LANES)
fn merge_stats(@builtin(global_invocation_id) id: vec3u) {
  let row = id.x;
  if (row >= params.rows) {
    return;
  }
  let total = f32(params.count) * f32(params.hw);
  var sum = 0.0;
  for (var j = 0u; j < params.count; j++) {
    let base = (row * params.row_step + j * params.plane_step) * params.pieces;
    for (var q = 0u; q < params.pieces; q++) {
      sum += parts[base + q].x * f32(min(params.piece, params.hw - q * params.piece));
    }
  }
  let m = sum / total;
  var squares = 0.0;
  for (var j = 0u; j < params.count; j++) {
    let base = (row * params.row_step + j * params.plane_step) * params.pieces;
    for (var q = 0u; q < params.pieces; q++) {
      let part = parts[base + q];
      let d = part.x - m;
      squares += part.y + d * d * f32(min(params.piece, params.hw - q * params.piece));
    }
  }
  stats_out[row] = vec2f(m, squares / total);
}

// Batch norm's running statistics, the variance unbiased as PyTorch keeps it.
@compute @workgroup_size(LANES)
fn update_running(@builtin(global_invocation_id) id: vec3u) {
  let row = id.x;
  if (row >= params.rows) {
    return;
  }
  let total = f32(params.count) * f32(params.hw);
  let s = stats[row];
  running_mean[row] += params.momentum * (s.x - running_mean[row]);
  running_variance[row] += params.momentum * (s.y * total / (total - 1.0) - running_variance[row]);
}

@compute @workgroup_size(LANES)
fn fixed_stats(@builtin(global_invocation_id) id: vec3u) {
  if (id.x < params.rows) {
    stats_out[id.x] = vec2f(mean[id.x], variance[id.x]);
  }
}

/// Scale and shift of a plane after its mean is taken away.
fn affine(plane: u32, s: vec2f) -> vec2f {
  let c = channel_of(plane);
  var scale = rstd_of(s);
  if (params.has_weight == 1u) {
    scale *= weight[c];
  }
  var shift = 0.0;
  if (params.has_bias == 1u) {
    shift = bias[c];
  }
  return vec2f(scale, shift);
}

// Workgroups of what writes planes: x over a plane by SHARE numbers, y and z over planes.
@compute @workgroup_size(ROW)
fn forward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let plane = group.y + group.z * groups.y;
  if (plane >= params.planes) {
    return;
  }
  let s = stats[plane_row(plane)];
  let a = affine(plane, s);
  let base = plane * params.hw;
  for (var k = group.x * SHARE + lane; k < min(group.x * SHARE + SHARE, params.hw); k += ROW) {
    y[base + k] = fma(x[base + k] - s.x, a.x, a.y);
  }
}

@compute @workgroup_size(ROW)
fn forward4(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let plane = group.y + group.z * groups.y;
  if (plane >= params.planes) {
    return;
  }
  let s = stats[plane_row(plane)];
  let a = affine(plane, s);
  let base = plane * params.hw / 4u;
  for (var k = group.x * SHARE / 4u + lane; k < min(group.x * SHARE + SHARE, params.hw) / 4u; k += ROW) {
    y4[base + k] = fma(x4[base + k] - s.x, vec4f(a.x), vec4f(a.y));
  }
}

// (sum of gy, sum of gy * n) over a piece.
@compute @workgroup_size(LANES)
fn grad_pieces(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * LANES;
  if (i >= params.planes * params.pieces) {
    return;
  }
  let plane = quotient(i, params.pieces);
  let first = (i - plane * params.pieces) * params.piece;
  let n = min(params.piece, params.hw - first);
  let base = plane * params.hw + first;
  let s = stats[plane_row(plane)];
  var sums = vec2f();
  for (var k = 0u; k < n; k++) {
    let g = gy[base + k];
    sums += vec2f(g, g * (x[base + k] - s.x));
  }
  parts_out[i] = vec2f(sums.x, sums.y * rstd_of(s));
}

@compute @workgroup_size(LANES)
fn grad_pieces4(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * LANES;
  if (i >= params.planes * params.pieces) {
    return;
  }
  let plane = quotient(i, params.pieces);
  let first = (i - plane * params.pieces) * params.piece;
  let n = min(params.piece, params.hw - first) / 4u;
  let base = (plane * params.hw + first) / 4u;
  let s = stats[plane_row(plane)];
  var sum = vec4f();
  var product = vec4f();
  for (var k = 0u; k < n; k++) {
    let g = gy4[base + k];
    sum += g;
    product += g * (x4[base + k] - s.x);
  }
  parts_out[i] = vec2f(dot(sum, vec4f(1.0)), dot(product, vec4f(1.0)) * rstd_of(s));
}

// From the sums of planes: those of h and h * n over a row, divided by its length.
@compute @workgroup_size(LANES)
fn grad_rows(@builtin(global_invocation_id) id: vec3u) {
  let row = id.x;
  if (row >= params.rows) {
    return;
  }
  var sums = vec2f();
  for (var j = 0u; j < params.count; j++) {
    let plane = row * params.row_step + j * params.plane_step;
    var w = 1.0;
    if (params.has_weight == 1u) {
      w = weight[channel_of(plane)];
    }
    sums += w * parts[plane];
  }
  row_sums_out[row] = sums / (f32(params.count) * f32(params.hw));
}

// From the sums of planes: those of channels over the batch.
@compute @workgroup_size(LANES)
fn grad_affine(@builtin(global_invocation_id) id: vec3u) {
  let c = id.x;
  if (c >= params.c) {
    return;
  }
  var sums = vec2f();
  for (var plane = c; plane < params.planes; plane += params.c) {
    sums += parts[plane];
  }
  gb[c] = sums.x;
  gw[c] = sums.y;
}

/// (weight, sum(h) / N, sum(h * n) / N) of a plane.
fn slopes(plane: u32) -> vec3f {
  var w = 1.0;
  if (params.has_weight == 1u) {
    w = weight[channel_of(plane)];
  }
  if (params.batch_stats == 0u) {
    return vec3f(w, 0.0, 0.0);
  }
  return vec3f(w, row_sums[plane_row(plane)]);
}

@compute @workgroup_size(ROW)
fn grad_x(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let plane = group.y + group.z * groups.y;
  if (plane >= params.planes) {
    return;
  }
  let s = stats[plane_row(plane)];
  let rstd = rstd_of(s);
  let a = slopes(plane);
  let base = plane * params.hw;
  for (var k = group.x * SHARE + lane; k < min(group.x * SHARE + SHARE, params.hw); k += ROW) {
    let n = (x[base + k] - s.x) * rstd;
    gx[base + k] = rstd * (gy[base + k] * a.x - a.y - n * a.z);
  }
}

@compute @workgroup_size(ROW)
fn grad_x4(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let plane = group.y + group.z * groups.y;
  if (plane >= params.planes) {
    return;
  }
  let s = stats[plane_row(plane)];
  let rstd = rstd_of(s);
  let a = slopes(plane);
  let base = plane * params.hw / 4u;
  for (var k = group.x * SHARE / 4u + lane; k < min(group.x * SHARE + SHARE, params.hw) / 4u; k += ROW) {
    let n = (x4[base + k] - s.x) * rstd;
    gx4[base + k] = rstd * (gy4[base + k] * a.x - a.y - n * a.z);
  }
}
