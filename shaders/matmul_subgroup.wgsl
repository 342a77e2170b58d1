// Matrix product on adapters whose subgroups have LANES lanes: y = finish(a b (+ bias) (+ rest)), a: (batch, M, K), b: (batch, K, N), by strides. A subgroup owns
// 8 rows and 4 LANES columns, a lane 4 of them. Each lane loads one value of a for the whole subgroup, so that LANES steps of k cost 8 scalar
// loads of a and LANES vector loads of b: on software adapters loads, not arithmetic, take the time, and no barrier is needed.
// subgroupBroadcast takes a constant lane: engine/kernel.ts repeats what stands between <lane> and </lane>, written for lane 0u, for every lane
// there is.
enable subgroups;

const LANES = 1u;

// Four columns of a row of b are read at once (b_row % 4 == 0) or, where b is stored as (batch, N, K), four rows of a column (K % 4 == 0).
override COLUMNS: bool = false;

struct Params {
  m: u32,
  n: u32,
  k: u32,
  batch: u32,
  a_row: u32,     // strides in elements
  a_col: u32,
  a_batch: u32,
  b_row: u32,
  b_col: u32,
  b_batch: u32,
  tiles_m: u32,
  tiles_n: u32,
  parts: u32,     // the products of a batch are summed in so many parts, `piece` rows of b each; y holds their sums one after the other
  piece: u32,
  has_bias: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<u32>;  // bits of f32, or pairs of f16
@group(0) @binding(2) var<storage, read> b4: array<vec4f>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read_write> y4: array<vec4f>;
@group(0) @binding(6) var<storage, read> rest: array<f32>;
@group(0) @binding(7) var<storage, read> rest4: array<vec4f>;
@group(0) @binding(8) var<storage, read> b2: array<vec2u>;  // b4 where it is stored as f16

// Operands stored in half precision, two in a u32, are read as they are and counted with in f32.
override HALF_A: bool = false;
override HALF_B: bool = false;

struct Sums {
  s0: vec4f,
  s1: vec4f,
  s2: vec4f,
  s3: vec4f,
  s4: vec4f,
  s5: vec4f,
  s6: vec4f,
  s7: vec4f,
}

// `rest`, in the order of y, is added before the activation.
override REST: bool = false;

/// The activation: engine/epilogue.ts puts it in the place of what stands here.
fn finish(v: vec4f) -> vec4f {
  // <finish>
  return v;
  // </finish>
}

/// What follows the sum, for four places of y.
fn ended(to: vec4u, sum: vec4f) -> vec4f {
  var v = sum;
  if (REST) {
    v += vec4f(rest[to.x], rest[to.y], rest[to.z], rest[to.w]);
  }
  return finish(v);
}

fn ended4(at: u32, sum: vec4f) -> vec4f {
  var v = sum;
  if (REST) {
    v += rest4[at];
  }
  return finish(v);
}

// Tiles of one column of tiles follow each other: they share the columns of b in the cache.
fn row_of(tile: u32) -> u32 {
  return (tile % params.tiles_m) * 8u;
}

fn column_of(tile: u32, lane: u32) -> u32 {
  return (((tile / params.tiles_m) % params.tiles_n) * LANES + lane) * 4u;
}

// The matrix of y, counting the parts of each batch.
fn matrix_of(tile: u32) -> u32 {
  return tile / (params.tiles_m * params.tiles_n);
}

fn a_at(i: u32) -> f32 {
  if (HALF_A) {
    return unpack2x16float(a[i / 2u] >> (i % 2u * 16u)).x;
  }
  return bitcast<f32>(a[i]);
}

/// The fours that start at `i`, which divides by four.
fn b4_at(i: u32) -> vec4f {
  if (HALF_B) {
    let pairs = b2[i / 4u];
    return vec4f(unpack2x16float(pairs.x), unpack2x16float(pairs.y));
  }
  return b4[i / 4u];
}

fn products(tile: u32, lane: u32) -> Sums {
  let row = row_of(tile);
  let batch = matrix_of(tile) / params.parts;
  let start = (matrix_of(tile) % params.parts) * params.piece;
  let end = min(start + params.piece, params.k);
  let columns = min(vec4u(column_of(tile, lane)) + vec4u(0u, 1u, 2u, 3u), vec4u(params.n - 1u));
  let at_b = vec4u(batch * params.b_batch) + columns * params.b_col;
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
  for (var first = start; first < end; first += 64u) {
    var c0 = vec4f();
    var c1 = vec4f();
    var c2 = vec4f();
    var c3 = vec4f();
    var c4 = vec4f();
    var c5 = vec4f();
    var c6 = vec4f();
    var c7 = vec4f();
    let stop = min(first + 64u, end);
    for (var k = first; k < stop; k += LANES) {
      let ka = min(k + lane, end - 1u) * params.a_col;
      let a0 = a_at(at0 + ka);
      let a1 = a_at(at1 + ka);
      let a2 = a_at(at2 + ka);
      let a3 = a_at(at3 + ka);
      let a4 = a_at(at4 + ka);
      let a5 = a_at(at5 + ka);
      let a6 = a_at(at6 + ka);
      let a7 = a_at(at7 + ka);
      var q0 = vec4f();
      var q1 = vec4f();
      var q2 = vec4f();
      var q3 = vec4f();
      var bv = vec4f();
      // <lane>
      if (k + 0u < end) {
        let to_row = (k + 0u) * params.b_row;
        if (!COLUMNS) {
          bv = b4_at(at_b.x + to_row);
        } else {
          if ((0u & 3u) < 1u) {
            q0 = b4_at(at_b.x + to_row);
            q1 = b4_at(at_b.y + to_row);
            q2 = b4_at(at_b.z + to_row);
            q3 = b4_at(at_b.w + to_row);
          }
          bv = vec4f(q0[0u & 3u], q1[0u & 3u], q2[0u & 3u], q3[0u & 3u]);
        }
        c0 = fma(vec4f(subgroupBroadcast(a0, 0u)), bv, c0);
        c1 = fma(vec4f(subgroupBroadcast(a1, 0u)), bv, c1);
        c2 = fma(vec4f(subgroupBroadcast(a2, 0u)), bv, c2);
        c3 = fma(vec4f(subgroupBroadcast(a3, 0u)), bv, c3);
        c4 = fma(vec4f(subgroupBroadcast(a4, 0u)), bv, c4);
        c5 = fma(vec4f(subgroupBroadcast(a5, 0u)), bv, c5);
        c6 = fma(vec4f(subgroupBroadcast(a6, 0u)), bv, c6);
        c7 = fma(vec4f(subgroupBroadcast(a7, 0u)), bv, c7);
      }
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
  var add = vec4f();
  if (params.has_bias == 1u) {
    add = vec4f(bias[columns.x], bias[columns.y], bias[columns.z], bias[columns.w]);
  }
  return Sums(sum0 + add, sum1 + add, sum2 + add, sum3 + add, sum4 + add, sum5 + add, sum6 + add, sum7 + add);
}

@compute @workgroup_size(LANES)
fn forward(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(subgroup_invocation_id) lane: u32,
) {
  let tile = group.x + group.y * groups.x;
  if (tile >= params.tiles_m * params.tiles_n * params.batch * params.parts) {
    return;
  }
  let sums = products(tile, lane);
  let column = column_of(tile, lane);
  write(tile, column, 0u, sums.s0);
  write(tile, column, 1u, sums.s1);
  write(tile, column, 2u, sums.s2);
  write(tile, column, 3u, sums.s3);
  write(tile, column, 4u, sums.s4);
  write(tile, column, 5u, sums.s5);
  write(tile, column, 6u, sums.s6);
  write(tile, column, 7u, sums.s7);
}

fn write(tile: u32, column: u32, i: u32, v: vec4f) {
  let row = row_of(tile) + i;
  if (row >= params.m) {
    return;
  }
  let to = (matrix_of(tile) * params.m + row) * params.n + min(column + vec4u(0u, 1u, 2u, 3u), vec4u(params.n - 1u));
  let out = ended(to, v);
  for (var j = 0u; j < 4u; j++) {
    if (column + j < params.n) {
      y[to[j]] = out[j];
    }
  }
}

// The same where N % 4 == 0.
@compute @workgroup_size(LANES)
fn forward4(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(subgroup_invocation_id) lane: u32,
) {
  let tile = group.x + group.y * groups.x;
  if (tile >= params.tiles_m * params.tiles_n * params.batch * params.parts) {
    return;
  }
  let sums = products(tile, lane);
  let column = column_of(tile, lane);
  write4(tile, column, 0u, sums.s0);
  write4(tile, column, 1u, sums.s1);
  write4(tile, column, 2u, sums.s2);
  write4(tile, column, 3u, sums.s3);
  write4(tile, column, 4u, sums.s4);
  write4(tile, column, 5u, sums.s5);
  write4(tile, column, 6u, sums.s6);
  write4(tile, column, 7u, sums.s7);
}

fn write4(tile: u32, column: u32, i: u32, v: vec4f) {
  let row = row_of(tile) + i;
  if (row < params.m && column < params.n) {
    let at = ((matrix_of(tile) * params.m + row) * params.n + column) / 4u;
    y4[at] = ended4(at, v);
  }
}
