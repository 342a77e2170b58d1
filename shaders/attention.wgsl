// The row-wise part of attention. s: scores (rows, M) of one chunk; row r of the chunk is query n0 + r % n_chunk of batch entry
// b0 + r / n_chunk. An invocation owns one row.
//   forward:   s <- softmax(s + mask + rel_h + rel_w) in place; a row that is masked out everywhere becomes 0
//   grad:      ds <- p * (ds - sum(ds * p)) in place, p being what forward left
//   grad_rel:  sums of ds over key columns (rel_h) or key rows (rel_w), for all queries of the chunk
//   grad_mask: adds to each element of the mask's gradient the ds that it was broadcast to
//   row_forward, row_grad: the same with a workgroup for each row: right on GPUs, and for few long rows everywhere
// rel_h: (batch, N, kH) and rel_w: (batch, N, kW) stand for keys at (k / kW, k % kW). The mask's strides are in elements, its last one is 1.
// Scores from -2.9e38 down (masked by -infinity too) count as masked out. A NaN or +infinity among the others makes the row NaN.
struct Params {
  rows: u32,
  m: u32,          // keys
  n: u32,          // queries of a batch entry
  n0: u32,
  n_chunk: u32,
  b0: u32,
  mask_kind: u32,  // 0 none, 1 bool, 2 float
  split: u32,      // batch entry b stands at (b / split, b % split) of the mask
  mask_outer: u32,
  mask_inner: u32,
  mask_row: u32,
  k_h: u32,        // 0: no relative position
  k_w: u32,
  mask_size: vec4u,  // grad_mask: outer, inner, rows of the mask, M
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> s: array<f32>;
@group(0) @binding(2) var<storage, read> mask: array<u32>;
@group(0) @binding(3) var<storage, read> rel_h: array<f32>;
@group(0) @binding(4) var<storage, read> rel_w: array<f32>;
@group(0) @binding(5) var<storage, read> p: array<f32>;
@group(0) @binding(6) var<storage, read> ds: array<f32>;
@group(0) @binding(7) var<storage, read_write> g_rel: array<f32>;
@group(0) @binding(8) var<storage, read_write> g_mask: array<f32>;
@group(0) @binding(9) var<storage, read_write> s4: array<vec4f>;
@group(0) @binding(10) var<storage, read> mask4: array<vec4u>;
@group(0) @binding(11) var<storage, read> p4: array<vec4f>;

const MASKED = -3e38;
const LN2_HIGH = 0.693359375;
const LN2_LOW = -2.12194440e-4;

// For arguments up to 0; below -87 the result is 0. Written out: adapters' builtins may be off by more than 1e-6.
fn exp_(x0: vec4f) -> vec4f {
  let x = clamp(x0, vec4f(-87.0), vec4f(88.0));
  let k = round(x * 1.44269504088896341);
  let r = x - k * LN2_HIGH - k * LN2_LOW;
  var q = vec4f(1.9875691500e-4);
  q = q * r + 1.3981999507e-3;
  q = q * r + 8.3334519073e-3;
  q = q * r + 4.1665795894e-2;
  q = q * r + 1.6666665459e-1;
  q = q * r + 5.0000001201e-1;
  let e = (q * r * r + r + 1.0) * bitcast<vec4f>((vec4i(k) + 127) << vec4u(23u));
  return select(e, vec4f(0.0), x0 < vec4f(-87.0));
}

// What exp(s - top) is multiplied by: NaN where a score is NaN (`size` holds the largest bits without the sign; compilers may assume
// that there is none) or top +infinity, 0 where all is masked out.
fn scale_of(top: f32, sum: f32, size: u32) -> f32 {
  let scale = select(0.0, 1.0 / sum, top > -2.9e38);
  return bitcast<f32>(select(bitcast<u32>(scale), 0x7fc00000u, size > 0x7f800000u || top > 0x1.fffffep+127));
}

fn size_bits(v: f32) -> u32 {
  return bitcast<u32>(v) & 0x7fffffffu;
}

fn exp1(v: f32) -> f32 {
  return exp_(vec4f(v)).x;
}

fn mask_base(b: u32, n: u32) -> u32 {
  return (b / params.split) * params.mask_outer + (b % params.split) * params.mask_inner + n * params.mask_row;
}

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let r = id.x + id.y * groups.x * 64u;
  if (r >= params.rows) {
    return;
  }
  let b = params.b0 + r / params.n_chunk;
  let n = params.n0 + r % params.n_chunk;
  let base = r * params.m;
  let masked = mask_base(b, n);
  let query = b * params.n + n;
  var top = MASKED;
  var sum = 0.0;
  var size = 0u;
  var row = 0u;
  var column = 0u;
  for (var k = 0u; k < params.m; k++) {
    var v = s[base + k];
    if (params.k_h > 0u) {
      v += rel_h[query * params.k_h + row] + rel_w[query * params.k_w + column];
      column++;
      if (column == params.k_w) {
        column = 0u;
        row++;
      }
    }
    if (params.mask_kind == 1u) {
      v = select(v, MASKED, mask[masked + k] == 0u);
    } else if (params.mask_kind == 2u) {
      v += bitcast<f32>(mask[masked + k]);
    }
    size = max(size, size_bits(v));
    v = max(v, MASKED);
    s[base + k] = v;
    if (v > top) {
      sum *= exp1(top - v);
      top = v;
    }
    sum += exp1(v - top);
  }
  let scale = scale_of(top, sum, size);
  for (var k = base; k < base + params.m; k++) {
    s[k] = exp1(s[k] - top) * scale;
  }
}

// The same for M a multiple of four and no relative position.
@compute @workgroup_size(64)
fn forward4(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let r = id.x + id.y * groups.x * 64u;
  if (r >= params.rows) {
    return;
  }
  let columns = params.m / 4u;
  let base = r * columns;
  let masked = mask_base(params.b0 + r / params.n_chunk, params.n0 + r % params.n_chunk) / 4u;
  var top = MASKED;
  var sums = vec4f();
  var sizes = vec4u();
  for (var k = 0u; k < columns; k++) {
    var v = s4[base + k];
    if (params.mask_kind == 1u) {
      v = select(v, vec4f(MASKED), mask4[masked + k] == vec4u(0u));
      s4[base + k] = v;
    } else if (params.mask_kind == 2u) {
      v += bitcast<vec4f>(mask4[masked + k]);
      s4[base + k] = max(v, vec4f(MASKED));
    }
    sizes = max(sizes, bitcast<vec4u>(v) & vec4u(0x7fffffffu));
    v = max(v, vec4f(MASKED));
    let high = max(max(v.x, v.y), max(v.z, v.w));
    if (high > top) {
      sums *= exp1(top - high);
      top = high;
    }
    sums += exp_(v - top);
  }
  let size = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
  let scale = scale_of(top, (sums.x + sums.y) + (sums.z + sums.w), size);
  for (var k = base; k < base + columns; k++) {
    s4[k] = exp_(s4[k] - top) * scale;
  }
}

@compute @workgroup_size(64)
fn grad(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let r = id.x + id.y * groups.x * 64u;
  if (r >= params.rows) {
    return;
  }
  let base = r * params.m;
  var sum = 0.0;
  for (var k = base; k < base + params.m; k++) {
    sum += s[k] * p[k];
  }
  for (var k = base; k < base + params.m; k++) {
    s[k] = p[k] * (s[k] - sum);
  }
}

@compute @workgroup_size(64)
fn grad4(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let r = id.x + id.y * groups.x * 64u;
  if (r >= params.rows) {
    return;
  }
  let base = r * (params.m / 4u);
  let last = base + params.m / 4u;
  var sums = vec4f();
  for (var k = base; k < last; k++) {
    sums += s4[k] * p4[k];
  }
  let sum = (sums.x + sums.y) + (sums.z + sums.w);
  for (var k = base; k < last; k++) {
    s4[k] = p4[k] * (s4[k] - sum);
  }
}

const LANES = 64u;
var<workgroup> tops: array<f32, 64>;
var<workgroup> sums: array<f32, 64>;

// Maximum and sum of a workgroup's lanes put together.
fn together(lane: u32, top: f32, sum: f32) -> vec2f {
  tops[lane] = top;
  sums[lane] = sum;
  workgroupBarrier();
  for (var half = LANES / 2u; half > 0u; half /= 2u) {
    if (lane < half) {
      let a = tops[lane];
      let b = tops[lane + half];
      let higher = max(a, b);
      tops[lane] = higher;
      sums[lane] = sums[lane] * exp1(a - higher) + sums[lane + half] * exp1(b - higher);
    }
    workgroupBarrier();
  }
  return vec2f(tops[0], sums[0]);
}

@compute @workgroup_size(LANES)
fn row_forward(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let r = group.x + group.y * groups.x;
  if (r >= params.rows) {
    return;
  }
  let b = params.b0 + r / params.n_chunk;
  let n = params.n0 + r % params.n_chunk;
  let base = r * params.m;
  let masked = mask_base(b, n);
  let query = b * params.n + n;
  var top = MASKED;
  var sum = 0.0;
  var size = 0u;
  for (var k = lane; k < params.m; k += LANES) {
    var v = s[base + k];
    if (params.k_h > 0u) {
      v += rel_h[query * params.k_h + k / params.k_w] + rel_w[query * params.k_w + k % params.k_w];
    }
    if (params.mask_kind == 1u) {
      v = select(v, MASKED, mask[masked + k] == 0u);
    } else if (params.mask_kind == 2u) {
      v += bitcast<f32>(mask[masked + k]);
    }
    size = max(size, size_bits(v));
    v = max(v, MASKED);
    s[base + k] = v;
    if (v > top) {
      sum *= exp1(top - v);
      top = v;
    }
    sum += exp1(v - top);
  }
  let all = together(lane, top, bitcast<f32>(select(bitcast<u32>(sum), 0x7fc00000u, size > 0x7f800000u)));
  let scale = scale_of(all.x, all.y, size_bits(all.y));
  for (var k = base + lane; k < base + params.m; k += LANES) {
    s[k] = exp1(s[k] - all.x) * scale;
  }
}

@compute @workgroup_size(LANES)
fn row_grad(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let r = group.x + group.y * groups.x;
  if (r >= params.rows) {
    return;
  }
  let base = r * params.m;
  var part = 0.0;
  for (var k = base + lane; k < base + params.m; k += LANES) {
    part += s[k] * p[k];
  }
  // Equal maxima: what is put together is the plain sum.
  let sum = together(lane, 0.0, part).y;
  for (var k = base + lane; k < base + params.m; k += LANES) {
    s[k] = p[k] * (s[k] - sum);
  }
}

override ALONG_W: bool = false;

@compute @workgroup_size(64)
fn grad_rel(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let size = select(params.k_h, params.k_w, ALONG_W);
  if (i >= params.rows * size) {
    return;
  }
  let r = i / size;
  let k = i % size;
  let step = select(1u, params.k_w, ALONG_W);
  var at = r * params.m + select(k * params.k_w, k, ALONG_W);
  var sum = 0.0;
  for (var j = 0u; j < select(params.k_w, params.k_h, ALONG_W); j++) {
    sum += ds[at];
    at += step;
  }
  let query = (params.b0 + r / params.n_chunk) * params.n + params.n0 + r % params.n_chunk;
  g_rel[query * size + k] = sum;
}

@compute @workgroup_size(64)
fn grad_mask(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  let size = params.mask_size;
  if (i >= size.x * size.y * size.z * size.w) {
    return;
  }
  let column = i % size.w;
  let query = (i / size.w) % size.z;
  let inner = (i / (size.w * size.z)) % size.y;
  let outer = i / (size.w * size.z * size.y);
  // The batch entries that this element was repeated to, as far as they lie in the chunk.
  let end = params.b0 + params.rows / params.n_chunk;
  let last_entry = select(end, min(end, (outer + 1u) * params.split), size.x > 1u);
  let step = select(1u, params.split, size.y > 1u);
  var sum = 0.0;
  for (var entry = select(0u, outer * params.split, size.x > 1u) + inner; entry < last_entry; entry += step) {
    if (entry < params.b0) {
      continue;
    }
    if (size.z > 1u && (query < params.n0 || query >= params.n0 + params.n_chunk)) {
      continue;
    }
    let first = select(0u, query - params.n0, size.z > 1u);
    let last = select(params.n_chunk, first + 1u, size.z > 1u);
    for (var n = first; n < last; n++) {
      sum += ds[((entry - params.b0) * params.n_chunk + n) * params.m + column];
    }
  }
  g_mask[i] += sum;
}
