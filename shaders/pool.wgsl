// Pooling of the windows kh x kw of planes (in_h, in_w) to planes (out_h, out_w). Outside the image counts as 0 for the mean, as nothing
// for the maximum, whose place in its plane is kept: the gradient goes to the first of equal maxima, and to the last NaN, which is larger
// than all numbers. Gradients gather: an invocation owns one input pixel and visits the windows that hold it. Workgroups: x over the
// pixels of a plane, y and z over planes.
struct Params {
  planes: u32,
  in_h: u32,
  in_w: u32,
  out_h: u32,
  out_w: u32,
  kh: u32,
  kw: u32,
  step_y: u32,
  step_x: u32,
  top: i32,
  left: i32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> place_out: array<u32>;
@group(0) @binding(4) var<storage, read> place: array<u32>;
@group(0) @binding(5) var<storage, read> gy: array<f32>;
@group(0) @binding(6) var<storage, read_write> gx: array<f32>;
@group(0) @binding(7) var<storage, read> x4: array<vec4f>;
@group(0) @binding(8) var<storage, read_write> y4: array<vec4f>;
@group(0) @binding(9) var<storage, read_write> place4_out: array<vec4u>;
@group(0) @binding(10) var<storage, read> place4: array<vec4u>;
@group(0) @binding(11) var<storage, read> gy4: array<vec4f>;
@group(0) @binding(12) var<storage, read_write> gx4: array<vec4f>;

override MAX: bool = false;

/// n / d for n up to 4 million: software adapters divide whole numbers lane by lane.
fn quotient(n: u32, d: u32) -> u32 {
  return u32((f32(n) + 0.5) / f32(d));
}

/// By the bits: compilers may assume that there is no NaN.
fn is_nan(v: f32) -> bool {
  return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u;
}

fn is_nan4(v: vec4f) -> vec4<bool> {
  return (bitcast<vec4u>(v) & vec4u(0x7fffffffu)) > vec4u(0x7f800000u);
}

@compute @workgroup_size(64)
fn max_forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let plane = id.y + id.z * groups.y;
  let row = quotient(id.x, params.out_w);
  if (plane >= params.planes || row >= params.out_h) {
    return;
  }
  let y0 = i32(row * params.step_y) - params.top;
  let x0 = i32((id.x - row * params.out_w) * params.step_x) - params.left;
  let i = plane * params.out_h * params.out_w + id.x;
  let base = plane * params.in_h * params.in_w;
  var best = 0.0;
  var found = 0xffffffffu;
  for (var ky = 0; ky < i32(params.kh); ky++) {
    for (var kx = 0; kx < i32(params.kw); kx++) {
      let iy = u32(y0 + ky);
      let ix = u32(x0 + kx);
      if (iy < params.in_h && ix < params.in_w) {
        let at = iy * params.in_w + ix;
        let v = x[base + at];
        if (found == 0xffffffffu || v > best || is_nan(v)) {
          best = v;
          found = at;
        }
      }
    }
  }
  y[i] = best;
  place_out[i] = found;
}

/// Where the upper left four of windows i to i + 3 stands in x4, and which cell of its plane is its first.
fn corner_of(i: u32) -> vec2u {
  let across = params.out_w / 4u;
  let row = i / across;
  let column = i - row * across;
  return vec2u(row * across * 4u + column * 2u, (row % params.out_h) * 2u * params.in_w + column * 8u);
}

// Windows of 2 x 2 beside each other, four of a row an invocation, for rows of whole fours. Counted over all planes.
@compute @workgroup_size(64)
fn max_twos(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.planes * params.out_h * params.out_w / 4u) {
    return;
  }
  let corner = corner_of(i);
  let low = corner.x + params.in_w / 4u;
  let top_left = x4[corner.x];
  let top_right = x4[corner.x + 1u];
  let low_left = x4[low];
  let low_right = x4[low + 1u];
  let first = corner.y;
  var found = first + vec4u(0u, 2u, 4u, 6u);
  var best = vec4f(top_left.xz, top_right.xz);
  var v = vec4f(top_left.yw, top_right.yw);
  var wins = (v > best) | is_nan4(v);
  best = select(best, v, wins);
  found = select(found, first + vec4u(1u, 3u, 5u, 7u), wins);
  v = vec4f(low_left.xz, low_right.xz);
  wins = (v > best) | is_nan4(v);
  best = select(best, v, wins);
  found = select(found, first + params.in_w + vec4u(0u, 2u, 4u, 6u), wins);
  v = vec4f(low_left.yw, low_right.yw);
  wins = (v > best) | is_nan4(v);
  y4[i] = select(best, v, wins);
  place4_out[i] = select(found, first + params.in_w + vec4u(1u, 3u, 5u, 7u), wins);
}

@compute @workgroup_size(64)
fn grad_twos(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.planes * params.out_h * params.out_w / 4u) {
    return;
  }
  let corner = corner_of(i);
  let low = corner.x + params.in_w / 4u;
  let g = gy4[i];
  // How far along the window's rows, both counted as one row of 2 in_w, the winner stands.
  let from_first = place4[i] - corner.y;
  let left = vec4u(0u, 1u, 2u, 3u);
  let right = left + 4u;
  gx4[corner.x] = select(vec4f(), g.xxyy, from_first.xxyy == left);
  gx4[corner.x + 1u] = select(vec4f(), g.zzww, from_first.zzww == right);
  gx4[low] = select(vec4f(), g.xxyy, from_first.xxyy == left + params.in_w);
  gx4[low + 1u] = select(vec4f(), g.zzww, from_first.zzww == right + params.in_w);
}

@compute @workgroup_size(64)
fn mean_forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let plane = id.y + id.z * groups.y;
  let row = quotient(id.x, params.out_w);
  if (plane >= params.planes || row >= params.out_h) {
    return;
  }
  let y0 = i32(row * params.step_y) - params.top;
  let x0 = i32((id.x - row * params.out_w) * params.step_x) - params.left;
  let i = plane * params.out_h * params.out_w + id.x;
  let base = plane * params.in_h * params.in_w;
  var sum = 0.0;
  for (var ky = 0; ky < i32(params.kh); ky++) {
    for (var kx = 0; kx < i32(params.kw); kx++) {
      let iy = u32(y0 + ky);
      let ix = u32(x0 + kx);
      if (iy < params.in_h && ix < params.in_w) {
        sum += x[base + iy * params.in_w + ix];
      }
    }
  }
  y[i] = sum / f32(params.kh * params.kw);
}

/// First and one past the last window of those that hold position `at` (counted from the padded start).
fn windows(at: u32, size: u32, step: u32, count: u32) -> vec2u {
  let first = select(0u, quotient(max(at, size) - size, step) + 1u, at >= size);
  return vec2u(first, min(quotient(at, step) + 1u, count));
}

@compute @workgroup_size(64)
fn grad_x(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let plane = id.y + id.z * groups.y;
  let row = quotient(id.x, params.in_w);
  if (plane >= params.planes || row >= params.in_h) {
    return;
  }
  let at = id.x;
  let rows = windows(u32(i32(row) + params.top), params.kh, params.step_y, params.out_h);
  let columns = windows(u32(i32(at - row * params.in_w) + params.left), params.kw, params.step_x, params.out_w);
  var sum = 0.0;
  for (var oy = rows.x; oy < rows.y; oy++) {
    for (var ox = columns.x; ox < columns.y; ox++) {
      let source_at = (plane * params.out_h + oy) * params.out_w + ox;
      if (MAX) {
        if (place[source_at] == at) {
          sum += gy[source_at];
        }
      } else {
        sum += gy[source_at];
      }
    }
  }
  if (!MAX) {
    sum /= f32(params.kh * params.kw);
  }
  gx[plane * params.in_h * params.in_w + at] = sum;
}

// The same where windows do not overlap: each writes the cells that it covers; gx is zero before.
@compute @workgroup_size(64)
fn grad_windows(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let plane = id.y + id.z * groups.y;
  let row = quotient(id.x, params.out_w);
  if (plane >= params.planes || row >= params.out_h) {
    return;
  }
  let y0 = i32(row * params.step_y) - params.top;
  let x0 = i32((id.x - row * params.out_w) * params.step_x) - params.left;
  let i = plane * params.out_h * params.out_w + id.x;
  let base = plane * params.in_h * params.in_w;
  let g = gy[i];
  let winner = place[i];
  for (var ky = 0; ky < i32(params.kh); ky++) {
    for (var kx = 0; kx < i32(params.kw); kx++) {
      let iy = u32(y0 + ky);
      let ix = u32(x0 + kx);
      if (iy < params.in_h && ix < params.in_w) {
        let at = iy * params.in_w + ix;
        if (MAX) {
          gx[base + at] = select(0.0, g, at == winner);
        } else {
          gx[base + at] = g / f32(params.kh * params.kw);
        }
      }
    }
  }
}
