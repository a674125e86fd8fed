// --dist-lower-dispatch: rows travel where the expert axes split the tokens, are selected where they do not, and the need of all dispatches
// is compared with the bound once, at the end.
// RUN: moe-opt %s --split-input-file --dist-lower-dispatch | FileCheck %s

// The sequence is split over ep, so a rank's rows of one expert come in one segment for each of its 2 batch rows. Slots are G=4 sources
// x P=2 destinations x B=6 rows. The down product leaves partial sums that travel home as they are.
// CHECK-LABEL: func.func @exchange
// CHECK-SAME: (%[[X:.*]]: tensor<4x6x8xf32, {{.*}}>, %[[R:.*]]: !moe.routing<{{.*}}>, %[[W:.*]]: tensor<4x8x8xf32, {{.*}}>)
// CHECK: %[[ZERO:.*]] = dist.zero_need : tensor<1xi32, #dist.sharding<[{}], partial = max{dp, ep}>>
// CHECK: %[[SLOTS:.*]], %[[COUNTS:.*]], %[[POS:.*]], %[[NEED:.*]] = dist.pack %[[X]], %[[R]] need %[[ZERO]] segments 2
// CHECK-SAME: -> (tensor<4x2x6x8xf32, #dist.sharding<[{dp, ep}, {}, {}, {}]>>, tensor<4x2x4xi32, #dist.sharding<[{dp, ep}, {}, {}]>>, tensor<4x6x2xi32, #dist.sharding<[{dp}, {ep}, {}]>>, tensor<1xi32, #dist.sharding<[{}], partial = max{dp, ep}>>)
// CHECK: %[[GOT:.*]] = dist.all_to_all %[[SLOTS]] from 0 to 1 over ["ep"] : {{.*}} -> tensor<4x2x6x8xf32, #dist.sharding<[{dp}, {ep}, {}, {}]>>
// CHECK: %[[GOTC:.*]] = dist.all_to_all %[[COUNTS]] from 0 to 1 over ["ep"] : {{.*}} -> tensor<4x2x4xi32, #dist.sharding<[{dp}, {ep}, {}]>>
// CHECK: %[[ROWS:.*]], %[[GROUPS:.*]] = dist.regroup %[[GOT]], %[[GOTC]] segments 2 : {{.*}} -> (tensor<48x8xf32, #dist.sharding<[ragged{dp}{ep} 2x6, {}]>>, tensor<2x4xi32, #dist.sharding<[{dp}, {ep}]>>)
// CHECK: %[[Y:.*]] = moe.grouped_matmul %[[ROWS]] by %[[GROUPS]], %[[W]]
// CHECK: %[[BACK:.*]] = dist.ungroup %[[Y]], %[[GOTC]] segments 2 : {{.*}} -> tensor<4x2x6x8xf32, #dist.sharding<[{dp}, {ep}, {}, {}], partial = sum{tp}>>
// CHECK: %[[HOME:.*]] = dist.all_to_all %[[BACK]] from 1 to 0 over ["ep"] : {{.*}} -> tensor<4x2x6x8xf32, #dist.sharding<[{dp, ep}, {}, {}, {}], partial = sum{tp}>>
// CHECK: dist.unpack %[[HOME]], %[[POS]], %[[R]] : {{.*}} -> tensor<4x6x8xf32, #dist.sharding<[{dp}, {ep}, {}], partial = sum{tp}>>
// CHECK: %[[MOST:.*]] = dist.all_reduce max %[[NEED]] over ["dp", "ep"] : {{.*}} -> tensor<1xi32, #dist.sharding<[{}]>>
// CHECK: dist.require_bound %[[MOST]] initial 6 worst 12
// CHECK-NEXT: return
dist.mesh @mesh ["dp", "ep", "tp"] = [2, 2, 2]
func.func @exchange(%x: tensor<4x6x8xf32, #dist.sharding<[{dp}, {ep}, {}]>>, %r: !moe.routing<4x6, experts = 4, k = 2, #dist.sharding<[{dp}, {ep}]>>,
                    %w: tensor<4x8x8xf32, #dist.sharding<[{ep}, {}, {tp}]>>) -> tensor<4x6x8xf32, #dist.sharding<[{dp}, {ep}, {}], partial = sum{tp}>> {
  %rows = moe.dispatch %x, %r {expert_axes = ["ep"], bound = 6} : (tensor<4x6x8xf32, #dist.sharding<[{dp}, {ep}, {}]>>, !moe.routing<4x6, experts = 4, k = 2, #dist.sharding<[{dp}, {ep}]>>) -> tensor<48x8xf32, #dist.sharding<[ragged{dp}{ep} 2x6, {}]>>
  %y = moe.grouped_matmul %rows by %r, %w contract 1 : (tensor<48x8xf32, #dist.sharding<[ragged{dp}{ep} 2x6, {}]>>, !moe.routing<4x6, experts = 4, k = 2, #dist.sharding<[{dp}, {ep}]>>, tensor<4x8x8xf32, #dist.sharding<[{ep}, {}, {tp}]>>) -> tensor<48x8xf32, #dist.sharding<[ragged{dp}{ep} 2x6, {}], partial = sum{tp}>>
  %z = moe.combine %y, %r : (tensor<48x8xf32, #dist.sharding<[ragged{dp}{ep} 2x6, {}], partial = sum{tp}>>, !moe.routing<4x6, experts = 4, k = 2, #dist.sharding<[{dp}, {ep}]>>) -> tensor<4x6x8xf32, #dist.sharding<[{dp}, {ep}, {}], partial = sum{tp}>>
  return %z : tensor<4x6x8xf32, #dist.sharding<[{dp}, {ep}, {}], partial = sum{tp}>>
}

// -----

// The batch is split over ep: a rank's tokens are one stretch, so one segment.
// CHECK-LABEL: func.func @batch
// CHECK: dist.pack %{{.*}} segments 1
dist.mesh @mesh ["ep"] = [2]
func.func @batch(%x: tensor<4x6x8xf32, #dist.sharding<[{ep}, {}, {}]>>, %r: !moe.routing<4x6, experts = 4, k = 2, #dist.sharding<[{ep}, {}]>>) {
  %rows = moe.dispatch %x, %r {expert_axes = ["ep"]} : (tensor<4x6x8xf32, #dist.sharding<[{ep}, {}, {}]>>, !moe.routing<4x6, experts = 4, k = 2, #dist.sharding<[{ep}, {}]>>) -> tensor<48x8xf32, #dist.sharding<[ragged{}{ep} 2x24, {}]>>
  return
}

// -----

// Tokens replicated over ep: no exchange, each rank selects its own experts' rows; the result is partial. The need of the first layer runs
// through the second.
// CHECK-LABEL: func.func @select
// CHECK: %[[ZERO:.*]] = dist.zero_need : tensor<1xi32, #dist.sharding<[{}], partial = max{ep}>>
// CHECK: %[[ROWS:.*]], %[[GROUPS:.*]], %[[POS:.*]], %[[NEED:.*]] = dist.select %{{.*}} need %[[ZERO]]
// CHECK-SAME: -> (tensor<6x8xf32, #dist.sharding<[ragged{}{ep} 1x3, {}]>>, tensor<1x4xi32, #dist.sharding<[{}, {ep}]>>, tensor<3x2xi32, #dist.sharding<[{}, {}], partial = max{ep}>>, tensor<1xi32, #dist.sharding<[{}], partial = max{ep}>>)
// CHECK: dist.merge %[[ROWS]], %[[POS]], %{{.*}} -> tensor<3x8xf32, #dist.sharding<[{}, {}], partial = sum{ep}>>
// CHECK: dist.select %{{.*}} need %[[NEED]]
// CHECK: dist.all_reduce max %{{.*}} over ["ep"]
// CHECK: dist.require_bound %{{.*}} initial 3 worst 6
dist.mesh @mesh ["ep"] = [2]
func.func @select(%x: tensor<3x8xf32, #dist.sharding<[{}, {}]>>, %r: !moe.routing<3, experts = 4, k = 2, #dist.sharding<[{}]>>) {
  %rows = moe.dispatch %x, %r {expert_axes = ["ep"], bound = 3} : (tensor<3x8xf32, #dist.sharding<[{}, {}]>>, !moe.routing<3, experts = 4, k = 2, #dist.sharding<[{}]>>) -> tensor<6x8xf32, #dist.sharding<[ragged{}{ep} 1x3, {}]>>
  %y = moe.combine %rows, %r : (tensor<6x8xf32, #dist.sharding<[ragged{}{ep} 1x3, {}]>>, !moe.routing<3, experts = 4, k = 2, #dist.sharding<[{}]>>) -> tensor<3x8xf32, #dist.sharding<[{}, {}], partial = sum{ep}>>
  %again = moe.dispatch %x, %r {expert_axes = ["ep"], bound = 3} : (tensor<3x8xf32, #dist.sharding<[{}, {}]>>, !moe.routing<3, experts = 4, k = 2, #dist.sharding<[{}]>>) -> tensor<6x8xf32, #dist.sharding<[ragged{}{ep} 1x3, {}]>>
  return
}

// -----

// Without ep nothing can overflow: all rows fit into one slot and nothing is required.
// CHECK-LABEL: func.func @one_rank
// CHECK: dist.select {{.*}} -> (tensor<6x8xf32, #dist.sharding<[ragged{}{} 1x6, {}]>>, tensor<1x4xi32, #dist.sharding<[{}, {}]>>
// CHECK-NOT: dist.all_reduce
// CHECK-NOT: dist.require_bound
func.func @one_rank(%x: tensor<3x8xf32, #dist.sharding<[{}, {}]>>, %r: !moe.routing<3, experts = 4, k = 2, #dist.sharding<[{}]>>) {
  %rows = moe.dispatch %x, %r : (tensor<3x8xf32, #dist.sharding<[{}, {}]>>, !moe.routing<3, experts = 4, k = 2, #dist.sharding<[{}]>>) -> tensor<6x8xf32, #dist.sharding<[ragged{}{} 1x6, {}]>>
  return
}
