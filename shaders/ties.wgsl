// Gradient of max and min: every element that equals the extremum takes an equal share.
//   mark:  hit = x == top          share: gx = hit * g / count
struct Params {
  n: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> top: array<f32>;
@group(0) @binding(3) var<storage, read_write> hit: array<f32>;
@group(0) @binding(4) var<storage, read> hit_in: array<f32>;
@group(0) @binding(5) var<storage, read> count: array<f32>;
@group(0) @binding(6) var<storage, read> g: array<f32>;
@group(0) @binding(7) var<storage, read_write> gx: array<f32>;

@compute @workgroup_size(64)
fn mark(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i < params.n) {
    hit[i] = select(0.0, 1.0, x[i] == top[i]);
  }
}

@compute @workgroup_size(64)
fn share(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i < params.n) {
    gx[i] = hit_in[i] * g[i] / count[i];
  }
}
