// Product of matrices stored in half precision on adapters with matrix units (subgroup matrices): y = finish(a b (+ bias) (+ rest)), summed in
// f32, a: (batch, M, K), b: (batch, K, N), both by strides. Where elements lie next to each other (K or M of a, N or K of b) they are whole fours,
// and so is N. A workgroup of four subgroups owns 64 rows and 64 columns of y, each subgroup a quarter of them; 32 steps of k at a time go
// through workgroup memory. The order in which a matrix unit adds is its own.
enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;

// A subgroup's lanes and the sizes of its matrices, which divide by 32: engine/kernel.ts puts the adapter's in the place of these.
const LANES = 32u;
const ROWS = 16u;
const COLUMNS = 16u;
const STEPS = 16u;

const TILE = 64u;    // rows and columns of a workgroup
const PART = 32u;    // of a subgroup
const DEPTH = 32u;   // steps of k
const DOWN = PART / ROWS;
const ACROSS = PART / COLUMNS;
// Rows in workgroup memory; longer than they need be, lest all of a column lie in the same bank.
const A_ROW = DEPTH + 8u;
const B_ROW = TILE + 8u;

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

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a2: array<vec2u>;  // four f16
@group(0) @binding(2) var<storage, read> b2: array<vec2u>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> rest4: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> y4: array<vec4f>;

var<workgroup> tile_a: array<f16, TILE * A_ROW>;   // rows of a
var<workgroup> tile_b: array<f16, DEPTH * B_ROW>;  // rows of b
var<workgroup> tile_y: array<f32, 4u * ROWS * COLUMNS>;  // one matrix of each subgroup

// <matrices>
alias Left = subgroup_matrix_left<f16, STEPS, ROWS>;
alias Right = subgroup_matrix_right<f16, COLUMNS, STEPS>;
alias Sum = subgroup_matrix_result<f32, COLUMNS, ROWS>;

fn left(at: u32) -> Left {
  return subgroupMatrixLoad<Left, row_major>(&tile_a, at, A_ROW);
}

fn right(at: u32) -> Right {
  return subgroupMatrixLoad<Right, row_major>(&tile_b, at, B_ROW);
}

fn add_product(l: Left, r: Right, sum: Sum) -> Sum {
  return subgroupMatrixMultiplyAccumulate(l, r, sum);
}

fn put(at: u32, sum: Sum) {
  subgroupMatrixStore<row_major>(&tile_y, at, sum, COLUMNS);
}
// </matrices>

// `rest`, in the order of y, is added before the activation.
override REST: bool = false;

/// The activation: engine/epilogue.ts puts it in the place of what stands here.
fn finish(v: vec4f) -> vec4f {
  // <finish>
  return v;
  // </finish>
}

/// 64 rows of a by 32 steps of k; what lies beyond the edges is 0. Neighbours read neighbours, whichever way a lies.
fn load_a(i: u32, base: u32, row: u32, k: u32, end: u32) {
  for (var n = i; n < TILE * DEPTH / 4u; n += 4u * LANES) {
    var v = vec4<f16>();
    if (params.a_col == 1u) {
      let r = n / (DEPTH / 4u);
      let at_k = n % (DEPTH / 4u) * 4u;
      if (row + r < params.m && k + at_k < end) {
        v = bitcast<vec4<f16>>(a2[(base + (row + r) * params.a_row + k + at_k) / 4u]);
      }
      for (var j = 0u; j < 4u; j++) {
        tile_a[r * A_ROW + at_k + j] = v[j];
      }
    } else {
      let r = n % (TILE / 4u) * 4u;
      let at_k = n / (TILE / 4u);
      if (row + r < params.m && k + at_k < end) {
        v = bitcast<vec4<f16>>(a2[(base + row + r + (k + at_k) * params.a_col) / 4u]);
      }
      for (var j = 0u; j < 4u; j++) {
        tile_a[(r + j) * A_ROW + at_k] = v[j];
      }
    }
  }
}

/// 32 steps of k by 64 columns of b.
fn load_b(i: u32, base: u32, column: u32, k: u32, end: u32) {
  for (var n = i; n < TILE * DEPTH / 4u; n += 4u * LANES) {
    var v = vec4<f16>();
    if (params.b_col == 1u) {
      let c = n % (TILE / 4u) * 4u;
      let at_k = n / (TILE / 4u);
      if (column + c < params.n && k + at_k < end) {
        v = bitcast<vec4<f16>>(b2[(base + (k + at_k) * params.b_row + column + c) / 4u]);
      }
      for (var j = 0u; j < 4u; j++) {
        tile_b[at_k * B_ROW + c + j] = v[j];
      }
    } else {
      let c = n / (DEPTH / 4u);
      let at_k = n % (DEPTH / 4u) * 4u;
      if (column + c < params.n && k + at_k < end) {
        v = bitcast<vec4<f16>>(b2[(base + (column + c) * params.b_col + k + at_k) / 4u]);
      }
      for (var j = 0u; j < 4u; j++) {
        tile_b[(at_k + j) * B_ROW + c] = v[j];
      }
    }
  }
}

@compute @workgroup_size(4u * LANES)
fn forward(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) i: u32,
  @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32,
) {
  let tile = group.x + group.y * groups.x;
  if (tile >= params.tiles_m * params.tiles_n * params.batch * params.parts) {
    return;
  }
  let row = (tile / params.tiles_n) % params.tiles_m * TILE;
  let column = tile % params.tiles_n * TILE;
  let matrix = tile / (params.tiles_m * params.tiles_n);
  let batch = matrix / params.parts;
  let start = (matrix % params.parts) * params.piece;
  let end = min(start + params.piece, params.k);
  let down = subgroup / 2u * PART;
  let across = subgroup % 2u * PART;
  var sums: array<Sum, DOWN * ACROSS>;
  for (var k = start; k < end; k += DEPTH) {
    workgroupBarrier();
    load_a(i, batch * params.a_batch, row, k, end);
    load_b(i, batch * params.b_batch, column, k, end);
    workgroupBarrier();
    for (var step = 0u; step < DEPTH; step += STEPS) {
      var rights: array<Right, ACROSS>;
      for (var c = 0u; c < ACROSS; c++) {
        rights[c] = right(step * B_ROW + across + c * COLUMNS);
      }
      for (var r = 0u; r < DOWN; r++) {
        let rows = left((down + r * ROWS) * A_ROW + step);
        for (var c = 0u; c < ACROSS; c++) {
          sums[r * ACROSS + c] = add_product(rows, rights[c], sums[r * ACROSS + c]);
        }
      }
    }
  }
  let own = subgroup * ROWS * COLUMNS;
  for (var r = 0u; r < DOWN; r++) {
    for (var c = 0u; c < ACROSS; c++) {
      workgroupBarrier();
      put(own, sums[r * ACROSS + c]);
      workgroupBarrier();
      write(matrix, row + down + r * ROWS, column + across + c * COLUMNS, own, lane);
    }
  }
}

/// A subgroup's matrix, at `own` in workgroup memory, to its place in y.
fn write(matrix: u32, row: u32, column: u32, own: u32, lane: u32) {
  for (var n = lane; n < ROWS * COLUMNS / 4u; n += LANES) {
    let r = row + n / (COLUMNS / 4u);
    let c = column + n % (COLUMNS / 4u) * 4u;
    if (r < params.m && c < params.n) {
      let at = own + n * 4u;
      var v = vec4f(tile_y[at], tile_y[at + 1u], tile_y[at + 2u], tile_y[at + 3u]);
      if (params.has_bias == 1u) {
        v += vec4f(bias[c], bias[c + 1u], bias[c + 2u], bias[c + 3u]);
      }
      let to = ((matrix * params.m + r) * params.n + c) / 4u;
      if (REST) {
        v += rest4[to];
      }
      y4[to] = finish(v);
    }
  }
}
