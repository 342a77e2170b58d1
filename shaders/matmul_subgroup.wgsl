// Matrix product on adapters whose subgroups have LANES lanes, 4 or 8: y = a b (+ bias), a: (batch, M, K) by strides, b: (batch, K, N) with
// N % 4 == 0. A subgroup owns 8 rows and 4 LANES columns, a lane 4 of them. Each lane loads one value of a for the whole subgroup, so that LANES
// steps of k cost 8 scalar loads of a and LANES vector loads of b: on software adapters loads, not arithmetic, take the time, and no barrier is
// needed. subgroupBroadcast takes a constant lane: engine/kernel.ts repeats what stands between <lane> and </lane>, written for lane 0u, for
// every lane there is.
enable subgroups;

const LANES = 1u;

struct Params {
  m: u32,
  n: u32,
  k: u32,
  batch: u32,
  a_row: u32,     // strides of a in elements
  a_col: u32,
  a_batch: u32,
  b_batch: u32,   // stride of b between batches in vectors of four
  tiles_m: u32,
  tiles_n: u32,
  has_bias: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<vec4f>;
@group(0) @binding(3) var<storage, read> bias: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4f>;

@compute @workgroup_size(LANES)
fn forward(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(subgroup_invocation_id) lane: u32,
) {
  let tile = group.x + group.y * groups.x;
  if (tile >= params.tiles_m * params.tiles_n * params.batch) {
    return;
  }
  // Tiles of one column of tiles follow each other: they share the columns of b in the cache.
  let row = (tile % params.tiles_m) * 8u;
  let column = ((tile / params.tiles_m) % params.tiles_n) * LANES + lane;
  let batch = tile / (params.tiles_m * params.tiles_n);
  let n4 = params.n / 4u;
  let safe_column = min(column, n4 - 1u);
  let b_base = batch * params.b_batch + safe_column;
  let a_base = batch * params.a_batch;
  let at0 = a_base + min(row + 0u, params.m - 1u) * params.a_row;
  let at1 = a_base + min(row + 1u, params.m - 1u) * params.a_row;
  let at2 = a_base + min(row + 2u, params.m - 1u) * params.a_row;
  let at3 = a_base + min(row + 3u, params.m - 1u) * params.a_row;
  let at4 = a_base + min(row + 4u, params.m - 1u) * params.a_row;
  let at5 = a_base + min(row + 5u, params.m - 1u) * params.a_row;
  let at6 = a_base + min(row + 6u, params.m - 1u) * params.a_row;
  let at7 = a_base + min(row + 7u, params.m - 1u) * params.a_row;
  var sum0 = vec4f();
  var sum1 = vec4f();
  var sum2 = vec4f();
  var sum3 = vec4f();
  var sum4 = vec4f();
  var sum5 = vec4f();
  var sum6 = vec4f();
  var sum7 = vec4f();
  // Sums of 64 products are added to the total one by one: rounding grows with K / 64, not with K.
  for (var first = 0u; first < params.k; first += 64u) {
    var c0 = vec4f();
    var c1 = vec4f();
    var c2 = vec4f();
    var c3 = vec4f();
    var c4 = vec4f();
    var c5 = vec4f();
    var c6 = vec4f();
    var c7 = vec4f();
    for (var k = first; k < min(first + 64u, params.k); k += LANES) {
      let ka = min(k + lane, params.k - 1u) * params.a_col;
      let live = select(0.0, 1.0, k + lane < params.k);
      let a0 = a[at0 + ka] * live;
      let a1 = a[at1 + ka] * live;
      let a2 = a[at2 + ka] * live;
      let a3 = a[at3 + ka] * live;
      let a4 = a[at4 + ka] * live;
      let a5 = a[at5 + ka] * live;
      let a6 = a[at6 + ka] * live;
      let a7 = a[at7 + ka] * live;
      var bv = vec4f();
      // <lane>
      bv = b[b_base + min(k + 0u, params.k - 1u) * n4];
      c0 = fma(vec4f(subgroupBroadcast(a0, 0u)), bv, c0);
      c1 = fma(vec4f(subgroupBroadcast(a1, 0u)), bv, c1);
      c2 = fma(vec4f(subgroupBroadcast(a2, 0u)), bv, c2);
      c3 = fma(vec4f(subgroupBroadcast(a3, 0u)), bv, c3);
      c4 = fma(vec4f(subgroupBroadcast(a4, 0u)), bv, c4);
      c5 = fma(vec4f(subgroupBroadcast(a5, 0u)), bv, c5);
      c6 = fma(vec4f(subgroupBroadcast(a6, 0u)), bv, c6);
      c7 = fma(vec4f(subgroupBroadcast(a7, 0u)), bv, c7);
      // </lane>
    }
    sum0 += c0;
    sum1 += c1;
    sum2 += c2;
    sum3 += c3;
    sum4 += c4;
    sum5 += c5;
    sum6 += c6;
    sum7 += c7;
  }
  if (column >= n4) {
    return;
  }
  var add = vec4f();
  if (params.has_bias == 1u) {
    add = bias[column];
  }
  let out = batch * params.m * n4 + column;
  if (row + 0u < params.m) {
    y[out + (row + 0u) * n4] = sum0 + add;
  }
  if (row + 1u < params.m) {
    y[out + (row + 1u) * n4] = sum1 + add;
  }
  if (row + 2u < params.m) {
    y[out + (row + 2u) * n4] = sum2 + add;
  }
  if (row + 3u < params.m) {
    y[out + (row + 3u) * n4] = sum3 + add;
  }
  if (row + 4u < params.m) {
    y[out + (row + 4u) * n4] = sum4 + add;
  }
  if (row + 5u < params.m) {
    y[out + (row + 5u) * n4] = sum5 + add;
  }
  if (row + 6u < params.m) {
    y[out + (row + 6u) * n4] = sum6 + add;
  }
  if (row + 7u < params.m) {
    y[out + (row + 7u) * n4] = sum7 + add;
  }
}
