// Clipping of gradients by the norm of them all (torch.nn.utils.clip_grad_norm_).
//   square:      partial[i] = sum of squares of the i-th block of 1024 numbers of g, added up over tensors by `offset`
//   clip_factor: norm[0] = sqrt(sum of partial) / scale, norm[1] = min(1, max_norm / (norm[0] + 1e-6)) / scale, of gradients that are `scale`
//                times too large
//   scale:       g_out = g_out * clip[1]
struct Params {
  n: u32,
  offset: u32,
  max_norm: f32,
  scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> g: array<f32>;
@group(0) @binding(2) var<storage, read_write> partial: array<f32>;
@group(0) @binding(3) var<storage, read_write> norm: array<f32>;
@group(0) @binding(4) var<storage, read> clip: array<f32>;
@group(0) @binding(5) var<storage, read_write> g_out: array<f32>;

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
  let total = sqrt((sums.x + sums.y) + (sums.z + sums.w)) / params.scale;
  norm[0] = total;
  norm[1] = min(1.0, params.max_norm / (total + 1e-6)) / params.scale;
}

@compute @workgroup_size(64)
fn scale(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i < params.n) {
    g_out[i] *= clip[1];
  }
}
