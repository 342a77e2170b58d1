// One AdamW step (Loshchilov and Hutter 2019), and the factor that clips gradients by their global norm.
//   step:        m, v: moments; x: parameter; g: its gradient
//   step_pack:   the same for parameters side by side, each from a new block of 64 on; rates: lr and decay of a block, decay < 0: leave it
//   square:      partial[i] = sum of squares of the i-th block of 1024 numbers of g, added up over parameters by `offset`
//   scale:       g_out = g_out * clip[1]
//   clip_factor: norm[0] = sqrt(sum of partial), norm[1] = min(1, max_norm / (norm + 1e-6))
struct Params {
  n: u32,
  offset: u32,
  lr: f32,
  beta1: f32,
  beta2: f32,
  eps: f32,
  decay: f32,      // 1 - lr * weight decay
  correction1: f32, // 1 / (1 - beta1^t)
  correction2: f32, // 1 / (1 - beta2^t)
  max_norm: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read> g: array<f32>;
@group(0) @binding(3) var<storage, read_write> m: array<f32>;
@group(0) @binding(4) var<storage, read_write> v: array<f32>;
@group(0) @binding(5) var<storage, read> clip: array<f32>;
@group(0) @binding(6) var<storage, read_write> partial: array<f32>;
@group(0) @binding(7) var<storage, read_write> norm: array<f32>;
@group(0) @binding(8) var<storage, read_write> g_out: array<f32>;
@group(0) @binding(9) var<storage, read> rates: array<vec2f>;

fn update(i: u32, lr: f32, decay: f32) {
  let gi = g[i];
  let mi = params.beta1 * m[i] + (1.0 - params.beta1) * gi;
  let vi = params.beta2 * v[i] + (1.0 - params.beta2) * gi * gi;
  m[i] = mi;
  v[i] = vi;
  x[i] = x[i] * decay - lr * (mi * params.correction1) / (sqrt(vi * params.correction2) + params.eps);
}

@compute @workgroup_size(64)
fn step(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.n) {
    return;
  }
  update(i, params.lr, params.decay);
}

@compute @workgroup_size(64)
fn step_pack(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.n) {
    return;
  }
  let rate = rates[i / 64u];
  if (rate.y >= 0.0) {
    update(i, rate.x, rate.y);
  }
}

@compute @workgroup_size(64)
fn square(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let first = i * 1024u;
  if (first >= params.n) {
    return;
  }
  var sums = vec4f();
  var k = first;
  let last = min(first + 1024u, params.n);
  for (; k + 4u <= last; k += 4u) {
    let q = vec4f(g[k], g[k + 1u], g[k + 2u], g[k + 3u]);
    sums += q * q;
  }
  for (; k < last; k++) {
    sums.x += g[k] * g[k];
  }
  partial[params.offset + i] = (sums.x + sums.y) + (sums.z + sums.w);
}

@compute @workgroup_size(1)
fn clip_factor() {
  var sums = vec4f();
  var k = 0u;
  for (; k + 4u <= params.n; k += 4u) {
    sums += vec4f(partial[k], partial[k + 1u], partial[k + 2u], partial[k + 3u]);
  }
  for (; k < params.n; k++) {
    sums.x += partial[k];
  }
  let total = sqrt((sums.x + sums.y) + (sums.z + sums.w));
  norm[0] = total;
  norm[1] = min(1.0, params.max_norm / (total + 1e-6));
}

@compute @workgroup_size(64)
fn scale(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i < params.n) {
    g_out[i] *= clip[1];
  }
}
