// Stable radix sort of u32 keys: (rows, n), each row on its own, one digit a pass. An invocation owns one block of a row and walks it in
// order, so that equal keys keep their order and nothing depends on timing.
//   count:   counters[row, digit, block] = how often the digit stands in the block
//   total, spread: the two halves of a running sum over an array cut into chunks; spread turns the array into sums of what stands before
//   scatter: every key, and the position it came from, to its place
//   bounds:  start[k] = first place of a key >= k in the sorted keys, k = 0..n_keys
struct Params {
  rows: u32,
  n: u32,
  block: u32,    // keys of a block
  blocks: u32,   // blocks of a row
  shift: u32,
  digits: u32,   // a power of two
  first: u32,    // 1 in the first pass: keys still stand where they came origin
  n_keys: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read> order: array<u32>;
@group(0) @binding(3) var<storage, read_write> counters: array<u32>;
@group(0) @binding(4) var<storage, read_write> keys_out: array<u32>;
@group(0) @binding(5) var<storage, read_write> order_out: array<u32>;
@group(0) @binding(6) var<storage, read> before: array<u32>;
@group(0) @binding(7) var<storage, read_write> totals: array<u32>;
@group(0) @binding(8) var<storage, read_write> start: array<u32>;

@compute @workgroup_size(64)
fn count(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.rows * params.blocks) {
    return;
  }
  let row = i / params.blocks;
  let base = row * params.digits * params.blocks + i % params.blocks;
  for (var d = 0u; d < params.digits; d++) {
    counters[base + d * params.blocks] = 0u;
  }
  let first = (i % params.blocks) * params.block;
  let last = min(first + params.block, params.n);
  for (var k = first; k < last; k++) {
    let digit = (keys[row * params.n + k] >> params.shift) & (params.digits - 1u);
    counters[base + digit * params.blocks] += 1u;
  }
}

@compute @workgroup_size(64)
fn scatter(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.rows * params.blocks) {
    return;
  }
  let row = i / params.blocks;
  let base = row * params.digits * params.blocks + i % params.blocks;
  let first = (i % params.blocks) * params.block;
  let last = min(first + params.block, params.n);
  for (var k = first; k < last; k++) {
    let origin = row * params.n + k;
    let key = keys[origin];
    let counter = base + ((key >> params.shift) & (params.digits - 1u)) * params.blocks;
    let to = counters[counter];
    counters[counter] = to + 1u;
    keys_out[to] = key;
    if (params.first == 1u) {
      order_out[to] = k;
    } else {
      order_out[to] = order[origin];
    }
  }
}

// n elements in blocks; rows, digits and shift play no part.
@compute @workgroup_size(64)
fn total(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.blocks) {
    return;
  }
  var sum = 0u;
  for (var k = i * params.block; k < min((i + 1u) * params.block, params.n); k++) {
    sum += counters[k];
  }
  totals[i] = sum;
}

@compute @workgroup_size(64)
fn spread(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 64u;
  if (i >= params.blocks) {
    return;
  }
  var sum = 0u;
  if (params.first == 0u) {
    sum = before[i];
  }
  for (var k = i * params.block; k < min((i + 1u) * params.block, params.n); k++) {
    let v = counters[k];
    counters[k] = sum;
    sum += v;
  }
}

// An invocation owns 16 keys and walks the sorted keys along with them, in strides that double as long as they fall short.
@compute @workgroup_size(64)
fn bounds(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let first = (id.x + id.y * groups.x * 64u) * 16u;
  var low = 0u;
  var step = params.n / 2u + 1u;   // the first search is over everything
  for (var key = first; key < min(first + 16u, params.n_keys + 1u); key++) {
    while (low + step <= params.n && keys[low + step - 1u] < key) {
      low += step;
      step *= 2u;
    }
    var high = min(low + step - 1u, params.n);
    while (low < high) {
      let middle = (low + high) / 2u;
      if (keys[middle] < key) {
        low = middle + 1u;
      } else {
        high = middle;
      }
    }
    start[key] = low;
    step = 1u;
  }
}
