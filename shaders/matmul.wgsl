// Matrix product for every shape and adapter: y = finish(a b (+ bias) (+ rest)), a: (batch, M, K), b: (batch, K, N), both by strides. An invocation owns
// 4 rows and 4 columns; rows and columns beyond the edge repeat the last one and are not written.
struct Params {
  m: u32,
  n: u32,
  k: u32,
  batch: u32,
  a_row: u32,
  a_col: u32,
  a_batch: u32,
  b_row: u32,
  b_col: u32,
  b_batch: u32,
  tiles_m: u32,
  tiles_n: u32,
  parts: u32,  // the products of a batch are summed in so many parts, `piece` steps of k each; y holds their sums one after the other
  piece: u32,
  has_bias: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<u32>;  // bits of f32, or pairs of f16
@group(0) @binding(2) var<storage, read> b: array<u32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read> rest: array<f32>;

// Operands stored in half precision, two in a u32, are read as they are and counted with in f32.
override HALF_A: bool = false;
override HALF_B: bool = false;

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
  write(matrix, row, column, sum0 + add);
  write(matrix, row + 1u, column, sum1 + add);
  write(matrix, row + 2u, column, sum2 + add);
  write(matrix, row + 3u, column, sum3 + add);
}

fn write(matrix: u32, row: u32, column: u32, v: vec4f) {
  if (row >= params.m) {
    return;
  }
  let to = (matrix * params.m + row) * params.n + min(column + vec4u(0u, 1u, 2u, 3u), vec4u(params.n - 1u));
  let out = ended(to, v);
  for (var j = 0u; j < min(4u, params.n - column); j++) {
    y[to[j]] = out[j];
  }
}
