// One step of gradient descent with momentum: m = momentum * m + g + decay * x, x -= rate * m.
//   step:      x: parameter; g: its gradient
//   step_pack: the same for parameters side by side, each from a new block of 64 on; rates: rate and decay of a block, and 0: leave it
struct Params {
  n: u32,
  rate: f32,
  decay: f32,
  momentum: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read> g: array<f32>;
@group(0) @binding(3) var<storage, read_write> m: array<f32>;
@group(0) @binding(4) var<storage, read> rates: array<vec4f>;

fn update(i: u32, rate: f32, decay: f32) {
  let mi = params.momentum * m[i] + g[i] + decay * x[i];
  m[i] = mi;
  x[i] -= rate * mi;
}

@compute @workgroup_size(64)
fn step(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.n) {
    return;
  }
  update(i, params.rate, params.decay);
}

@compute @workgroup_size(64)
fn step_pack(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.n) {
    return;
  }
  let rate = rates[i / 64u];
  if (rate.z > 0.0) {
    update(i, rate.x, rate.y);
  }
}
