// (planes, in_h, in_w) -> (planes, frame_h, frame_w) with zeros around, so that no convolution kernel has to ask whether a window leaves the
// image. Rows of the frame are whole fours. Workgroups: x over a plane by 512 fours, y and z over planes.
struct Params {
  planes: u32,
  in_h: u32,
  in_w: u32,
  frame_h: u32,
  frame_w: u32,
  top: u32,
  left: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4f>;

/// n / d for n up to 4 million: software adapters divide whole numbers lane by lane.
fn quotient(n: u32, d: u32) -> u32 {
  return u32((f32(n) + 0.5) / f32(d));
}

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let plane = group.y + group.z * groups.y;
  let across = params.frame_w / 4u;
  let size = params.frame_h * across;
  if (plane >= params.planes) {
    return;
  }
  for (var i = group.x * 512u + lane; i < min(group.x * 512u + 512u, size); i += 64u) {
    let row = quotient(i, across);
    let iy = row - params.top;
    let ix = (i - row * across) * 4u - params.left + vec4u(0u, 1u, 2u, 3u);
    let inside = (ix < vec4u(params.in_w)) & vec4<bool>(iy < params.in_h);
    let at = select(vec4u(), (plane * params.in_h + iy) * params.in_w + ix, inside);
    y[plane * size + i] = select(vec4f(), vec4f(x[at.x], x[at.y], x[at.z], x[at.w]), inside);
  }
}
