// y = x / (1 - p) where an element stays, else 0. Whether it stays hangs on its index and the seed alone: the gradient draws the same again.
struct Params {
  n: u32,
  seed_low: u32,
  seed_high: u32,
  threshold: u32,   // an element stays where its 32 random bits are at least this: p 2^32
  scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

// The finaliser of MurmurHash3: every bit of the result hangs on every bit of v.
fn mix_bits(v0: u32) -> u32 {
  var v = v0;
  v = (v ^ (v >> 16u)) * 0x85ebca6bu;
  v = (v ^ (v >> 13u)) * 0xc2b2ae35u;
  return v ^ (v >> 16u);
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.n) {
    return;
  }
  let bits = mix_bits(mix_bits(mix_bits(params.seed_low + 0x9e3779b9u) + params.seed_high) ^ mix_bits(i + 0x7f4a7c15u));
  y[i] = select(0.0, x[i] * params.scale, bits >= params.threshold);
}
