// The k largest of each row of x: (rows, n), from the rows' sorted order.
//   keys:  whole numbers that ascend as the values descend; -0 counts as 0, NaN as the largest
//   pick:  values and indices of the first k
//   grad:  gx, which holds zeros, takes g where the values came from
struct Params {
  rows: u32,
  n: u32,
  k: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> keys_out: array<u32>;
@group(0) @binding(3) var<storage, read> order: array<u32>;
@group(0) @binding(4) var<storage, read_write> values: array<f32>;
@group(0) @binding(5) var<storage, read_write> indices: array<i32>;
@group(0) @binding(6) var<storage, read> g: array<f32>;
@group(0) @binding(7) var<storage, read> indices_in: array<i32>;
@group(0) @binding(8) var<storage, read_write> gx: array<f32>;

@compute @workgroup_size(64)
fn keys(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.rows * params.n) {
    return;
  }
  var bits = bitcast<u32>(x[i]);
  if (bits == 0x80000000u) {
    bits = 0u;
  }
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    bits = 0x7fc00000u;
  }
  keys_out[i] = select(~(bits | 0x80000000u), bits, (bits >> 31u) == 1u);
}

@compute @workgroup_size(64)
fn pick(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.rows * params.k) {
    return;
  }
  let row = (i / params.k) * params.n;
  let at = order[row + i % params.k];
  values[i] = x[row + at];
  indices[i] = i32(at);
}

@compute @workgroup_size(64)
fn grad(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i < params.rows * params.k) {
    gx[(i / params.k) * params.n + u32(indices_in[i])] = g[i];
  }
}
