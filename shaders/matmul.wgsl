// Matrix product: y = finish(a b (+ bias) (+ rest)), a: (batch, M, K), b: (batch, K, N), both by strides.
//   forward:       every shape and adapter. An invocation owns 4 rows and 4 columns; those beyond the edge repeat the last one and are not written.
//   tiled, tiled4: GPUs. A workgroup of 128 invocations owns 64 rows and 64 columns of y, an invocation 8 by 4 of them. 32 steps of k at a time go
//                  through workgroup memory, 16 KiB in all: each invocation loads a block of four by four of a and one of b along the direction
//                  in which they lie in memory, so that neighbours read neighbours, and stores it by k. What lies beyond the edges is 0.
const TILE = 64u;   // rows and columns
const DEPTH = 32u;  // steps of k
const FOURS = TILE / 4u;

// What workgroup memory holds: vec4<f16> where a and b are stored so and the adapter counts with them, see engine/kernel.ts. It takes half the
// memory, and the sums are the same: a product of two f16 is exact in f32.
alias Four = vec4f;

// a, b and y are read and written four at a time: M or K (where a's elements lie next to each other) and N or K (b's) and N divide by 4.
override FOUR: bool = false;

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
  parts: u32,     // the products of a batch are summed in so many parts, `piece` steps of k each; y holds their sums one after the other
  piece: u32,
  has_bias: u32,
}

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

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<u32>;  // bits of f32, or pairs of f16: fours of these are read here, too, since a stage has but 8 bindings
@group(0) @binding(2) var<storage, read> a4: array<vec4f>;
@group(0) @binding(3) var<storage, read> b: array<u32>;
@group(0) @binding(4) var<storage, read> b4: array<vec4f>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
@group(0) @binding(7) var<storage, read_write> y4: array<vec4f>;
@group(0) @binding(8) var<storage, read> rest: array<f32>;
@group(0) @binding(9) var<storage, read> rest4: array<vec4f>;

// Operands stored in half precision, two in a u32, are read as they are and counted with in f32.
override HALF_A: bool = false;
override HALF_B: bool = false;

// By k, then rows of a or columns of b in fours.
var<workgroup> tile_a: array<Four, DEPTH * FOURS>;
var<workgroup> tile_b: array<Four, DEPTH * FOURS>;

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

// Tiles of one row of tiles follow each other: they share the rows of a in the cache.
fn row_of(tile: u32) -> u32 {
  return ((tile / params.tiles_n) % params.tiles_m) * TILE;
}

fn column_of(tile: u32) -> u32 {
  return (tile % params.tiles_n) * TILE;
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

fn b_at(i: u32) -> f32 {
  if (HALF_B) {
    return unpack2x16float(b[i / 2u] >> (i % 2u * 16u)).x;
  }
  return bitcast<f32>(b[i]);
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let tile = id.x + id.y * groups.x * 64u;
  if (tile >= params.tiles_m * params.tiles_n * params.batch * params.parts) {
    return;
  }
  let column = (tile % params.tiles_n) * 4u;
  let row = ((tile / params.tiles_n) % params.tiles_m) * 4u;
  let matrix = tile / (params.tiles_m * params.tiles_n);
  let batch = matrix / params.parts;
  let start = (matrix % params.parts) * params.piece;
  let end = min(start + params.piece, params.k);
  let rows = min(vec4u(row, row + 1u, row + 2u, row + 3u), vec4u(params.m - 1u));
  let columns = min(vec4u(column, column + 1u, column + 2u, column + 3u), vec4u(params.n - 1u));
  var at_a = vec4u(batch * params.a_batch) + rows * params.a_row + vec4u(start * params.a_col);
  var at_b = vec4u(batch * params.b_batch) + columns * params.b_col + vec4u(start * params.b_row);
  var sum0 = vec4f();
  var sum1 = vec4f();
  var sum2 = vec4f();
  var sum3 = vec4f();
  // Sums of 64 products are added to the total one by one: rounding grows with K / 64, not with K.
  for (var first = start; first < end; first += 64u) {
    var c0 = vec4f();
    var c1 = vec4f();
    var c2 = vec4f();
    var c3 = vec4f();
    for (var k = first; k < min(first + 64u, end); k++) {
      let bv = vec4f(b_at(at_b.x), b_at(at_b.y), b_at(at_b.z), b_at(at_b.w));
      c0 = fma(vec4f(a_at(at_a.x)), bv, c0);
      c1 = fma(vec4f(a_at(at_a.y)), bv, c1);
      c2 = fma(vec4f(a_at(at_a.z)), bv, c2);
      c3 = fma(vec4f(a_at(at_a.w)), bv, c3);
      at_a += params.a_col;
      at_b += params.b_row;
    }
    sum0 += c0;
    sum1 += c1;
    sum2 += c2;
    sum3 += c3;
  }
  var add = vec4f();
  if (params.has_bias == 1u) {
    add = vec4f(bias[columns.x], bias[columns.y], bias[columns.z], bias[columns.w]);
  }
  write_plain(matrix, row, column, sum0 + add);
  write_plain(matrix, row + 1u, column, sum1 + add);
  write_plain(matrix, row + 2u, column, sum2 + add);
  write_plain(matrix, row + 3u, column, sum3 + add);
}

fn write_plain(matrix: u32, row: u32, column: u32, v: vec4f) {
  if (row >= params.m) {
    return;
  }
  let to = (matrix * params.m + row) * params.n + min(column + vec4u(0u, 1u, 2u, 3u), vec4u(params.n - 1u));
  let out = ended(to, v);
  for (var j = 0u; j < min(4u, params.n - column); j++) {
    y[to[j]] = out[j];
  }
}

// Four elements from `at`, `step` apart, as far as they are among the `left` that there are.
fn four_of_a(at: u32, step: u32, left: u32) -> vec4f {
  if (FOUR) {
    if (HALF_A) {
      return vec4f(unpack2x16float(a[at / 2u]), unpack2x16float(a[at / 2u + 1u]));
    }
    return a4[at / 4u];
  }
  var v = vec4f(a_at(at), 0.0, 0.0, 0.0);
  if (left > 1u) {
    v.y = a_at(at + step);
  }
  if (left > 2u) {
    v.z = a_at(at + 2u * step);
  }
  if (left > 3u) {
    v.w = a_at(at + 3u * step);
  }
  return v;
}

fn four_of_b(at: u32, step: u32, left: u32) -> vec4f {
  if (FOUR) {
    if (HALF_B) {
      return vec4f(unpack2x16float(b[at / 2u]), unpack2x16float(b[at / 2u + 1u]));
    }
    return b4[at / 4u];
  }
  var v = vec4f(b_at(at), 0.0, 0.0, 0.0);
  if (left > 1u) {
    v.y = b_at(at + step);
  }
  if (left > 2u) {
    v.z = b_at(at + 2u * step);
  }
  if (left > 3u) {
    v.w = b_at(at + 3u * step);
  }
  return v;
}

fn load_a(i: u32, base: u32, row: u32, k: u32, end: u32) {
  var block = mat4x4f();
  if (params.a_col == 1u) {
    let to = vec2u(i / (DEPTH / 4u), i % (DEPTH / 4u));  // fours of rows, fours of k
    let at_k = k + to.y * 4u;
    for (var j = 0u; j < 4u; j++) {
      let r = row + to.x * 4u + j;
      if (r < params.m && at_k < end) {
        block[j] = four_of_a(base + r * params.a_row + at_k, 1u, end - at_k);
      }
    }
    block = transpose(block);
    for (var j = 0u; j < 4u; j++) {
      tile_a[(to.y * 4u + j) * FOURS + to.x] = Four(block[j]);
    }
  } else {
    let to = vec2u(i % FOURS, i / FOURS);
    let r = row + to.x * 4u;
    for (var j = 0u; j < 4u; j++) {
      let at_k = k + to.y * 4u + j;
      if (r < params.m && at_k < end) {
        block[j] = four_of_a(base + r * params.a_row + at_k * params.a_col, params.a_row, params.m - r);
      }
      tile_a[(to.y * 4u + j) * FOURS + to.x] = Four(block[j]);
    }
  }
}

fn load_b(i: u32, base: u32, column: u32, k: u32, end: u32) {
  var block = mat4x4f();
  if (params.b_col == 1u) {
    let to = vec2u(i % FOURS, i / FOURS);  // fours of columns, fours of k
    let c = column + to.x * 4u;
    for (var j = 0u; j < 4u; j++) {
      let at_k = k + to.y * 4u + j;
      if (c < params.n && at_k < end) {
        block[j] = four_of_b(base + at_k * params.b_row + c, 1u, params.n - c);
      }
      tile_b[(to.y * 4u + j) * FOURS + to.x] = Four(block[j]);
    }
  } else {
    let to = vec2u(i / (DEPTH / 4u), i % (DEPTH / 4u));
    let at_k = k + to.y * 4u;
    for (var j = 0u; j < 4u; j++) {
      let c = column + to.x * 4u + j;
      if (c < params.n && at_k < end) {
        block[j] = four_of_b(base + c * params.b_col + at_k * params.b_row, params.b_row, end - at_k);
      }
    }
    block = transpose(block);
    for (var j = 0u; j < 4u; j++) {
      tile_b[(to.y * 4u + j) * FOURS + to.x] = Four(block[j]);
    }
  }
}

fn products(tile: u32, i: u32) -> Sums {
  let batch = matrix_of(tile) / params.parts;
  let start = (matrix_of(tile) % params.parts) * params.piece;
  let end = min(start + params.piece, params.k);
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
    for (var k = first; k < min(first + 64u, end); k += DEPTH) {
      workgroupBarrier();
      load_a(i, batch * params.a_batch, row_of(tile), k, end);
      load_b(i, batch * params.b_batch, column_of(tile), k, end);
      workgroupBarrier();
      for (var step = 0u; step < DEPTH; step++) {
        let a_low = vec4f(tile_a[step * FOURS + i / FOURS * 2u]);
        let a_high = vec4f(tile_a[step * FOURS + i / FOURS * 2u + 1u]);
        let bv = vec4f(tile_b[step * FOURS + i % FOURS]);
        c0 = fma(vec4f(a_low.x), bv, c0);
        c1 = fma(vec4f(a_low.y), bv, c1);
        c2 = fma(vec4f(a_low.z), bv, c2);
        c3 = fma(vec4f(a_low.w), bv, c3);
        c4 = fma(vec4f(a_high.x), bv, c4);
        c5 = fma(vec4f(a_high.y), bv, c5);
        c6 = fma(vec4f(a_high.z), bv, c6);
        c7 = fma(vec4f(a_high.w), bv, c7);
      }
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
    let column = column_of(tile) + i % FOURS * 4u;
    let columns = min(vec4u(column, column + 1u, column + 2u, column + 3u), vec4u(params.n - 1u));
    add = vec4f(bias[columns.x], bias[columns.y], bias[columns.z], bias[columns.w]);
  }
  return Sums(sum0 + add, sum1 + add, sum2 + add, sum3 + add, sum4 + add, sum5 + add, sum6 + add, sum7 + add);
}

@compute @workgroup_size(128)
fn tiled(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) i: u32,
) {
  let tile = group.x + group.y * groups.x;
  if (tile >= params.tiles_m * params.tiles_n * params.batch * params.parts) {
    return;
  }
  let sums = products(tile, i);
  write(tile, i, 0u, sums.s0);
  write(tile, i, 1u, sums.s1);
  write(tile, i, 2u, sums.s2);
  write(tile, i, 3u, sums.s3);
  write(tile, i, 4u, sums.s4);
  write(tile, i, 5u, sums.s5);
  write(tile, i, 6u, sums.s6);
  write(tile, i, 7u, sums.s7);
}

fn write(tile: u32, i: u32, r: u32, v: vec4f) {
  let row = row_of(tile) + i / FOURS * 8u + r;
  let column = column_of(tile) + i % FOURS * 4u;
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

@compute @workgroup_size(128)
fn tiled4(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) i: u32,
) {
  let tile = group.x + group.y * groups.x;
  if (tile >= params.tiles_m * params.tiles_n * params.batch * params.parts) {
    return;
  }
  let sums = products(tile, i);
  write4(tile, i, 0u, sums.s0);
  write4(tile, i, 1u, sums.s1);
  write4(tile, i, 2u, sums.s2);
  write4(tile, i, 3u, sums.s3);
  write4(tile, i, 4u, sums.s4);
  write4(tile, i, 5u, sums.s5);
  write4(tile, i, 6u, sums.s6);
  write4(tile, i, 7u, sums.s7);
}

fn write4(tile: u32, i: u32, r: u32, v: vec4f) {
  let row = row_of(tile) + i / FOURS * 8u + r;
  let column = column_of(tile) + i % FOURS * 4u;
  if (row < params.m && column < params.n) {
    let at = ((matrix_of(tile) * params.m + row) * params.n + column) / 4u;
    y4[at] = ended4(at, v);
  }
}
