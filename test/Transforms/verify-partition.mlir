// --dist-verify-partition refuses leftovers of the phase shard and gathers between router and combine, and remarks on large gathers.
// RUN: moe-opt %s --split-input-file --verify-diagnostics --dist-verify-partition="gather-remark-bytes=1024"

dist.mesh @mesh ["tp"] = [2]
func.func @left(%x: tensor<4x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>>) -> tensor<4x8xf32, #dist.sharding<[{}, {}]>> {
  // expected-error @+1 {{MOE-0601: dist.reshard is left}}
  %y = dist.reshard %x : tensor<4x8xf32, #dist.sharding<[{}, {}], partial = sum{tp}>> -> tensor<4x8xf32, #dist.sharding<[{}, {}]>>
  return %y : tensor<4x8xf32, #dist.sharding<[{}, {}]>>
}

// -----

func.func @dispatch_left(%x: tensor<3x8xf32, #dist.sharding<[{}, {}]>>, %r: !moe.routing<3, experts = 4, k = 2, #dist.sharding<[{}]>>, %w: tensor<4x8x8xf32, #dist.sharding<[{}, {}, {}]>>) {
  // expected-error @+1 {{MOE-0601: moe.dispatch is left}}
  %rows = moe.dispatch %x, %r : (tensor<3x8xf32, #dist.sharding<[{}, {}]>>, !moe.routing<3, experts = 4, k = 2, #dist.sharding<[{}]>>) -> tensor<6x8xf32, #dist.sharding<[ragged{}{} 1x6, {}]>>
  // expected-error @+1 {{MOE-0601: groups are still a routing}}
  %y = moe.grouped_matmul %rows by %r, %w contract 1 : (tensor<6x8xf32, #dist.sharding<[ragged{}{} 1x6, {}]>>, !moe.routing<3, experts = 4, k = 2, #dist.sharding<[{}]>>, tensor<4x8x8xf32, #dist.sharding<[{}, {}, {}]>>) -> tensor<6x8xf32, #dist.sharding<[ragged{}{} 1x6, {}]>>
  return
}

// -----

// Tokens gathered in front of the experts, and the experts' rows gathered behind them.
dist.mesh @mesh ["ep", "tp"] = [2, 2]
func.func @gathered(%x: tensor<4x8xf32, #dist.sharding<[{}, {tp}]>>, %r: !moe.routing<4, experts = 4, k = 2, #dist.sharding<[{}]>>) -> tensor<4x8xf32, #dist.sharding<[{}, {}]>> {
  %need = dist.zero_need : tensor<1xi32, #dist.sharding<[{}]>>
  // expected-error @+1 {{MOE-0601: tokens are gathered between router and experts}}
  %all = dist.all_gather %x dim 1 over ["tp"] : tensor<4x8xf32, #dist.sharding<[{}, {tp}]>> -> tensor<4x8xf32, #dist.sharding<[{}, {}]>>
  %rows, %groups, %pos, %n = dist.select %all, %r need %need : (tensor<4x8xf32, #dist.sharding<[{}, {}]>>, !moe.routing<4, experts = 4, k = 2, #dist.sharding<[{}]>>, tensor<1xi32, #dist.sharding<[{}]>>)
    -> (tensor<8x8xf32, #dist.sharding<[ragged{}{} 1x8, {tp}]>>, tensor<1x4xi32, #dist.sharding<[{}, {}]>>, tensor<4x2xi32, #dist.sharding<[{}, {}]>>, tensor<1xi32, #dist.sharding<[{}]>>)
  // expected-error @+1 {{MOE-0601: rows are gathered between router and combine}}
  %more = dist.all_gather %rows dim 1 over ["tp"] : tensor<8x8xf32, #dist.sharding<[ragged{}{} 1x8, {tp}]>> -> tensor<8x8xf32, #dist.sharding<[ragged{}{} 1x8, {}]>>
  %y = dist.merge %more, %pos, %r : (tensor<8x8xf32, #dist.sharding<[ragged{}{} 1x8, {}]>>, tensor<4x2xi32, #dist.sharding<[{}, {}]>>, !moe.routing<4, experts = 4, k = 2, #dist.sharding<[{}]>>) -> tensor<4x8xf32, #dist.sharding<[{}, {}]>>
  return %y : tensor<4x8xf32, #dist.sharding<[{}, {}]>>
}

// -----

// 16 x 16 x 4 bytes; the one of half that size is not worth a remark.
dist.mesh @mesh ["tp"] = [2]
func.func @large(%x: tensor<16x16xf32, #dist.sharding<[{tp}, {}]>>, %s: tensor<8x16xf32, #dist.sharding<[{tp}, {}]>>) {
  // expected-remark @+1 {{all_gather over ["tp"] makes 1024 bytes on every rank}}
  %y = dist.all_gather %x dim 0 over ["tp"] : tensor<16x16xf32, #dist.sharding<[{tp}, {}]>> -> tensor<16x16xf32, #dist.sharding<[{}, {}]>>
  %t = dist.all_gather %s dim 0 over ["tp"] : tensor<8x16xf32, #dist.sharding<[{tp}, {}]>> -> tensor<8x16xf32, #dist.sharding<[{}, {}]>>
  return
}

// -----

dist.mesh @mesh ["tp"] = [2]
// expected-error @+1 {{MOE-0601: result 0 of the program is partial}}
func.func @partial(%x: tensor<4xf32, #dist.sharding<[{}], partial = sum{tp}>>) -> tensor<4xf32, #dist.sharding<[{}], partial = sum{tp}>> {
  return %x : tensor<4xf32, #dist.sharding<[{}], partial = sum{tp}>>
}
