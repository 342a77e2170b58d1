// Copies between a contiguous array and a strided window of another, 32 bits an element.
//   read_window:  y[i] = x[offset + sum over d of k_d * stride_d], 0 where some k_d + low_d lies outside 0..bound_d - 1
//   write_window: y[offset + sum over d of k_d * stride_d] = x[i]
// with k the coordinates of i in `shape`. `scale` multiplies f32 values where SCALED.
struct Params {
  n: u32,
  rank: u32,
  offset: i32,
  scale: f32,
  shape: array<vec4u, 2>,
  stride: array<vec4i, 2>,
  low: array<vec4i, 2>,
  bound: array<vec4i, 2>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

@group(0) @binding(3) var<storage, read> x4: array<vec4u>;
@group(0) @binding(4) var<storage, read_write> y4: array<vec4u>;

override BOUNDED: bool = false;
override SCALED: bool = false;

@compute @workgroup_size(64)
fn read_window(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.n) {
    return;
  }
  var rest = i;
  var at = params.offset;
  var inside = true;
  for (var d = i32(params.rank) - 1; d >= 0; d--) {
    let n = params.shape[d / 4][d % 4];
    let k = i32(rest % n);
    rest /= n;
    at += k * params.stride[d / 4][d % 4];
    if (BOUNDED) {
      let c = k + params.low[d / 4][d % 4];
      inside = inside && c >= 0 && c < params.bound[d / 4][d % 4];
    }
  }
  var value = 0u;
  if (inside) {
    value = x[u32(at)];
  }
  if (SCALED) {
    value = bitcast<u32>(bitcast<f32>(value) * params.scale);
  }
  y[i] = value;
}

// A thread copies up to RUN neighbours along the last dimension: the divisions, dear on processors, are paid once a run.
const RUN = 16u;

@compute @workgroup_size(64)
fn read_runs(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.n) {
    return;
  }
  let last = params.rank - 1u;
  let inner = params.shape[last / 4][last % 4];
  let step = params.stride[last / 4][last % 4];
  let runs = (inner + RUN - 1u) / RUN;
  var rest = i / runs;
  let first = (i - rest * runs) * RUN;
  let count = min(RUN, inner - first);
  let out = rest * inner + first;
  var at = params.offset + i32(first) * step;
  var inside = true;
  for (var d = i32(last) - 1; d >= 0; d--) {
    let n = params.shape[d / 4][d % 4];
    let q = rest / n;
    let k = i32(rest - q * n);
    at += k * params.stride[d / 4][d % 4];
    if (BOUNDED) {
      let c = k + params.low[d / 4][d % 4];
      inside = inside && c >= 0 && c < params.bound[d / 4][d % 4];
    }
    rest = q;
  }
  for (var j = 0u; j < count; j++) {
    var here = inside;
    if (BOUNDED) {
      let c = i32(first + j) + params.low[last / 4][last % 4];
      here = inside && c >= 0 && c < params.bound[last / 4][last % 4];
    }
    var value = 0u;
    if (here) {
      value = x[u32(at)];
    }
    if (SCALED) {
      value = bitcast<u32>(bitcast<f32>(value) * params.scale);
    }
    y[out + j] = value;
    at += step;
  }
}

// The same where the last dimension lies contiguous and everything is a multiple of four.
@compute @workgroup_size(64)
fn read_runs4(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.n) {
    return;
  }
  let last = params.rank - 1u;
  let inner = params.shape[last / 4][last % 4];
  let runs = (inner + RUN - 1u) / RUN;
  var rest = i / runs;
  let first = (i - rest * runs) * RUN;
  let count = min(RUN, inner - first) / 4u;
  let out = (rest * inner + first) / 4u;
  var at = params.offset + i32(first);
  for (var d = i32(last) - 1; d >= 0; d--) {
    let n = params.shape[d / 4][d % 4];
    let q = rest / n;
    at += i32(rest - q * n) * params.stride[d / 4][d % 4];
    rest = q;
  }
  let source = u32(at) / 4u;
  for (var j = 0u; j < count; j++) {
    var value = x4[source + j];
    if (SCALED) {
      value = bitcast<vec4u>(bitcast<vec4f>(value) * params.scale);
    }
    y4[out + j] = value;
  }
}

@compute @workgroup_size(64)
fn write_window(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.n) {
    return;
  }
  var rest = i;
  var at = params.offset;
  for (var d = i32(params.rank) - 1; d >= 0; d--) {
    let n = params.shape[d / 4][d % 4];
    at += i32(rest % n) * params.stride[d / 4][d % 4];
    rest /= n;
  }
  y[u32(at)] = x[i];
}
