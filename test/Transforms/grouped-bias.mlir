// An expert's bias on a mesh: its experts are split with the weights', it follows the rows through the dispatch, and where rows are partial
// sums only the first rank of each sum adds it.
// RUN: moe-opt %s --dist-shard-pipeline="mesh=ep=2,tp=2" --dist-partition-pipeline --dist-localize-pipeline | FileCheck %s

// CHECK: moe.state @up_bias : tensor<4x2x6xf32, #dist.sharding<[{ep}, {}, {tp}]>>
// CHECK: moe.state @down_bias : tensor<4x8xf32, #dist.sharding<[{ep}, {}]>>
// CHECK: %[[ROWS:.*]], %[[GROUPS:.*]] = dist.regroup
// CHECK: %[[UP:.*]] = moe.grouped_matmul %[[ROWS]] by %[[GROUPS]]
// CHECK: moe.grouped_bias %[[UP]] by %[[GROUPS]], %{{.*}} : (tensor<{{.*}}x2x3xf32, {{.*}}>, tensor<1x2xi32>, tensor<2x2x3xf32>)
// CHECK: %[[DOWN:.*]] = moe.grouped_matmul %{{.*}} by %[[GROUPS]]
// CHECK: moe.grouped_bias %[[DOWN]] by %[[GROUPS]], %{{.*}} {part = #dist.offset<{tp} * 1>} : (tensor<{{.*}}x8xf32, {{.*}}>, tensor<1x2xi32>, tensor<2x8xf32>)
moe.state @table : tensor<16x8xf32>
moe.state @norm : tensor<8xf32>
moe.state @up : tensor<4x2x6x8xf32>
moe.state @up_bias : tensor<4x2x6xf32>
moe.state @down : tensor<4x8x6xf32>
moe.state @down_bias : tensor<4x8xf32>
moe.state @gate : tensor<4x8xf32>
func.func @forward(%ids: tensor<2x4xi32> {moe.name = "input_ids"}) -> (tensor<2x4x8xf32> {moe.name = "out"}) {
  %table = moe.param @table : tensor<16x8xf32>
  %h = moe.embedding %ids, %table : (tensor<2x4xi32>, tensor<16x8xf32>) -> tensor<2x4x8xf32>
  %norm = moe.param @norm : tensor<8xf32>
  %x = moe.layer_norm %h, %norm eps 1.0e-5 : (tensor<2x4x8xf32>, tensor<8xf32>) -> tensor<2x4x8xf32>
  %gate = moe.param @gate : tensor<4x8xf32>
  %logits = moe.linear %x, %gate contract 1 : (tensor<2x4x8xf32>, tensor<4x8xf32>) -> tensor<2x4x4xf32>
  %r = moe.route #moe.router<k = 2, score = softmax, order = score_topk, renorm = none, scale = 1.0 : f64> of %logits : (tensor<2x4x4xf32>) -> !moe.routing<2x4, experts = 4, k = 2>
  %rows = moe.dispatch %x, %r : (tensor<2x4x8xf32>, !moe.routing<2x4, experts = 4, k = 2>) -> tensor<16x8xf32>
  %up = moe.param @up : tensor<4x2x6x8xf32>
  %u = moe.grouped_matmul %rows by %r, %up contract 1 : (tensor<16x8xf32>, !moe.routing<2x4, experts = 4, k = 2>, tensor<4x2x6x8xf32>) -> tensor<16x2x6xf32>
  %up_bias = moe.param @up_bias : tensor<4x2x6xf32>
  %ub = moe.grouped_bias %u by %r, %up_bias : (tensor<16x2x6xf32>, !moe.routing<2x4, experts = 4, k = 2>, tensor<4x2x6xf32>) -> tensor<16x2x6xf32>
  %g = moe.glu silu %ub limit 7.0 alpha 1.702 up_shift 1.0 : (tensor<16x2x6xf32>) -> tensor<16x6xf32>
  %down = moe.param @down : tensor<4x8x6xf32>
  %d = moe.grouped_matmul %g by %r, %down contract 1 : (tensor<16x6xf32>, !moe.routing<2x4, experts = 4, k = 2>, tensor<4x8x6xf32>) -> tensor<16x8xf32>
  %down_bias = moe.param @down_bias : tensor<4x8xf32>
  %db = moe.grouped_bias %d by %r, %down_bias : (tensor<16x8xf32>, !moe.routing<2x4, experts = 4, k = 2>, tensor<4x8xf32>) -> tensor<16x8xf32>
  %y = moe.combine %db, %r : (tensor<16x8xf32>, !moe.routing<2x4, experts = 4, k = 2>) -> tensor<2x4x8xf32>
  return %y : tensor<2x4x8xf32>
}
