// Notes the first dispatch whose output holds a NaN or an infinity: found = min(found, number of the dispatch).
struct Params {
  n: u32,
  dispatch: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> found: array<atomic<u32>>;

@compute @workgroup_size(64)
fn scan(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  // All exponent bits set: by the bits, since compilers may assume that floats are finite.
  if (i < params.n && (x[i] & 0x7f800000u) == 0x7f800000u) {
    atomicMin(&found[0], params.dispatch);
  }
}
