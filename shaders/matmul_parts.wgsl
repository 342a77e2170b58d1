// The last step of a matrix product whose long K was cut into parts: their sums, added one after the other, and what else
// follows a product: bias, rest and activation.
// parts: (batch, P, M, N) -> y: (batch, M, N).
struct Params {
  n: u32,        // elements of y
  parts: u32,    // P
  matrix: u32,   // M N
  columns: u32,  // N
  has_bias: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read> rest: array<f32>;

// `rest`, in the order of y, is added before the activation.
override REST: bool = false;

/// The activation: engine/epilogue.ts puts it in the place of what stands here.
fn finish(v: vec4f) -> vec4f {
  // <finish>
  return v;
  // </finish>
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.n) {
    return;
  }
  let base = (i / params.matrix) * params.parts * params.matrix + i % params.matrix;
  var sum = 0.0;
  for (var p = 0u; p < params.parts; p++) {
    sum += parts[base + p * params.matrix];
  }
  if (params.has_bias == 1u) {
    sum += bias[i % params.columns];
  }
  if (REST) {
    sum += rest[i];
  }
  y[i] = finish(vec4f(sum)).x;
}
