// (planes, in_h, in_w) -> (planes, frame_h, frame_w) with zeros around, so that no convolution kernel has to ask whether a window leaves the
// image. A workgroup writes one row.
struct Params {
  rows: u32,      // planes * frame_h
  in_h: u32,
  in_w: u32,
  frame_h: u32,
  frame_w: u32,
  top: u32,
  left: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(32)
fn forward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = group.x + group.y * groups.x;
  if (row >= params.rows) {
    return;
  }
  let plane = row / params.frame_h;
  let iy = row - plane * params.frame_h - params.top;
  let base = (plane * params.in_h + iy) * params.in_w - params.left;
  for (var c = lane; c < params.frame_w; c += 32u) {
    var v = 0.0;
    if (iy < params.in_h && c - params.left < params.in_w) {
      v = x[base + c];
    }
    y[row * params.frame_w + c] = v;
  }
}
