// --dist-verify-shard refuses what the phase shard must not leave behind, all of it at once. Locations in this file are what users see
// for IR they edited.
// RUN: moe-opt %s --split-input-file --verify-diagnostics --dist-verify-shard

dist.mesh @mesh ["dp", "tp"] = [2, 2]
// expected-error @+1 {{MOE-0601: state @a has no sharding}}
moe.state @a : tensor<4xf32>
// expected-error @+1 {{MOE-0601: state @b: the mesh has no axis "ep"}}
moe.state @b : tensor<4xf32, #dist.sharding<[{ep}]>>
// expected-error @+1 {{MOE-0601: state @c: 2 shards do not divide a dimension of 5 with a pad of 0}}
moe.state @c : tensor<5xf32, #dist.sharding<[{tp}]>>
moe.state @padded : tensor<5xf32, #dist.sharding<[{tp} pad 1]>>

// -----

dist.mesh @mesh ["tp"] = [2]
func.func @partial_into_norm(%x: tensor<4x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>>, %w: tensor<8xf32, #dist.sharding<[{}]>>) {
  // expected-error @+1 {{MOE-0601: moe.rms_norm operand 0 has #dist.sharding<[{}, {}], partial = sum{tp}>, its rule needs #dist.sharding<[{}, {}]>}}
  %y = moe.rms_norm %x, %w eps 1.0e-5 : (tensor<4x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>>, tensor<8xf32, #dist.sharding<[{}]>>) -> tensor<4x8xf32, #dist.sharding<[{}, {}]>>
  return
}

// -----

dist.mesh @mesh ["tp"] = [2]
func.func @reduction_forgotten(%x: tensor<4x8xf32, #dist.sharding<[{}, {tp}]>>, %w: tensor<6x8xf32, #dist.sharding<[{}, {tp}]>>) {
  // expected-error @+1 {{MOE-0601: moe.linear result 0 has #dist.sharding<[{}, {}]>, its rule gives #dist.sharding<[{}, {}], partial = sum{tp}>}}
  %y = moe.linear %x, %w contract 1 : (tensor<4x8xf32, #dist.sharding<[{}, {tp}]>>, tensor<6x8xf32, #dist.sharding<[{}, {tp}]>>) -> tensor<4x6xf32, #dist.sharding<[{}, {}]>>
  return
}

// -----

dist.mesh @mesh ["tp"] = [2]
func.func @cut_norm(%x: tensor<4x8xf32, #dist.sharding<[{}, {tp}]>>, %w: tensor<8xf32, #dist.sharding<[{tp}]>>) {
  // expected-error @+1 {{MOE-0601: a norm over a cut dimension; run --dist-expand-norms}}
  %y = moe.rms_norm %x, %w eps 1.0e-5 : (tensor<4x8xf32, #dist.sharding<[{}, {tp}]>>, tensor<8xf32, #dist.sharding<[{tp}]>>) -> tensor<4x8xf32, #dist.sharding<[{}, {tp}]>>
  return
}

// -----

dist.mesh @mesh ["tp"] = [2]
func.func @result_left_partial(%x: tensor<4xf32, #dist.sharding<[{}], partial = sum{tp}>>) -> tensor<4xf32, #dist.sharding<[{}], partial = sum{tp}>> {
  // expected-error @+1 {{MOE-0601: result 0 of the program is partial}}
  return %x : tensor<4xf32, #dist.sharding<[{}], partial = sum{tp}>>
}

// -----

dist.mesh @mesh ["ep"] = [2]
func.func @other_experts(%x: tensor<4x8xf32, #dist.sharding<[ragged{}{ep} 2x2, {}]>>, %r: !moe.routing<2, experts = 4, k = 2, #dist.sharding<[{ep}]>>,
                         %w: tensor<4x8x8xf32, #dist.sharding<[{}, {}, {}]>>) {
  // expected-error @+1 {{MOE-0601: rows of experts split as #dist.dim<ragged{}{ep} 2x2> meet weights whose experts are split as #dist.dim<{}>}}
  %y = moe.grouped_matmul %x by %r, %w contract 1 : (tensor<4x8xf32, #dist.sharding<[ragged{}{ep} 2x2, {}]>>, !moe.routing<2, experts = 4, k = 2, #dist.sharding<[{ep}]>>, tensor<4x8x8xf32, #dist.sharding<[{}, {}, {}]>>) -> tensor<4x8xf32, #dist.sharding<[ragged{}{ep} 2x2, {}]>>
  return
}

// -----

dist.mesh @mesh ["ep"] = [2]
// expected-error @+1 {{MOE-0601: argument 1: a program has one bound, here are 2 and 3}}
func.func @two_bounds(%x: tensor<4x8xf32, #dist.sharding<[ragged{}{ep} 2x2, {}]>>, %y: tensor<4x8xf32, #dist.sharding<[ragged{}{ep} 2x3, {}]>>) {
  return
}
