// Convolution as a matrix product whose left side is gathered from the image: no copy of the windows is made. packed and table: see
// conv_pack.wgsl; x: the image in its frame.
//   forward: y[b, g, c, pixel] = bias[g, c] + sum over k of x[b, g, window of the pixel at k] * packed[g, k, c]
// The pixels are a grid: pixel (r, q) reads from (r * step_y, q * step_x) of x on and is written to (r * out_step_y + out_y, q * out_step_x +
// out_x) of y: the gradient of a strided convolution is one such grid a phase.
//   weight:  parts[split, g, k, c] = sum over a split's pixels of x[window at k] * packed[g, pixel, c]
// For every adapter, with panels of one vector; conv2d_subgroup is faster where subgroups have 4 or 8 lanes. On GPUs
//   tiled_forward, tiled_weight: a workgroup owns 64 pixels, or 64 k, and one panel of WIDTH vectors; an invocation 8 of the pixels (or k) and one
//   of the vectors. The windows are gathered 32 steps of the sum at a time into workgroup memory, at most 16 KiB with the weights (or the
//   gradient) beside them: a number is read from the images once for all the channels of the panel. The sums run in the same order.
const TILE = 64u;           // pixels or k
const SLOTS = TILE / 4u;    // vectors of them
const DEPTH = 32u;          // steps of the sum

// Of a panel: 4, 8 or 16.
override WIDTH: u32 = 16u;

struct Params {
  batch: u32,
  groups: u32,
  ci: u32,
  co: u32,
  panels: u32,
  rows: u32,
  in_h: u32,
  in_w: u32,
  grid_h: u32,
  grid_w: u32,
  step_y: u32,
  step_x: u32,
  out_h: u32,
  out_w: u32,
  out_step_y: u32,
  out_step_x: u32,
  out_y: u32,
  out_x: u32,
  has_bias: u32,
  split: u32,    // pixels of a split
  splits: u32,
  filled: u32,   // all pixels, filled up
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> packed: array<vec4f>;
@group(0) @binding(3) var<storage, read> table: array<i32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
@group(0) @binding(6) var<storage, read_write> parts: array<vec4f>;
@group(0) @binding(7) var<storage, read> table4: array<vec4i>;
@group(0) @binding(8) var<storage, read> rest: array<f32>;

/// Where pixel p of group g stands: (its window's start in x, its place in the first channel of y).
fn locate(p: u32, g: u32) -> vec2u {
  let grid = params.grid_h * params.grid_w;
  let image = p / grid;
  let r = (p - image * grid) / params.grid_w;
  let q = p - image * grid - r * params.grid_w;
  let plane = image * params.groups + g;
  let at = (plane * params.ci * params.in_h + r * params.step_y) * params.in_w + q * params.step_x;
  let row = plane * params.co * params.out_h + r * params.out_step_y + params.out_y;
  return vec2u(at, row * params.out_w + q * params.out_step_x + params.out_x);
}

// What workgroup memory holds: vec4<f16> where f16 is exact, see matmul.wgsl.
alias Four = vec4f;

// By step of the sum, then pixels (or k) in fours, or channels in fours.
var<workgroup> tile_x: array<Four, DEPTH * SLOTS>;
var<workgroup> tile_w: array<Four, DEPTH * WIDTH>;

// `rest`, in the order of y, is added before the activation.
override REST: bool = false;

/// The activation: engine/epilogue.ts puts it in the place of what stands here.
fn finish(v: vec4f) -> vec4f {
  // <finish>
  return v;
  // </finish>
}

/// Four output channels of one pixel, as many as there are.
fn store(to: u32, c: u32, sum: vec4f) {
  let plane = params.out_h * params.out_w;
  let places = to + min(c + vec4u(0u, 1u, 2u, 3u), vec4u(params.co - 1u)) * plane;
  var v = sum;
  if (REST) {
    v += vec4f(rest[places.x], rest[places.y], rest[places.z], rest[places.w]);
  }
  v = finish(v);
  y[places.x] = v.x;
  if (c + 1u < params.co) {
    y[places.y] = v.y;
  }
  if (c + 2u < params.co) {
    y[places.z] = v.z;
  }
  if (c + 3u < params.co) {
    y[places.w] = v.w;
  }
}

/// The same for pixel p, where there is such a pixel.
fn store_pixel(p: u32, g: u32, c: u32, sum: vec4f) {
  if (p < params.batch * params.grid_h * params.grid_w) {
    store(locate(p, g).y, c, sum);
  }
}

fn bias_of(g: u32, c: u32) -> vec4f {
  var add = vec4f();
  if (params.has_bias == 1u) {
    for (var j = 0u; j < min(4u, params.co - c); j++) {
      add[j] = bias[g * params.co + c + j];
    }
  }
  return add;
}

// An invocation owns four pixels, a quarter of all apart so that neighbours read neighbours, and four output channels.
@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let pixels = params.batch * params.grid_h * params.grid_w;
  let quarter = (pixels + 3u) / 4u;
  if (i >= quarter * params.panels * params.groups) {
    return;
  }
  let panel = i / quarter;
  let g = panel / params.panels;
  let c = (panel - g * params.panels) * 4u;
  let p = i - panel * quarter;
  let place0 = locate(p, g);
  let place1 = locate(min(p + quarter, pixels - 1u), g);
  let place2 = locate(min(p + 2u * quarter, pixels - 1u), g);
  let place3 = locate(min(p + 3u * quarter, pixels - 1u), g);
  var sum0 = vec4f();
  var sum1 = vec4f();
  var sum2 = vec4f();
  var sum3 = vec4f();
  // Sums of 64 products are added to the total one by one: rounding grows with their number / 64.
  for (var from_row = 0u; from_row < params.rows; from_row += 64u) {
    var c0 = vec4f();
    var c1 = vec4f();
    var c2 = vec4f();
    var c3 = vec4f();
    for (var k = from_row; k < min(from_row + 64u, params.rows); k++) {
      let shift = u32(table[k]);
      let w = packed[panel * params.rows + k];
      c0 = fma(vec4f(x[place0.x + shift]), w, c0);
      c1 = fma(vec4f(x[place1.x + shift]), w, c1);
      c2 = fma(vec4f(x[place2.x + shift]), w, c2);
      c3 = fma(vec4f(x[place3.x + shift]), w, c3);
    }
    sum0 += c0;
    sum1 += c1;
    sum2 += c2;
    sum3 += c3;
  }
  let add = bias_of(g, c);
  // Where a quarter reaches past the last pixel, the same number is written twice.
  store(place0.y, c, sum0 + add);
  store(place1.y, c, sum1 + add);
  store(place2.y, c, sum2 + add);
  store(place3.y, c, sum3 + add);
}

// An invocation owns four k and four output channels of one split.
@compute @workgroup_size(64)
fn weight(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let tiles = params.rows / 4u;
  let all_panels = params.panels * params.groups;
  if (i >= tiles * all_panels * params.splits) {
    return;
  }
  let k = (i % tiles) * 4u;
  let panel = (i / tiles) % all_panels;
  let split = i / (tiles * all_panels);
  let shift0 = u32(table[k]);
  let shift1 = u32(table[k + 1u]);
  let shift2 = u32(table[k + 2u]);
  let shift3 = u32(table[k + 3u]);
  let pixels = params.batch * params.grid_h * params.grid_w;
  let first = split * params.split;
  let last = min(first + params.split, pixels);
  let g = panel / params.panels;
  var c0 = vec4f();
  var c1 = vec4f();
  var c2 = vec4f();
  var c3 = vec4f();
  var place = locate(first, g).x;
  var q = first % params.grid_w;
  for (var p = first; p < last; p++) {
    let at = place;
    let v = packed[panel * params.filled + p];
    // Only a new row is worth the divisions.
    q++;
    place += params.step_x;
    if (q == params.grid_w) {
      q = 0u;
      place = locate(p + 1u, g).x;
    }
    c0 = fma(vec4f(x[at + shift0]), v, c0);
    c1 = fma(vec4f(x[at + shift1]), v, c1);
    c2 = fma(vec4f(x[at + shift2]), v, c2);
    c3 = fma(vec4f(x[at + shift3]), v, c3);
  }
  let to = (split * all_panels + panel) * params.rows + k;
  parts[to] = c0;
  parts[to + 1u] = c1;
  parts[to + 2u] = c2;
  parts[to + 3u] = c3;
}

/// Where the windows of four pixels start that stand together in tile_x: a quarter of the tile apart, so that neighbours read neighbours.
fn starts(p: u32, g: u32) -> vec4u {
  let last = params.batch * params.grid_h * params.grid_w - 1u;
  return vec4u(
    locate(min(p, last), g).x,
    locate(min(p + SLOTS, last), g).x,
    locate(min(p + 2u * SLOTS, last), g).x,
    locate(min(p + 3u * SLOTS, last), g).x,
  );
}

// Panels of the same pixels follow each other: they share the images in the cache.
@compute @workgroup_size(8u * WIDTH)
fn tiled_forward(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) i: u32,
) {
  let index = group.x + group.y * groups.x;
  let tiles = (params.batch * params.grid_h * params.grid_w + TILE - 1u) / TILE;
  if (index >= tiles * params.panels * params.groups) {
    return;
  }
  let g = index / (tiles * params.panels);
  let panel = g * params.panels + index % params.panels;
  let first = (index / params.panels) % tiles * TILE;
  let at = starts(first + i % SLOTS, g);
  // The invocation's pixels are first + lane + 8 n.
  let lane = i % 8u;
  let vector = i / 8u;
  var sum0 = vec4f();
  var sum1 = vec4f();
  var sum2 = vec4f();
  var sum3 = vec4f();
  var sum4 = vec4f();
  var sum5 = vec4f();
  var sum6 = vec4f();
  var sum7 = vec4f();
  // Sums of 64 products are added to the total one by one: rounding grows with their number / 64.
  for (var from_row = 0u; from_row < params.rows; from_row += 64u) {
    var c0 = vec4f();
    var c1 = vec4f();
    var c2 = vec4f();
    var c3 = vec4f();
    var c4 = vec4f();
    var c5 = vec4f();
    var c6 = vec4f();
    var c7 = vec4f();
    for (var k = from_row; k < min(from_row + 64u, params.rows); k += DEPTH) {
      let depth = min(DEPTH, params.rows - k);
      workgroupBarrier();
      for (var d = i / SLOTS; d < depth; d += WIDTH / 2u) {
        let places = at + u32(table[k + d]);
        tile_x[d * SLOTS + i % SLOTS] = Four(vec4f(x[places.x], x[places.y], x[places.z], x[places.w]));
      }
      for (var n = i; n < depth * WIDTH; n += 8u * WIDTH) {
        tile_w[n] = Four(packed[(panel * params.rows + k) * WIDTH + n]);
      }
      workgroupBarrier();
      for (var step = 0u; step < depth; step++) {
        let even = vec4f(tile_x[step * SLOTS + lane]);
        let odd = vec4f(tile_x[step * SLOTS + lane + 8u]);
        let w = vec4f(tile_w[step * WIDTH + vector]);
        c0 = fma(vec4f(even.x), w, c0);
        c1 = fma(vec4f(odd.x), w, c1);
        c2 = fma(vec4f(even.y), w, c2);
        c3 = fma(vec4f(odd.y), w, c3);
        c4 = fma(vec4f(even.z), w, c4);
        c5 = fma(vec4f(odd.z), w, c5);
        c6 = fma(vec4f(even.w), w, c6);
        c7 = fma(vec4f(odd.w), w, c7);
      }
    }
    sum0 += c0;
    sum1 += c1;
    sum2 += c2;
    sum3 += c3;
    sum4 += c4;
    sum5 += c5;
    sum6 += c6;
    sum7 += c7;
  }
  let c = (index % params.panels * WIDTH + vector) * 4u;
  if (c >= params.co) {
    return;
  }
  let add = bias_of(g, c);
  let p = first + lane;
  store_pixel(p, g, c, sum0 + add);
  store_pixel(p + 8u, g, c, sum1 + add);
  store_pixel(p + 16u, g, c, sum2 + add);
  store_pixel(p + 24u, g, c, sum3 + add);
  store_pixel(p + 32u, g, c, sum4 + add);
  store_pixel(p + 40u, g, c, sum5 + add);
  store_pixel(p + 48u, g, c, sum6 + add);
  store_pixel(p + 56u, g, c, sum7 + add);
}

/// Four k of a panel's parts from `to` on, as far as they are among the `left` that there are: a multiple of four.
fn keep(to: u32, left: u32, v0: vec4f, v1: vec4f, v2: vec4f, v3: vec4f) {
  if (left == 0u) {
    return;
  }
  parts[to] = v0;
  parts[to + WIDTH] = v1;
  parts[to + 2u * WIDTH] = v2;
  parts[to + 3u * WIDTH] = v3;
}

// Tiles of k of the same pixels follow each other. In tile_x a step is a pixel, and neighbours gather the windows of neighbours, each four k: these
// stand at slot ^ pixel, so that neighbours store to different banks of the memory.
@compute @workgroup_size(8u * WIDTH)
fn tiled_weight(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) i: u32,
) {
  let index = group.x + group.y * groups.x;
  let tiles = (params.rows + TILE - 1u) / TILE;
  let all_panels = params.panels * params.groups;
  if (index >= tiles * all_panels * params.splits) {
    return;
  }
  let slots = params.rows / 4u;
  let first_slot = index % tiles * SLOTS;
  let panel = (index / tiles) % all_panels;
  let split = index / (tiles * all_panels);
  let g = panel / params.panels;
  let pixels = params.batch * params.grid_h * params.grid_w;
  let first = split * params.split;
  let last = min(first + params.split, pixels);
  let slot = i / WIDTH;  // and slot + 8
  let vector = i % WIDTH;
  let pixel = i % DEPTH;
  var c0 = vec4f();
  var c1 = vec4f();
  var c2 = vec4f();
  var c3 = vec4f();
  var c4 = vec4f();
  var c5 = vec4f();
  var c6 = vec4f();
  var c7 = vec4f();
  for (var p = first; p < last; p += DEPTH) {
    let depth = min(DEPTH, last - p);
    workgroupBarrier();
    let at = locate(min(p + pixel, pixels - 1u), g).x;
    for (var s = i / DEPTH; s < SLOTS; s += WIDTH / 4u) {
      let places = at + vec4u(table4[min(first_slot + s, slots - 1u)]);
      tile_x[pixel * SLOTS + (s ^ (pixel % SLOTS))] = Four(vec4f(x[places.x], x[places.y], x[places.z], x[places.w]));
    }
    for (var n = i; n < depth * WIDTH; n += 8u * WIDTH) {
      tile_w[n] = Four(packed[(panel * params.filled + p) * WIDTH + n]);
    }
    workgroupBarrier();
    for (var step = 0u; step < depth; step++) {
      let low = vec4f(tile_x[step * SLOTS + (slot ^ (step % SLOTS))]);
      let high = vec4f(tile_x[step * SLOTS + ((slot + 8u) ^ (step % SLOTS))]);
      let v = vec4f(tile_w[step * WIDTH + vector]);
      c0 = fma(vec4f(low.x), v, c0);
      c1 = fma(vec4f(low.y), v, c1);
      c2 = fma(vec4f(low.z), v, c2);
      c3 = fma(vec4f(low.w), v, c3);
      c4 = fma(vec4f(high.x), v, c4);
      c5 = fma(vec4f(high.y), v, c5);
      c6 = fma(vec4f(high.z), v, c6);
      c7 = fma(vec4f(high.w), v, c7);
    }
  }
  let k = (first_slot + slot) * 4u;
  let to = ((split * all_panels + panel) * params.rows + k) * WIDTH + vector;
  keep(to, params.rows - min(k, params.rows), c0, c1, c2, c3);
  keep(to + 32u * WIDTH, params.rows - min(k + 32u, params.rows), c4, c5, c6, c7);
}
