// The token split is decided for each stack: on ep=4 an encoder of 8 tokens is cut, its decoder of 6 is not. Positions that count tokens are
// cut like the tokens, from whole rows of ids; keys' positions, of biases too, are not cut; a table of biases is cut by heads over tp.
// RUN: moe-opt %s --dist-attach-mesh="mesh=ep=4,tp=2" --dist-shard-data --dist-shard-tensor --dist-propagate --dist-verify-shard | FileCheck %s
// RUN: moe-opt %s --dist-shard-pipeline="mesh=ep=4,tp=2" --dist-partition-pipeline --dist-localize-pipeline | FileCheck %s --check-prefix=LOCAL

// CHECK: moe.state @bias : tensor<8x2xf32, #dist.sharding<[{}, {tp}]>>
// CHECK: func.func @forward(%[[SOURCE:[a-z0-9]+]]: tensor<2x8xi32, #dist.sharding<[{}, {}]>>
// CHECK-DAG: %[[KEYS:.*]] = moe.positions : tensor<8xi32, #dist.sharding<[{}]>>
// CHECK-DAG: %[[QUERIES:.*]] = moe.positions : tensor<8xi32, #dist.sharding<[{ep}]>>
// CHECK: %[[PLACES:.*]] = moe.token_positions %[[SOURCE]] pad 1 : {{.*}} -> tensor<2x8xi32, #dist.sharding<[{}, {ep}]>>
// CHECK: moe.sinusoid %[[PLACES]] {{.*}} -> tensor<2x8x8xf32, #dist.sharding<[{}, {ep}, {}]>>
// CHECK: moe.relative_bias %{{.*}}, %[[QUERIES]], %[[KEYS]] {{.*}} -> tensor<2x8x8xf32, #dist.sharding<[{tp}, {ep}, {}]>>
// CHECK: moe.attention {{.*}} at %[[QUERIES]], %[[KEYS]]
// CHECK: moe.embedding %{{.*}} -> tensor<2x6x8xf32, #dist.sharding<[{}, {}, {}]
// The decoder's queries are whole, the encoder's keys are gathered.
// CHECK: moe.attention {{.*}} at %{{.*}}, %[[KEYS]] {{.*}} -> tensor<2x6x2x4xf32, #dist.sharding<[{}, {}, {tp}, {}]>>

// LOCAL: moe.token_positions %{{.*}} pad 1 {start = #dist.offset<{ep} * 2>} : (tensor<2x8xi32>) -> tensor<2x2xi32>
// LOCAL: moe.relative_bias {{.*}} : (tensor<8x1xf32>, tensor<2xi32>, tensor<8xi32>) -> tensor<1x2x8xf32>
moe.state @embed : tensor<10x8xf32>
moe.state @bias : tensor<8x2xf32>
moe.state @q : tensor<2x4x8xf32>
func.func @forward(%source: tensor<2x8xi32>, %mask: tensor<2x8xi32>, %target: tensor<2x6xi32>) -> tensor<2x6x2x4xf32> {
  %table = moe.param @embed : tensor<10x8xf32>
  %w = moe.param @q : tensor<2x4x8xf32>
  %x = moe.embedding %source, %table : (tensor<2x8xi32>, tensor<10x8xf32>) -> tensor<2x8x8xf32>
  %pos = moe.positions : tensor<8xi32>
  %places = moe.token_positions %source pad 1 : (tensor<2x8xi32>) -> tensor<2x8xi32>
  %waves = moe.sinusoid %places offset 0 zero 1 : (tensor<2x8xi32>) -> tensor<2x8x8xf32>
  %h = moe.add %x, %waves : (tensor<2x8x8xf32>, tensor<2x8x8xf32>) -> tensor<2x8x8xf32>
  %k = moe.linear %h, %w contract 1 : (tensor<2x8x8xf32>, tensor<2x4x8xf32>) -> tensor<2x8x2x4xf32>
  %distances = moe.param @bias : tensor<8x2xf32>
  %bias = moe.relative_bias %distances, %pos, %pos max_distance 20 bidirectional : (tensor<8x2xf32>, tensor<8xi32>, tensor<8xi32>) -> tensor<2x8x8xf32>
  %a = moe.attention %k, %k, %k at %pos, %pos mask %mask bias %bias heads 2 over 2 scale 1.0 window 0 bidirectional
    : (tensor<2x8x2x4xf32>, tensor<2x8x2x4xf32>, tensor<2x8x2x4xf32>, tensor<8xi32>, tensor<8xi32>, tensor<2x8xi32>, tensor<2x8x8xf32>) -> tensor<2x8x2x4xf32>
  %y = moe.embedding %target, %table : (tensor<2x6xi32>, tensor<10x8xf32>) -> tensor<2x6x8xf32>
  %q = moe.linear %y, %w contract 1 : (tensor<2x6x8xf32>, tensor<2x4x8xf32>) -> tensor<2x6x2x4xf32>
  %targets = moe.positions : tensor<6xi32>
  %c = moe.attention %q, %a, %a at %targets, %pos mask %mask heads 2 over 2 scale 1.0 window 0 bidirectional
    : (tensor<2x6x2x4xf32>, tensor<2x8x2x4xf32>, tensor<2x8x2x4xf32>, tensor<6xi32>, tensor<8xi32>, tensor<2x8xi32>) -> tensor<2x6x2x4xf32>
  return %c : tensor<2x6x2x4xf32>
}
