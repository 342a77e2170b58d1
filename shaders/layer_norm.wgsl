// Layer normalisation over the middle axis of x: (outer, C, inner), where a row is what stands over one place of outer and inner; inner is 1 for
// the last axis. With n = (x - mean) / sqrt(variance + eps) and the biased variance.
//   forward:     y  = n * weight + bias                                            an invocation owns a row
//   grad_x:      gx = rstd * (h - mean(h) - n * mean(h * n))   with h = gy * weight
//   grad_affine: gw = sum over rows of gy * n,  gb = sum over rows of gy          an invocation owns a column of a block of rows
// Rows of the last axis are read four numbers at a time where their length allows (…4), and get a workgroup of their own (row_…) on GPUs.
// stats keeps (mean, rstd) per row so that the gradients read x once more, not twice.
struct Params {
  rows: u32,
  c: u32,
  eps: f32,
  has_weight: u32,
  has_bias: u32,
  inner: u32,     // from one number of a row to the next
  block: u32,     // rows of a block of grad_affine
  blocks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read_write> stats_out: array<vec2f>;
@group(0) @binding(6) var<storage, read> stats: array<vec2f>;
@group(0) @binding(7) var<storage, read> gy: array<f32>;
@group(0) @binding(8) var<storage, read_write> gx: array<f32>;
@group(0) @binding(9) var<storage, read_write> gw: array<f32>;
@group(0) @binding(10) var<storage, read_write> gb: array<f32>;

@group(0) @binding(11) var<storage, read> x4: array<vec4f>;
@group(0) @binding(12) var<storage, read> weight4: array<vec4f>;
@group(0) @binding(13) var<storage, read> bias4: array<vec4f>;
@group(0) @binding(14) var<storage, read_write> y4: array<vec4f>;
@group(0) @binding(15) var<storage, read> gy4: array<vec4f>;
@group(0) @binding(16) var<storage, read_write> gx4: array<vec4f>;

fn start_of(row: u32) -> u32 {
  if (params.inner == 1u) {
    return row * params.c;
  }
  let outer = row / params.inner;
  return row + outer * (params.c - 1u) * params.inner;
}

@compute @workgroup_size(32)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let row = id.x + id.y * groups.x * 32u;
  if (row >= params.rows) {
    return;
  }
  let first = start_of(row);
  let last = first + params.c * params.inner;
  var sum = 0.0;
  for (var at = first; at < last; at += params.inner) {
    sum += x[at];
  }
  let mean = sum / f32(params.c);
  var squares = 0.0;
  for (var at = first; at < last; at += params.inner) {
    let d = x[at] - mean;
    squares += d * d;
  }
  let rstd = 1.0 / sqrt(squares / f32(params.c) + params.eps);
  stats_out[row] = vec2f(mean, rstd);
  var c = 0u;
  for (var at = first; at < last; at += params.inner) {
    var value = (x[at] - mean) * rstd;
    if (params.has_weight == 1u) {
      value *= weight[c];
    }
    if (params.has_bias == 1u) {
      value += bias[c];
    }
    y[at] = value;
    c++;
  }
}

fn slope(at: u32, c: u32) -> f32 {
  if (params.has_weight == 1u) {
    return gy[at] * weight[c];
  }
  return gy[at];
}

@compute @workgroup_size(32)
fn grad_x(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let row = id.x + id.y * groups.x * 32u;
  if (row >= params.rows) {
    return;
  }
  let first = start_of(row);
  let mean = stats[row].x;
  let rstd = stats[row].y;
  var sums = vec2f();  // (sum h, sum h * n)
  var at = first;
  for (var c = 0u; c < params.c; c++) {
    let h = slope(at, c);
    sums += vec2f(h, h * (x[at] - mean) * rstd);
    at += params.inner;
  }
  let means = sums / f32(params.c);
  at = first;
  for (var c = 0u; c < params.c; c++) {
    let n = (x[at] - mean) * rstd;
    gx[at] = rstd * (slope(at, c) - means.x - n * means.y);
    at += params.inner;
  }
}

@compute @workgroup_size(32)
fn grad_affine(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 32u;
  if (i >= params.c * params.blocks) {
    return;
  }
  let first = (i / params.c) * params.block;
  let last = min(first + params.block, params.rows);
  var at = start_of(first) + (i % params.c) * params.inner;
  var left = params.inner - first % params.inner;  // rows until the next place of outer
  var sums = vec2f();
  for (var row = first; row < last; row++) {
    let s = stats[row];
    let g = gy[at];
    sums += vec2f(g * (x[at] - s.x) * s.y, g);
    at++;
    left--;
    if (left == 0u) {
      left = params.inner;
      at += (params.c - 1u) * params.inner;
    }
  }
  gw[i] = sums.x;
  gb[i] = sums.y;
}

fn scale4(c: u32) -> vec4f {
  if (params.has_weight == 1u) {
    return weight4[c];
  }
  return vec4f(1.0);
}

fn shift4(c: u32) -> vec4f {
  if (params.has_bias == 1u) {
    return bias4[c];
  }
  return vec4f();
}

@compute @workgroup_size(32)
fn forward4(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let row = id.x + id.y * groups.x * 32u;
  if (row >= params.rows) {
    return;
  }
  let quads = params.c / 4u;
  let base = row * quads;
  var sum = vec4f();
  for (var q = 0u; q < quads; q++) {
    sum += x4[base + q];
  }
  let mean = dot(sum, vec4f(1.0)) / f32(params.c);
  var squares = vec4f();
  for (var q = 0u; q < quads; q++) {
    let d = x4[base + q] - mean;
    squares += d * d;
  }
  let rstd = 1.0 / sqrt(dot(squares, vec4f(1.0)) / f32(params.c) + params.eps);
  stats_out[row] = vec2f(mean, rstd);
  for (var q = 0u; q < quads; q++) {
    y4[base + q] = (x4[base + q] - mean) * rstd * scale4(q) + shift4(q);
  }
}

@compute @workgroup_size(32)
fn grad_x4(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let row = id.x + id.y * groups.x * 32u;
  if (row >= params.rows) {
    return;
  }
  let quads = params.c / 4u;
  let base = row * quads;
  let mean = stats[row].x;
  let rstd = stats[row].y;
  var sum_h = vec4f();
  var sum_hn = vec4f();
  for (var q = 0u; q < quads; q++) {
    let h = gy4[base + q] * scale4(q);
    sum_h += h;
    sum_hn += h * (x4[base + q] - mean);
  }
  let mean_h = dot(sum_h, vec4f(1.0)) / f32(params.c);
  let mean_hn = dot(sum_hn, vec4f(1.0)) * rstd / f32(params.c);
  for (var q = 0u; q < quads; q++) {
    let n = (x4[base + q] - mean) * rstd;
    gx4[base + q] = rstd * (gy4[base + q] * scale4(q) - mean_h - n * mean_hn);
  }
}

const LANES = 64u;
var<workgroup> shared_sums: array<vec2f, LANES>;

/// The sum over the workgroup, for every lane.
fn row_sum(lane: u32, value: vec2f) -> vec2f {
  workgroupBarrier();  // The sums of before have been read.
  shared_sums[lane] = value;
  for (var width = LANES / 2u; width > 0u; width /= 2u) {
    workgroupBarrier();
    if (lane < width) {
      shared_sums[lane] += shared_sums[lane + width];
    }
  }
  workgroupBarrier();
  return shared_sums[0];
}

@compute @workgroup_size(LANES)
fn row_forward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = group.x + group.y * groups.x;
  if (row >= params.rows) {
    return;
  }
  let base = row * params.c;
  var sum = 0.0;
  for (var c = lane; c < params.c; c += LANES) {
    sum += x[base + c];
  }
  let mean = row_sum(lane, vec2f(sum, 0.0)).x / f32(params.c);
  var squares = 0.0;
  for (var c = lane; c < params.c; c += LANES) {
    let d = x[base + c] - mean;
    squares += d * d;
  }
  let rstd = 1.0 / sqrt(row_sum(lane, vec2f(squares, 0.0)).x / f32(params.c) + params.eps);
  if (lane == 0u) {
    stats_out[row] = vec2f(mean, rstd);
  }
  for (var c = lane; c < params.c; c += LANES) {
    var value = (x[base + c] - mean) * rstd;
    if (params.has_weight == 1u) {
      value *= weight[c];
    }
    if (params.has_bias == 1u) {
      value += bias[c];
    }
    y[base + c] = value;
  }
}

@compute @workgroup_size(LANES)
fn row_grad_x(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = group.x + group.y * groups.x;
  if (row >= params.rows) {
    return;
  }
  let base = row * params.c;
  let mean = stats[row].x;
  let rstd = stats[row].y;
  var sums = vec2f();
  for (var c = lane; c < params.c; c += LANES) {
    let h = slope(base + c, c);
    sums += vec2f(h, h * (x[base + c] - mean) * rstd);
  }
  let means = row_sum(lane, sums) / f32(params.c);
  for (var c = lane; c < params.c; c += LANES) {
    let n = (x[base + c] - mean) * rstd;
    gx[base + c] = rstd * (slope(base + c, c) - means.x - n * means.y);
  }
}
