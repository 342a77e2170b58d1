// f32 <-> pairs of f16 in a u32. pairs: half the number of elements, rounded up.
struct Params {
  pairs: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> full: array<vec2f>;
@group(0) @binding(2) var<storage, read_write> packed_out: array<u32>;
@group(0) @binding(3) var<storage, read> packed: array<u32>;
@group(0) @binding(4) var<storage, read_write> full_out: array<vec2f>;

/// Two f16 of numbers rounded to nearest. What pack2x16float makes of numbers that f16 cannot hold is left open: infinity, or NaN, here.
fn pack_pair(v: vec2f) -> u32 {
  let packed = pack2x16float(clamp(v, vec2f(-65504.0), vec2f(65504.0)));
  let bits = bitcast<vec2u>(v);
  let size = bits & vec2u(0x7fffffffu);
  let beyond = select(vec2u(0x7c00u), vec2u(0x7e00u), size > vec2u(0x7f800000u)) | ((bits >> vec2u(16u)) & vec2u(0x8000u));
  // From 65,520 on the nearest f16 is infinity.
  let halves = select(vec2u(packed & 0xffffu, packed >> 16u), beyond, size >= vec2u(0x477ff000u));
  return halves.x | (halves.y << 16u);
}

@compute @workgroup_size(64)
fn pack(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i < params.pairs) {
    packed_out[i] = pack_pair(full[i]);
  }
}

@compute @workgroup_size(64)
fn unpack(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i < params.pairs) {
    full_out[i] = unpack2x16float(packed[i]);
  }
}
