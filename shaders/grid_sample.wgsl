// Sampling images x: (N, C, H, W) at grid: (N, points, 2), coordinates (x, y) from -1 to 1, to y: (N, C, points).
//   forward:    bilinear from four pixels, or NEAREST; outside the image 0, or BORDER: the edge's pixel
//   grad_grid:  gradient of the coordinates (bilinear alone)
//   cells, records, grad_x: gradient of x. Samples are sorted by the cell between four pixels that they fall in (cells run from -1 to
//               H - 1 and W - 1), and each pixel collects from the four cells around it: no atomics, one order of summing.
struct Params {
  n: u32,
  c: u32,
  h: u32,
  w: u32,
  points: u32,
  c_each: u32,   // channels an invocation of forward fills
  cells: u32,    // number of cells
  scale: vec2f,  // position = coordinate * scale + shift
  shift: vec2f,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> grid: array<vec2f>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read> g: array<f32>;
@group(0) @binding(5) var<storage, read_write> g_grid: array<vec2f>;
@group(0) @binding(6) var<storage, read_write> keys: array<u32>;
@group(0) @binding(7) var<storage, read> order: array<u32>;
@group(0) @binding(8) var<storage, read_write> records_out: array<vec4f>;
@group(0) @binding(9) var<storage, read> records: array<vec4f>;
@group(0) @binding(10) var<storage, read> start: array<u32>;
@group(0) @binding(11) var<storage, read_write> gx: array<f32>;

override NEAREST: bool = false;
override BORDER: bool = false;

struct Place {
  at: vec2i,     // (x, y) of the upper left pixel
  f: vec2f,      // shares of the right and the lower ones
  live: vec2f,   // 0 where the edge holds the position
}

// The coordinate is cut into 12 bits and a rest, whose products with the scale are exact: a position near 300 keeps its last bits.
fn place(any_coordinate: vec2f) -> Place {
  let coordinate = clamp(any_coordinate, vec2f(-1e4), vec2f(1e4));
  let size = vec2f(f32(params.w), f32(params.h));
  let high = bitcast<vec2f>(bitcast<vec2u>(coordinate) & vec2u(0xfffff000u));
  let low = coordinate - high;
  var at = floor(clamp(coordinate * params.scale + params.shift, vec2f(-2.0), size));
  var f = (high * params.scale + (params.shift - at)) + low * params.scale;
  let more = clamp(floor(f), vec2f(-1.0), vec2f(1.0));
  at += more;
  f = clamp(f - more, vec2f(0.0), vec2f(1.0));
  if (NEAREST) {
    // Halves go to the even pixel.
    at += select(vec2f(0.0), vec2f(1.0), (f > vec2f(0.5)) | ((f == vec2f(0.5)) & ((vec2i(at) & vec2i(1)) == vec2i(1))));
    f = vec2f(0.0);
  }
  var live = vec2f(1.0);
  if (BORDER) {
    let held = (at < vec2f(0.0)) | (at >= size - 1.0);
    at = clamp(at, vec2f(0.0), size - 1.0);
    f = select(f, vec2f(0.0), held);
    live = select(live, vec2f(0.0), held);
  }
  return Place(vec2i(at), f, live);
}

// 1 for the corners (upper left, upper right, lower left, lower right) that lie in the image, else 0.
fn inside(at: vec2i) -> vec4f {
  let columns = vec4i(at.x, at.x + 1, at.x, at.x + 1);
  let rows = vec4i(at.y, at.y, at.y + 1, at.y + 1);
  let yes = (columns >= vec4i(0)) & (columns < vec4i(i32(params.w))) & (rows >= vec4i(0)) & (rows < vec4i(i32(params.h)));
  return select(vec4f(0.0), vec4f(1.0), yes);
}

// Offsets of the corners in a plane; those outside point at some pixel inside.
fn corners(at: vec2i) -> vec4u {
  let last = vec2i(i32(params.w), i32(params.h)) - 1;
  let low = vec2u(clamp(at, vec2i(0), last));
  let high = vec2u(clamp(at + 1, vec2i(0), last));
  return vec4u(low.y * params.w + low.x, low.y * params.w + high.x, high.y * params.w + low.x, high.y * params.w + high.x);
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let parts = (params.c + params.c_each - 1u) / params.c_each;
  if (i >= params.n * parts * params.points) {
    return;
  }
  let point = i % params.points;
  let n = i / (params.points * parts);
  let first = ((i / params.points) % parts) * params.c_each;
  let p = place(grid[n * params.points + point]);
  let low = 1.0 - p.f;
  let share = vec4f(low.x * low.y, p.f.x * low.y, low.x * p.f.y, p.f.x * p.f.y) * inside(p.at);
  let offsets = corners(p.at);
  for (var c = first; c < min(first + params.c_each, params.c); c++) {
    let plane = n * params.c + c;
    let k = offsets + plane * params.h * params.w;
    y[plane * params.points + point] = dot(share, vec4f(x[k.x], x[k.y], x[k.z], x[k.w]));
  }
}

@compute @workgroup_size(64)
fn grad_grid(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.n * params.points) {
    return;
  }
  let n = i / params.points;
  let p = place(grid[i]);
  let low = 1.0 - p.f;
  let yes = inside(p.at);
  let offsets = corners(p.at);
  var sum = vec4f();
  for (var c = 0u; c < params.c; c++) {
    let plane = n * params.c + c;
    let k = offsets + plane * params.h * params.w;
    sum += g[plane * params.points + i % params.points] * vec4f(x[k.x], x[k.y], x[k.z], x[k.w]);
  }
  sum *= yes;
  let slope = vec2f((sum.y - sum.x) * low.y + (sum.w - sum.z) * p.f.y, (sum.z - sum.x) * low.x + (sum.w - sum.y) * p.f.x);
  g_grid[i] = select(slope * params.scale * p.live, vec2f(0.0), NEAREST);
}

@compute @workgroup_size(64)
fn cells(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.n * params.points) {
    return;
  }
  let cell = place(grid[i]).at + 1;
  let outside = any(cell < vec2i(0)) || cell.x > i32(params.w) || cell.y > i32(params.h);
  let key = ((i / params.points) * (params.h + 1u) + u32(cell.y)) * (params.w + 1u) + u32(cell.x);
  keys[i] = select(key, params.cells, outside);
}

// What grad_x needs of each sample, in sorted order: shares and the point.
@compute @workgroup_size(64)
fn records_of(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i < params.n * params.points) {
    let from_point = order[i];
    records_out[i] = vec4f(place(grid[from_point]).f, bitcast<f32>(from_point % params.points), 0.0);
  }
}

// Four channels of one pixel.
@compute @workgroup_size(64)
fn grad_x(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let parts = (params.c + 3u) / 4u;
  let area = params.h * params.w;
  if (i >= params.n * parts * area) {
    return;
  }
  let column = i % params.w;
  let row = (i / params.w) % params.h;
  let n = i / (area * parts);
  let c = ((i / area) % parts) * 4u;
  let planes = (vec4u(n * params.c) + min(vec4u(c, c + 1u, c + 2u, c + 3u), vec4u(params.c - 1u))) * params.points;
  var sum = vec4f();
  for (var below = 0u; below < 2u; below++) {
    // The cells to the left and to the right of the pixel are neighbours in the sorted order.
    let cell = (n * (params.h + 1u) + row + 1u - below) * (params.w + 1u) + column;
    let middle = start[cell + 1u];
    let last = start[cell + 2u];
    for (var k = start[cell]; k < last; k++) {
      let r = records[k];
      let share = select(1.0 - r.x, r.x, k < middle) * select(1.0 - r.y, r.y, below == 1u);
      let at = planes + bitcast<u32>(r.z);
      sum += share * vec4f(g[at.x], g[at.y], g[at.z], g[at.w]);
    }
  }
  for (var k = 0u; k < min(4u, params.c - c); k++) {
    gx[(n * params.c + c + k) * area + row * params.w + column] = sum[k];
  }
}
